"""What models answer, without learning from it."""

from typing import NamedTuple

import torch
from torch import Tensor

from fcurr.mapping import over_members
from fcurr.types import Classes, Dataset, Fetch, Loss, Metric, Model, Params, Task

CHUNK = 4096  # samples that are evaluated at once, unless said otherwise


class Answers(NamedTuple):
    """Of every sample of a data set."""

    outputs: Tensor  # [member, sample, ...]
    losses: Tensor  # [member, sample]


def answers(
    variables: Params, data: Dataset, *, model: Model, loss: Loss, chunk: int = CHUNK, fetch: Fetch = map
) -> Answers:
    """Outputs and losses of members' variables [member, ...], in evaluation, `chunk` samples at a time."""
    device = next(iter(variables.values())).device

    def one(member: Params, x: Tensor, y: Tensor) -> Answers:
        outputs = model.apply(member, x)
        return Answers(outputs, loss(outputs, y))

    chunks = torch.arange(len(data.y), device=device).split(chunk)
    with torch.no_grad():
        found = [over_members(one, variables, batch.x, batch.y) for batch in fetch(data.take, chunks)]
    return found[0] if len(found) == 1 else Answers(*(torch.cat(parts, dim=1) for parts in zip(*found, strict=True)))


def measured(found: Answers, y: Tensor, metrics: dict[str, Metric]) -> dict[str, Tensor]:
    """name -> [member] float64: the mean loss, and every metric."""
    numbers = {"loss": found.losses.double().mean(1)}
    for name, metric in metrics.items():
        numbers[name] = torch.stack([metric(outputs, y) for outputs in found.outputs]).double()
    return numbers


def confusion(outputs: Tensor, y: Tensor, *, classes: Classes) -> Tensor:
    """[class, class] int64: how many samples of the row's class are taken for the column's; outputs [sample, class]."""
    from torchmetrics.functional.classification import multiclass_confusion_matrix  # slow to import

    return multiclass_confusion_matrix(outputs, y, num_classes=classes, validate_args=False).long()


def predicted(outputs: Tensor, task: Task) -> Tensor:
    """The class, the set of classes [sample, class] bool, or the numbers that outputs [sample, ...] stand for."""
    if task == "classification":
        return outputs.argmax(-1)
    return outputs > 0 if task == "multi-label" else outputs
