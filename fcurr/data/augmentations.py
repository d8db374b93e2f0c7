"""Samples changed at random, side by side: `augment(batch, place) -> batch`.

Pictures are [batch, channel, height, width], spectrograms [batch, ..., frequency, time]. What is drawn for a sample is
a function of (key, iteration) and of its id: not of its place in the batch, nor of its neighbours. Every augmentation
draws from a stream of its own, so one after another they are independent.

`mixup` and `cutmix` join a sample with a partner: the ids of the batch are put in a circle by keyed hashes, and the
partner is the next, so never the sample itself unless the batch is one sample. The partner depends on which ids are in
the batch, and not on their places (an id that is in it twice is its own neighbour). Both give shares of classes,
[batch, class] in x's precision, for labels that were a class each; sets of classes become shares as 0 and 1, and
targets are mixed as they are.
"""

import math
from typing import Annotated

import torch
import torch.nn.functional as F
from annotated_types import Ge, Gt, Le, Lt
from torch import Tensor

from fcurr import rng
from fcurr.types import Batch, Classes, Place, Side, Times, Unit

Chance = Annotated[float, Ge(0), Le(1), Unit("chance")]
Deviation = Annotated[float, Ge(0), Le(1e38), Unit("standard deviation")]
Alpha = Annotated[float, Ge(0.01), Le(1e6), Unit("parameter of a symmetric Beta distribution")]
Area = Annotated[float, Gt(0), Lt(1), Unit("share of a picture's area")]
TRIES = 10  # of `erase`


def flip(batch: Batch, place: Place, *, chance: Chance = 0.5) -> Batch:
    """Pictures are mirrored left to right, each with this chance."""
    _pictures(batch, "flip")
    turned = rng.uniform(_keys(batch, place, b"flip")) < chance
    return batch._replace(x=torch.where(_column(turned, batch.x), batch.x.flip(-1), batch.x))


def crop(batch: Batch, place: Place, *, padding: Side = 4) -> Batch:
    """Pictures are framed by `padding` pixels of 0, and a part of the old size is cut out at a random place.

    He et al. (2016), section 4.2.
    """
    _pictures(batch, "crop")
    height, width = batch.x.shape[-2:]
    keys = _keys(batch, place, b"crop")
    corners = [_below(rng.fold(keys, side), 2 * padding + 1) for side in (0, 1)]
    rows, columns = (corner.unsqueeze(1) + _range(n, keys) for corner, n in zip(corners, (height, width), strict=True))
    x = F.pad(batch.x, (padding, padding, padding, padding))
    x = x.gather(-2, rows[:, None, :, None].expand(*x.shape[:-2], height, x.shape[-1]))
    x = x.gather(-1, columns[:, None, None, :].expand(*x.shape[:-1], width))
    return batch._replace(x=x)


def noise(batch: Batch, place: Place, *, deviation: Deviation) -> Batch:
    """Normally distributed numbers are added, with this standard deviation, to samples [batch, ...] of any shape.

    Box and Muller (1958): two of every 48 bits, so no number is further out than 5.8 standard deviations.
    """
    _floating(batch, "noise")
    size = batch.x[0].numel()
    drawn = _normal(_keys(batch, place, b"noise"), size).reshape(batch.x.shape)
    return batch._replace(x=batch.x + deviation * drawn.to(batch.x.dtype))


