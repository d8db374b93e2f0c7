"""Inner products with per-sample gradients that are never made.

A layer is linear in its parameters. So what a direction q of the parameters does to a sample's loss is

    <grad losses_i, q> = sum over uses of parameters of <B_i, layer(A_i; q)>,

where A is what the layer was given, B the gradient of the summed losses with respect to what it gave, and layer(A; q)
the same layer with q in the place of its parameters: the cost of a forward pass, for all samples together. The gradient
of any weighted sum of the losses comes of the same A and B, for whatever weights are known afterwards. Goodfellow
(2015), Efficient per-example gradient computations, for linear layers and norms.

It holds where samples do not see each other and every parameter is used by such layers only; `refusal` says whether.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.graph import get_gradient_edge
from torch.func import vjp
from torch.overrides import TorchFunctionMode

from fcurr import layers, rng, tree
from fcurr.autodiff import detached, losses_and_grad, transformed
from fcurr.layers import LAYERS, Use, in_type_of, own, replacing, standing, tensors, with_tensors
from fcurr.types import Buffers, Params

CLOSE = {torch.float64: 1e-9, torch.float32: 1e-3, torch.bfloat16: 5e-2}  # see `agree`


class Backprops(NamedTuple):
    """A forward and a backward pass, without the gradients of parameters."""

    losses: Tensor  # [batch]
    buffers: Buffers
    uses: list[Use]
    cotangents: list[Tensor]  # of the summed losses, a use each
    own: list[Params]  # gradients of samples [batch, *parameter], of layers where these are small
    params: Params


def backprops(function: Callable[[Params], tuple[Tensor, Buffers]], params: Params) -> Backprops:
    """Of `function(params) -> (losses [batch], buffers)`; ValueError where a parameter is used in another way."""
    if transformed(params):
        return _tapped(function, params)
    leaves = {name: leaf.detach().requires_grad_() for name, leaf in params.items()}
    edges: list[Any] = []

    def noted(out: Tensor) -> Tensor:
        edges.append(get_gradient_edge(out) if out.requires_grad else None)
        return out

    watch = _Watch(leaves, noted)
    with torch.enable_grad(), watch:
        losses, buffers = function(leaves)
    live = [(use, edge) for use, edge in zip(watch.uses, edges, strict=True) if edge is not None]
    found = torch.autograd.grad(losses.sum(), [edge for _, edge in live], allow_unused=True) if live else ()
    reached = [(use, b) for (use, _), b in zip(live, found, strict=True) if b is not None]
    uses = [with_tensors(use, Tensor.detach) for use, _ in reached]
    return _kept(losses.detach(), detached(buffers), uses, [b for _, b in reached], params)


def _tapped(function: Callable[[Params], tuple[Tensor, Buffers]], params: Params) -> Backprops:
    """The same under a transform: zeros are added where gradients are wanted."""
    zeros: list[Tensor] = []

    def measured(out: Tensor) -> Tensor:
        zeros.append(torch.zeros(out.shape, dtype=out.dtype, device=out.device))  # not of `out`: that pass is dead
        return out

    with _Watch(params, measured):
        function(params)
    uses: list[Use] = []

    def run(taps: list[Tensor]) -> tuple[Tensor, Any]:
        rest = iter(taps)
        watch = _Watch(params, lambda out: out + next(rest))
        with watch:
            losses, buffers = function(params)
        uses[:] = watch.uses
        return losses, (buffers, [tensors(use) for use in watch.uses])

    losses, pullback, (buffers, inputs) = vjp(run, zeros, has_aux=True)  # pyright: ignore
    (cotangents,) = pullback(torch.ones_like(losses))
    given = [with_tensors(use, replacing(given)) for use, given in zip(uses, inputs, strict=True)]
    return _kept(losses, buffers, given, cotangents, params)


def _kept(losses: Tensor, buffers: Buffers, uses: list[Use], cotangents: list[Tensor], params: Params) -> Backprops:
    """What is needed later: of normalisations the samples' own gradients, of other layers what they were given."""
    large, slopes, small = [], [], []
    for use, cotangent in zip(uses, cotangents, strict=True):
        first = losses.ndim == 1 and len(cotangent) % len(losses) == 0
        if first and (found := own(use, cotangent, len(losses))) is not None:
            small.append(found)
        else:
            large.append(use)
            slopes.append(cotangent)
    return Backprops(losses, buffers, large, slopes, small, params)


def along(found: Backprops, direction: Params) -> Tensor:
    """[batch] <grad losses_i, direction>."""
    size = len(found.losses)
    parts = []
    for use, cotangent in zip(found.uses, found.cotangents, strict=True):
        use = in_type_of(use, direction)
        tangent = use.called([standing(use, slot, name, direction) for slot, name in enumerate(use.names)])
        parts.append((cotangent * tangent).reshape(size, -1).sum(1))
    for each in found.own:
        parts += [part.flatten(1) @ direction[name].flatten() for name, part in each.items()]
    return functools.reduce(torch.add, parts) if parts else torch.zeros_like(found.losses)


