"""Ways to learn how much each sample counts, side by side: `method(*, fixed...) -> Reweighting`.

All need a few clean samples. What is learned, if anything, is a function of a sample's loss (Meta-Weight-Net), of its
loss and class, or a number of its own; Learning to Reweight learns nothing that lasts.
"""

from collections.abc import Callable
from functools import partial
from typing import Annotated, Literal, NamedTuple

import torch
import torch.nn.functional as F
from annotated_types import Ge, Le, Lt
from torch import Tensor

from fcurr import reweighting, rng
from fcurr.bilevel.label_correction import Correction, corrected_step, targets
from fcurr.bilevel.learned_weights import (
    Recipe,
    Teaching,
    Weights,
    learned_start,
    outer_gradient,
    taken,
    weights_after,
    weights_first,
)
from fcurr.optim import adam
from fcurr.training import TrainState
from fcurr.types import Batch, Classes, Params, Penalty, Positive, Rate, Samples, Side, State, Task, Unit

Exponent = Annotated[float, Ge(0), Le(1), Unit("exponent")]
Weight = Annotated[float, Ge(0), Le(1e38), Unit("weight")]
WarmUp = Annotated[int, Ge(0), Lt(2**31), Unit("number of steps")]
Order = Literal["model first", "weights first"]


class Reweighting(NamedTuple):
    """How weights are learned beside a model."""

    init: Callable[[int, Params], State]  # seed, parameters of the model -> what is learned
    step: Callable[..., TrainState]  # state, batch, *, recipe -> state
    weigh: Callable[..., Tensor]  # state, losses, batch, *, recipe -> [batch], what samples count for a state


def meta_weight_net(
    *,
    hidden: Side = 100,
    learning_rate: Rate = 3e-3,
    weight_decay: Penalty = 0.0,
    warm_up: WarmUp = 100,
    clean_weight: Weight = 0.1,
    order: Order = "model first",
) -> Reweighting:
    """The weight is a function of the loss: V(L) = sigmoid(c relu(a L + b) + d), `hidden` units wide.

    Shu et al. (2019), Meta-Weight-Net. `warm_up`: without it the first steps, where a larger step is always better,
    drive all weights to 1, and the sigmoid does not come back. `clean_weight`: clean samples are trained on as well,
    their mean loss counting so much; it costs nothing, because their gradient is known from the step before. The paper
    has neither (warm_up = 0, clean_weight = 0), and order = "weights first".
    """
    weights = Weights(init=partial(_network, hidden=hidden), weigh=partial(_of_loss, hidden=hidden))
    optimizer = adam(learning_rate=learning_rate, weight_decay=weight_decay)
    return learned(Teaching(weights, optimizer, warm_up, clean_weight), order=order)


def class_aware_meta_weight_net(
    *,
    classes: Classes,
    hidden: Side = 100,
    learning_rate: Rate = 3e-3,
    weight_decay: Penalty = 0.0,
    warm_up: WarmUp = 100,
    clean_weight: Weight = 0.1,
    order: Order = "model first",
) -> Reweighting:
    """Meta-Weight-Net that sees the label as well: V(L, y) = sigmoid(c relu(a L + b + e_y) + d + f_y).

    After Shu et al. (2023), CMW-Net, which gives classes of like size one function each.
    """
    weights = Weights(
        init=partial(_network, hidden=hidden, classes=classes),
        weigh=partial(_of_loss_and_class, hidden=hidden, classes=classes),
    )
    optimizer = adam(learning_rate=learning_rate, weight_decay=weight_decay)
    return learned(Teaching(weights, optimizer, warm_up, clean_weight), order=order)


def sample_weights(
    *,
    dataset_size: Samples,
    learning_rate: Rate = 0.1,
    weight_decay: Penalty = 0.0,
    warm_up: WarmUp = 100,
    clean_weight: Weight = 0.1,
    order: Order = "model first",
) -> Reweighting:
    """A weight for every training sample, sigmoid of a number that is learned: what is it worth to the clean loss?"""
    weights = Weights(init=partial(_table, size=dataset_size), weigh=_of_sample)
    optimizer = adam(learning_rate=learning_rate, weight_decay=weight_decay)
    return learned(Teaching(weights, optimizer, warm_up, clean_weight), order=order)


def label_correction(
    *,
    dataset_size: Samples,
    classes: Classes,
    task: Task,
    learning_rate: Rate = 0.1,
    trust: Positive = 4.0,
    warm_up: WarmUp = 100,
    clean_weight: Weight = 0.1,
) -> Reweighting:
    """Not weights but labels are learned: softmax(table[id] + trust * given label), or of a regression y + table[id].

    Needs a loss that takes shares of classes. What a sample then counts is the share of its given label that is left.
    """
    if task == "multi-label":
        raise ValueError("label_correction learns shares of classes, or numbers, and labels are sets of classes")
    optimizer, regression = adam(learning_rate=learning_rate), task == "regression"
    correction = Correction(optimizer, trust, warm_up, clean_weight, regression)
    table = Weights(
        init=partial(_labels, size=dataset_size, classes=classes),
        weigh=partial(_kept, trust=trust, regression=regression),
    )
    return Reweighting(
        init=partial(learned_start, weights=table, optimizer=optimizer, clean_weight=clean_weight),
        step=partial(corrected_step, correction=correction),
        weigh=partial(_weights_of, table),
    )


