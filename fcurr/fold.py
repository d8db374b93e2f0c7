"""A run is a fold: a program of members, each moved by its own batches, and all the states on the way."""

from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.func import vmap
from torch.fx.experimental.proxy_tensor import make_fx

from fcurr import rng, sampler, tree
from fcurr.sampler import Clock, Cursor, Lessons
from fcurr.training import TrainState
from fcurr.types import Batch, Dataset, Fetch, Params, State

Step = Callable[[Params, State, Batch], State]  # hyperparameters that vary, state, batch -> state
AHEAD = 32  # steps whose samples are drawn together


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
    alone = partial(in_turn, step)
    if len(tree.leaves(examples)[0]) == 1:
        return torch.compile(alone) if compiled else traced(alone, *examples)
    if compiled:
        return torch.compile(vmap(step))
    try:
        return traced(vmap(step), *examples)
    except RuntimeError:  # whatever else is wrong is raised again
        return traced(alone, *examples)


def in_turn(step: Step, *arguments: Any) -> Any:
    """The step of each member, one after another."""
    return tree.stack([step(*member) for member in tree.apart(arguments)])


def traced(function: Callable, *examples: Any) -> Callable:
    """The operations that a function of tensors consists of, for arguments of these sizes, freed of Python.

    Like torch.compile it fixes what Python decides: the function must not decide by the values of tensors.
    """
    distinct = tree.map(torch.clone, examples)  # one tensor given twice would be traced as one argument
    return make_fx(lambda *arguments: function(*arguments))(*distinct)


def begin(program: Program, states: TrainState) -> Run:
    """A run before its first step, of states stacked over members."""
    return Run(
        train=states,
        cursor=sampler.start(program.lessons),
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


def reading(program: Program, run: Run) -> Tensor:
    """[member] int64: what the program's clock shows: steps taken, or passes completed."""
    if program.clock == "step":
        return torch.minimum(run.iteration, run.last)
    return run.cursor.epoch + (run.cursor.position == run.cursor.size)


def proceed(program: Program, run: Run, fetch: Fetch = map) -> Iterator[Run]:
    """The fold: every state from here to the end, one step each. Members that have finished stay as they are.

    `fetch` gives the batches of some steps in turn; one that reads ahead overlaps reading with computing.
    """
    last, uneven = length(run), int(run.last.min()) < length(run)
    iteration, varying = int(run.iteration), program.varying
    places = torch.arange(iteration, last + 1, device=run.iteration.device).unbind()
    began = iteration
    while iteration < last:
        ids, cursors = sampler.ahead(
            run.cursor,
            run.iteration,
            program.lessons,
            steps=min(AHEAD, last - iteration),
            batch_size=program.batch_size,
            clock=program.clock,
        )
        for batch, *cursor in zip(fetch(program.data.take, ids), *map(torch.unbind, cursors), strict=True):
            after = Cursor(*cursor)
            if isinstance(program.in_play, InPlay):
                varying = program.varying | {"counts": counted(program.in_play, after.size)}
            states = program.step(varying, run.train, batch)
            if uneven:
                active = run.iteration < run.last
                states = tree.where(active, states, run.train)
                after = tree.where(active, after, run.cursor)
            iteration += 1
            run = Run(train=states, cursor=after, iteration=places[iteration - began], last=run.last)
            yield run


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
    place = torch.searchsorted(table.sizes, size.unsqueeze(-1))
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
