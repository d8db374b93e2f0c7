"""Samples changed at random: what is drawn, from what, and what becomes of samples and labels."""

from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from torch.func import vmap
from torch.fx.experimental.proxy_tensor import make_fx
from worlds import keys, numbers, public, seeds

from fcurr import rng
from fcurr.data import augmentations
from fcurr.types import Batch

FIXED = {
    "noise": {"deviation": 0.5},
    "mixup": {"classes": 3},
    "cutmix": {"classes": 3},
    "time_mask": {"width": 4, "masks": 2},
    "frequency_mask": {"width": 3},
}
AUGMENTATIONS = [partial(f, **FIXED.get(f.__name__, {})) for f in public(augmentations)]
every_augmentation = pytest.mark.parametrize("augment", AUGMENTATIONS, ids=lambda a: a.func.__name__)
alone = [a for a in AUGMENTATIONS if a.func.__name__ not in ("mixup", "cutmix")]


def place(key: int = 0, iteration: int = 0):
    return torch.tensor(key), torch.tensor(iteration)


def pictures(size: int = 6, seed: int = 0, features=(2, 7, 9), dtype=torch.float32) -> Batch:
    """Pictures without a 0 in them."""
    x = 1 + numbers(size, *features, seed=seed).abs().to(dtype)
    return Batch(x=x, y=torch.arange(size) % 3, id=10 + 3 * torch.arange(size))


def part(batch: Batch, places) -> Batch:
    return Batch(*(leaf[places] for leaf in batch))


def same(a: Batch, b: Batch) -> bool:
    return all(one.dtype == other.dtype and torch.equal(one, other) for one, other in zip(a, b, strict=True))


def many(augment, count: int = 20_000, features=(1, 5, 7), key: int = 1) -> Batch:
    """What becomes of very many pictures of ones."""
    x = torch.ones(1, *features).expand(count, *features)
    return augment(Batch(x=x, y=torch.arange(count) % 3, id=torch.arange(count)), place(key))


def assert_uniform(values, size: int) -> None:
    counts = np.bincount(np.asarray(values), minlength=size)
    assert len(counts) == size and stats.chisquare(counts).pvalue > 1e-4


@every_augmentation
@given(key=keys, iteration=st.integers(0, 2**31), seed=seeds)
def test_what_a_sample_becomes_does_not_depend_on_places_in_the_batch(augment, key, iteration, seed):
    batch, turn = pictures(), rng.shuffle(torch.arange(6), 6, seed)
    assert same(part(augment(batch, place(key, iteration)), turn), augment(part(batch, turn), place(key, iteration)))


@pytest.mark.parametrize("augment", alone, ids=lambda a: a.func.__name__)
@given(key=keys, seed=seeds, size=st.integers(1, 6))
def test_what_a_sample_becomes_does_not_depend_on_its_neighbours(augment, key, seed, size):
    few = rng.shuffle(torch.arange(6), 6, seed)[:size]
    assert same(part(augment(pictures(), place(key)), few), augment(part(pictures(), few), place(key)))


@every_augmentation
def test_mapped_over_keys_equals_looped_with_samples_shared_and_with_samples_of_their_own(augment):
    streams = torch.tensor([3, -(2**62), 7])
    right = [augment(pictures(), (key, torch.tensor(5))) for key in streams]
    batch = pictures()
    shared = vmap(lambda key: augment(batch, (key, torch.tensor(5))))(streams)
    own = [pictures(seed=seed) for seed in range(3)]
    stacked = Batch(*(torch.stack(leaves) for leaves in zip(*own, strict=True)))
    mapped = vmap(lambda batch, key: augment(batch, (key, torch.tensor(5))))(stacked, streams)
    for member, key in enumerate(streams):
        assert same(Batch(*(leaf[member] for leaf in shared)), right[member])
        assert same(Batch(*(leaf[member] for leaf in mapped)), augment(own[member], (key, torch.tensor(5))))


@every_augmentation
def test_a_traced_program_gives_for_other_samples_and_keys_what_the_function_gives(augment):
    traced = make_fx(lambda batch, key, iteration: augment(batch, (key, iteration)))(pictures(), *place())
    for key in range(8):
        batch = pictures(seed=key)._replace(id=torch.randperm(6, generator=torch.Generator().manual_seed(key)))
        assert same(Batch(*traced(batch, *place(key, 2 * key))), augment(batch, place(key, 2 * key)))


