"""Which samples train, which choose, which judge: the split of a config, of every task."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from fcurr import joint
from fcurr.data.splits import Splits
from fcurr.errors import BadInput
from fcurr.study.bind import Call, build, guarded, required
from fcurr.types import Dataset

USE = {"train": "train on", "validation": "choose by", "test": "judge by"}


def parted(call: Call, entries: Mapping[str, Any], data: Dataset) -> Splits:
    """The three parts, none of them empty; of several tasks, each task's samples by its own labels."""
    if not data.heads:
        return _parted(call, entries, data, "")
    found = []
    for head in data.heads:
        own, places = joint.alone(data, head)
        alone = {**entries, "task": head.task, "classes": len(head.classes)}
        found.append(Splits(*(places[part] for part in _parted(call, alone, own, f" of `{head.name}`"))))
    return Splits(*(torch.cat(parts).sort().values for parts in zip(*found, strict=True)))


def _parted(call: Call, entries: Mapping[str, Any], data: Dataset, of: str) -> Splits:
    split = guarded(call, build(call, {**entries, **_groups(call, data)}), data.y)
    if not isinstance(split, Splits):
        raise BadInput(f"{call.name} gives a {type(split).__name__}, not Splits", "split")
    for name, part in zip(split._fields, split, strict=True):
        if len(part) == 0:
            words = f"of {len(data.y)} samples{of} none is left to {USE[name]}: the {name} split is empty"
            raise BadInput(words, "split")
    return split


def without_clean(call: Call, entries: Mapping[str, Any], split: Splits, y: Tensor) -> tuple[Splits, Tensor]:
    """(the parts without them, the clean samples)."""
    chosen = guarded(call, build(call, {**entries, "among": split.train}), y)
    if not isinstance(chosen, Tensor) or chosen.ndim != 1 or chosen.dtype != torch.int64 or len(chosen) == 0:
        raise BadInput(f"{call.name} does not give the positions of some samples, [sample] int64", call.where)
    inside = bool((chosen >= 0).all()) and bool((chosen < len(y)).all())
    if not inside or len(chosen.unique()) < len(chosen):
        raise BadInput(f"{call.name} gives a position twice, or one that is none of {len(y)} samples", call.where)
    left = Splits(*(part[~torch.isin(part, chosen)] for part in split))
    for name, part in zip(left._fields, left, strict=True):
        if len(part) == 0:
            raise BadInput(f"{call.name} leaves no samples to {USE[name]}", call.where)
    return left, chosen


def _groups(call: Call, data: Dataset) -> dict[str, Tensor]:
    """What a split that asks for groups is given."""
    if "groups" not in required(call.function):
        return {}
    if not isinstance(data.groups, Tensor):
        words = f"{call.name} keeps groups together, and the data has none: readers of tables take `group`, a column"
        raise BadInput(words, call.where)
    return {"groups": data.groups}