def erase(
    batch: Batch, place: Place, *, chance: Chance = 0.5, smallest: Area = 0.02, largest: Area = 0.4, aspect: Area = 0.3
) -> Batch:
    """A box in a picture becomes 0, with this chance. Zhong et al. (2020), algorithm 1.

    Its area is uniform between `smallest` and `largest` as shares of the picture, its height over its width uniform
    between `aspect` and 1 / `aspect`, and its place uniform where it fits. A shape that does not fit is drawn again; a
    picture that ten shapes do not fit is left as it is.
    """
    _pictures(batch, "erase")
    if largest < smallest:
        raise ValueError(f"erase: the largest area, {largest}, is less than the smallest, {smallest}")
    height, width = batch.x.shape[-2:]
    keys = _keys(batch, place, b"erase")
    tries = rng.fold(keys.unsqueeze(1), _range(TRIES, keys))  # [batch, try]
    area = height * width * (smallest + (largest - smallest) * rng.uniform(tries, 0))
    ratio = aspect + (1 / aspect - aspect) * rng.uniform(tries, 1)
    high, wide = ((side.sqrt()).round().long() for side in (area * ratio, area / ratio))
    fits = (high <= height) & (wide <= width)
    first = fits.long().argmax(1, keepdim=True)
    high, wide = (torch.where(fits.any(1), side.gather(1, first).squeeze(1), 0) for side in (high, wide))
    top = _below(rng.fold(keys, TRIES), height - high + 1)
    left = _below(rng.fold(keys, TRIES + 1), width - wide + 1)
    box = _between(top, top + high, height).unsqueeze(2) & _between(left, left + wide, width).unsqueeze(1)
    erased = box & (rng.uniform(keys, TRIES + 2) < chance)[:, None, None]
    return batch._replace(x=torch.where(erased.unsqueeze(1), 0, batch.x))


def mixup(batch: Batch, place: Place, *, classes: Classes, alpha: Alpha = 1.0) -> Batch:
    """x = share x + (1 - share) x', and y likewise, with a partner x' and a share from Beta(alpha, alpha) a sample.

    Samples [batch, ...] of any shape. Zhang et al. (2018), eq. 1; there a whole batch has one share.
    """
    _floating(batch, "mixup")
    keys = _keys(batch, place, b"mixup")
    share, other = _beta(keys, alpha).to(batch.x.dtype), _partner(keys)
    own = _column(share, batch.x)
    return batch._replace(x=own * batch.x + (1 - own) * batch.x[other], y=_mixed(batch, other, share, classes, "mixup"))


