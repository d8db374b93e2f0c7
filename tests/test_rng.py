"""Randomness as a function of a key and a place."""

from itertools import permutations

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy.stats import chisquare, kstest
from torch.func import vmap
from worlds import keys

from fcurr import rng

MANY = 20_000  # keys, where a frequency is counted
RARE = 1e-4  # a true law is rejected with this chance; keys are fixed, so a test that passes goes on passing


def shuffled(size: int, key) -> torch.Tensor:
    return rng.shuffle(torch.arange(size), size, key)


def frequencies(values: torch.Tensor, kinds: int) -> list[int]:
    return torch.bincount(values.flatten(), minlength=kinds).tolist()


@given(size=st.integers(1, 3000), key=keys)
def test_shuffle_is_a_bijection_for_any_size_and_key(size, key):
    assert torch.equal(shuffled(size, key).sort().values, torch.arange(size))


@given(size=st.integers(10**6, 10**13), key=keys)
def test_shuffle_keeps_positions_apart_and_in_range_where_no_permutation_fits_in_memory(size, key):
    near_the_ends = torch.cat([torch.arange(500), size - 1 - torch.arange(500), size // 2 + torch.arange(500)])
    places = rng.shuffle(near_the_ends, size, key)
    assert places.min() >= 0 and places.max() < size and len(places.unique()) == len(near_the_ends)


@pytest.mark.parametrize("size", [2, 3, 4, 5])
def test_all_permutations_of_a_small_range_are_equally_frequent(size):
    powers = size ** torch.arange(size)
    found = (rng.shuffle(torch.arange(size), size, torch.arange(MANY).unsqueeze(1)) * powers).sum(1)
    codes = [int((torch.tensor(one) * powers).sum()) for one in permutations(range(size))]
    counts = [int((found == code).sum()) for code in codes]
    assert sum(counts) == MANY
    assert chisquare(counts).pvalue > RARE


@pytest.mark.parametrize("size", [7, 12, 37, 100])
def test_every_position_goes_everywhere_equally_often(size):
    places = rng.shuffle(torch.arange(size), size, torch.arange(MANY).unsqueeze(1))
    worst = min(chisquare(frequencies(places[:, position], size)).pvalue for position in range(size))
    assert worst > RARE / size


@pytest.mark.parametrize("size", [7, 12, 37, 100])
def test_neighbours_part_by_every_distance_equally_often(size):
    places = rng.shuffle(torch.arange(size), size, torch.arange(MANY).unsqueeze(1))
    apart = (places[:, 1:] - places[:, :-1]) % size - 1  # in [0, size - 2]
    worst = min(chisquare(frequencies(apart[:, place], size - 1)).pvalue for place in range(size - 1))
    assert worst > RARE / size


def test_shuffles_of_neighbouring_keys_agree_no_more_often_than_by_chance():
    size = 100
    places = rng.shuffle(torch.arange(size), size, torch.arange(MANY).unsqueeze(1))
    agree = (places[1:] == places[:-1]).double().sum(1)  # one position on average, variance one
    assert abs(agree.mean() - 1) < 4 / MANY**0.5
    assert abs(agree.var() - 1) < 0.1


@given(size=st.integers(1, 50), key=keys)
def test_shuffle_gives_the_same_numbers_mapped_over_keys_sizes_and_positions_as_looped(size, key):
    key_list, sizes = torch.tensor([key, 0, 1]), torch.tensor([size, size + 1, 2 * size])
    position = torch.arange(size)
    one = lambda k, n: vmap(lambda p: rng.shuffle(p, n, k))(position)  # noqa: E731
    mapped = vmap(one)(key_list, sizes)
    broadcast = rng.shuffle(position, sizes.unsqueeze(1), key_list.unsqueeze(1))
    for row, k, n in zip(range(3), key_list.tolist(), sizes.tolist(), strict=True):
        turn = torch.stack([rng.shuffle(p, n, k) for p in range(size)])
        assert torch.equal(mapped[row], turn) and torch.equal(broadcast[row], turn)


@given(key=keys, place=keys)
def test_fold_and_uniform_give_the_same_numbers_mapped_as_looped(key, place):
    key_list, places = torch.tensor([key, place, 0]), torch.tensor([place, 3, key])
    for function in (rng.fold, rng.uniform):
        turn = torch.stack([function(k, p) for k, p in zip(key_list.tolist(), places.tolist(), strict=True)])
        assert torch.equal(vmap(function)(key_list, places), turn)
        assert torch.equal(function(key_list, places), turn)


@given(key=keys, a=keys, b=keys)
def test_fold_never_confuses_two_places_of_a_key(key, a, b):
    assume(a != b)
    assert rng.fold(key, a) != rng.fold(key, b)


@given(key=keys, a=keys, b=keys)
def test_fold_never_confuses_one_place_of_two_keys(key, a, b):
    assume(a != b)
    assert rng.fold(a, key) != rng.fold(b, key)


def test_fold_distinguishes_places_of_two_coordinates_and_their_order():
    side = torch.arange(300)
    grid = rng.fold(0, side.unsqueeze(1), side)
    assert len(grid.unique()) == grid.numel()
    assert (grid == grid.T).sum() == len(side)


def test_fold_is_the_fold_of_its_places_in_turn():
    assert rng.fold(5, 6, 7) == rng.fold(rng.fold(5, 6), 7)
    assert rng.fold(5) == 5


def test_every_bit_of_a_place_moves_every_bit_of_the_key_half_of_the_time():
    places = rng.fold(1, torch.arange(4000))
    bits = torch.arange(64)
    moved = rng.fold(3, places) ^ rng.fold(3, places ^ (1 << bits.unsqueeze(1)))  # [bit of place, place]
    rates = ((moved.unsqueeze(-1) >> bits) & 1).double().mean(1)  # [bit of place, bit of key]
    assert (rates - 0.5).abs().max() < 5.5 * 0.5 / len(places) ** 0.5


@given(key=keys, place=keys)
def test_uniform_is_in_the_half_open_unit_interval(key, place):
    number = rng.uniform(key, torch.tensor([place, place ^ 1, ~place]))
    assert number.dtype == torch.float32 and number.min() >= 0 and number.max() < 1


def test_uniform_has_the_moments_and_the_distribution_of_the_uniform():
    number = rng.uniform(7, torch.arange(100_000)).double()
    error = len(number) ** -0.5
    for power in (1, 2, 3, 4):
        spread = (1 / (2 * power + 1) - 1 / (power + 1) ** 2) ** 0.5
        assert abs((number**power).mean() - 1 / (power + 1)) < 4 * spread * error
    assert kstest(number.numpy(), "uniform").pvalue > RARE
    assert abs(torch.corrcoef(torch.stack([number[1:], number[:-1]]))[0, 1]) < 4 * error


@given(key=keys, a=keys, b=keys)
def test_a_generator_is_a_function_of_its_key_and_place(key, a, b):
    assume(a != b)
    draw = lambda place: torch.rand(4, generator=rng.generator(key, place))  # noqa: E731
    assert torch.equal(draw(a), draw(a)) and not torch.equal(draw(a), draw(b))


def test_nothing_random_touches_the_global_generator_of_torch():
    before = torch.random.get_rng_state()
    rng.shuffle(torch.arange(10), 10, rng.fold(1, 2)), rng.uniform(3, 4), torch.rand(3, generator=rng.generator(5))
    assert torch.equal(before, torch.random.get_rng_state())


def test_five_rounds_of_a_shuffle_are_too_few_and_the_rounds_it_has_are_not():
    """Why ROUNDS is 8: after five, the 720 permutations of six are visibly not equally frequent."""
    key, powers = rng.fold(3, torch.arange(MANY)).unsqueeze(1), 6 ** torch.arange(6)
    for rounds, enough in ((5, False), (rng.ROUNDS, True)):
        found = (rng.shuffle(torch.arange(6), 6, key, rounds) * powers).sum(1)
        counts = found.unique(return_counts=True)[1].tolist()
        assert (chisquare(counts + [0] * (720 - len(counts))).pvalue > RARE) == enough