def weighted(found: Backprops, weights: Tensor) -> Params:
    """The gradient of sum(weights * losses); weights [batch]."""
    grads: Params = {}
    for use, cotangent in zip(found.uses, found.cotangents, strict=True):
        for name, part in layers.weighted(use, cotangent, weights).items():
            grads[name] = grads[name] + part if name in grads else part
    for each in found.own:
        for name, own_grads in each.items():
            part = (weights.to(own_grads.dtype) @ own_grads.flatten(1)).reshape(own_grads.shape[1:])
            grads[name] = grads[name] + part if name in grads else part
    return {name: grads[name] if name in grads else torch.zeros_like(leaf) for name, leaf in found.params.items()}


def refusal(function: Callable[[Params], tuple[Tensor, Buffers]], params: Params) -> str:
    """Why these inner products do not hold for a function, or "" if they do: tried on it, against plain autograd."""
    try:
        found = backprops(function, params)
    except _Refused as wrong:
        return str(wrong)
    if found.losses.ndim != 1:
        return "meta parameters see outputs, more than a number a sample"
    size = len(found.losses)
    for use, cotangent in zip(found.uses, found.cotangents, strict=True):
        if cotangent.dtype == torch.float16:
            return "gradients in float16 want their scale from the start"
        if len(cotangent) % size:
            name = next(name for name in use.names if name is not None)
            return f"the parameter {name!r} is not used sample by sample"
    types = {cotangent.dtype for cotangent in found.cotangents} | {found.losses.dtype}
    close = max(CLOSE.get(dtype, 0.0) for dtype in types)
    weights, direction = tried(found.losses, params)
    moved = {name: leaf + 0.1 * direction[name] for name, leaf in params.items()}  # where no layer is all zeros
    found, (_, _, grads) = backprops(function, moved), losses_and_grad(function, moved, weights)
    if not agree(weights * along(found, direction), grads, direction, close):
        return "what belongs to one sample cannot be told from what belongs to others"
    own, least = weighted(found, weights), 1e-3 * tree.norm(grads)
    for name, leaf in grads.items():
        if not bool((own[name] - leaf).norm() <= close * (leaf.norm() + least)):
            return f"the parameter {name!r} is not used sample by sample"
    return ""


def tried(losses: Tensor, params: Params) -> tuple[Tensor, Params]:
    """Weights like the losses and a direction of the parameters, the same every time, to try derivatives with."""

    def some(like: Tensor, key: int) -> Tensor:
        return rng.uniform(key, torch.arange(like.numel(), device=like.device)).reshape(like.shape).to(like.dtype)

    return some(losses, 1) + 0.5, {n: some(leaf, 2 + place) - 0.5 for place, (n, leaf) in enumerate(params.items())}


def agree(products: Tensor, grads: Params, direction: Params, close: float) -> bool:
    """Whether weighted products of losses' gradients and a direction have the sum that the weighted gradient's own has,
    to a share of the root of the sum of squares, as independent errors add."""
    terms = [grads[name] * leaf for name, leaf in direction.items()]
    wrong = products.sum() - torch.stack([term.sum() for term in terms]).sum()
    return bool(wrong.abs() <= close * torch.stack([term.square().sum() for term in terms]).sum().sqrt())


class _Refused(ValueError):
    pass


class _Watch(TorchFunctionMode):
    """Notes every layer that is called with parameters; `touch` may change what it gave."""

    def __init__(self, params: Params, touch: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.names = {id(leaf): name for name, leaf in params.items()}
        self.touch = touch
        self.uses: list[Use] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        known = [self.names[id(leaf)] for leaf in tree.leaves([args, kwargs]) if id(leaf) in self.names]
        if func is F.batch_norm and (args[5] if len(args) > 5 else kwargs.get("training", False)):
            raise _Refused("BatchNorm in training makes samples see each other")
        if not known:
            return func(*args, **kwargs)
        if func not in LAYERS:
            found = func(*args, **kwargs)
            if any(isinstance(leaf, Tensor) for leaf in tree.leaves([found])):
                raise _Refused(f"the parameter {known[0]!r} is used by {_name(func)}")
            return found  # its shape, or its type
        use = Use(func, tuple(args), dict(kwargs), LAYERS[func], ())
        names = tuple(self.names.get(id(use.given(slot))) for slot in range(len(use.slots)))
        if sum(name is not None for name in names) < len(known):
            raise _Refused(f"the parameter {known[0]!r} is used by {_name(func)}")
        out = self.touch(func(*args, **kwargs))
        self.uses.append(use._replace(names=names))
        return out


def _name(function: Any) -> str:
    """Of an operation; an attribute, like T, by its own."""
    name = getattr(function, "__name__", str(function))
    return getattr(function.__self__, "__name__", name) if name == "__get__" else name
