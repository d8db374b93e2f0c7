"""In which fold each sample is: parts of a data set that take turns as its test set.

Every function gives [sample] int64 in [0, folds). Samples are dealt at random, by a key; folds without samples are
never made (ValueError).
"""

from collections.abc import Callable

import torch
from torch import Tensor

from fcurr import rng

Deal = Callable[[Tensor, int, Tensor], Tensor]  # positions in the data set, folds, key -> [position] int64


def dealt(samples: int, folds: int, key: Tensor) -> Tensor:
    """At random; folds differ in size by one sample at the most."""
    _enough(folds, samples, "samples")
    return rng.shuffle(torch.arange(samples), samples, key) % folds


def dealt_by_class(y: Tensor, folds: int, key: Tensor) -> Tensor:
    """At random; two folds differ by one sample at the most, and in each class by one sample at the most. y [sample]
    int64. A class of fewer samples than folds is in so many of them."""
    _enough(folds, len(y), "samples")
    line = torch.argsort(rng.shuffle(torch.arange(len(y)), len(y), key))
    line = line[torch.argsort(y[line], stable=True)]  # class after class, shuffled inside each
    return torch.empty_like(line).scatter_(0, line, torch.arange(len(y)) % folds)


def dealt_by_group(groups: Tensor, y: Tensor, folds: int, key: Tensor) -> Tensor:
    """Groups as wholes, from the largest to the smallest, each to the fold that has least of its classes; of equals to
    the smallest fold. groups, y [sample] int64; a y that is the same everywhere balances sizes alone.

    With counts n_fc of a fold's samples of class c, g_c of the group's and N_c of all, that is the fold in which
    sum over c of ((n_fc + g_c) / N_c)^2 grows least. Graham (1969), longest processing time first, of one class. Which
    groups are together depends on the groups, not on the order of the samples.
    """
    place = torch.unique(groups, return_inverse=True)[1]
    count, classes = int(place.max()) + 1, int(y.max()) + 1
    _enough(folds, count, "groups")
    own = torch.bincount(place * classes + y, minlength=count * classes).reshape(count, classes).double()
    scaled = own / own.sum(0).clamp(min=1) ** 2
    sizes = own.sum(1)
    line = torch.argsort(rng.shuffle(torch.arange(count), count, key))
    line = line[torch.argsort(sizes[line], descending=True, stable=True)]
    loads, fold = torch.zeros(folds, classes, dtype=torch.float64), torch.empty(count, dtype=torch.int64)
    for group in line.tolist():
        more = (loads @ scaled[group]).tolist()
        there = loads.sum(1).tolist()
        best = min(range(folds), key=lambda f, more=more, there=there: (more[f], there[f]))
        loads[best] += own[group]
        fold[group] = best
    return fold[place]


def _enough(folds: int, count: int, what: str) -> None:
    if folds > count:
        raise ValueError(f"{folds} folds of {count} {what}: every fold needs one of its own")
