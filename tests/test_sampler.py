"""Which samples come at iteration t."""

from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from worlds import keys, seeds

from fcurr import pacing, rng, sampler, tree

clocks = st.sampled_from(["step", "epoch"])
sizes = st.lists(st.integers(1, 20), min_size=1, max_size=8).map(sorted)  # of 20 samples
batch_sizes, steps = st.integers(1, 30), st.integers(1, 12)
ORDER = rng.shuffle(torch.arange(20), 20, 5)


def course(table, key=0, order=ORDER) -> sampler.Lessons:
    return sampler.lessons(order, torch.tensor(table), torch.tensor(key))


def one_by_one(lessons, count, batch_size, clock, cursor=None, begin=0):
    """[step, ..., batch] ids, and the last cursor."""
    cursor, drawn = cursor or sampler.start(lessons), []
    for iteration in range(begin, begin + count):
        visits = sampler.visit(cursor, torch.tensor(iteration), lessons, batch_size=batch_size, clock=clock)
        drawn.append(sampler.ids(visits, lessons))
        cursor = sampler.after(visits)
    return torch.stack(drawn), cursor


def visits_by_definition(table, count, batch_size, clock):
    """(epoch, position, size) a sample, one sample at a time."""
    epoch, position, size = 0, 0, table[0]
    for iteration in range(count):
        for _ in range(batch_size):
            if position == size:
                epoch, position = epoch + 1, 0
                size = table[min(epoch if clock == "epoch" else iteration, len(table) - 1)]
            yield epoch, position, size
            position += 1


@given(table=sizes, count=steps, batch_size=batch_sizes, clock=clocks)
def test_passes_follow_one_another_as_the_pace_says_by_steps_or_by_passes(table, count, batch_size, clock):
    lessons, cursor, found = course(table), sampler.start(course(table)), []
    for iteration in range(count):
        visits = sampler.visit(cursor, torch.tensor(iteration), lessons, batch_size=batch_size, clock=clock)
        found += list(zip(visits.epoch.tolist(), visits.position.tolist(), visits.size.tolist(), strict=True))
        cursor = sampler.after(visits)
    assert found == list(visits_by_definition(table, count, batch_size, clock))


@given(table=sizes, key=keys, batch_size=batch_sizes, clock=clocks)
def test_a_pass_visits_every_sample_in_play_exactly_once_and_no_other(table, key, batch_size, clock):
    lessons = course(table, key)
    drawn, _ = one_by_one(lessons, 12, batch_size, clock)
    places = list(visits_by_definition(table, 12, batch_size, clock))
    passes: dict[int, list[int]] = {}
    for one, (epoch, _, _) in zip(drawn.flatten().tolist(), places, strict=True):
        passes.setdefault(epoch, []).append(one)
    for epoch, size in {(epoch, size) for epoch, _, size in places}:
        in_play = set(ORDER[:size].tolist())
        if epoch < max(passes):
            assert sorted(passes[epoch]) == sorted(in_play)
        else:
            assert len(set(passes[epoch])) == len(passes[epoch]) and set(passes[epoch]) <= in_play


def test_passes_are_shuffled_differently_by_pass_and_by_key():
    drawn, _ = one_by_one(course([20]), 3, 20, "step")
    other, _ = one_by_one(course([20], key=1), 1, 20, "step")
    lines = {tuple(line) for line in (*drawn.tolist(), *other.tolist(), ORDER.tolist())}
    assert len(lines) == 5


def test_every_sample_in_play_is_as_likely_to_be_first_as_any_other():
    firsts = [int(sampler.draw(sampler.start(c), torch.tensor(0), c, batch_size=1)) for c in map(keyed, range(4000))]
    counts = torch.bincount(torch.tensor(firsts), minlength=20)
    in_play = counts[ORDER[:8]].double()
    assert in_play.sum() == 4000 and ((in_play - 500).square() / 500).sum() < 29.9  # chi-square, 7 degrees, 1e-4


def keyed(key: int) -> sampler.Lessons:
    return course([8], key)


