"""The losses near the parameters: what samples lose, and the derivatives of that both ways, by a route.

Backwards, weights become the gradient of the weighted sum; forwards, a direction of the parameters becomes a number a
sample, s_i = <grad losses_i, direction>. Three routes to the second, the same number:

- `ghost`: inner products from the backward pass itself, at the cost of one forward pass (fcurr.ghost). It needs layers
  that are linear in their parameters and samples that do not see each other.
- `forward`: a derivative forward, for networks that couple samples (BatchNorm), at about three forward passes.
- `reverse`: a derivative of the backward pass, for operations that have no forward derivative.

`chosen` tries them in this order and says why.
"""

import re
from collections.abc import Callable
from functools import partial
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.func import jvp, vjp

from fcurr import ghost
from fcurr.autodiff import linearised
from fcurr.errors import BadInput
from fcurr.types import Buffers, Params

Route = Literal["ghost", "forward", "reverse"]
Losses = Callable[[Params], tuple[Tensor, Buffers]]  # params -> losses [batch], buffers

TOLD = {
    "ghost": "hypergradients by inner products of the backward pass",
    "forward": "hypergradients by forward derivatives",
    "reverse": "hypergradients by derivatives of the backward pass",
}


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
    if route not in ("forward", "reverse"):
        raise ValueError(f"{route!r} is no route: ghost, forward, reverse")
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

    A backward pass need not be the derivative: that of an embedding leaves out the row of its padding. BadInput if
    there is no route: an operation has neither a forward derivative nor a second one."""
    why = ghost.refusal(function, params)
    if not why:
        return Choice("ghost", "")
    missing: list[str] = []
    others: tuple[Route, ...] = ("forward", "reverse")
    for route in others:
        here = near(function, params, route)
        weights, direction = ghost.tried(here.losses, params)
        try:
            products = weights * here.along(direction)
        except (NotImplementedError, RuntimeError) as wrong:
            missing.append(f"no {route} derivative of {_operation(wrong)}")
            continue
        if ghost.agree(products, here.pulled(weights), direction, 1e-9 if products.dtype == torch.float64 else 5e-2):
            return Choice(route, "; ".join([why, *missing]))
        missing.append(f"the {route} derivative is not that of the backward pass")
    raise BadInput(f"no exact hypergradient: {'; '.join([why, *missing])}", "model")


def _operation(wrong: Exception) -> str:
    """The operation that an error of torch is about."""
    first = (str(wrong).strip().splitlines() or [type(wrong).__name__])[0]
    if found := re.search(r"forward AD with (\S+) that", first):
        return found[1]
    if "custom autograd.Function" in first:
        return "a custom autograd.Function"
    marks = [word.strip("'`\".,") for word in first.split() if "::" in word or word.startswith(("_", "'", "`", "aten"))]
    return marks[0] if marks else first