def learning_to_reweight(*, power: Exponent = 1.0, warm_up: WarmUp = 100, clean_weight: Weight = 0.1) -> Reweighting:
    """Weights anew for every batch: those with which a small step down does best on clean samples.

    w_i = max(0, <grad clean loss, grad L_i>), divided by their mean; all 0, so no step, if none is positive. Ren et al.
    (2018), Learning to reweight examples, eq. 11 to 13. `power` below 1 makes positive weights more alike, at 0 the
    same: large learning rates need it. The paper has warm_up = 0 and clean_weight = 0.
    """
    return Reweighting(
        init=lambda seed, params: (),
        step=partial(_reweighted, power=power, warm_up=warm_up, clean_weight=clean_weight),
        weigh=partial(_alignment, power=power),
    )


def learned(teaching: Teaching, *, order: Order) -> Reweighting:
    """Any weights that learn, by any optimizer."""
    steps = {"model first": weights_after, "weights first": weights_first}
    if order not in steps:
        raise ValueError(f"{order!r} is no order: {', '.join(map(repr, steps))}")
    step = steps[order]
    start = partial(
        learned_start, weights=teaching.weights, optimizer=teaching.optimizer, clean_weight=teaching.clean_weight
    )
    return Reweighting(init=start, step=partial(step, teaching=teaching), weigh=partial(_weights_of, teaching.weights))


def _weights_of(weights: Weights, state: TrainState, losses: Tensor, batch: Batch, *, recipe: Recipe) -> Tensor:
    return weights.weigh(state.weighing.learned.params, losses, batch)


def _network(seed: int, *, hidden: int, classes: int = 0) -> Params:
    """All numbers in one vector, so that each operation of their optimizer is one: a, b, c [hidden] and d, uniform in
    +-1/sqrt(fan in), and zeros for classes."""
    uniform = 2 * torch.rand(3 * hidden + 1, generator=rng.generator(seed, 5)) - 1
    bounds = torch.tensor([1.0, 1.0, hidden**-0.5, hidden**-0.5]).repeat_interleave(torch.tensor([hidden] * 3 + [1]))
    return {"network": torch.cat([uniform * bounds, torch.zeros(classes * (hidden + 1))])}


def _of_loss(params: Params, losses: Tensor, batch: Batch, *, hidden: int) -> Tensor:
    a, b, c, d = params["network"].split([hidden] * 3 + [1])
    units = F.relu(torch.addcmul(b, losses.unsqueeze(-1), a))  # [batch, hidden]
    return torch.sigmoid(units @ c + d)


def _of_loss_and_class(params: Params, losses: Tensor, batch: Batch, *, hidden: int, classes: int) -> Tensor:
    a, b, c, d, e, f = params["network"].split([hidden] * 3 + [1, classes * hidden, classes])
    places = torch.arange(classes, device=batch.y.device)
    hot = batch.y.dtype.is_floating_point or batch.y.dtype == torch.bool
    shares = (batch.y if hot else batch.y.unsqueeze(-1) == places).to(losses.dtype)  # [batch, class]
    units = F.relu(torch.addcmul(b, losses.unsqueeze(-1), a) + shares @ e.reshape(classes, hidden))
    return torch.sigmoid(units @ c + d + shares @ f)


def _table(seed: int, *, size: int) -> Params:
    return {"weight": torch.zeros(size)}


def _labels(seed: int, *, size: int, classes: int) -> Params:
    return {"labels": torch.zeros(size, classes)}


def _kept(params: Params, losses: Tensor, batch: Batch, *, trust: float, regression: bool) -> Tensor:
    if regression:
        return torch.ones_like(losses)
    return targets(params, batch, trust, regression).gather(1, batch.y.unsqueeze(1)).squeeze(1)


def _of_sample(params: Params, losses: Tensor, batch: Batch) -> Tensor:
    known = batch.id.clamp(max=len(params["weight"]) - 1)  # samples that have no weight are not trained on by it
    return torch.sigmoid(params["weight"][known])


def _reweighted(
    state: TrainState, batch: Batch, *, recipe: Recipe, power: float, warm_up: int, clean_weight: float
) -> TrainState:
    batch = recipe.augment(batch, (state.key, state.iteration))
    here = reweighting.looked(
        state, batch, model=recipe.model, loss=recipe.loss, route=recipe.route, accumulate=recipe.accumulate
    )
    v = outer_gradient(state.params, state.buffers, (state.key, state.iteration), recipe)
    own = _normalised(here.along(v), power)
    counts = recipe.settle(own, reweighting.past(state), here.losses, batch)
    counts = torch.where(state.iteration >= warm_up, counts, torch.ones_like(counts))
    return taken(state, here, counts, recipe, (), v if clean_weight else {}, clean_weight)


def _normalised(s: Tensor, power: float) -> Tensor:
    """Positive parts, divided by their mean."""
    positive = torch.where(s > 0, s.clamp(min=1e-38) ** power, 0)
    total = positive.sum()
    return torch.where(total > 0, positive * (len(s) / total.clamp(min=1e-38)), 0)


def _alignment(state: TrainState, losses: Tensor, batch: Batch, *, recipe: Recipe, power: float) -> Tensor:
    here = reweighting.looked(state, batch, model=recipe.model, loss=recipe.loss, route=recipe.route, accumulate=1)
    v = outer_gradient(state.params, state.buffers, (state.key, state.iteration), recipe)
    return _normalised(here.along(v), power)
