"""Pure views of a run: what a person wants to see."""

from typing import NamedTuple

import torch
from torch import Tensor

from fcurr import tree
from fcurr.types import Params


class Record(NamedTuple):
    """What is remembered of a run beside its state, for each member."""

    evaluated: Tensor  # [member] int64, when the last evaluation was
    value: Tensor  # [member] float64, the tracked metric at the best evaluation; nan before the first
    iteration: Tensor  # [member] int64, when it was
    waited: Tensor  # [member] int64, evaluations since then
    best: Params  # [member, ...] parameters and buffers then


def blank(variables: Params, members: int) -> Record:
    """Nothing seen yet."""
    device = next(iter(variables.values())).device
    zeros = [torch.zeros(members, dtype=torch.int64, device=device) for _ in range(3)]
    return Record(
        evaluated=zeros[0],
        value=torch.full((members,), torch.nan, dtype=torch.float64, device=device),
        iteration=zeros[1],
        waited=zeros[2],
        best={**variables},
    )


def evaluated(record: Record, due: Tensor, iteration: Tensor, variables: Params, value: Tensor, higher: bool) -> Record:
    """After an evaluation of the members that are due [member] bool, each at its iteration [member]: the first of the
    best is kept. value [member]: the tracked metric; nan is worse than anything."""
    ahead = value > record.value if higher else value < record.value
    better = due & ~value.isnan() & (record.value.isnan() | ahead)
    kept = better | (due & (record.evaluated == 0))  # the first, even if it is nan
    mixed = bool(kept.any()) and not bool(kept.all())  # else nothing has to be copied
    alike = variables if bool(kept.any()) else record.best
    return Record(
        evaluated=torch.where(due, iteration, record.evaluated),
        value=torch.where(better, value, record.value),
        iteration=torch.where(kept, iteration, record.iteration),
        waited=torch.where(kept, 0, record.waited + due),
        best=tree.where(kept, variables, record.best) if mixed else {**alike},
    )


class Spread(NamedTuple):
    mean: float
    deviation: float  # between seeds, n - 1 in the denominator; 0 for one seed


def spread(values: Tensor) -> Spread:
    """Mean and standard deviation of a value a seed."""
    values = values.double()
    return Spread(float(values.mean()), float(values.std()) if len(values) > 1 else 0.0)


def hardest(scores: Tensor, share: float) -> Tensor:
    """[sample] bool: the hardest share of the samples, exactly round(share * samples) of them."""
    chosen = torch.zeros(len(scores), dtype=torch.bool)
    chosen[torch.argsort(scores, stable=True)[len(scores) - round(share * len(scores)) :]] = True
    return chosen


def ranks(order: Tensor) -> Tensor:
    """[sample] float64 in [0, 1]: 0 for the first of an order, 1 for the last."""
    place = torch.empty(len(order), dtype=torch.float64)
    place[order] = torch.arange(len(order), dtype=torch.float64)
    return place / max(len(order) - 1, 1)