@every_augmentation
def test_keys_iterations_and_ids_draw_apart_and_the_same_place_draws_the_same(augment):
    batch = pictures(12, features=(1, 12, 12))
    one = augment(batch, place(1, 1))
    assert same(one, augment(batch, place(1, 1)))
    assert not torch.equal(one.x, augment(batch, place(2, 1)).x) and not torch.equal(
        one.x, augment(batch, place(1, 2)).x
    )
    assert not torch.equal(one.x, augment(batch._replace(id=batch.id + 1), place(1, 1)).x)


@every_augmentation
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_samples_keep_shape_and_precision_and_ids_are_kept_and_nothing_is_written_to(augment, dtype):
    batch = pictures(dtype=dtype)
    before = Batch(*(leaf.clone() for leaf in batch))
    after = augment(batch, place(3))
    assert same(batch, before)
    assert after.x.shape == batch.x.shape and after.x.dtype == dtype and torch.equal(after.id, batch.id)
    if augment.func.__name__ in ("mixup", "cutmix"):
        assert after.y.shape == (6, 3) and after.y.dtype == dtype
    else:
        assert torch.equal(after.y, batch.y)


@every_augmentation
def test_new_tensors_are_made_on_the_device_of_the_samples(augment):
    batch = Batch(*(leaf.to("meta") for leaf in pictures()))
    after = augment(batch, tuple(part.to("meta") for part in place()))
    assert all(leaf.is_meta for leaf in after) and after.x.shape == batch.x.shape


def test_no_two_augmentations_draw_the_same_numbers():
    streams = set()
    names = [f.__name__ for f in public(augmentations)]
    for name in names:
        streams.add(int(augmentations._keys(pictures(), place(), name.encode()[:7])[0]))
    assert len(streams) == len(names) == len({name[:7] for name in names})


@given(key=keys)
def test_a_flip_mirrors_left_and_right_or_leaves_the_picture(key):
    batch = pictures()
    for before, after in zip(batch.x.numpy(), augmentations.flip(batch, place(key)).x.numpy(), strict=True):
        assert (after == before).all() or (after == before[:, :, ::-1]).all()


@pytest.mark.parametrize("chance, low, high", [(0.0, 0, 0), (0.3, 5700, 6300), (1.0, 20_000, 20_000)])
def test_a_flip_is_as_frequent_as_asked_for(chance, low, high):
    batch = Batch(x=torch.arange(2.0).expand(20_000, 1, 1, 2), y=torch.zeros(20_000), id=torch.arange(20_000))
    turned = int(augmentations.flip(batch, place(), chance=chance).x[:, 0, 0, 0].sum())
    assert low <= turned <= high


@given(key=keys, padding=st.integers(1, 5))
def test_a_crop_is_a_window_of_the_framed_picture(key, padding):
    batch = pictures()
    for before, after in zip(
        batch.x.numpy(), augmentations.crop(batch, place(key), padding=padding).x.numpy(), strict=True
    ):
        framed = np.pad(before, [(0, 0), (padding, padding), (padding, padding)])
        corners = [(top, left) for top in range(2 * padding + 1) for left in range(2 * padding + 1)]
        assert any((framed[:, top : top + 7, left : left + 9] == after).all() for top, left in corners)


def test_a_crop_is_as_likely_to_begin_at_one_place_as_at_any_other():
    x = torch.arange(1.0, 26).reshape(1, 1, 5, 5).expand(20_000, 1, 5, 5)
    cut = augmentations.crop(Batch(x=x, y=torch.zeros(20_000), id=torch.arange(20_000)), place(), padding=2).x
    middle = cut[:, 0, 2, 2].long() - 1  # the pixel that came to the middle is what the corner was
    assert_uniform(middle, 25)


