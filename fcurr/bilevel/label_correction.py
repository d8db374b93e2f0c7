"""Labels that are learned: what each training sample's target should have been, so that a step does well on clean
samples.

The target of a sample is softmax(table[id] + trust * its given label) over classes, or, of a regression, y + table[id].
The table moves by the exact hypergradient of the step, as weights do; what it needs of the network is the derivative of
the outputs along one direction, so its route is `forward` where weights could have taken `ghost`. After Yi and Wu
(2019), PENCIL, whose labels are learned as well, there without clean samples.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.func import grad, vjp

from fcurr import reweighting
from fcurr.autodiff import linearised
from fcurr.bilevel.learned_weights import Learned, Recipe, anchored, moved_down, outer_gradient, stepped, times
from fcurr.training import TrainState
from fcurr.types import Batch, Optimizer, Params, State


class Correction(NamedTuple):
    """How labels learn."""

    optimizer: Optimizer
    trust: float  # how much the given label weighs, in nats
    warm_up: int
    clean_weight: float
    regression: bool  # targets are numbers, not classes


def targets(params: Params, batch: Batch, trust: float, regression: bool) -> Tensor:
    """[batch, class] shares that sum to 1, or [batch, target] numbers."""
    table = params["labels"][batch.id.clamp(max=len(params["labels"]) - 1)]  # controls may see samples without one
    if regression:
        return batch.y + table
    places = torch.arange(table.shape[-1], device=table.device)  # F.one_hot cannot be mapped
    given = batch.y if batch.y.dtype.is_floating_point else batch.y.unsqueeze(-1) == places
    return (table + trust * given.to(table.dtype)).softmax(-1)


def corrected_step(state: TrainState, batch: Batch, *, recipe: Recipe, correction: Correction) -> TrainState:
    """A step on the corrected labels as they are; then they move by what it did to the loss of clean samples."""
    batch = recipe.augment(batch, (state.key, state.iteration))
    learned: Learned = state.weighing.learned
    route = "reverse" if recipe.route == "reverse" else "forward"
    here = reweighting.looked(
        state, batch, model=recipe.model, loss=_outputs, route=route, accumulate=recipe.accumulate
    )
    awake = state.iteration >= correction.warm_up
    learning = awake & torch.gt(torch.ones_like(state.loss) * recipe.learns, 0)
    plain = recipe.loss(here.losses, batch.y)
    counts = recipe.settle(torch.ones_like(plain), reweighting.past(state), plain, batch)
    counts = torch.where(awake, counts, torch.ones_like(counts))
    scale = recipe.optimizer.scale(state.optimizer)

    def objective(outputs: Tensor, params: Params) -> Tensor:
        own = recipe.loss(outputs, targets(params, batch, correction.trust, correction.regression))
        return (torch.where(learning, own, recipe.loss(outputs, batch.y)) * counts).sum() / len(counts)

    slope, pulled_labels = vjp(lambda params: grad(objective)(here.losses, params), learned.params)  # pyright: ignore
    seen, buffers, grads = recipe.shared((reweighting.moments(plain, counts), here.buffers, here.pulled(slope * scale)))
    grads = anchored(grads, learned.clean, scale * correction.clean_weight, recipe)

    def moved(grads: Params) -> tuple[Params, State]:
        return recipe.optimizer.update(grads, state.optimizer, state.params)

    params, memory, pulled_update = linearised(moved, grads)
    v = outer_gradient(params, buffers, (state.key, state.iteration), recipe)
    q = times(pulled_update(v), scale)  # else float16 has no numbers for it
    h = recipe.shared((seen, {}, pulled_labels(here.along(q))[0]))[2]
    learned = moved_down(learned, h, learning, correction.optimizer)
    learned = learned._replace(clean=v if correction.clean_weight else {})
    return stepped(state, params, buffers, memory, seen, learned)


def _outputs(outputs: Tensor, y: Tensor) -> Tensor:
    return outputs
