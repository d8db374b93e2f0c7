"""Reading while computing: the batches of a plain map, fetched before they are asked for."""

import threading
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from worlds import blobs, numbers, seeds

from fcurr import tree
from fcurr.io.loading import ahead
from fcurr.types import Batch, Dataset

SOON = 20.0  # seconds after which a test that hangs fails; none waits for it when all is well
depths = st.integers(1, 5)


def batch_of(ids: torch.Tensor) -> Batch:
    return Batch(x=ids.float(), y=ids, id=ids)


def line(steps: int, batch: int = 2) -> torch.Tensor:
    return torch.arange(steps * batch).reshape(steps, batch)


class Gate:
    """Fetches that begin, and then wait until they are let through."""

    def __init__(self, steps: int):
        self.begun = [threading.Event() for _ in range(steps)]
        self.open = [threading.Event() for _ in range(steps)]

    def take(self, ids: torch.Tensor) -> Batch:
        step = int(ids[0]) // 2
        self.begun[step].set()
        assert self.open[step].wait(SOON)
        return batch_of(ids)

    def has_begun(self, step: int) -> bool:
        return self.begun[step].wait(SOON)


@given(steps=st.integers(0, 7), lead=st.sampled_from([(), (2,), (2, 3)]), depth=depths, seed=seeds)
def test_the_batches_are_those_of_a_map_in_the_same_order(steps, lead, depth, seed):
    data = blobs()
    ids = torch.randint(24, (steps, *lead, 4), generator=torch.Generator().manual_seed(seed))
    found, right = list(ahead(data.take, ids, depth=depth)), list(map(data.take, ids))
    assert len(found) == len(right) == steps
    assert all(tree.equal(one, other) for one, other in zip(found, right, strict=True))


def test_ids_may_come_from_any_iterable_and_are_asked_for_by_the_thread_that_computes():
    asked = []

    def source() -> Iterator[torch.Tensor]:
        for ids in line(6):
            asked.append(threading.get_ident())
            yield ids

    found = [batch.id for batch in ahead(batch_of, source(), depth=2)]
    assert torch.equal(torch.stack(found), line(6)) and set(asked) == {threading.get_ident()}


def test_the_second_fetch_begins_before_the_first_batch_is_there():
    gate = Gate(4)
    batches = ahead(gate.take, line(4), depth=2)
    first: list[Batch] = []
    reader = threading.Thread(target=lambda: first.append(next(batches)))
    reader.start()
    assert gate.has_begun(0) and gate.has_begun(1)
    assert not first and not gate.open[0].is_set()  # both are being fetched, neither is there
    for one in gate.open:
        one.set()
    reader.join(SOON)
    assert torch.equal(first[0].id, line(4)[0])
    assert len(list(batches)) == 3


def test_while_a_batch_is_used_the_next_ones_are_fetched_and_no_more_than_asked_for():
    gate = Gate(5)
    gate.open[0].set()
    batches = ahead(gate.take, line(5), depth=2)
    next(batches)  # the caller now computes
    assert gate.has_begun(1) and gate.has_begun(2)
    assert not gate.begun[3].is_set()
    gate.open[2].set()  # the later one is ready first, and waits for its turn
    gate.open[1].set()
    assert torch.equal(next(batches).id, line(5)[1]) and gate.has_begun(3) and not gate.begun[4].is_set()
    for one in gate.open:
        one.set()
    assert [int(batch.id[0]) for batch in batches] == [4, 6, 8]


def test_nothing_is_fetched_before_the_first_batch_is_asked_for():
    before = threading.active_count()
    batches = ahead(batch_of, line(3))
    assert threading.active_count() == before
    assert next(iter(batches)).id[0] == 0


@given(wrong=st.integers(0, 5), depth=depths)
def test_what_a_fetch_raises_is_raised_where_its_batch_belongs(wrong, depth):
    def take(ids: torch.Tensor) -> Batch:
        if ids[0] == 2 * wrong:
            raise OSError(f"no sample {int(ids[0])}")
        return batch_of(ids)

    before, batches = threading.active_count(), ahead(take, line(6), depth=depth)
    for step in range(wrong):
        assert torch.equal(next(batches).id, line(6)[step])
    with pytest.raises(OSError, match=f"no sample {2 * wrong}"):
        next(batches)
    assert threading.active_count() == before
    with pytest.raises(StopIteration):
        next(batches)


def test_closing_stops_the_threads_and_begins_no_fetch_that_had_not_begun():
    gate, before = Gate(9), threading.active_count()
    for one in gate.open:
        one.set()
    batches = ahead(gate.take, line(9), depth=3)
    next(batches)
    batches.close()
    assert threading.active_count() == before
    assert not any(one.is_set() for one in gate.begun[4:])
    with pytest.raises(StopIteration):
        next(batches)


def test_a_loop_that_is_left_stops_the_threads():
    before = threading.active_count()
    for batch in ahead(batch_of, line(50), depth=3):
        if batch.id[0] == 4:
            break
    del batch
    assert threading.active_count() == before


def test_threads_end_with_the_last_batch():
    before = threading.active_count()
    assert len(list(ahead(batch_of, line(5), depth=3))) == 5 and threading.active_count() == before


def test_samples_that_are_not_in_memory_are_read_by_other_threads_than_the_one_that_computes():
    readers = set()

    class Rows:
        shape, dtype, identity = (10, 2), torch.float64, "ten"

        def __getitem__(self, ids: torch.Tensor) -> torch.Tensor:
            readers.add(threading.get_ident())
            return numbers(10, 2)[ids]

    data = Dataset(x=Rows(), y=torch.arange(10), classes=tuple("abcdefghij"))
    for batch in ahead(data.take, line(5)):
        assert torch.equal(batch.x, numbers(10, 2)[batch.id])
    assert readers and threading.get_ident() not in readers