def test_noise_is_normal_with_the_deviation_asked_for_and_independent_between_numbers_and_samples():
    batch = Batch(x=torch.full((2000, 11), 3.0), y=torch.zeros(2000), id=torch.arange(2000))
    drawn = (augmentations.noise(batch, place(5), deviation=0.25).x.double() - 3) / 0.25
    assert stats.kstest(drawn.flatten().numpy(), "norm").pvalue > 1e-4
    across = np.corrcoef(drawn.T.numpy()) - np.eye(11)
    assert np.abs(across).max() < 4.5 / 2000**0.5
    assert abs(np.corrcoef(drawn[1:, 0], drawn[:-1, 0])[0, 1]) < 4.5 / 2000**0.5
    squares = np.corrcoef(drawn.square().T.numpy()) - np.eye(11)  # the two of a pair share a radius
    assert np.abs(squares).max() < 4.5 / 2000**0.5


def test_noise_takes_samples_of_any_shape_and_no_noise_changes_nothing():
    for features in ((), (1,), (3,), (2, 3, 4)):
        batch = pictures(features=features)
        assert not torch.equal(augmentations.noise(batch, place(), deviation=1.0).x, batch.x)
        assert torch.equal(augmentations.noise(batch, place(), deviation=0.0).x, batch.x)


@pytest.mark.parametrize("alpha", [0.2, 0.5, 1.0, 2.0, 8.0, 1000.0])
def test_shares_have_the_symmetric_beta_distribution(alpha):
    share = augmentations._beta(rng.fold(7, torch.arange(50_000)), alpha)
    assert share.min() >= 0 and share.max() <= 1 and share.dtype == torch.float64
    assert stats.kstest(share.numpy(), stats.beta(alpha, alpha).cdf).pvalue > 1e-4


def test_shares_of_a_small_alpha_have_its_distribution_between_what_float64_takes_for_0_and_for_1():
    share = np.sort(augmentations._beta(rng.fold(7, torch.arange(50_000)), 0.05).numpy())
    at = np.concatenate([np.logspace(-12, -1, 200), np.linspace(0.1, 0.9, 100), 1 - np.logspace(-12, -1, 200)])
    part = np.searchsorted(share, at) / 50_000
    assert np.abs(part - stats.beta(0.05, 0.05).cdf(at)).max() < 2.23 / 50_000**0.5  # Kolmogorov and Smirnov, 1e-4


@pytest.mark.parametrize("alpha", [0.01, 1e6])
def test_shares_are_shares_at_the_ends_of_what_alpha_may_be(alpha):
    share = augmentations._beta(rng.fold(7, torch.arange(50_000)), alpha)
    assert share.isfinite().all() and share.min() >= 0 and share.max() <= 1 and abs(share.mean() - 0.5) < 0.01


@given(key=keys, size=st.integers(1, 8), alpha=st.sampled_from([0.2, 1.0, 5.0]))
def test_mixup_is_the_same_mean_of_samples_and_labels_with_the_partner_of_a_circle(key, size, alpha):
    batch = pictures(size, dtype=torch.float64)
    mixed = augmentations.mixup(batch, place(key), classes=3, alpha=alpha)
    streams = augmentations._keys(batch, place(key), b"mixup").tolist()
    circle = sorted(range(size), key=lambda one: streams[one])
    onehot = np.eye(3)
    for at, one in enumerate(circle):
        other = circle[(at + 1) % size]
        share = float(augmentations._beta(torch.tensor([streams[one]]), alpha))
        x = share * batch.x[one].numpy() + (1 - share) * batch.x[other].numpy()
        y = share * onehot[one % 3] + (1 - share) * onehot[other % 3]
        np.testing.assert_allclose(mixed.x[one].numpy(), x, rtol=1e-12)
        np.testing.assert_allclose(mixed.y[one].numpy(), y, rtol=1e-12, atol=1e-15)


def test_a_partner_is_any_other_sample_equally_often_and_never_the_sample_itself():
    streams = rng.fold(torch.arange(8000).unsqueeze(1), torch.arange(6))  # [iteration, sample]
    other = vmap(augmentations._partner)(streams)
    assert (other.sort(1).values == torch.arange(6)).all()
    for one in range(6):
        counts = torch.bincount(other[:, one], minlength=6)
        assert counts[one] == 0
        assert stats.chisquare(np.delete(counts.numpy(), one)).pvalue > 1e-4


