"""Score x pace -> draw, second half: which samples come at iteration t.

A pass visits every sample in play once, in an order shuffled by (key, pass); when it is exhausted the pace says how
many are in play in the next. Batches have one size, so a batch may end one pass and begin others. Which samples come
is a function of (key, iteration) and of three integers, in O(batch) time; nothing as long as the data set is made.

Everything broadcasts: with members, the integers have a leading axis and the same code draws for all.
"""

from collections.abc import Iterator
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.func import vmap

from fcurr import rng, tree
from fcurr.types import Iterations, Pace

Clock = Literal["step", "epoch"]  # what a pace counts: steps taken, or passes completed


class Lessons(NamedTuple):
    """What is to be drawn, as tables that members share and rows that are their own."""

    orders: Tensor  # [order, sample] integer, permutations of the samples (or their first parts)
    sizes: Tensor  # [pace, iteration] int64, samples in play; the last column holds for ever after
    order: Tensor  # [...] int64, row of `orders`
    pace: Tensor  # [...] int64, row of `sizes`
    key: Tensor  # [...] int64, the member's stream


class Cursor(NamedTuple):
    """Where a run stands in its data."""

    epoch: Tensor  # [...] int64, passes begun before this one
    position: Tensor  # [...] int64, samples of this pass already drawn
    size: Tensor  # [...] int64, samples in play in this pass


class Visits(NamedTuple):
    """Where each sample of a batch stands; shaped as Cursor, with the batch as last axis."""

    epoch: Tensor  # [..., batch] int64
    position: Tensor  # [..., batch] int64
    size: Tensor  # [..., batch] int64


def tabulate(pace: Pace, total_iterations: Iterations) -> Tensor:
    """[total_iterations + 1] int64: the sizes of a pace that remembers nothing."""
    return vmap(lambda iteration: pace((), iteration))(torch.arange(total_iterations + 1))


def lessons(order: Tensor, sizes: Tensor, key: Tensor) -> Lessons:
    """The lessons of one run: an order, the sizes of its pace (see tabulate) and the key of its stream."""
    first = torch.zeros((), dtype=torch.int64, device=order.device)
    return Lessons(orders=order[None], sizes=sizes[None], order=first, pace=first, key=key)


def start(lessons: Lessons) -> Cursor:
    """Before the first sample of the first pass."""
    size = lessons.sizes[lessons.pace, 0]
    return Cursor(epoch=torch.zeros_like(size), position=torch.zeros_like(size), size=size)


def visit(cursor: Cursor, iteration: Tensor, lessons: Lessons, *, batch_size: int, clock: Clock = "step") -> Visits:
    """The next `batch_size` visits after the cursor, at this iteration (steps already taken)."""
    ahead = torch.arange(batch_size, device=cursor.position.device)
    reading = cursor.epoch.unsqueeze(-1) + 1 + ahead if clock == "epoch" else iteration + 0 * ahead
    following = lessons.sizes[lessons.pace.unsqueeze(-1), reading.clamp(max=lessons.sizes.shape[1] - 1)]
    sizes = torch.cat([cursor.size.unsqueeze(-1), following], dim=-1)  # [..., 1 + batch], of passes that may be met
    ends = sizes.cumsum(-1)
    place = cursor.position.unsqueeze(-1) + ahead  # [..., batch], counted from the start of the cursor's pass
    nth = torch.searchsorted(ends, place, right=True)  # [..., batch], passes after the cursor's
    size = sizes.gather(-1, nth)
    return Visits(epoch=cursor.epoch.unsqueeze(-1) + nth, position=place - (ends.gather(-1, nth) - size), size=size)


def after(visits: Visits) -> Cursor:
    """Just after the last of these visits: the cursor, advanced."""
    return Cursor(epoch=visits.epoch[..., -1], position=visits.position[..., -1] + 1, size=visits.size[..., -1])


def ids(visits: Visits, lessons: Lessons) -> Tensor:
    """[..., batch] int64: the samples that are met."""
    key = rng.fold(lessons.key.unsqueeze(-1), visits.epoch)
    rank = rng.shuffle(visits.position, visits.size, key)
    return lessons.orders[lessons.order.unsqueeze(-1), rank].long()


def draw(cursor: Cursor, iteration: Tensor, lessons: Lessons, *, batch_size: int, clock: Clock = "step") -> Tensor:
    """[..., batch] int64: the samples of the next batch."""
    return ids(visit(cursor, iteration, lessons, batch_size=batch_size, clock=clock), lessons)


