"""Which samples train, which choose, which judge: `split(y) -> Splits`, side by side."""

from typing import NamedTuple

import torch
from torch import Tensor

from fcurr import rng
from fcurr.types import Part, Seed


class Splits(NamedTuple):
    """Positions in the data set, ascending; no position is in two of them."""

    train: Tensor  # [train] int64
    validation: Tensor  # [validation] int64
    test: Tensor  # [test] int64


def stratified(y: Tensor, *, seed: Seed, validation: Part, test: Part) -> Splits:
    """At random, with every class in the validation and the test set in its proportion, to within one sample."""
    counts = torch.bincount(y)
    tested = _quotas(counts, test)
    chosen = torch.minimum(_quotas(counts, validation), counts - tested)
    line = torch.argsort(rng.uniform(seed, torch.arange(len(y))), stable=True)
    line = line[torch.argsort(y[line], stable=True)]  # class after class, shuffled inside each
    place = torch.arange(len(y)) - (counts.cumsum(0) - counts)[y[line]]  # inside its class
    part = (place >= tested[y[line]]).long() + (
        place >= (tested + chosen)[y[line]]
    ).long()  # 0 test, 1 validation, 2 train
    return Splits(*(line[part == kind].sort().values for kind in (2, 1, 0)))


def shuffled(y: Tensor, *, seed: Seed, validation: Part, test: Part) -> Splits:
    """At random, whatever the classes."""
    line = torch.argsort(rng.uniform(seed, torch.arange(len(y))), stable=True)
    first, second = round(test * len(y)), round(test * len(y)) + round(validation * len(y))
    return Splits(*(part.sort().values for part in (line[second:], line[first:second], line[:first])))


def _quotas(counts: Tensor, part: Part) -> Tensor:
    """[class] int64: round(part * samples) of the samples, each class's share rounded up or down: up for those whose
    share has the largest remainders."""
    exact = counts.double() * part
    sizes = exact.floor().long()
    short = round(part * int(counts.sum())) - int(sizes.sum())
    up = torch.argsort(exact - sizes, descending=True, stable=True)[: max(short, 0)]
    return sizes.index_add(0, up, torch.ones_like(up))
