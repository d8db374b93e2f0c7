"""In what units samples are, side by side: `scaling(x) -> Scaling`, found from the samples that train.

Samples may be in memory or not: they are read a thousand at a time, and sums are in float64. What does not differ
between samples keeps its size: its factor is 1.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from fcurr.types import Rows

_CHUNK = 1024


class Scaling(NamedTuple):
    """x becomes (x - shift) * factor."""

    shift: Tensor  # broadcasts over one sample
    factor: Tensor  # broadcasts over one sample


class _Spread(NamedTuple):
    mean: Tensor  # float64, as the others
    variance: Tensor  # the mean square of x - mean
    low: Tensor
    high: Tensor


def standard(x: Tensor | Rows) -> Scaling:
    """Every feature gets mean 0 and variance 1 over the samples [sample, ...]; the variance divides by their number."""
    found = _spread(x, over=(0,))
    return _scaling(found.mean, found.variance.sqrt(), found, x.dtype)


def min_max(x: Tensor | Rows) -> Scaling:
    """Every feature is brought into [0, 1]: its least value over the samples [sample, ...] to 0, its largest to 1."""
    found = _spread(x, over=(0,))
    return _scaling(found.low, found.high - found.low, found, x.dtype)


def per_channel(x: Tensor | Rows) -> Scaling:
    """Every channel gets mean 0 and variance 1 over all pixels of pictures [sample, channel, height, width]."""
    if len(x.shape) != 4:
        given = list(x.shape[1:])
        raise ValueError(f"per_channel wants pictures [channel, height, width], not samples of shape {given}")
    found = _spread(x, over=(0, 2, 3))
    return _scaling(found.mean, found.variance.sqrt(), found, x.dtype)


def _scaling(shift: Tensor, size: Tensor, found: _Spread, dtype: torch.dtype) -> Scaling:
    same = (found.low == found.high) | (size < torch.finfo(dtype).tiny)
    return Scaling(shift=shift.to(dtype), factor=torch.where(same, 1.0, 1 / size).to(dtype))


def _spread(x: Tensor | Rows, over: tuple[int, ...]) -> _Spread:
    """Over the samples and these axes; chunks are joined as Chan, Golub and LeVeque (1983), eq. 2.1."""
    if not x.dtype.is_floating_point:
        raise ValueError(f"samples of {x.dtype} have no units to change: floating-point numbers have")
    if len(x.shape) < 2 or x.shape[0] == 0:
        raise ValueError(f"a scaling is found from samples [sample, feature, ...], not from {list(x.shape)}")
    total: _Spread | None = None
    seen = 0
    for chunk in _chunks(x):
        mean = chunk.mean(over, keepdim=True)
        variance = (chunk - mean).square().mean(over, keepdim=True)
        found = _Spread(mean, variance, chunk.amin(over, keepdim=True), chunk.amax(over, keepdim=True))
        found = _Spread(*(leaf.squeeze(0) for leaf in found))
        total = found if total is None else _joined(total, found, len(chunk) / (seen + len(chunk)))
        seen += len(chunk)
    assert total is not None
    return total


def _joined(a: _Spread, b: _Spread, share: float) -> _Spread:
    """Of both, where `share` of the samples are b's."""
    step = b.mean - a.mean
    return _Spread(
        mean=a.mean + share * step,
        variance=(1 - share) * a.variance + share * b.variance + share * (1 - share) * step.square(),
        low=torch.minimum(a.low, b.low),
        high=torch.maximum(a.high, b.high),
    )


def _chunks(x: Tensor | Rows) -> Iterator[Tensor]:
    """[at most 1024, ...] float64, in turn."""
    if isinstance(x, Tensor):
        yield from (part.double() for part in x.split(_CHUNK))
        return
    for ids in torch.arange(x.shape[0]).split(_CHUNK):
        yield x[ids].double()
