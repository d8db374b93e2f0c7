"""Which samples train, which choose, which judge: `split(y) -> Splits`, side by side."""

from typing import NamedTuple

import torch
from torch import Tensor

from fcurr import rng
from fcurr.types import Part, Samples, Seed


class Splits(NamedTuple):
    """Positions in the data set, ascending; no position is in two of them."""

    train: Tensor  # [train] int64
    validation: Tensor  # [validation] int64
    test: Tensor  # [test] int64


def stratified(y: Tensor, *, seed: Seed, validation: Part, test: Part) -> Splits:
    """At random, with every class cut in the same proportions: the test set and what is trained on have each class's
    share to within one sample."""
    counts = torch.bincount(y)
    tested = _quotas(counts * test, round(test * len(y)), counts)
    chosen = _quotas(counts * (test + validation) - tested, round(validation * len(y)), counts - tested)
    line = torch.argsort(rng.uniform(seed, torch.arange(len(y))), stable=True)
    line = line[torch.argsort(y[line], stable=True)]  # class after class, shuffled inside each
    place = torch.arange(len(y)) - (counts.cumsum(0) - counts)[y[line]]  # inside its class
    first, second = tested[y[line]], (tested + chosen)[y[line]]
    part = (place >= first).long() + (place >= second).long()  # 0 test, 1 validation, 2 train
    return Splits(*(line[part == kind].sort().values for kind in (2, 1, 0)))


def shuffled(y: Tensor, *, seed: Seed, validation: Part, test: Part) -> Splits:
    """At random, whatever the classes."""
    line = torch.argsort(rng.uniform(seed, torch.arange(len(y))), stable=True)
    first, second = round(test * len(y)), round(test * len(y)) + round(validation * len(y))
    return Splits(*(part.sort().values for part in (line[second:], line[first:second], line[:first])))


def published(y: Tensor, *, seed: Seed, validation: Part, test_size: Samples) -> Splits:
    """The last `test_size` samples are the test set, where readers of CIFAR and MNIST put what was published as one;
    `validation` is a part of the others, at random."""
    if test_size >= len(y):
        raise ValueError(f"a test set of {test_size} leaves nothing of {len(y)} samples")
    rest = len(y) - test_size
    line = torch.argsort(rng.uniform(seed, torch.arange(rest)), stable=True)
    chosen = round(validation * rest)
    return Splits(line[chosen:].sort().values, line[:chosen].sort().values, torch.arange(rest, len(y)))


def _quotas(wanted: Tensor, total: int, room: Tensor) -> Tensor:
    """[class] int64: whole numbers near the ones wanted, `total` together if there is room: rounded down, then one more
    where most is missing."""
    sizes = torch.minimum(wanted.double().floor().clamp(min=0).long(), room)
    for _ in range(min(total, int(room.sum())) - int(sizes.sum())):
        missing = torch.where(sizes < room, wanted.double() - sizes, -torch.inf)
        sizes[missing.argmax()] += 1
    return sizes
