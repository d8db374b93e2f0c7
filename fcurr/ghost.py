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

from fcurr import rng, tree
from fcurr.autodiff import detached, losses_and_grad, transformed
from fcurr.types import Buffers, Params

Slots = tuple[tuple[int, str], ...]  # (position among the arguments, keyword) of weight and bias
_WEIGHT_BIAS: Slots = ((1, "weight"), (2, "bias"))
_LAYERS: dict[Any, Slots] = {
    F.linear: _WEIGHT_BIAS,
    **dict.fromkeys((F.conv1d, F.conv2d, F.conv3d), _WEIGHT_BIAS),
    **dict.fromkeys((F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d), _WEIGHT_BIAS),
    F.layer_norm: ((2, "weight"), (3, "bias")),
    F.group_norm: ((2, "weight"), (3, "bias")),
    F.rms_norm: ((2, "weight"),),
    F.embedding: ((1, "weight"),),
}
_CONVOLUTIONS = (F.conv1d, F.conv2d, F.conv3d)
CLOSE = {torch.float64: 1e-9, torch.float32: 1e-3, torch.bfloat16: 5e-2}  # see `agree`


class Use(NamedTuple):
    """A layer that was called with parameters."""

    function: Callable[..., Tensor]
    arguments: tuple[Any, ...]  # as given, the parameters among them
    named: dict[str, Any]
    slots: Slots
    names: tuple[str | None, ...]  # the parameter in each slot; None for a tensor that is not learned, or nothing

    def called(self, tensors: list[Tensor | None]) -> Tensor:
        """The layer with other tensors in its slots."""
        arguments, named = list(self.arguments), dict(self.named)
        for (position, keyword), tensor in zip(self.slots, tensors, strict=True):
            if position < len(arguments):
                arguments[position] = tensor
            else:
                named[keyword] = tensor
        return self.function(*arguments, **named)

    def given(self, slot: int) -> Tensor | None:
        position, keyword = self.slots[slot]
        return self.arguments[position] if position < len(self.arguments) else self.named.get(keyword)


class Backprops(NamedTuple):
    """A forward and a backward pass, without the gradients of parameters."""

    losses: Tensor  # [batch]
    buffers: Buffers
    uses: list[Use]
    cotangents: list[Tensor]  # of the summed losses, a use each
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
    uses = [_with_tensors(use, Tensor.detach) for use, _ in reached]
    return Backprops(losses.detach(), detached(buffers), uses, [b for _, b in reached], params)


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
        return losses, (buffers, [_tensors(use) for use in watch.uses])

    losses, pullback, (buffers, inputs) = vjp(run, zeros, has_aux=True)  # pyright: ignore
    (cotangents,) = pullback(torch.ones_like(losses))
    given = [_with_tensors(use, _next(own)) for use, own in zip(uses, inputs, strict=True)]
    return Backprops(losses, buffers, given, cotangents, params)


def _tensors(use: Use) -> list[Tensor]:
    return [value for value in (*use.arguments, *use.named.values()) if isinstance(value, Tensor)]


def _next(tensors: list[Tensor]) -> Callable[[Tensor], Tensor]:
    rest = iter(tensors)
    return lambda value: next(rest)


def _with_tensors(use: Use, change: Callable[..., Tensor]) -> Use:
    """The same use, of other tensors."""
    put = lambda value: change(value) if isinstance(value, Tensor) else value  # noqa: E731
    arguments = tuple(map(put, use.arguments))
    return use._replace(arguments=arguments, named={key: put(value) for key, value in use.named.items()})


def along(found: Backprops, direction: Params) -> Tensor:
    """[batch] <grad losses_i, direction>."""
    size = len(found.losses)
    parts = []
    for use, cotangent in zip(found.uses, found.cotangents, strict=True):
        use = _in_type_of(use, direction)
        tangent = use.called([_of(use, slot, name, direction) for slot, name in enumerate(use.names)])
        parts.append((cotangent * tangent).reshape(size, -1).sum(1))
    return functools.reduce(torch.add, parts) if parts else torch.zeros_like(found.losses)


def _in_type_of(use: Use, params: Params) -> Use:
    """The same use in the parameters' type, where torch.autocast has chosen another."""
    dtype = next(iter(params.values())).dtype
    return _with_tensors(use, lambda x: x.to(dtype) if x.is_floating_point() else x)


def _of(use: Use, slot: int, name: str | None, direction: Params) -> Tensor | None:
    """What stands in a slot of the linearised layer."""
    if name is not None:
        return _unpadded(use, direction[name])
    fixed = use.given(slot)
    return None if fixed is None else torch.zeros_like(fixed)


def _unpadded(use: Use, table: Tensor) -> Tensor:
    """Without the row that is never learned, where the layer is an embedding that has one."""
    if use.function is not F.embedding:
        return table
    padding = use.arguments[2] if len(use.arguments) > 2 else use.named.get("padding_idx")
    return (
        table
        if padding is None
        else table * (torch.arange(len(table), device=table.device) != padding % len(table))[:, None]
    )


