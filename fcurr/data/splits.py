"""Which samples train, which choose, which judge: `split(y) -> Splits`, side by side.

Of k folds, the one at `fold` is the test set: over all places, every sample is in one test set. What is left is cut
again: `validation` is a part of it, or it has `inner_folds` of which the one at `inner_fold` chooses, as nested
cross-validation has it. Either is drawn as the folds are, at random, by classes or by groups. A data set has groups if
its reader is told where (`group` in [data]).
"""

from collections.abc import Callable
from fractions import Fraction
from typing import NamedTuple

import torch
from torch import Tensor

from fcurr import rng
from fcurr.data.folds import dealt, dealt_by_class, dealt_by_group
from fcurr.errors import BadInput
from fcurr.types import Fold, InnerFolds, Many, Part, Samples, Seed


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


def k_fold(
    y: Tensor,
    *,
    seed: Seed,
    folds: Many,
    fold: Fold,
    validation: Part = 0.0,
    inner_folds: InnerFolds = 0,
    inner_fold: Fold = 0,
) -> Splits:
    """Folds at random, whatever the labels; they differ in size by one sample at the most."""

    def deal(ids: Tensor, count: int, key: Tensor) -> Tensor:
        return dealt(len(ids), count, key)

    def part(ids: Tensor, key: Tensor) -> Tensor:
        return ids[shuffled(ids, seed=_seed(key), validation=validation, test=0.0).validation]

    return _cut(len(y), seed, _Place(folds, fold, validation, inner_folds, inner_fold), deal, part)


def stratified_k_fold(
    y: Tensor,
    *,
    seed: Seed,
    folds: Many,
    fold: Fold,
    validation: Part = 0.0,
    inner_folds: InnerFolds = 0,
    inner_fold: Fold = 0,
) -> Splits:
    """Folds at random in which every class has its share to within one sample; y [sample] int64. They differ in size by
    one sample at the most. A class of fewer samples than folds is in so many of them."""

    def deal(ids: Tensor, count: int, key: Tensor) -> Tensor:
        return dealt_by_class(y[ids], count, key)

    def part(ids: Tensor, key: Tensor) -> Tensor:
        return ids[stratified(y[ids], seed=_seed(key), validation=validation, test=0.0).validation]

    return _cut(len(y), seed, _Place(folds, fold, validation, inner_folds, inner_fold), deal, part)


def grouped_k_fold(
    y: Tensor,
    *,
    groups: Tensor,
    seed: Seed,
    folds: Many,
    fold: Fold,
    validation: Part = 0.0,
    inner_folds: InnerFolds = 0,
    inner_fold: Fold = 0,
) -> Splits:
    """Folds of whole groups, of sizes as near as the largest groups first to the smallest fold makes them. groups
    [sample] int64. `validation` is a share of whole groups near the one asked for."""
    return stratified_grouped_k_fold(
        torch.zeros(len(y), dtype=torch.int64),
        groups=groups,
        seed=seed,
        folds=folds,
        fold=fold,
        validation=validation,
        inner_folds=inner_folds,
        inner_fold=inner_fold,
    )


def stratified_grouped_k_fold(
    y: Tensor,
    *,
    groups: Tensor,
    seed: Seed,
    folds: Many,
    fold: Fold,
    validation: Part = 0.0,
    inner_folds: InnerFolds = 0,
    inner_fold: Fold = 0,
) -> Splits:
    """Folds of whole groups in which classes have shares as near to their own as the largest groups first, each to the
    fold that has least of its classes, makes them; y, groups [sample] int64."""

    def deal(ids: Tensor, count: int, key: Tensor) -> Tensor:
        return dealt_by_group(groups[ids], y[ids], count, key)

    def part(ids: Tensor, key: Tensor) -> Tensor:
        some = _share(validation, len(torch.unique(groups[ids])))
        own = deal(ids, some.denominator, key)
        return ids[rng.shuffle(own, some.denominator, rng.fold(key, 1)) < some.numerator]

    return _cut(len(y), seed, _Place(folds, fold, validation, inner_folds, inner_fold), deal, part)


class _Place(NamedTuple):
    """Which fold of how many, and how the rest is cut."""

    folds: int
    fold: int
    validation: float
    inner_folds: int
    inner_fold: int


def _cut(
    samples: int,
    seed: Seed,
    place: _Place,
    deal: Callable[[Tensor, int, Tensor], Tensor],
    part: Callable[[Tensor, Tensor], Tensor],
) -> Splits:
    """The test set is a fold. `deal(ids, folds, key)` says in which fold each of these positions is, and
    `part(ids, key)` which of them choose."""
    folds, fold, validation, inner_folds, inner_fold = place
    if fold >= folds:
        raise BadInput(f"there is no fold {fold}: the last of {folds} is {folds - 1}", "fold")
    if inner_folds == 1:
        raise BadInput("of 1 inner fold nothing is left to train on: 2 at the least, or 0 for none", "inner_folds")
    if inner_folds and validation:
        raise BadInput(
            f"{inner_folds} inner folds choose, and so would validation = {validation}: one of the two", "validation"
        )
    if inner_fold and inner_fold >= inner_folds:
        last = f"the last of {inner_folds} is {inner_folds - 1}" if inner_folds else "inner_folds says of how many"
        raise BadInput(f"there is no inner fold {inner_fold}: {last}", "inner_fold")
    outer = deal(torch.arange(samples), folds, rng.fold(seed, 0))
    rest = (outer != fold).nonzero().squeeze(1)
    key = rng.fold(seed, 1, fold)
    chosen = rest[deal(rest, inner_folds, key) == inner_fold] if inner_folds else part(rest, key)
    return Splits(
        train=rest[~torch.isin(rest, chosen)],
        validation=chosen.sort().values,
        test=(outer == fold).nonzero().squeeze(1),
    )


def _seed(key: Tensor) -> int:
    return int(key) & 0x7FFFFFFF


def _share(wanted: float, groups: int) -> Fraction:
    """How many of how many parts come near the share, twenty parts or as many as there are groups at the most; neither
    none nor all where something else is possible."""
    if wanted == 0 or groups < 2:
        return Fraction(0)
    least = Fraction(1, groups)
    return min(max(Fraction(wanted).limit_denominator(min(20, groups)), least), 1 - least)


def _quotas(wanted: Tensor, total: int, room: Tensor) -> Tensor:
    """[class] int64: whole numbers near the ones wanted, `total` together if there is room: rounded down, then one more
    where most is missing."""
    sizes = torch.minimum(wanted.double().floor().clamp(min=0).long(), room)
    for _ in range(min(total, int(room.sum())) - int(sizes.sum())):
        missing = torch.where(sizes < room, wanted.double() - sizes, -torch.inf)
        sizes[missing.argmax()] += 1
    return sizes
