"""Weights of samples, learned so that a step on the weighted losses does well on clean samples.

`weights_after` takes a step with the weights as they are, then moves them; `weights_first` does as the papers do:
the step is only looked at, the weights are moved, and the step is taken with the new ones, of the same forward and
backward pass. The hypergradient is the exact one of the step as the optimizer takes it (fcurr.bilevel.one_step).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fcurr import reweighting, rng, tree
from fcurr.autodiff import linearised, losses_and_grad
from fcurr.routes import Near, Route
from fcurr.training import Found, TrainState, alone, as_it_is
from fcurr.types import Augment, Batch, Buffers, Loss, Model, Optimizer, Params, Past, Place, State, Times

JUDGING = 1_000_002  # a stream of a state's key
SMOOTH = 0.99  # of the running moments of the hypergradient
Clean = Callable[[Place], Batch]  # (key, iteration) -> clean samples
Settle = Callable[[Tensor, Past, Tensor, Batch], Tensor]  # weights, past, losses, batch -> weights


def as_they_are(weights: Tensor, past: Past, losses: Tensor, batch: Batch) -> Tensor:
    """The learned weights."""
    return weights


class Recipe(NamedTuple):
    """What a reweighted step is made of, beside the weights."""

    model: Model
    loss: Loss
    optimizer: Optimizer
    clean: Clean
    route: Route  # of the derivative along a direction: fcurr.routes.chosen
    augment: Augment = as_it_is  # of the training samples; clean ones are taken as they are
    accumulate: Times = 1
    shared: Callable[[Found], Found] = alone
    settle: Settle = as_they_are  # what becomes of the weights: where members of a run are controls
    learns: Tensor | float = 1.0  # [] 0 for a control, which does not train on clean samples


class Weights(NamedTuple):
    """How much samples count, as a function that learns."""

    init: Callable[[int], Params]  # seed -> what is learned
    weigh: Callable[[Params, Tensor, Batch], Tensor]  # learned, losses, batch -> [batch], never negative


class Learned(NamedTuple):
    """What is learned of the weights, and how."""

    params: Params
    optimizer: State
    updates: Tensor  # [] int64, hypergradients seen
    mean: Params  # running mean of the hypergradient, from zero
    square: Tensor  # [] running mean of its squared norm, from zero
    clean: Params  # gradient of the clean loss after the step (with `weights_first`, the one that was looked at), or {}


def learned_start(seed: int, params: Params, *, weights: Weights, optimizer: Optimizer, clean_weight: float) -> Learned:
    """Before the first step of a model with these parameters."""
    own = weights.init(seed)
    zeros = {name: torch.zeros_like(leaf) for name, leaf in own.items()}
    clean = {name: torch.zeros_like(leaf) for name, leaf in params.items()} if clean_weight else {}
    return Learned(
        params=own,
        optimizer=optimizer.init(own),
        updates=torch.zeros((), dtype=torch.int64),
        mean=zeros,
        square=torch.zeros(()),
        clean=clean,
    )


class Teaching(NamedTuple):
    """How weights learn."""

    weights: Weights
    optimizer: Optimizer  # of what is learned
    warm_up: int  # steps in which all samples count 1, and nothing is learned
    clean_weight: float  # how much the mean loss of clean samples counts in a step


def weights_after(state: TrainState, batch: Batch, *, recipe: Recipe, teaching: Teaching) -> TrainState:
    """A step with the weights as they are; then they move by what the step did to the loss of clean samples."""
    batch = recipe.augment(batch, (state.key, state.iteration))
    return _look(state, batch, recipe, teaching).after


def weights_first(state: TrainState, batch: Batch, *, recipe: Recipe, teaching: Teaching) -> TrainState:
    """The weights move first, by what a step with the old ones would do; then the step is taken with the new ones.

    Shu et al. (2019), Meta-Weight-Net, algorithm 1, with the optimizer's own step for the virtual one.
    """
    batch = recipe.augment(batch, (state.key, state.iteration))
    look = _look(state, batch, recipe, teaching)
    learned: Learned = look.after.weighing.learned
    counts = counted(state, batch, look.here, learned.params, recipe, teaching)
    clean: Params = state.weighing.learned.clean
    return taken(state, look.here, counts, recipe, learned, clean, teaching.clean_weight)


class Look(NamedTuple):
    here: Near
    after: TrainState


def _look(state: TrainState, batch: Batch, recipe: Recipe, teaching: Teaching) -> Look:
    reweighting.past(state)
    learned: Learned = state.weighing.learned
    here = reweighting.looked(
        state, batch, model=recipe.model, loss=recipe.loss, route=recipe.route, accumulate=recipe.accumulate
    )

    def own(params: Params) -> tuple[Tensor, Any]:
        return counted(state, batch, here, params, recipe, teaching), ()

    counts, _, pulled_weights = linearised(own, learned.params)
    factor = recipe.optimizer.scale(state.optimizer) / len(batch.id)
    found = (reweighting.moments(here.losses, counts), here.buffers, here.pulled(counts * factor))
    seen, buffers, grads = recipe.shared(found)
    grads = anchored(grads, learned.clean, factor * len(batch.id) * teaching.clean_weight, recipe)

    def moved(grads: Params) -> tuple[Params, State]:
        return recipe.optimizer.update(grads, state.optimizer, state.params)

    params, memory, pulled_update = linearised(moved, grads)
    v = outer_gradient(params, buffers, (state.key, state.iteration), recipe)
    q = times(pulled_update(v), recipe.optimizer.scale(state.optimizer))  # else float16 has no numbers for it
    s = here.along(q)
    h = recipe.shared((seen, {}, pulled_weights(s / len(batch.id))))[2]
    learned = moved_down(learned, h, state.iteration >= teaching.warm_up, teaching.optimizer)
    learned = learned._replace(clean=v if teaching.clean_weight else {})
    return Look(here, stepped(state, params, buffers, memory, seen, learned))


def counted(state: TrainState, batch: Batch, here: Near, params: Params, recipe: Recipe, teaching: Teaching) -> Tensor:
    """[batch] how much each sample counts."""
    own = teaching.weights.weigh(params, here.losses, batch)
    own = recipe.settle(own, reweighting.past(state), here.losses, batch)
    return torch.where(state.iteration >= teaching.warm_up, own, torch.ones_like(own))


def times(params: Params, factor: Tensor | float) -> Params:
    return {name: leaf * factor for name, leaf in params.items()} if isinstance(factor, Tensor) else params


def anchored(grads: Params, clean: Params, weight: Tensor | float, recipe: Recipe) -> Params:
    """Gradients, with those of clean samples added."""
    weight = weight * recipe.learns
    return {name: leaf + weight * clean[name] for name, leaf in grads.items()} if clean else grads


def taken(
    state: TrainState,
    here: Near,
    counts: Tensor,
    recipe: Recipe,
    learned: State,
    clean: Params,
    clean_weight: float,
) -> TrainState:
    """A step down the gradient of the mean of counts times losses, and of the clean loss by its weight; `clean` is its
    gradient, {} to leave it out."""
    scale = recipe.optimizer.scale(state.optimizer)
    factor = scale / len(counts)
    found = (reweighting.moments(here.losses, counts), here.buffers, here.pulled(counts * factor))
    seen, buffers, grads = recipe.shared(found)
    grads = anchored(grads, clean, scale * clean_weight, recipe)
    params, memory = recipe.optimizer.update(grads, state.optimizer, state.params)
    return stepped(state, params, buffers, memory, seen, learned)


def stepped(
    before: TrainState, params: Params, buffers: Buffers, memory: State, seen: Tensor, learned: State
) -> TrainState:
    """The state after a step that has `seen` these moments of losses and weights."""
    return TrainState(
        params=params,
        buffers=buffers,
        optimizer=memory,
        key=before.key,
        iteration=before.iteration + 1,
        loss=seen[0],
        weighing=reweighting.noted(before.weighing, seen, learned),
    )


def outer_gradient(params: Params, buffers: Buffers, place: Place, recipe: Recipe) -> Params:
    """The gradient of the mean loss of clean samples, of all processes; running statistics stay as they are."""
    batch, (key, iteration) = recipe.clean(place), place

    def losses(params):  # no annotations: torch.compile cannot read them inside a function
        return recipe.loss(
            recipe.model.train(params, buffers, batch.x, (rng.fold(key, JUDGING), iteration))[0], batch.y
        ), {}

    equally = torch.full((len(batch.id),), 1 / len(batch.id), device=batch.id.device, dtype=_dtype(params))
    found, _, grads = losses_and_grad(losses, params, equally)
    return recipe.shared((found.mean(), {}, grads))[2]


def _dtype(params: Params) -> torch.dtype:
    return next(iter(params.values())).dtype


def moved_down(learned: Learned, h: Params, awake: Tensor, optimizer: Optimizer) -> Learned:
    """A step down the hypergradient, where it is time for one and the hypergradient is a number."""
    usable = awake & torch.stack([leaf.isfinite().all() for leaf in h.values()]).all()
    params, memory = optimizer.update(h, learned.optimizer, learned.params)
    after = Learned(
        params=params,
        optimizer=memory,
        updates=learned.updates + 1,
        mean={name: leaf.lerp(h[name], 1 - SMOOTH) for name, leaf in learned.mean.items()},
        square=learned.square.lerp(tree.dot(h, h).to(learned.square.dtype), 1 - SMOOTH),
        clean=learned.clean,
    )
    return tree.where(usable, after, learned)


def signal_to_noise(learned: Learned) -> Tensor:
    """[] |E h|^2 / (E |h|^2 - |E h|^2) of the hypergradient's running moments; nan before the first. What the running
    mean itself still moves counts as signal, about (1 - SMOOTH) / (1 + SMOOTH)."""
    begun = 1 - SMOOTH ** learned.updates.double()  # what the moments lack, having begun at zero
    signal, whole = tree.dot(learned.mean, learned.mean) / begun**2, learned.square / begun
    return (signal / (whole - signal).clamp(min=0)).to(learned.square.dtype)
