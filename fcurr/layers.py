"""Layers that are linear in their parameters: how one was called, with others in the place of its parameters, and the
gradients of these."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import vjp

from fcurr.types import Params

Slots = tuple[tuple[int, str], ...]  # (position among the arguments, keyword) of weight and bias
_WEIGHT_BIAS: Slots = ((1, "weight"), (2, "bias"))
LAYERS: dict[Any, Slots] = {
    F.linear: _WEIGHT_BIAS,
    **dict.fromkeys((F.conv1d, F.conv2d, F.conv3d), _WEIGHT_BIAS),
    **dict.fromkeys((F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d), _WEIGHT_BIAS),
    F.layer_norm: ((2, "weight"), (3, "bias")),
    F.group_norm: ((2, "weight"), (3, "bias")),
    F.rms_norm: ((2, "weight"),),
    F.embedding: ((1, "weight"),),
}
_CONVOLUTIONS = (F.conv1d, F.conv2d, F.conv3d)
_NORMS = (F.layer_norm, F.group_norm, F.rms_norm)


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

    @property
    def input(self) -> Tensor:
        return self.arguments[0] if self.arguments else self.named["input"]

    def given(self, slot: int) -> Tensor | None:
        position, keyword = self.slots[slot]
        return self.arguments[position] if position < len(self.arguments) else self.named.get(keyword)


def tensors(use: Use) -> list[Tensor]:
    return [value for value in (*use.arguments, *use.named.values()) if isinstance(value, Tensor)]


def replacing(tensors: list[Tensor]) -> Callable[[Tensor], Tensor]:
    rest = iter(tensors)
    return lambda value: next(rest)


def with_tensors(use: Use, change: Callable[..., Tensor]) -> Use:
    """The same use, of other tensors."""
    put = lambda value: change(value) if isinstance(value, Tensor) else value  # noqa: E731
    arguments = tuple(map(put, use.arguments))
    return use._replace(arguments=arguments, named={key: put(value) for key, value in use.named.items()})


def in_type_of(use: Use, params: Params) -> Use:
    """The same use in the parameters' type, where torch.autocast has chosen another."""
    dtype = next(iter(params.values())).dtype
    return with_tensors(use, lambda x: x.to(dtype) if x.is_floating_point() else x)


def standing(use: Use, slot: int, name: str | None, direction: Params) -> Tensor | None:
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


def weighted(use: Use, cotangent: Tensor, weights: Tensor) -> Params:
    """The gradients of a layer's parameters, each sample weighted, given the gradient of what the layer gave."""
    if use.function is F.linear:
        found = _weighted_linear(use, cotangent, weights)
    elif (shape := _convolution(use)) is not None:
        found = _weighted_convolution(use, cotangent, weights, shape)
    else:
        found = _weighted_anyhow(use, _times(cotangent, weights))
    return {name: part for name, part in zip(use.names, found, strict=True) if name is not None and part is not None}


def _weight(use: Use) -> Tensor:
    weight = use.given(0)
    assert weight is not None
    return weight


def _times(x: Tensor, weights: Tensor) -> Tensor:
    """Samples come first, alone or in one axis with positions."""
    return x * _each(weights, x).reshape(-1, *[1] * (x.ndim - 1))


def _each(weights: Tensor, x: Tensor) -> Tensor:
    """A weight for everything in the first axis."""
    each = weights.to(x.dtype)
    return each if len(x) == len(each) else each.repeat_interleave(len(x) // len(each))


def _weighted_linear(use: Use, cotangent: Tensor, weights: Tensor) -> list[Tensor | None]:
    """The smaller of what was given and what came back is multiplied."""
    a, b = use.input.to(cotangent.dtype), cotangent
    flat = lambda x: x.flatten(0, -2) if x.ndim > 2 else x  # noqa: E731
    sums = None
    if use.names[1] is not None:
        sums = _each(weights, b) @ (b.flatten(1, -2).sum(1) if b.ndim > 2 else b)
    a, b = (_times(a, weights), b) if a.numel() < b.numel() else (a, _times(b, weights))
    found = [flat(b).mT @ flat(a) if use.names[0] is not None else None, sums]
    return [part if part is None else part.to(_weight(use).dtype) for part in found]


def _convolution(use: Use) -> list[Any] | None:
    """Stride, padding and dilation an axis, and groups, of a convolution whose padding is a number."""
    if use.function not in _CONVOLUTIONS:
        return None
    axes = _CONVOLUTIONS.index(use.function) + 1
    default = {"stride": 1, "padding": 0, "dilation": 1, "groups": 1}
    fixed = default | dict(zip(default, use.arguments[3:], strict=False)) | use.named
    kernel = _weight(use).shape[2:]
    wide = lambda value: [value] * axes if isinstance(value, int) else [*value]  # noqa: E731
    stride, dilation, padding = wide(fixed["stride"]), wide(fixed["dilation"]), fixed["padding"]
    if padding == "same":
        reach = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
        padding = None if any(r % 2 for r in reach) else [r // 2 for r in reach]
    padding = [0] * axes if padding == "valid" else padding
    if padding is None or use.input.ndim != axes + 2:
        return None
    return [stride, wide(padding), dilation, False, [0] * axes, fixed["groups"]]


def _weighted_convolution(use: Use, cotangent: Tensor, weights: Tensor, shape: list[Any]) -> list[Tensor | None]:
    """The smaller of what was given and what came back is multiplied."""
    x, weight, b = use.input.to(cotangent.dtype), _weight(use), cotangent
    sums = None if use.names[1] is None else (_each(weights, b) @ b.flatten(2).sum(2)).to(weight.dtype)
    if use.names[0] is None:
        return [None, sums]
    x, b = (_times(x, weights), b) if x.numel() < b.numel() else (x, _times(b, weights))
    only = [False, True, False]
    back = torch.ops.aten.convolution_backward(b, x, weight.to(b.dtype), None, *shape, only)
    return [back[1].to(weight.dtype), sums]


def _weighted_anyhow(use: Use, cotangent: Tensor) -> list[Tensor | None]:
    fixed = [use.given(slot) for slot in range(len(use.slots))]
    use = in_type_of(
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


def own(use: Use, cotangent: Tensor, size: int) -> Params | None:
    """The gradient of each of `size` samples, [batch, *parameter], where that is less than what it comes of: of
    normalisations. None for other layers."""
    if use.function not in _NORMS:
        return None
    dtype = next(
        t.dtype for slot, name in enumerate(use.names) if name is not None and (t := use.given(slot)) is not None
    )
    use, cotangent = with_tensors(use, lambda x: x.to(dtype)), cotangent.to(dtype)
    normed = use.called([None] * len(use.slots))
    found = [cotangent * normed, cotangent]
    return {name: _by_sample(use, part, size) for name, part in zip(use.names, found, strict=False) if name is not None}


def _by_sample(use: Use, x: Tensor, size: int) -> Tensor:
    """Summed over all positions of a sample."""
    if use.function is F.group_norm:
        return x.reshape(size, -1, x.shape[1], x[0, 0].numel()).sum((1, 3))
    shape = [use.given(slot) for slot in range(len(use.slots))]
    like = next(tensor.shape for tensor in shape if tensor is not None)
    return x.reshape(size, -1, *like).sum(1)
