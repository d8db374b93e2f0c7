"""Pure views of a run: what a person wants to see."""

from typing import NamedTuple

import torch
from torch import Tensor

from fcurr import tree
from fcurr.types import Params


class Record(NamedTuple):
    """What is remembered of a run beside its state, for each member."""

    loss: Tensor  # [member] float64, sum of the batches' losses since the last evaluation
    batches: Tensor  # [member] int64, how many they were
    validation: Tensor  # [member] int64, right answers at the best evaluation; -1 before the first
    test: Tensor  # [member] int64, right answers on the test set at that evaluation
    iteration: Tensor  # [member] int64, when it was
    best: Params  # [member, ...] parameters and buffers then


def blank(variables: Params, members: int) -> Record:
    """Nothing seen yet."""
    return Record(
        loss=torch.zeros(members, dtype=torch.float64),
        batches=torch.zeros(members, dtype=torch.int64),
        validation=torch.full((members,), -1),
        test=torch.zeros(members, dtype=torch.int64),
        iteration=torch.zeros(members, dtype=torch.int64),
        best={name: leaf.clone() for name, leaf in variables.items()},
    )


def stepped(record: Record, loss: Tensor, active: Tensor) -> Record:
    """After a step with these losses [member] of the members that are active [member] bool."""
    return record._replace(loss=record.loss + torch.where(active, loss, 0.0), batches=record.batches + active)


def evaluated(record: Record, iteration: Tensor, variables: Params, validation: Tensor, test: Tensor) -> Record:
    """After an evaluation: the first of the best is kept, and the mean loss begins anew."""
    better = validation > record.validation
    return Record(
        loss=torch.zeros_like(record.loss),
        batches=torch.zeros_like(record.batches),
        validation=torch.where(better, validation, record.validation),
        test=torch.where(better, test, record.test),
        iteration=torch.where(better, iteration, record.iteration),
        best=tree.where(better, variables, record.best),
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
