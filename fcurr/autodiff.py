"""One door for differentiation."""

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch._C import _functorch  # pyright: ignore[reportAttributeAccessIssue]

from fcurr import tree
from fcurr.types import Buffers, Params

T = TypeVar("T")


def losses_and_grad(
    function: Callable[[Params], tuple[Tensor, Buffers]], params: Params, weights: Tensor
) -> tuple[Tensor, Buffers, Params]:
    """(losses, buffers, gradient of sum(weights * losses)) for `function(params) -> (losses [batch], buffers)`.

    How much a sample counts is where the backward pass starts, so it costs nothing. Under a transform, or if somebody's
    autograd graph reaches the parameters, torch.func differentiates, and the result can be differentiated again;
    otherwise plain autograd over fresh leaves does the same in less time (benchmarks/step.py). A parameter that is not
    used has a gradient of zeros. Nothing is written to the arguments.
    """
    if transformed(params):
        losses, pullback, buffers = torch.func.vjp(function, params, has_aux=True)  # pyright: ignore
        return losses, buffers, pullback(weights)[0]
    leaves = {name: leaf.detach().requires_grad_() for name, leaf in params.items()}
    with torch.enable_grad():
        losses, buffers = function(leaves)
    found = torch.autograd.grad(losses, list(leaves.values()), weights, allow_unused=True)
    grads = {n: torch.zeros_like(params[n]) if g is None else g for n, g in zip(leaves, found, strict=True)}
    return losses.detach(), detached(buffers), grads


def linearised(function: Callable[[T], tuple[Any, Any]], at: T) -> tuple[Any, Any, Callable[[Any], T]]:
    """(value, aux, pullback) of `function(at) -> (value, aux)`, all trees: pullback(cotangent like value) -> tree like
    `at`, as often as wanted. Of torch.func or of plain autograd, as in `losses_and_grad`."""
    if transformed(at):
        value, pull, aux = torch.func.vjp(function, at, has_aux=True)  # pyright: ignore
        return value, aux, lambda cotangent: pull(cotangent)[0]
    leaves, rebuild = tree.flatten(at)
    fresh = [leaf.detach().requires_grad_() for leaf in leaves]
    with torch.enable_grad():
        value, aux = function(rebuild(fresh))
    outs = tree.leaves(value)

    def pullback(cotangent: Any) -> T:
        live = [(out, own) for out, own in zip(outs, tree.leaves(cotangent), strict=True) if out.requires_grad]
        if not live:
            return rebuild([torch.zeros_like(leaf) for leaf in leaves])
        ends, starts = zip(*live, strict=True)
        found = torch.autograd.grad(ends, fresh, starts, retain_graph=True, allow_unused=True)
        return rebuild([torch.zeros_like(leaf) if g is None else g for leaf, g in zip(leaves, found, strict=True)])

    return detached(value), detached(aux), pullback


def transformed(params: Any) -> bool:
    """Whether the compiler, a transform of torch.func or somebody's autograd graph is at work."""
    return (
        torch.compiler.is_compiling()
        or _functorch.peek_interpreter_stack() is not None
        or any(leaf.requires_grad for leaf in tree.leaves(params))
    )


def detached(tensors: T) -> T:
    return tree.map(Tensor.detach, tensors)


def floating(state: T) -> tuple[list[Tensor], Callable[[list[Tensor]], T]]:
    """The floating-point tensors of a tree, and the function that puts others in their places: what can be
    differentiated of a state that counts as well."""
    leaves, rebuild = tree.flatten(state)

    def put(others: list[Tensor]) -> T:
        rest = iter(others)
        return rebuild([next(rest) if leaf.is_floating_point() else leaf for leaf in leaves])

    return [leaf for leaf in leaves if leaf.is_floating_point()], put


def hvp(function: Callable[[T], Tensor], at: T) -> Callable[[T], T]:
    """v -> H v, for the Hessian H of `function(at) -> []`; `at`, v and H v are trees alike.

    Reverse over reverse: the gradient's graph is built here, once, and every product is a backward pass through it, for
    0.75 (MLP) and 1.3 (CNN) of the gradient's time. Forward over reverse takes 4.1 and 2.4, and wants every operation
    to have a forward derivative.
    """
    _, pull = torch.func.vjp(torch.func.grad(function), at)  # pyright: ignore
    return lambda vector: pull(vector)[0]
