"""One door for differentiation."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._C import _functorch  # pyright: ignore[reportAttributeAccessIssue]

from fcurr.types import Buffers, Params


def losses_and_grad(
    function: Callable[[Params], tuple[Tensor, Buffers]], params: Params, weights: Tensor
) -> tuple[Tensor, Buffers, Params]:
    """(losses, buffers, gradient of sum(weights * losses)) for `function(params) -> (losses [batch], buffers)`.

    How much a sample counts is where the backward pass starts, so it costs nothing. Under a transform, or if somebody's
    autograd graph reaches the parameters, torch.func differentiates, and the result can be differentiated again;
    otherwise plain autograd over fresh leaves does the same in less time (benchmarks/step.py). A parameter that is not
    used has a gradient of zeros. Nothing is written to the arguments.
    """
    if _transformed(params):
        losses, pullback, buffers = torch.func.vjp(function, params, has_aux=True)  # pyright: ignore
        return losses, buffers, pullback(weights)[0]
    leaves = {name: leaf.detach().requires_grad_() for name, leaf in params.items()}
    with torch.enable_grad():
        losses, buffers = function(leaves)
    found = torch.autograd.grad(losses, list(leaves.values()), weights, allow_unused=True)
    grads = {n: torch.zeros_like(params[n]) if g is None else g for n, g in zip(leaves, found, strict=True)}
    return losses.detach(), _detached(buffers), grads


def _transformed(params: Params) -> bool:
    """Whether the compiler, a transform of torch.func or somebody's autograd graph is at work."""
    return (
        torch.compiler.is_compiling()
        or _functorch.peek_interpreter_stack() is not None
        or any(leaf.requires_grad for leaf in params.values())
    )


def _detached(tensors: dict[str, Any]) -> dict[str, Any]:
    return {name: leaf.detach() for name, leaf in tensors.items()}
