"""A problem of two levels, and what every hypergradient is given.

The inner parameters go down the inner loss, the meta parameters change that loss, and what is asked for is the
derivative of the outer loss, at where the inner descent ends, with respect to the meta parameters:

    h = d/dmeta outer(params_K(meta), meta),    params_{k+1} = update(grad_params inner(params_k, meta, batch_k))

Every method of fcurr.bilevel answers `hypergradient(outer, inner, params, meta, descent) -> tree like meta`: some with
the derivative of the K steps as they are taken, some with that of the minimum they lead to, some with neither. An
outer loss that is linear, `lambda params, meta: tree.dot(v, params)`, makes any of them a pullback of v.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

from torch import Tensor
from torch.func import grad

from fcurr.types import Batch, Optimizer, Params, State

Meta = Any  # a tree of tensors: what is learned on the outer level


class Outer(Protocol):
    """What the meta parameters make small; it may read them directly as well."""

    def __call__(self, params: Params, meta: Meta, /) -> Tensor: ...  # []


class Inner(Protocol):
    """What the inner parameters make small."""

    def __call__(self, params: Params, meta: Meta, batch: Batch, /) -> Tensor: ...  # []


class Weighted(NamedTuple):
    """An inner loss taken apart, where the meta parameters come after the network: they see its losses only.

    `objective` decides how much a sample counts, and whether a weight's own input is differentiated: the mean of
    `weigh(meta, losses.detach()) * losses` stops the gradient there, without `detach` it does not. Knowing this
    structure, a hypergradient needs no second derivative of the network (fcurr.bilevel.one_step).
    """

    losses: Callable[[Params, Batch], Tensor]  # params, batch -> [batch], or outputs [batch, ...]
    objective: Callable[[Meta, Tensor, Batch], Tensor]  # meta, losses, batch -> []

    def __call__(self, params: Params, meta: Meta, batch: Batch) -> Tensor:
        return self.objective(meta, self.losses(params, batch), batch)


class Descent(NamedTuple):
    """The inner steps to come, one a batch."""

    optimizer: Optimizer | Callable[[Meta], Optimizer]  # of its own, or made of the meta parameters (learning rates)
    memory: State  # of the optimizer, before the first step
    batches: Sequence[Batch]


class Hypergradient(Protocol):
    """The derivative of `outer` at the end of the descent from `params`, or what stands for it."""

    def __call__(self, outer: Outer, inner: Inner, params: Params, meta: Meta, descent: Descent, /) -> Meta: ...


def moving(descent: Descent, meta: Meta) -> Optimizer:
    """The optimizer of a descent, given the meta parameters."""
    chosen = descent.optimizer
    return chosen if isinstance(chosen, Optimizer) else chosen(meta)


def at_rest(batches: Sequence[Batch]) -> Descent:
    """A descent that has come to its end: the parameters are where they are, and the inner loss is that of these
    batches. For implicit methods, whose derivative is that of a minimum."""
    stay = Optimizer(init=lambda params: (), update=lambda grads, state, params: (params, state))
    return Descent(optimizer=stay, memory=(), batches=batches)


def descend(inner: Inner, params: Params, meta: Meta, descent: Descent) -> tuple[Params, State]:
    """Parameters and the optimizer's memory after all steps, as functions that can be differentiated."""
    memory = descent.memory
    for batch in descent.batches:
        params, memory = step(inner, params, memory, meta, batch, descent)
    return params, memory


def step(
    inner: Inner, params: Params, memory: State, meta: Meta, batch: Batch, descent: Descent
) -> tuple[Params, State]:
    """One inner step."""
    return moving(descent, meta).update(slope(inner, params, memory, meta, batch, descent), memory, params)


def slope(inner: Inner, params: Params, memory: State, meta: Meta, batch: Batch, descent: Descent) -> Params:
    """The gradient of the inner loss, times the factor that the optimizer expects."""
    scale = moving(descent, meta).scale(memory)
    return grad(lambda params: inner(params, meta, batch) * scale)(params)  # pyright: ignore[reportReturnType]


def total(inner: Inner, params: Params, meta: Meta, batches: Sequence[Batch]) -> Tensor:
    """[] the mean over batches of the inner loss."""
    losses = [inner(params, meta, batch) for batch in batches]
    return sum(losses[1:], losses[0]) / len(losses)