@pytest.mark.parametrize("name", ["mixup", "cutmix"])
def test_sets_of_classes_and_targets_are_mixed_in_the_shares_that_classes_are(name):
    augment, batch = partial(getattr(augmentations, name), classes=3), pictures()
    right = augment(batch, place(2)).y
    onehot = torch.eye(3)[batch.y]
    assert torch.equal(augment(batch._replace(y=onehot.bool()), place(2)).y, right)
    torch.testing.assert_close(augment(batch._replace(y=5 * onehot), place(2)).y, 5 * right)


@given(key=keys, alpha=st.sampled_from([0.3, 1.0, 4.0]))
def test_cutmix_is_a_box_of_the_partner_and_labels_are_shares_of_area(key, alpha):
    batch = pictures(5)
    mixed = augmentations.cutmix(batch, place(key), classes=3, alpha=alpha)
    streams = augmentations._keys(batch, place(key), b"cutmix")
    other = augmentations._partner(streams)
    for one in range(5):
        share = float(augmentations._beta(streams[one : one + 1], alpha))
        right, kept = batch.x[one].numpy().copy(), np.ones((7, 9))
        spans = []
        for stream, size in ((3, 7), (4, 9)):
            centre = (int(rng.fold(streams[one], stream)) >> 1) % 2**63 % size
            side = int(size * (1 - share) ** 0.5)
            spans.append(slice(max(0, centre - side // 2), max(0, min(size, centre - side // 2 + side))))
        right[:, spans[0], spans[1]] = batch.x[other[one]].numpy()[:, spans[0], spans[1]]
        kept[spans[0], spans[1]] = 0
        assert (mixed.x[one].numpy() == right).all()
        y = kept.mean() * np.eye(3)[one % 3] + (1 - kept.mean()) * np.eye(3)[int(other[one]) % 3]
        np.testing.assert_allclose(mixed.y[one].numpy(), y, rtol=1e-6, atol=1e-7)


def test_cutmix_leaves_the_samples_it_is_not_to_change():
    batch = pictures(2000, features=(1, 8, 8))
    never = augmentations.cutmix(batch, place(), classes=3, chance=0.0)
    assert torch.equal(never.x, batch.x) and torch.equal(never.y, torch.eye(3)[batch.y])
    half = augmentations.cutmix(batch, place(), classes=3, chance=0.5)
    always = augmentations.cutmix(batch, place(), classes=3)
    changed = [(found.x != batch.x).flatten(1).any(1) for found in (half, always)]
    assert 0.45 < changed[0].sum() / changed[1].sum() < 0.55
    assert torch.equal(half.x[changed[0]], always.x[changed[0]])


@pytest.mark.parametrize("name, axis, size", [("time_mask", 3, 9), ("frequency_mask", 2, 7)])
def test_a_mask_is_a_span_of_its_axis_of_uniform_length_at_a_uniform_place(name, axis, size):
    augment = partial(getattr(augmentations, name), width=4)
    hidden = (many(augment, features=(1, 7, 9)).x == 0).transpose(axis, -1)[:, 0]
    assert (hidden == hidden[:, :1]).all()
    hidden = hidden[:, 0].long()  # [sample, place]
    lengths, begins = hidden.sum(1), hidden.argmax(1)
    assert_uniform(lengths, 5)
    for length in range(1, 5):
        at = begins[lengths == length]
        assert_uniform(at, size - length + 1)
        spans = at.unsqueeze(1) + torch.arange(length)
        assert hidden[lengths == length].gather(1, spans).all()


@pytest.mark.parametrize("name, axis", [("time_mask", -1), ("frequency_mask", -2)])
def test_several_masks_hide_the_union_of_spans_drawn_apart_and_a_wide_one_at_most_everything(name, axis):
    augment = getattr(augmentations, name)
    one, three = (many(partial(augment, width=2, masks=masks), 4000, features=(8, 8)).x == 0 for masks in (1, 3))
    assert (one <= three).all() and three.sum() > 2 * one.sum()
    assert three.any(1).any(1).float().mean() > one.any(1).any(1).float().mean()
    wide = many(partial(augment, width=100), 4000, features=(3, 8, 8)).x == 0
    lengths = wide.transpose(axis, -1)[:, 0, 0].sum(1)
    assert_uniform(lengths, 9)


def test_an_erased_box_is_drawn_as_the_formula_draws_it():
    batch = pictures(300, features=(2, 7, 9))
    erased = augmentations.erase(batch, place(4), chance=0.7)
    streams = augmentations._keys(batch, place(4), b"erase")
    boxes = 0
    for before, after, key in zip(batch.x.numpy(), erased.x.numpy(), streams, strict=True):
        right = before.copy()
        tries = [rng.fold(key, number) for number in range(10)]
        for one in tries if float(rng.uniform(key, 12)) < np.float32(0.7) else []:
            area = np.float32(63) * np.float32(0.02 + 0.38 * float(rng.uniform(one, 0)))
            ratio = 0.3 + (1 / 0.3 - 0.3) * float(rng.uniform(one, 1))
            high, wide = round(float((area * ratio) ** 0.5)), round(float((area / ratio) ** 0.5))
            if high <= 7 and wide <= 9:
                top = (int(rng.fold(key, 10)) >> 1) % 2**63 % (8 - high)
                left = (int(rng.fold(key, 11)) >> 1) % 2**63 % (10 - wide)
                right[:, top : top + high, left : left + wide] = 0
                boxes += 1
                break
        assert (after == right).all()
    assert 180 < boxes < 240


def test_an_erased_area_is_uniform_between_its_bounds_but_for_rounding_to_pixels():
    picture = torch.ones(1, 1, 64, 64).expand(3000, 1, 64, 64)
    batch = Batch(x=picture, y=torch.zeros(3000), id=torch.arange(3000))
    area = (augmentations.erase(batch, place(), chance=1.0, smallest=0.1, largest=0.3).x == 0).double().mean((1, 2, 3))
    assert area.min() > 0.09 and area.max() < 0.31
    assert stats.kstest(area.numpy(), stats.uniform(0.1, 0.2).cdf).statistic < 0.03


def test_a_picture_that_no_box_fits_is_left_as_it_is():
    batch = pictures(50, features=(1, 1, 200))
    assert torch.equal(augmentations.erase(batch, place(), chance=1.0, smallest=0.5, largest=0.6).x, batch.x)


@pytest.mark.parametrize("augment", [partial(f, **FIXED.get(f.__name__, {})) for f in public(augmentations)], ids=str)
def test_samples_of_another_rank_are_refused_by_those_that_need_theirs(augment):
    flat = Batch(x=torch.ones(4, 5), y=torch.zeros(4, dtype=torch.int64), id=torch.arange(4))
    name = augment.func.__name__
    if name in ("noise", "mixup"):
        assert augment(flat, place()).x.shape == (4, 5)
        return
    what = "spectrograms [batch, ..., frequency, time]" if "mask" in name else "pictures [channel, height, width]"
    with pytest.raises(ValueError) as raised:
        augment(flat, place())
    assert str(raised.value) == f"{name} wants {what}, not samples of shape [5]"


@pytest.mark.parametrize(
    "name, fixed", [("noise", {"deviation": 1.0}), ("mixup", {"classes": 2}), ("cutmix", {"classes": 2})]
)
def test_tokens_are_refused_by_those_that_reckon_with_numbers(name, fixed):
    batch = pictures()._replace(x=torch.ones(6, 1, 2, 2, dtype=torch.int64))
    with pytest.raises(ValueError) as raised:
        getattr(augmentations, name)(batch, place(), **fixed)
    assert str(raised.value) == f"{name} wants samples of floating-point numbers, not torch.int64"


def test_what_cannot_be_mixed_or_erased_is_refused():
    batch = pictures()._replace(y=torch.zeros(6, 2, dtype=torch.int64))
    with pytest.raises(
        ValueError, match=r"mixup wants a class a sample, \[batch\], or shares, not labels of shape \[6, 2\]"
    ):
        augmentations.mixup(batch, place(), classes=2)
    with pytest.raises(ValueError, match=r"erase: the largest area, 0\.1, is less than the smallest, 0\.2"):
        augmentations.erase(batch, place(), smallest=0.2, largest=0.1)
