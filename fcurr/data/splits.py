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
    """At random, with every class cut in the same proportions to within one sample."""
    chance = rng.uniform(seed, torch.arange(len(y)))
    by_class = torch.argsort(chance, stable=True)
    by_class = by_class[torch.argsort(y[by_class], stable=True)]  # class after class, shuffled inside each
    return _spread(by_class, validation, test)


def shuffled(y: Tensor, *, seed: Seed, validation: Part, test: Part) -> Splits:
    """At random, whatever the classes."""
    return _spread(torch.argsort(rng.uniform(seed, torch.arange(len(y))), stable=True), validation, test)


def _spread(line: Tensor, validation: Part, test: Part) -> Splits:
    """Every so-manieth of a line goes to the test set, every so-manieth of the others to the validation set."""
    tested = _every(len(line), test)
    rest = line[~tested]
    chosen = _every(len(rest), validation / (1 - test))
    return Splits(*(part.sort().values for part in (rest[~chosen], rest[chosen], line[tested])))


def _every(length: int, part: float) -> Tensor:
    """[length] bool: round(part * length) of them true, evenly spread."""
    wanted = round(part * length)
    edges = torch.arange(length + 1) * wanted // max(length, 1)
    return edges[1:] > edges[:-1]