def ahead(
    cursor: Cursor, iteration: Tensor, lessons: Lessons, *, steps: int, batch_size: int, clock: Clock = "step"
) -> tuple[Tensor, Cursor]:
    """The batches of several steps at once: ids [step, ..., batch], and the cursors after each step, stacked.

    The same numbers as drawing one by one, at a fraction of the overhead.
    """
    shape = cursor.size.shape
    columns = [leaf.reshape(-1).tolist() for leaf in (*cursor, lessons.pace.expand(shape))]
    first, count = int(iteration), steps * batch_size
    met = [
        list(_passes(epoch, size - position, size, lessons.sizes[pace], first, count, batch_size, clock))
        for epoch, position, size, pace in zip(*columns, strict=True)
    ]
    most = max(map(len, met))
    table = torch.tensor([row + [row[-1]] * (most - len(row)) for row in met], device=cursor.size.device)
    sizes = table.reshape(*shape, most)  # [..., pass]
    ends = sizes.cumsum(-1)
    place = cursor.position.unsqueeze(-1) + torch.arange(count, device=sizes.device)  # from the start of the first pass
    nth = torch.searchsorted(ends, place, right=True)
    size = sizes.gather(-1, nth)
    visits = Visits(epoch=cursor.epoch.unsqueeze(-1) + nth, position=place - (ends.gather(-1, nth) - size), size=size)
    apart = tree.map(lambda leaf: leaf.unflatten(-1, (steps, batch_size)).movedim(-2, 0), visits)
    return ids(visits, lessons).unflatten(-1, (steps, batch_size)).movedim(-2, 0), after(apart)


def _passes(
    epoch: int, left: int, size: int, sizes: Tensor, first: int, count: int, batch: int, clock: Clock
) -> Iterator[int]:
    """The sizes of the passes that `count` samples from here on belong to; `left` are in the one that is met first. A
    pass takes the size of its pace at the step, or the pass, that it begins with."""
    yield size
    while left < count:
        epoch += 1
        reading = epoch if clock == "epoch" else first + left // batch
        size = int(sizes[min(reading, len(sizes) - 1)])
        left += size
        yield size


def steps(lessons: Lessons, *, total_iterations: Iterations, batch_size: int, clock: Clock = "step") -> Tensor:
    """[...] int64: how many batches a run is; the last batch of `total_iterations` epochs is filled from the next."""
    if clock == "step":
        return torch.full_like(lessons.pace, total_iterations)
    sizes = lessons.sizes[:, :total_iterations]
    seen = sizes.sum(1) + (total_iterations - sizes.shape[1]) * sizes[:, -1]
    return -(-seen // batch_size)[lessons.pace]


def seek(lessons: Lessons, iteration: int, *, batch_size: int, clock: Clock = "step") -> Cursor:
    """The cursor after so many batches, without drawing them: the fold of `visit` and `after`, at once.

    Passes of one size are taken together: a turn of a Python loop for every change of size that the pace's table has
    up to there, however long the passes are. `iteration` is at least 0.
    """
    if iteration == 0:
        return start(lessons)
    seen = iteration * batch_size
    places = [_place(row, seen, batch_size, clock) for row in lessons.sizes]  # a pace; nothing else moves a cursor
    return Cursor(*(torch.tensor(part, device=lessons.pace.device)[lessons.pace] for part in zip(*places, strict=True)))


def _place(sizes: Tensor, seen: int, batch_size: int, clock: Clock) -> tuple[int, int, int]:
    """(epoch, position, size) just after the first `seen` samples of a run, at least 1; `sizes` [iteration]."""
    runs, lengths = torch.unique_consecutive(sizes, return_counts=True)
    ends = lengths.cumsum(0).tolist()  # where each run of equal sizes ends
    ends[-1] = seen + 1  # the last holds for ever after
    epoch = begun = size = 0  # passes, and samples, before the first pass of this size
    for size, end in zip(runs.tolist(), ends, strict=True):
        begin = end - epoch if clock == "epoch" else -(-(end * batch_size - begun) // size)  # passes, before the end
        if begin * size >= seen - begun:
            break
        epoch, begun = epoch + max(begin, 0), begun + max(begin, 0) * size
    whole = (seen - begun - 1) // size  # passes of this size that are over
    return epoch + whole, seen - begun - whole * size, size
