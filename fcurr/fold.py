"""A run is a fold: a program of members, each moved by its own batches, and all the states on the way."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import islice
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.func import vmap

from fcurr import rng, sampler, tracing, tree
from fcurr.sampler import Clock, Cursor, Lessons
from fcurr.tracing import Traced, traced
from fcurr.training import TrainState
from fcurr.types import Batch, Dataset, Fetch, Params, State

Step = Callable[[Params, State, Batch], State]  # hyperparameters that vary, state, batch -> state
AHEAD, SAMPLES = 128, 2**15  # steps whose samples are drawn together, at most, and samples of all members
BLOCK = 2**18  # numbers that are copied from data in memory at once


class Program(NamedTuple):
    """Members trained together, as one mapped step."""

    step: Step  # mapped over members
    varying: Params  # hyperparameters in which members differ: name -> [member]
    data: Dataset  # shared by all members
    lessons: Lessons  # rows [member]
    batch_size: int
    clock: Clock
    total_iterations: int
    in_play: "InPlay | tuple[()]" = ()  # where the step asks for `counts`
    advance: Callable[[Params, State, Tensor], State] | None = (
        None  # varying, state, metric [member] -> state; after an evaluation, if anything listens
    )


class Run(NamedTuple):
    """All that a program is at one moment; written down, it is a checkpoint."""

    train: TrainState  # [member, ...]
    cursor: Cursor  # [member]
    clock: Tensor  # [member] int64, what the program's clock shows: steps taken, or passes completed
    iteration: Tensor  # [] int64, steps of the program
    last: Tensor  # [member] int64, the steps that each member takes


class InPlay(NamedTuple):
    """How many samples of each class are in play, for every size that a member's pace takes."""

    sizes: Tensor  # [member, size] int64, ascending
    counts: Tensor  # [member, size, class] int64


def together(step: Step, *examples: Any, compiled: bool = False) -> Step:
    """A step of one member, mapped over members and freed of Python.

    By default it is traced once, on example arguments of the sizes to come, into the operations it consists of: the
    same numbers bit for bit, without mapping and differentiating anew at every step (benchmarks/members.py). One
    member alone is not mapped; and where torch cannot map an operation, an LSTM say, members take turns. `compiled`:
    torch.compile fuses the operations as well, for half a minute of compiling and numbers equal to rounding.
    """
    operations = _operations(step, *examples)
    if not compiled:
        return operations
    fused = tracing.compiled(operations)
    fused(*examples)  # compiles here, where what cannot be compiled is told, and not inside the fold's generator
    return fused


def _operations(step: Step, *examples: Any) -> Traced:
    alone = partial(in_turn, step)
    if len(tree.leaves(examples)[0]) == 1:
        return traced(alone, *examples)
    try:
        return traced(vmap(step), *examples)
    except RuntimeError:  # whatever else is wrong is raised again
        return traced(alone, *examples)


def in_turn(step: Step, *arguments: Any) -> Any:
    """The step of each member, one after another."""
    found = [step(*member) for member in tree.apart(arguments)]
    return tree.map(lambda leaf: leaf.unsqueeze(0), found[0]) if len(found) == 1 else tree.stack(found)


def begin(program: Program, states: TrainState) -> Run:
    """A run before its first step, of states stacked over members."""
    return Run(
        train=states,
        cursor=sampler.start(program.lessons),
        clock=torch.zeros_like(program.lessons.key),
        iteration=torch.zeros((), dtype=torch.int64, device=program.lessons.key.device),
        last=lengths(program),
    )


def lengths(program: Program) -> Tensor:
    """[member] int64: the steps of each member, if nothing stops it earlier."""
    return sampler.steps(
        program.lessons,
        total_iterations=program.total_iterations,
        batch_size=program.batch_size,
        clock=program.clock,
    )


def length(run: Run) -> int:
    """The steps of the longest member."""
    return int(run.last.max())


def completed(cursor: Cursor) -> Tensor:
    """[...] int64: passes that have come to their end."""
    return cursor.epoch + (cursor.position == cursor.size)


