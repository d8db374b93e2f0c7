"""The exact hypergradient of one inner step, where meta parameters see the network's losses only (`Weighted`).

With L the losses at the parameters, c = d objective / d L what each counts, g = J^T c the gradient that the update is
given and v = grad outer after the step, the chain rule leaves one number a sample:

    q = (d update / d g)^T v,    s = J q,    s_i = <grad L_i, q>,    h = d outer / d meta + d/d meta <c(meta, L), s>

so only what comes after the network is differentiated twice. Three routes to s, the same number:

- `ghost`: inner products from the inner backward pass itself, the cost of one forward pass (fcurr.ghost). It needs
  layers that are linear in their parameters and samples that do not see each other.
- `forward`: a derivative forward, for networks that couple samples (BatchNorm), at about three forward passes.
- `reverse`: a derivative of the backward pass, for operations that have no forward derivative.

`chosen` tries them in this order and says why. Shu et al. (2019), Meta-Weight-Net, eq. 3 to 5 for plain SGD.
"""

from collections.abc import Callable
from functools import partial
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.func import grad, jvp, vjp

from fcurr import ghost, tree
from fcurr.autodiff import linearised, transformed
from fcurr.bilevel.problem import Descent, Meta, Outer, Weighted, moving
from fcurr.errors import BadInput
from fcurr.types import Buffers, Params

Route = Literal["ghost", "forward", "reverse"]
Losses = Callable[[Params], tuple[Tensor, Buffers]]  # params -> losses [batch], buffers


class Choice(NamedTuple):
    """A route, and why none before it would do."""

    route: Route
    why: str


class Near(NamedTuple):
    """The losses near the parameters: themselves, and their derivatives both ways."""

    losses: Tensor  # [batch]
    buffers: Buffers
    pulled: Callable[[Tensor], Params]  # weights [batch] -> gradient of sum(weights * losses)
    along: Callable[[Params], Tensor]  # direction -> [batch] <grad losses_i, direction>


def near(function: Losses, params: Params, route: Route) -> Near:
    """A forward pass, and what can be asked of it by a route."""
    if route == "ghost":
        found = ghost.backprops(function, params)
        return Near(found.losses, found.buffers, partial(ghost.weighted, found), partial(ghost.along, found))
    losses, buffers, pulled = linearised(function, params)
    along = _forward if route == "forward" else _reverse
    return Near(losses, buffers, pulled, partial(along, function, params))


def _forward(function: Losses, params: Params, direction: Params) -> Tensor:
    return jvp(lambda params: function(params)[0], (params,), (direction,))[1]


def _reverse(function: Losses, params: Params, direction: Params) -> Tensor:
    """The pullback is linear in the weights, so its own pullback takes directions to losses."""
    losses, pull = vjp(lambda params: function(params)[0], params)  # pyright: ignore
    return vjp(lambda weights: pull(weights)[0], torch.zeros_like(losses))[1](direction)[0]  # pyright: ignore


def chosen(function: Losses, params: Params) -> Choice:
    """The cheapest route that is right for this function, tried on its own arguments, outside of any transform.

    BadInput if there is none: an operation has neither a forward derivative nor a second one."""
    why = ghost.refusal(function, params)
    if not why:
        return Choice("ghost", "")
    missing = []
    for route, along in (("forward", _forward), ("reverse", _reverse)):
        try:
            along(function, params, params)
            return Choice(route, "; ".join([why, *missing]))
        except (NotImplementedError, RuntimeError) as wrong:
            missing.append(f"no {route} derivative of {_operation(wrong)}")
    raise BadInput(f"no exact hypergradient: {'; '.join([why, *missing])}", "model")


def _operation(wrong: Exception) -> str:
    """The operation that an error of torch is about."""
    first = (str(wrong).strip().splitlines() or [type(wrong).__name__])[0]
    marks = [word.strip("'`\".,") for word in first.split() if "::" in word or word.startswith(("_", "'", "`", "aten"))]
    return marks[0] if marks else first


def one_step(
    outer: Outer, inner: Weighted, params: Params, meta: Meta, descent: Descent, *, route: Route | None = None
) -> Meta:
    """The exact hypergradient of a descent of one step, by a route, or by the one that `chosen` takes (which tries, so
    it is for eager calls: under a transform, name the route)."""
    (batch,) = descent.batches
    losses: Losses = lambda params: (inner.losses(params, batch), {})  # noqa: E731
    if route is None:
        if transformed((params, meta)):
            raise ValueError("under a transform nothing can be tried: name the route, chosen(...) says which")
        route = chosen(losses, params).route
    here = near(losses, params, route)
    counts = partial(grad(inner.objective, argnums=1), meta)

    def update(grads: Params, meta: Meta) -> Params:
        return moving(descent, meta).update(grads, descent.memory, params)[0]

    after, pullback = vjp(update, here.pulled(counts(here.losses, batch)), meta)  # pyright: ignore
    v, direct = grad(outer, argnums=(0, 1))(after, meta)
    q, by_rate = pullback(v)
    s = here.along(q)
    through = grad(lambda meta: (grad(inner.objective, argnums=1)(meta, here.losses, batch) * s).sum())(meta)
    return tree.sum_of([direct, by_rate, through])
