"""From arrays to a data set: what labels mean, by the task, and whether they and the samples can be used."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fcurr.errors import BadInput
from fcurr.types import Dataset, Rows, Task


def labelled(
    x: Tensor | Rows, y: NDArray[Any], *, task: Task, names: Sequence[str] = (), groups: NDArray[Any] | None = None
) -> Dataset:
    """Samples [sample, ...] with their labels. `names` are the classes' or targets', numbered as the labels are.
    `groups` [sample] are whole numbers or texts, numbered in sorted order.

    A class each: [sample] whole numbers or texts, numbered in sorted order unless they have names. Sets of classes:
    [sample, class] of true and false, or 1 and 0. Numbers: [sample] or [sample, target].
    """
    if y.ndim == 0 or len(y) != x.shape[0]:
        raise BadInput(f"{x.shape[0]} samples do not fit labels of shape {list(y.shape)}")
    numbers, found = {"classification": _classes, "multi-label": _sets, "regression": _targets}[task](y, names)
    return Dataset(
        x=x,
        y=torch.from_numpy(np.ascontiguousarray(numbers)),
        classes=tuple(names or found),
        groups=() if groups is None else _groups(groups, len(y)),
    )


def in_memory(x: NDArray[Any]) -> Tensor:
    """[sample, ...] float32; whole numbers keep their values."""
    if x.dtype.kind not in "fiub":
        raise BadInput(f"samples are {x.dtype}, not numbers")
    has_features(x.shape)
    return torch.from_numpy(np.ascontiguousarray(x, dtype=np.float32))


def has_features(shape: Sequence[int]) -> None:
    if len(shape) < 2 or 0 in shape[1:]:
        raise BadInput(f"samples of shape {list(shape[1:])} have no features: [sample, feature, ...] is right")


def _classes(y: NDArray[Any], names: Sequence[str]) -> tuple[NDArray[Any], list[str]]:
    if y.ndim != 1:
        raise BadInput(
            f"labels of shape {list(y.shape)} are not a class each, [{len(y)}]: "
            'sets of classes are task = "multi-label", numbers task = "regression"'
        )
    if y.dtype.kind not in "fiubUS":
        raise BadInput(f"labels are {y.dtype}: a label is a whole number or a text")
    if y.dtype.kind == "f" and not (np.isfinite(y).all() and np.all(y == np.round(y))):
        raise BadInput(
            "labels are fractions, or not finite: a label is a whole number or a text; "
            'finite numbers of any kind are task = "regression"'
        )
    if names:
        if y.dtype.kind in "US" or ((y < 0) | (y >= len(names))).any():
            raise BadInput(f"labels are not whole numbers from 0 to {len(names) - 1}, for {len(names)} names")
        return y.astype(np.int64), []
    found, numbers = np.unique(y.astype(np.int64) if y.dtype.kind == "f" else y, return_inverse=True)
    return numbers.astype(np.int64), [str(name) for name in found]


def _groups(groups: NDArray[Any], samples: int) -> Tensor:
    """[sample] int64, numbered in sorted order."""
    if groups.shape != (samples,):
        raise BadInput(f"groups of shape {list(groups.shape)} do not fit {samples} samples: one each is right", "group")
    whole = groups.dtype.kind in "iubUS" or (groups.dtype.kind == "f" and np.all(groups == np.round(groups)))
    if not whole:
        raise BadInput("groups are fractions, or not there: a group is a whole number or a text", "group")
    return torch.from_numpy(np.unique(groups, return_inverse=True)[1].astype(np.int64))


def _sets(y: NDArray[Any], names: Sequence[str]) -> tuple[NDArray[Any], list[str]]:
    if y.ndim != 2 or y.shape[1] == 0:
        raise BadInput(f"labels of shape {list(y.shape)} are not sets of classes: [sample, class] is right")
    if y.dtype.kind not in "fiub" or not np.isin(y, (0, 1)).all():
        raise BadInput("labels that are sets of classes are 0 or 1, or false or true, and these are not")
    _fit(names, y.shape[1])
    return y.astype(np.bool_), [str(number) for number in range(y.shape[1])]


def _targets(y: NDArray[Any], names: Sequence[str]) -> tuple[NDArray[Any], list[str]]:
    y = y[:, None] if y.ndim == 1 else y
    if y.ndim != 2 or y.shape[1] == 0:
        raise BadInput(f"targets of shape {list(y.shape)} are not [sample] or [sample, target]")
    if y.dtype.kind not in "fiub":
        raise BadInput(f"targets are {y.dtype}, not numbers")
    with np.errstate(over="ignore"):
        found = y.astype(np.float32)
    bad = ~np.isfinite(found).all(1)
    if bad.any():
        raise BadInput(f"the target of sample {bad.argmax()} is not a finite number of float32 ({bad.sum()} are not)")
    _fit(names, y.shape[1])
    return found, [str(number) for number in range(y.shape[1])]


def _fit(names: Sequence[str], count: int) -> None:
    if names and len(names) != count:
        raise BadInput(f"{len(names)} names do not fit labels of {count} columns")