def weighted(found: Backprops, weights: Tensor) -> Params:
    """The gradient of sum(weights * losses); weights [batch]."""
    grads: Params = {}
    for use, cotangent in zip(found.uses, found.cotangents, strict=True):
        for name, part in _pulled(use, _times(cotangent, weights)).items():
            grads[name] = grads[name] + part if name in grads else part
    return {name: grads[name] if name in grads else torch.zeros_like(leaf) for name, leaf in found.params.items()}


def _times(cotangent: Tensor, weights: Tensor) -> Tensor:
    """Samples come first, alone or in one axis with positions."""
    each = weights.to(cotangent.dtype)
    if len(cotangent) != len(each):
        each = each.repeat_interleave(len(cotangent) // len(each))
    return cotangent * each.reshape(-1, *[1] * (cotangent.ndim - 1))


def _pulled(use: Use, cotangent: Tensor) -> Params:
    """The gradients of a layer's parameters, given that of what it gave."""
    if use.function is F.linear:
        found = _pulled_linear(use, cotangent)
    elif (shape := _convolution(use)) is not None:
        found = _pulled_convolution(use, cotangent, shape)
    else:
        found = _pulled_anyhow(use, cotangent)
    return {name: part for name, part in zip(use.names, found, strict=True) if name is not None and part is not None}


def _pulled_linear(use: Use, cotangent: Tensor) -> list[Tensor | None]:
    a, b = (x.flatten(0, -2) if x.ndim > 2 else x for x in (use.arguments[0], cotangent))
    found = [b.mT @ a.to(b.dtype) if use.names[0] else None, b.sum(0) if use.names[1] else None]
    return [part if part is None else part.to(use.arguments[1].dtype) for part in found]


def _convolution(use: Use) -> list[Any] | None:
    """Stride, padding and dilation an axis, and groups, of a convolution whose padding is a number."""
    if use.function not in _CONVOLUTIONS:
        return None
    axes = _CONVOLUTIONS.index(use.function) + 1
    default = {"stride": 1, "padding": 0, "dilation": 1, "groups": 1}
    fixed = default | dict(zip(default, use.arguments[3:], strict=False)) | use.named
    kernel = use.arguments[1].shape[2:]
    wide = lambda value: [value] * axes if isinstance(value, int) else [*value]  # noqa: E731
    stride, dilation, padding = wide(fixed["stride"]), wide(fixed["dilation"]), fixed["padding"]
    if padding == "same":
        reach = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
        padding = None if any(r % 2 for r in reach) else [r // 2 for r in reach]
    padding = [0] * axes if padding == "valid" else padding
    if padding is None or use.arguments[0].ndim != axes + 2:
        return None
    return [stride, wide(padding), dilation, False, [0] * axes, fixed["groups"]]


def _pulled_convolution(use: Use, cotangent: Tensor, shape: list[Any]) -> list[Tensor | None]:
    x, weight = use.arguments[0].to(cotangent.dtype), use.arguments[1]
    sums = None if use.names[1] is None else cotangent.flatten(2).sum((0, 2)).to(weight.dtype)
    if use.names[0] is None:
        return [None, sums]
    only = [False, True, False]
    back = torch.ops.aten.convolution_backward(cotangent, x, weight.to(cotangent.dtype), None, *shape, only)
    return [back[1].to(weight.dtype), sums]


def _pulled_anyhow(use: Use, cotangent: Tensor) -> list[Tensor | None]:
    fixed = [use.given(slot) for slot in range(len(use.slots))]
    use = _in_type_of(
        use,
        {
            name: tensor
            for tensor, name in zip(fixed, use.names, strict=True)
            if tensor is not None and name is not None
        },
    )
    learned = [tensor for tensor, name in zip(fixed, use.names, strict=True) if name is not None]

    def layer(*own: Tensor) -> Tensor:
        rest = iter(own)
        return use.called(
            [tensor if name is None else next(rest) for tensor, name in zip(fixed, use.names, strict=True)]
        )

    out, pullback = vjp(layer, *learned)  # pyright: ignore
    found = iter(pullback(cotangent.to(out.dtype)))
    return [None if name is None else next(found) for name in use.names]


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
    weights, direction = tried(found.losses, params)
    _, _, grads = losses_and_grad(function, params, weights)
    close = max((CLOSE[cotangent.dtype] for cotangent in found.cotangents), default=0.0)
    if not agree(weights * along(found, direction), grads, direction, close):
        return "what belongs to one sample cannot be told from what belongs to others"
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
        if func not in _LAYERS:
            found = func(*args, **kwargs)
            if any(isinstance(leaf, Tensor) for leaf in tree.leaves([found])):
                raise _Refused(f"the parameter {known[0]!r} is used by {_name(func)}")
            return found  # its shape, or its type
        use = Use(func, tuple(args), dict(kwargs), _LAYERS[func], ())
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
