"""How the state moves: a step down the gradient."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from fcurr import rng, tree
from fcurr.autodiff import losses_and_grad
from fcurr.types import Augment, Batch, Buffers, Loss, Method, Model, Optimizer, Params, Place, State, Times


class TrainState(NamedTuple):
    params: Params
    buffers: Buffers
    optimizer: State
    key: Tensor  # [] int64, the stream of the model's randomness
    iteration: Tensor  # [] int64, steps taken
    loss: Tensor  # [] mean over the last batch, before its step; nan at first
    weighing: State = ()  # how samples are weighted, where that is remembered or learned


PARTS, CHAIN = 1_000_000, 1_000_001  # streams of a state's key
Found = tuple[Tensor, Buffers, Params]  # mean loss, buffers, gradient


def as_it_is(batch: Batch, place: Place) -> Batch:
    """No augmentation."""
    return batch


def in_order(batch: Batch, place: Place, *, chain: Sequence[Augment]) -> Batch:
    """One augmentation after another, each with a stream of its own."""
    key, iteration = place
    for number, augment in enumerate(chain):
        batch = augment(batch, (rng.fold(key, CHAIN, number), iteration))
    return batch


def alone(found: Found) -> Found:
    """One process has the whole batch."""
    return found


class Team(NamedTuple):
    """The processes that train together, each on an equal part of every batch."""

    rank: int
    world: int
    shared: Callable[[Found], Found]  # the mean over all of what each has found


ALONE = Team(rank=0, world=1, shared=alone)


def train_step(
    state: TrainState,
    batch: Batch,
    *,
    model: Model,
    loss: Loss,
    optimizer: Optimizer,
    augment: Augment = as_it_is,
    accumulate: Times = 1,
    shared: Callable[[Found], Found] = alone,
) -> TrainState:
    """One step down the gradient of the mean loss of the batch. Nothing is written to the arguments.

    `accumulate`: the batch is computed in so many equal parts, one after another, for the memory of one. `shared`:
    the mean, over processes that have a part of the batch each, of what they have found (fcurr.io.parallel).
    """
    batch = augment(batch, (state.key, state.iteration))
    scale = optimizer.scale(state.optimizer)
    size, buffers, found = len(batch.id), state.buffers, []
    for number, part in enumerate(parts_of(batch, accumulate)):
        place = (part_of(state.key, number), state.iteration)
        found.append(_gradient(state, buffers, part, place, scale / size, model, loss))
        buffers = found[-1][1]
    total = tree.sum_of([losses for losses, _, _ in found]) / size
    mean, buffers, grads = shared((total, buffers, tree.sum_of([grads for _, _, grads in found])))
    params, memory = optimizer.update(grads, state.optimizer, state.params)
    return TrainState(
        params=params,
        buffers=buffers,
        optimizer=memory,
        key=state.key,
        iteration=state.iteration + 1,
        loss=mean,
        weighing=state.weighing,
    )


def part_of(key: Tensor, number: int) -> Tensor:
    """The stream of a part of a batch; the first has the state's own."""
    return rng.fold(key, PARTS, number) if number else key


def parts_of(batch: Batch, count: int) -> list[Batch]:
    if count == 1:
        return [batch]
    if len(batch.id) % count:
        raise ValueError(f"a batch of {len(batch.id)} does not come in {count} equal parts")
    return [Batch(*part) for part in zip(*(leaf.chunk(count) for leaf in batch), strict=True)]


def _gradient(
    state: TrainState, buffers: Buffers, batch: Batch, place: Place, weight: Tensor | float, model: Model, loss: Loss
) -> Found:
    """Sum of the losses, buffers, and gradient of `weight` times that sum."""

    def objective(params):  # no annotations: torch.compile cannot read them inside a function
        outputs, after = model.train(params, buffers, batch.x, place)
        return loss(outputs, batch.y), after

    ones = partial(torch.full, (len(batch.id),), dtype=state.loss.dtype, device=batch.id.device)
    equally = ones(1.0) * weight if isinstance(weight, Tensor) else ones(weight)
    losses, after, grads = losses_and_grad(objective, state.params, equally)
    return losses.sum(), after, grads


def apart(model: Model, team: Team) -> Model:
    """The model, whose randomness differs from process to process of a team."""
    if team.world == 1:
        return model

    def train(params: Params, buffers: Buffers, x: Tensor, place: Place) -> tuple[Tensor, Buffers]:
        return model.train(params, buffers, x, (rng.fold(place[0], team.rank), place[1]))

    return model._replace(train=train)


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


def gradient_descent(
    *,
    model: Model,
    loss: Loss,
    optimizer: Optimizer,
    augment: Augment = as_it_is,
    accumulate: Times = 1,
    shared: Callable[[Found], Found] = alone,
) -> Method:
    """Plain training."""
    step = partial(train_step, model=model, loss=loss, optimizer=optimizer)
    return Method(
        init=partial(train_start, model=model, optimizer=optimizer),
        step=partial(step, augment=augment, accumulate=accumulate, shared=shared),
        advance=partial(heard, optimizer=optimizer),
    )


def heard(state: TrainState, metric: Tensor, *, optimizer: Optimizer) -> TrainState:
    """The state after an evaluation, for an optimizer that listens; metric [], lower is better."""
    return state._replace(optimizer=optimizer.advance(state.optimizer, metric))


def finite(before: TrainState, after: TrainState) -> Tensor:
    """[] bool: whether the last loss is a finite number, and all of parameters, buffers and what optimizer and
    weighting remember that was one before the step."""
    was, now = (tree.leaves((s.params, s.buffers, s.optimizer, s.weighing)) for s in (before, after))
    kept = [(b.isfinite() | ~a.isfinite()).all() for a, b in zip(was, now, strict=True) if a.is_floating_point()]
    return torch.stack([after.loss.isfinite(), *kept]).all()


def skipping(state: TrainState, batch: Batch, *, step: Callable[[TrainState, Batch], TrainState]) -> TrainState:
    """A step that is not taken where it would end in something that is not finite; the loss says that it was not."""
    after = step(state, batch)
    stayed = state._replace(iteration=after.iteration, loss=torch.full_like(after.loss, torch.nan))
    return tree.where(finite(state, after), after, stayed)


def variables(state: TrainState) -> Params:
    """Parameters and buffers in one dict, as Model.apply and scores take them."""
    return {**state.params, **state.buffers}
