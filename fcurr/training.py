"""How the state moves: a step, a program of members, and the fold of one over the other."""

from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.func import vmap
from torch.fx.experimental.proxy_tensor import make_fx

from fcurr import rng, sampler, tree
from fcurr.autodiff import losses_and_grad
from fcurr.sampler import Clock, Cursor, Lessons
from fcurr.types import Batch, Buffers, Dataset, Loss, Method, Model, Optimizer, Params, State

Step = Callable[[Params, State, Batch], State]  # hyperparameters that vary, state, batch -> state
AHEAD = 32  # steps whose samples are drawn together


class TrainState(NamedTuple):
    params: Params
    buffers: Buffers
    optimizer: State
    key: Tensor  # [] int64, the stream of the model's randomness
    iteration: Tensor  # [] int64, steps taken
    loss: Tensor  # [] mean over the last batch, before its step; nan at first


def train_step(state: TrainState, batch: Batch, *, model: Model, loss: Loss, optimizer: Optimizer) -> TrainState:
    """One step down the gradient of the mean loss of the batch. Nothing is written to the arguments."""

    def objective(params):  # no annotations: torch.compile cannot read them inside a function
        outputs, buffers = model.train(params, state.buffers, batch.x, (state.key, state.iteration))
        return loss(outputs, batch.y), buffers

    size = len(batch.id)
    equally = torch.full((size,), 1 / size, dtype=state.loss.dtype, device=batch.id.device)
    losses, buffers, grads = losses_and_grad(objective, state.params, equally)
    params, memory = optimizer.update(grads, state.optimizer, state.params)
    return TrainState(
        params=params,
        buffers=buffers,
        optimizer=memory,
        key=state.key,
        iteration=state.iteration + 1,
        loss=losses.mean(),
    )


def train_start(seed: int, *, model: Model, optimizer: Optimizer) -> TrainState:
    """The state before the first step; all randomness comes from the seed."""
    params, buffers = model.init(seed)
    return TrainState(
        params=params,
        buffers=buffers,
        optimizer=optimizer.init(params),
        key=rng.fold(seed, 1),
        iteration=torch.zeros((), dtype=torch.int64),
        loss=torch.full((), torch.nan),
    )


def gradient_descent(*, model: Model, loss: Loss, optimizer: Optimizer) -> Method:
    """Plain training."""
    return Method(
        init=partial(train_start, model=model, optimizer=optimizer),
        step=partial(train_step, model=model, loss=loss, optimizer=optimizer),
    )


def variables(state: TrainState) -> Params:
    """Parameters and buffers in one dict, as Model.apply and scores take them."""
    return {**state.params, **state.buffers}


class Program(NamedTuple):
    """Members trained together, as one mapped step."""

    step: Step  # mapped over members
    varying: Params  # hyperparameters in which members differ: name -> [member]
    data: Dataset  # shared by all members
    lessons: Lessons  # rows [member]
    batch_size: int
    clock: Clock
    total_iterations: int


class Run(NamedTuple):
    """All that a program is at one moment; written down, it is a checkpoint."""

    train: TrainState  # [member, ...]
    cursor: Cursor  # [member]
    iteration: Tensor  # [] int64, steps of the program


def together(step: Step, *examples: Any, compiled: bool = False) -> Step:
    """A step of one member, mapped over members and freed of Python.

    By default it is traced once, on example arguments of the sizes to come, into the operations it consists of: the
    same numbers bit for bit, without mapping and differentiating anew at every step (benchmarks/members.py).
    `compiled`: torch.compile fuses the operations as well, for half a minute of compiling and numbers equal to
    rounding.
    """
    mapped = vmap(step)
    return torch.compile(mapped) if compiled else traced(mapped, *examples)


def traced(function: Callable, *examples: Any) -> Callable:
    """The operations that a function of tensors consists of, for arguments of these sizes, freed of Python.

    Like torch.compile it fixes what Python decides: the function must not decide by the values of tensors.
    """
    distinct = tree.map(torch.clone, examples)  # one tensor given twice would be traced as one argument
    return make_fx(lambda *arguments: function(*arguments))(*distinct)


def begin(program: Program, states: TrainState) -> Run:
    """A run before its first step, of states stacked over members."""
    return Run(train=states, cursor=sampler.start(program.lessons), iteration=torch.zeros((), dtype=torch.int64))


def length(program: Program) -> int:
    """The steps of the longest member."""
    return int(lengths(program).max())


def lengths(program: Program) -> Tensor:
    """[member] int64: the steps of each member."""
    return sampler.steps(
        program.lessons,
        total_iterations=program.total_iterations,
        batch_size=program.batch_size,
        clock=program.clock,
    )


def proceed(program: Program, run: Run) -> Iterator[Run]:
    """The fold: every state from here to the end, one step each. Members that have finished stay as they are."""
    limits, last = lengths(program), length(program)
    uneven = int(limits.min()) < last
    while int(run.iteration) < last:
        count = min(AHEAD, last - int(run.iteration))
        ids, cursors = sampler.ahead(
            run.cursor,
            run.iteration,
            program.lessons,
            steps=count,
            batch_size=program.batch_size,
            clock=program.clock,
        )
        for turn in range(count):
            states = program.step(program.varying, run.train, program.data.take(ids[turn]))
            cursor = tree.member(cursors, turn)
            if uneven:
                active = run.iteration < limits
                states = tree.where(active, states, run.train)
                cursor = tree.where(active, cursor, run.cursor)
            run = Run(train=states, cursor=cursor, iteration=run.iteration + 1)
            yield run


def finish(program: Program, run: Run) -> Run:
    """The state at the end."""
    last = deque(proceed(program, run), maxlen=1)
    return last.pop() if last else run


def correct(params: Params, batch: Batch, *, model: Model, chunk: int = 4096) -> Tensor:
    """[member] int64: how many samples each member classifies right. Ties go to the first class."""
    right = vmap(lambda member, x, y: (model.apply(member, x).argmax(-1) == y).sum(), in_dims=(0, None, None))
    with torch.no_grad():
        parts = zip(batch.x.split(chunk), batch.y.split(chunk), strict=True)
        return torch.stack([right(params, x, y) for x, y in parts]).sum(0)


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
