"""How gradients move parameters: pairs of functions, `init(params) -> state` and
`update(grads, state, params) -> params, state`.

A learning rate is a number, a tensor (to be mapped over or differentiated), or a schedule of fcurr.schedules, which is
given the number of updates already made. Nothing is changed in place that a caller could see.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from fcurr import tree
from fcurr.types import Decay, Optimizer, Params, Penalty, Positive, Rate, Schedule, State

TINY = 1e-38  # a square root has no slope at 0; here it has none below, and values are as they were


class SGDState(NamedTuple):
    updates: Tensor  # [] int64, updates made
    momentum: Params  # like the parameters; {} without momentum


def sgd(
    *, learning_rate: Rate | Schedule, momentum: Decay = 0.0, nesterov: bool = False, weight_decay: Penalty = 0.0
) -> Optimizer:
    """Stochastic gradient descent with momentum, as torch.optim.SGD takes it.

    d = g + weight_decay p;  m = momentum m + d;  p <- p - learning_rate m, or, with Nesterov's momentum,
    p <- p - learning_rate (d + momentum m). Sutskever et al. (2013), On the importance of initialization and momentum.
    """

    fixed = {"learning_rate": learning_rate, "momentum": momentum, "nesterov": nesterov, "weight_decay": weight_decay}
    return Optimizer(init=partial(_sgd_init, momentum=momentum), update=partial(_sgd_update, **fixed))


def _sgd_init(params: Params, *, momentum: Decay) -> SGDState:
    remembers = isinstance(momentum, Tensor) or momentum > 0
    zeros = {name: torch.zeros_like(leaf) for name, leaf in params.items()} if remembers else {}
    return SGDState(updates=torch.zeros((), dtype=torch.int64), momentum=zeros)


def _sgd_update(
    grads: Params,
    state: SGDState,
    params: Params,
    *,
    learning_rate: Rate | Schedule,
    momentum: Decay,
    nesterov: bool,
    weight_decay: Penalty,
) -> tuple[Params, SGDState]:
    rate = _rate(learning_rate, state.updates)
    descent = _add(grads, weight_decay, params) if _counts(weight_decay) else grads
    velocity = _add(descent, momentum, state.momentum) if state.momentum else {}
    direction = (_add(descent, momentum, velocity) if nesterov else velocity) if velocity else descent
    return _add(params, -rate, direction), SGDState(updates=state.updates + 1, momentum=velocity)


class AdamState(NamedTuple):
    updates: Tensor  # [] int64, updates made
    first: Params  # running mean of the gradients
    second: Params  # running mean of their squares


def adam(
    *,
    learning_rate: Rate | Schedule,
    beta1: Decay = 0.9,
    beta2: Decay = 0.999,
    epsilon: Positive = 1e-8,
    weight_decay: Penalty = 0.0,
) -> Optimizer:
    """Adam, as torch.optim.Adam takes it: weight decay is added to the gradient. Kingma and Ba (2015), algorithm 1."""
    update = partial(
        _adam_update,
        learning_rate=learning_rate,
        betas=(beta1, beta2),
        epsilon=epsilon,
        coupled=weight_decay,
        decoupled=0.0,
    )
    return Optimizer(init=_adam_init, update=update)


def adamw(
    *,
    learning_rate: Rate | Schedule,
    beta1: Decay = 0.9,
    beta2: Decay = 0.999,
    epsilon: Positive = 1e-8,
    weight_decay: Penalty = 0.01,
) -> Optimizer:
    """Adam whose weight decay acts on the parameters alone. Loshchilov and Hutter (2019), algorithm 2."""
    update = partial(
        _adam_update,
        learning_rate=learning_rate,
        betas=(beta1, beta2),
        epsilon=epsilon,
        coupled=0.0,
        decoupled=weight_decay,
    )
    return Optimizer(init=_adam_init, update=update)


def _adam_init(params: Params) -> AdamState:
    zeros = {name: torch.zeros_like(leaf) for name, leaf in params.items()}
    also = {name: torch.zeros_like(leaf) for name, leaf in params.items()}
    return AdamState(updates=torch.zeros((), dtype=torch.int64), first=zeros, second=also)


def _adam_update(
    grads: Params,
    state: AdamState,
    params: Params,
    *,
    learning_rate: Rate | Schedule,
    betas: tuple[Decay, Decay],
    epsilon: Positive,
    coupled: Penalty,
    decoupled: Penalty,
) -> tuple[Params, AdamState]:
    rate, (beta1, beta2) = _rate(learning_rate, state.updates), betas
    updates = state.updates + 1
    grads = _add(grads, coupled, params) if _counts(coupled) else grads
    first = {n: torch.lerp(m, grads[n], 1 - beta1) for n, m in state.first.items()}
    second = {n: beta2 * v + (1 - beta2) * grads[n] * grads[n] for n, v in state.second.items()}
    made = updates.double()  # 1 - 0.999^1 has four digits in float32
    step = rate / (1 - beta1**made)
    debias = (1 - beta2**made) ** 0.5
    decayed = _add(params, -rate * decoupled, params) if _counts(decoupled) else params
    root = {n: v.clamp(min=TINY).sqrt() for n, v in second.items()}
    moved = {n: (p - step * first[n] / (root[n] / debias + epsilon)).to(p.dtype) for n, p in decayed.items()}
    return moved, AdamState(updates=updates, first=first, second=second)


def clipped(*, optimizer: Optimizer, max_norm: Positive) -> Optimizer:
    """Any optimizer, after the gradient's norm over all parameters is cut to `max_norm`.

    g <- g min(1, max_norm / |g|). Pascanu, Mikolov and Bengio (2013), algorithm 1.
    """
    return optimizer._replace(update=partial(_clipped_update, update=optimizer.update, max_norm=max_norm))


def _clipped_update(
    grads: Params, state: State, params: Params, *, update: Callable[..., tuple[Params, State]], max_norm: Positive
) -> tuple[Params, State]:
    factor = (max_norm / tree.dot(grads, grads).clamp(min=TINY).sqrt()).clamp(max=1.0)
    return update({name: factor * leaf for name, leaf in grads.items()}, state, params)


def _rate(learning_rate: Rate | Schedule, updates: Tensor) -> Tensor | float:
    return learning_rate(updates) if callable(learning_rate) else learning_rate


def _counts(penalty: Tensor | float) -> bool:
    return isinstance(penalty, Tensor) or penalty != 0


def _add(tensors: Params, factor: Tensor | float, others: Params) -> Params:
    """tensors + factor * others. Inductor of torch 2.13 forgets the factor of add(a, b @ c, alpha=factor)."""
    if isinstance(factor, Tensor) or torch.compiler.is_compiling():
        return {name: (leaf + factor * others[name]).to(leaf.dtype) for name, leaf in tensors.items()}
    return {name: torch.add(leaf, others[name], alpha=factor) for name, leaf in tensors.items()}