@given(table=sizes, key=keys, count=steps, batch_size=batch_sizes, clock=clocks)
def test_drawing_ahead_equals_drawing_one_by_one(table, key, count, batch_size, clock):
    lessons = course(table, key)
    cursor, begin = sampler.start(lessons), torch.tensor(0)
    drawn, cursors = sampler.ahead(cursor, begin, lessons, steps=count, batch_size=batch_size, clock=clock)
    right, last = one_by_one(lessons, count, batch_size, clock)
    assert torch.equal(drawn, right) and drawn.shape == (count, batch_size) and drawn.dtype == torch.int64
    assert tree.equal(tree.member(cursors, count - 1), last)


@given(table=sizes, key=keys, before=st.integers(0, 8), count=steps, batch_size=batch_sizes, clock=clocks)
def test_a_cursor_and_an_iteration_are_enough_to_go_on(table, key, before, count, batch_size, clock):
    lessons = course(table, key)
    whole, last = one_by_one(lessons, before + count, batch_size, clock)
    cursor = one_by_one(lessons, before, batch_size, clock)[1] if before else sampler.start(lessons)
    cursor = sampler.Cursor(*(torch.tensor(int(part)) for part in cursor))  # three integers, and nothing else
    rest, end = one_by_one(lessons, count, batch_size, clock, cursor, before)
    assert torch.equal(rest, whole[before:]) and tree.equal(end, last)


@given(st.lists(st.tuples(sizes, keys), min_size=1, max_size=3), steps, batch_sizes, clocks, seeds)
def test_members_draw_what_each_would_draw_alone(several, count, batch_size, clock, seed):
    longest = max(len(table) for table, _ in several)
    tables = [[*table, *[table[-1]] * (longest - len(table))] for table, _ in several]
    orders = rng.shuffle(torch.arange(20), 20, seed + torch.arange(2).unsqueeze(1))
    rows = torch.arange(len(several))
    together = sampler.Lessons(
        orders=orders,
        sizes=torch.tensor(tables),
        order=rows % 2,
        pace=rows.flip(0),
        key=torch.tensor([key for _, key in several]),
    )
    drawn, cursor = one_by_one(together, count, batch_size, clock)
    assert drawn.shape == (count, len(several), batch_size)
    for row in rows.tolist():
        own = course(tables[len(several) - 1 - row], several[row][1], orders[row % 2])
        right, last = one_by_one(own, count, batch_size, clock)
        assert torch.equal(drawn[:, row], right) and tree.equal(tree.member(cursor, row), last)


def test_a_batch_larger_than_what_is_in_play_holds_several_passes():
    drawn, cursor = one_by_one(course([3]), 1, 10, "step")
    in_play = sorted(ORDER[:3].tolist())
    assert [sorted(part.tolist()) for part in drawn[0, :9].split(3)] == [in_play] * 3
    assert (int(cursor.epoch), int(cursor.position), int(cursor.size)) == (3, 1, 3)


@given(table=sizes, iteration=st.integers(0, 2**40), epoch=st.integers(0, 2**40), clock=clocks)
def test_batches_have_one_shape_wherever_a_run_stands(table, iteration, epoch, clock):
    cursor = sampler.Cursor(*(torch.tensor(part) for part in (epoch, table[-1], table[-1])))
    drawn = sampler.draw(cursor, torch.tensor(iteration), course(table), batch_size=7, clock=clock)
    assert drawn.shape == (7,) and drawn.dtype == torch.int64 and drawn.min() >= 0 and drawn.max() < 20