def cutmix(batch: Batch, place: Place, *, classes: Classes, alpha: Alpha = 1.0, chance: Chance = 1.0) -> Batch:
    """A box of a picture is its partner's, with this chance; labels are shares of the area. Yun et al. (2019), eq. 1-2.

    The box has sides floor(side sqrt(1 - share)), with a share from Beta(alpha, alpha) a sample, and its centre is
    uniform in the picture; what stands out of the picture is cut off, and the label follows what is left.
    """
    _pictures(batch, "cutmix")
    _floating(batch, "cutmix")
    height, width = batch.x.shape[-2:]
    keys = _keys(batch, place, b"cutmix")
    share, other = _beta(keys, alpha), _partner(keys)
    share = torch.where(rng.uniform(keys, 2) < chance, share, 1.0)
    sides = []
    for stream, size in ((3, height), (4, width)):
        side, centre = (size * (1 - share).sqrt()).floor().long(), _below(rng.fold(keys, stream), size)
        sides.append(_between(centre - side // 2, centre - side // 2 + side, size))
    box = sides[0].unsqueeze(2) & sides[1].unsqueeze(1)  # [batch, height, width]
    own = (1 - box.double().mean((1, 2))).to(batch.x.dtype)
    x = torch.where(box.unsqueeze(1), batch.x[other], batch.x)
    return batch._replace(x=x, y=_mixed(batch, other, own, classes, "cutmix"))


def time_mask(batch: Batch, place: Place, *, width: Side, masks: Times = 1) -> Batch:
    """`masks` spans of the last axis become 0, each 0 to `width` steps long. Park et al. (2019), section 2.

    A length is uniform over whole numbers, a place uniform where the span fits; spans may overlap.
    """
    return batch._replace(x=_masked(batch, place, -1, width, masks, "time_mask"))


def frequency_mask(batch: Batch, place: Place, *, width: Side, masks: Times = 1) -> Batch:
    """`masks` spans of the last axis but one become 0, each 0 to `width` channels high. Park et al. (2019), section 2.

    A height is uniform over whole numbers, a place uniform where the span fits; spans may overlap.
    """
    return batch._replace(x=_masked(batch, place, -2, width, masks, "frequency_mask"))


def _masked(batch: Batch, place: Place, axis: int, width: int, masks: int, name: str) -> Tensor:
    if batch.x.ndim < 3:
        given = list(batch.x.shape)
        raise ValueError(f"{name} wants spectrograms [batch, ..., frequency, time], not samples of shape {given[1:]}")
    size = batch.x.shape[axis]
    keys = _keys(batch, place, name.encode()[:7])
    keys = rng.fold(keys.unsqueeze(1), _range(masks, keys))  # [batch, mask]
    length = _below(rng.fold(keys, 0), min(width, size) + 1)
    begin = _below(rng.fold(keys, 1), size - length + 1)
    hidden = _between(begin, begin + length, size).any(1)  # [batch, size]
    hidden = hidden.reshape(len(hidden), *[1] * (batch.x.ndim + axis - 1), size, *[1] * (-1 - axis))
    return torch.where(hidden, 0, batch.x)


def _keys(batch: Batch, place: Place, stream: bytes) -> Tensor:
    """[batch] int64: a key a sample, in a stream named by up to seven letters."""
    return rng.fold(place[0], place[1], int.from_bytes(stream, "big"), batch.id)


def _below(bits: Tensor, bound: Tensor | int) -> Tensor:
    """Whole numbers in [0, bound), from keys."""
    return ((bits >> 1) & 0x7FFFFFFFFFFFFFFF).remainder(bound)


def _range(size: int, like: Tensor) -> Tensor:
    return torch.arange(size, device=like.device)


def _between(begin: Tensor, end: Tensor, size: int) -> Tensor:
    """[..., size] bool: the places in [begin, end)."""
    places = _range(size, begin)
    return (begin.unsqueeze(-1) <= places) & (places < end.unsqueeze(-1))


def _normal(keys: Tensor, size: int) -> Tensor:
    """[batch, size] float32, standard normal."""
    bits = rng.fold(keys.unsqueeze(1), _range((size + 1) // 2, keys))
    radius = (-2 * ((((bits >> 40) & 0xFFFFFF) + 1) * 2.0**-24).log()).sqrt()
    angle = ((bits >> 16) & 0xFFFFFF) * (2 * math.pi * 2.0**-24)
    return torch.cat([radius * angle.cos(), radius * angle.sin()], 1)[:, :size]


def _beta(keys: Tensor, alpha: float) -> Tensor:
    """[batch] float64, Beta(alpha, alpha), exactly but for the 24 bits of two uniform numbers; nothing is rejected.
    What is nearer than 1e-16 to 0 or 1 may be 0 or 1.

    Bailey (1994): t = sqrt(n (u^(-2 / n) - 1)) cos(2 pi v) has Student's distribution with n degrees of freedom. With
    n = 2 alpha, 1/2 + t / (2 sqrt(n + t^2)) is Beta(alpha, alpha).
    """
    u, v = (rng.uniform(keys, stream).double() for stream in (0, 1))
    power = (1 - u) ** (1 / alpha)
    cosine = (2 * math.pi * v).cos()
    return 0.5 + 0.5 * cosine / (power / (1 - power) + cosine.square()).sqrt()


def _partner(keys: Tensor) -> Tensor:
    """[batch] int64, places in the batch: the next of a circle in the order of keys."""
    line = keys.argsort(stable=True)
    return torch.zeros_like(line).scatter(0, line, line.roll(-1))


def _mixed(batch: Batch, other: Tensor, share: Tensor, classes: int, name: str) -> Tensor:
    y = batch.y
    if y.dtype == torch.int64:
        if y.ndim != 1:
            raise ValueError(f"{name} wants a class a sample, [batch], or shares, not labels of shape {list(y.shape)}")
        y = y.unsqueeze(1) == _range(classes, y)
    y = y if y.is_floating_point() else y.to(batch.x.dtype)
    own = _column(share, y).to(y.dtype)
    return own * y + (1 - own) * y[other]


def _column(values: Tensor, x: Tensor) -> Tensor:
    """[batch] as [batch, 1, ...], to go with x."""
    return values.reshape(-1, *[1] * (x.ndim - 1))


def _pictures(batch: Batch, name: str) -> None:
    if batch.x.ndim != 4:
        given = list(batch.x.shape[1:])
        raise ValueError(f"{name} wants pictures [channel, height, width], not samples of shape {given}")


def _floating(batch: Batch, name: str) -> None:
    if not batch.x.is_floating_point():
        raise ValueError(f"{name} wants samples of floating-point numbers, not {batch.x.dtype}")