def in_blocks(take: Callable[[Tensor], Batch], ids: Iterable[Tensor]) -> Iterator[Batch]:
    """map(take, ids) of samples in memory, with small batches copied some at a time."""
    rest = iter(ids)
    for one in rest:
        first = take(one)
        yield first
        while block := list(islice(rest, BLOCK // max(first.x.numel(), 1))):
            if len(block[-1]) == len(one):
                yield from (Batch(*leaves) for leaves in zip(*map(torch.unbind, take(torch.stack(block))), strict=True))
            else:  # the last of a data set
                yield from map(take, block)


def proceed(program: Program, run: Run, fetch: Fetch = in_blocks) -> Iterator[Run]:
    """The fold: every state from here to the end, one step each. Members that have finished stay as they are.

    `fetch` gives the batches of some steps in turn; one that reads ahead overlaps reading with computing.
    """
    here = [run]
    del run
    for _ in steps(program, here, fetch):
        yield here[0]


def steps(program: Program, here: list[Run], fetch: Fetch = in_blocks) -> Iterator[int]:
    """The fold for who wants its memory: `here` holds the one state there is, and after each step, whose number is
    given, the next. If nobody else holds the old one, its memory is used again in the step."""
    last, uneven = length(here[0]), int(here[0].last.min()) < length(here[0])
    iteration, varying, limits = int(here[0].iteration), program.varying, here[0].last
    while iteration < last:
        cursor, begun = here[0].cursor, here[0].iteration
        count = min(AHEAD, last - iteration, max(1, SAMPLES // (len(limits) * program.batch_size)))
        ids, cursors = sampler.ahead(
            cursor, begun, program.lessons, steps=count, batch_size=program.batch_size, clock=program.clock
        )
        places = begun + torch.arange(1, count + 1, device=begun.device)
        clocks = torch.minimum(places.unsqueeze(1), limits) if program.clock == "step" else completed(cursors)
        moments = zip(fetch(program.data.take, ids), places, clocks, *map(torch.unbind, cursors), strict=True)
        for batch, place, clock, *cursor in moments:
            after = Cursor(*cursor)
            if isinstance(program.in_play, InPlay):
                varying = program.varying | {"counts": counted(program.in_play, after.size)}
            if uneven:
                run = here[0]
                active, states = run.iteration < limits, program.step(varying, run.train, batch)
                states = tree.where(active, states, run.train)
                after, clock = tree.where(active, (after, clock), (run.cursor, run.clock))
            else:
                states = _given(program.step, [varying, here.pop().train, batch])
            here[:] = [Run(train=states, cursor=after, clock=clock, iteration=place, last=limits)]
            states = run = None  # who holds a state that is given away keeps its memory
            iteration += 1
            yield iteration


def _given(step: Step, arguments: list[Any]) -> TrainState:
    """A step of arguments that are given away, if it can make use of that."""
    return step.give(arguments) if isinstance(step, Traced) else step(*arguments)


def finish(program: Program, run: Run) -> Run:
    """The state at the end."""
    last = deque(proceed(program, run), maxlen=1)
    return last.pop() if last else run


def in_play(lessons: Lessons, y: Tensor, classes: int) -> InPlay:
    """The classes in play of every member at every size of its pace; y [sample] int64."""
    rows = [torch.unique(sizes) for sizes in lessons.sizes]
    widest = max(len(row) for row in rows)
    padded = torch.stack([torch.cat([row, row[-1:].expand(widest - len(row))]) for row in rows])
    counts = []
    for order, pace in zip(lessons.order.tolist(), lessons.pace.tolist(), strict=True):
        part = torch.searchsorted(
            padded[pace], torch.arange(lessons.orders.shape[1], device=y.device), right=True
        )  # the first size it is in
        cells = torch.bincount(
            part.clamp(max=widest) * classes + y[lessons.orders[order].long()], minlength=(widest + 1) * classes
        )
        counts.append(cells.reshape(widest + 1, classes)[:widest].cumsum(0))
    return InPlay(sizes=padded[lessons.pace], counts=torch.stack(counts))


def counted(table: InPlay, size: Tensor) -> Tensor:
    """[member, class] int64: what is in play at a member's size [member]."""
    place = torch.searchsorted(table.sizes, size.contiguous().unsqueeze(-1))
    return table.counts.gather(1, place.unsqueeze(-1).expand(-1, -1, table.counts.shape[-1])).squeeze(1)


def seen_program(
    data: Dataset,
    seen: Tensor,
    *,
    step: Step,
    key: Tensor,
    batch_size: int,
    total_iterations: int,
) -> Program:
    """Plain training, one member a row of `seen` [member, sample] bool, on the samples that are true."""
    members = torch.arange(len(seen))
    rows = Lessons(
        orders=torch.argsort(~seen, dim=1, stable=True),
        sizes=seen.sum(1, keepdim=True),
        order=members,
        pace=members,
        key=rng.fold(key, members),
    )
    return Program(
        step=step,
        varying={},
        data=data,
        lessons=rows,
        batch_size=batch_size,
        clock="step",
        total_iterations=total_iterations,
    )