class Largest(TorchDispatchMode):
    """Records the most numbers in any tensor that is made, views of the old ones apart."""

    def __init__(self, *known: torch.Tensor) -> None:
        super().__init__()
        self.known, self.numbers = {tensor.untyped_storage().data_ptr() for tensor in known}, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        for tensor in made if isinstance(made, tuple | list) else [made]:
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage().data_ptr() not in self.known:
                self.numbers = max(self.numbers, tensor.untyped_storage().nbytes() // tensor.element_size())
        return made


@pytest.mark.parametrize("clock", ["step", "epoch"])
def test_drawing_makes_nothing_as_long_as_the_data_set_or_the_run(clock):
    samples, batch_size, ahead = 100_000, 8, 4
    long = course([samples] * 50_000, order=torch.arange(samples))
    cursor = sampler.Cursor(*(torch.tensor(part) for part in (7, samples - 3, samples)))
    with Largest(long.orders, long.sizes) as largest:
        sampler.draw(cursor, torch.tensor(40_000), long, batch_size=batch_size, clock=clock)
        sampler.ahead(cursor, torch.tensor(40_000), long, steps=ahead, batch_size=batch_size, clock=clock)
    assert batch_size <= largest.numbers <= 2 * ahead * batch_size


@given(table=sizes, total=st.integers(1, 12), batch_size=batch_sizes)
def test_a_run_is_as_many_batches_as_its_clock_needs(table, total, batch_size):
    asked = {"total_iterations": total, "batch_size": batch_size}
    assert sampler.steps(course(table), clock="step", **asked) == total
    passes = [table[min(epoch, len(table) - 1)] for epoch in range(total)]
    assert sampler.steps(course(table), clock="epoch", **asked) == -(-sum(passes) // batch_size)


@given(table=sizes, total=st.integers(1, 6), batch_size=batch_sizes)
def test_the_last_batch_of_a_run_by_passes_is_the_one_that_ends_the_last_pass(table, total, batch_size):
    count = int(sampler.steps(course(table), total_iterations=total, batch_size=batch_size, clock="epoch"))
    epochs = [epoch for epoch, _, _ in visits_by_definition(table, count, batch_size, "epoch")]
    passes = [table[min(epoch, len(table) - 1)] for epoch in range(total)]
    assert [epochs.count(epoch) for epoch in range(total)] == passes
    assert max(epochs[:-batch_size], default=0) < total and len(epochs) - sum(passes) < batch_size


def test_a_tabulated_pace_is_the_pace_at_every_iteration():
    pace = partial(pacing.root, initial_size=0.2, final_iteration=0.8, total_iterations=30, dataset_size=600)
    assert sampler.tabulate(pace, 30).tolist() == [int(pace((), iteration)) for iteration in range(31)]


def folded(lessons, count, batch_size, clock) -> sampler.Cursor:
    return one_by_one(lessons, count, batch_size, clock)[1] if count else sampler.start(lessons)


unsorted = st.lists(st.integers(1, 20), min_size=1, max_size=8)  # a pace may fall


@given(table=unsorted, count=st.integers(0, 30), batch_size=batch_sizes, clock=clocks)
def test_seeking_is_the_fold_of_drawing(table, count, batch_size, clock):
    found = sampler.seek(course(table), count, batch_size=batch_size, clock=clock)
    right = folded(course(table), count, batch_size, clock)
    assert tree.equal(found, right) and all(part.dtype == torch.int64 and part.shape == () for part in found)


@given(st.lists(st.tuples(sizes, keys), min_size=1, max_size=4), st.integers(0, 20), batch_sizes, clocks)
def test_seeking_for_members_is_seeking_for_each(several, count, batch_size, clock):
    longest = max(len(table) for table, _ in several)
    tables = [[*table, *[table[-1]] * (longest - len(table))] for table, _ in several]
    rows = torch.arange(len(several))
    together = sampler.Lessons(
        orders=ORDER[None],
        sizes=torch.tensor(tables),
        order=0 * rows,
        pace=rows.flip(0),
        key=torch.tensor([key for _, key in several]),
    )
    found = sampler.seek(together, count, batch_size=batch_size, clock=clock)
    right = folded(together, count, batch_size, clock)
    assert [part.tolist() for part in found] == [part.tolist() for part in right]


@pytest.mark.parametrize("clock", ["step", "epoch"])
def test_seeking_a_million_steps_ahead_agrees_with_walking_over_the_passes(clock):
    pace = partial(pacing.linear, initial_size=0.1, final_iteration=0.8, total_iterations=10**6, dataset_size=50_000)
    table, batch_size = sampler.tabulate(pace, 10**6), 64
    right, begun, epoch, list_of_sizes = (), 0, 0, table.tolist()
    while begun < 10**6 * batch_size:
        size = list_of_sizes[min(epoch if clock == "epoch" else begun // batch_size, 10**6)]
        right = (epoch, 10**6 * batch_size - begun, size)
        epoch, begun = epoch + 1, begun + size
    found = sampler.seek(course(table.tolist()), 10**6, batch_size=batch_size, clock=clock)
    assert tuple(int(part) for part in found) == right
