"""A step that asks how much each sample counts.

Weights are seen after the forward pass and before the backward pass, so a closed form costs what it takes itself.
Weights that are learned by a hypergradient are fcurr.bilevel's; both remember what they need in `TrainState.weighing`.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from fcurr import rng, tree
from fcurr.routes import Losses, Near, Route, near
from fcurr.training import Found, TrainState, alone, as_it_is, part_of, parts_of
from fcurr.types import Augment, Batch, Buffers, Loss, Model, Optimizer, Params, Past, State, Times, Weigh

WEIGHING = 2  # a stream of a state's key
RUNNING = 0.9  # of the running mean of losses that Past shows


class Weighing(NamedTuple):
    """What is remembered of the weights."""

    loss: Tensor  # [] running mean of the batches' mean losses; nan at first
    weight: Tensor  # [] mean weight of the last batch; nan at first
    effective: Tensor  # [] its effective sample size, (sum w)^2 / sum w^2, as a share of the batch; nan at first
    learned: State = ()  # parameters of the weights, and what learns them


def begun(learned: State = ()) -> Weighing:
    """Before the first step."""
    loss, weight, effective = (torch.full((), torch.nan) for _ in range(3))
    return Weighing(loss, weight, effective, learned)


def past(state: TrainState) -> Past:
    """What a weighting may know of a state."""
    if not isinstance(state.weighing, Weighing):
        raise ValueError("the state remembers no weights: state._replace(weighing=reweighting.begun(...)) begins that")
    return Past(key=rng.fold(state.key, WEIGHING), iteration=state.iteration, loss=state.weighing.loss)


def moments(losses: Tensor, weights: Tensor) -> Tensor:
    """[3] what is noted of a batch: mean loss, mean weight, and mean of the squared weights."""
    return torch.stack([losses.mean(), weights.mean(), weights.square().mean()])


def noted(before: Weighing, seen: Tensor, learned: State) -> Weighing:
    """After a batch with these moments, of all processes."""
    mean, weight, square = seen.to(before.loss.dtype).unbind()
    return Weighing(
        loss=torch.where(before.loss.isnan(), mean, before.loss.lerp(mean, 1 - RUNNING)),
        weight=weight,
        effective=weight.square() / square.clamp(min=1e-38),
        learned=learned,
    )


def looked(state: TrainState, batch: Batch, *, model: Model, loss: Loss, route: Route, accumulate: Times) -> Near:
    """The losses of a batch near the parameters; where it is computed in parts, each part again for every question, for
    the memory of one."""

    def losses_of(part: Batch, number: int, buffers: Buffers) -> Losses:
        place = (part_of(state.key, number), state.iteration)

        def losses(params):  # no annotations: torch.compile cannot read them inside a function
            outputs, after = model.train(params, buffers, part.x, place)
            return loss(outputs, part.y), after

        return losses

    parts, buffers, each, found = parts_of(batch, accumulate), state.buffers, [], []
    if accumulate == 1:
        return near(losses_of(batch, 0, buffers), state.params, route)
    for number, part in enumerate(parts):
        each.append(losses_of(part, number, buffers))
        losses, buffers = each[-1](state.params)
        found.append(losses)

    def pulled(weights: Tensor) -> Params:
        chunks = zip(each, weights.chunk(accumulate), strict=True)
        return tree.sum_of([near(one, state.params, route).pulled(own) for one, own in chunks])

    def along(direction: Params) -> Tensor:
        return torch.cat([near(one, state.params, route).along(direction) for one in each])

    return Near(torch.cat(found), buffers, pulled, along)


def weighted_step(
    state: TrainState,
    batch: Batch,
    *,
    model: Model,
    loss: Loss,
    optimizer: Optimizer,
    weigh: Weigh,
    augment: Augment = as_it_is,
    accumulate: Times = 1,
    shared: Callable[[Found], Found] = alone,
) -> TrainState:
    """One step down the gradient of the mean of weights times losses. Weights are not differentiated."""
    batch = augment(batch, (state.key, state.iteration))
    here = looked(state, batch, model=model, loss=loss, route="forward", accumulate=accumulate)
    weights = weigh(past(state), here.losses, batch)
    scale = optimizer.scale(state.optimizer)
    found = (moments(here.losses, weights), here.buffers, here.pulled(weights * (scale / len(batch.id))))
    seen, buffers, grads = shared(found)
    params, memory = optimizer.update(grads, state.optimizer, state.params)
    return TrainState(
        params=params,
        buffers=buffers,
        optimizer=memory,
        key=state.key,
        iteration=state.iteration + 1,
        loss=seen[0],
        weighing=noted(state.weighing, seen, ()),
    )
