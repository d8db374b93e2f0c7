"""Several tasks trained as one: their data sets joined, a slice of the outputs each, and the weighted sum of their
losses.

The model is any model with as many outputs as all tasks together; all of it but the rows of its last layer is shared.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor

from fcurr import tree
from fcurr.errors import BadInput
from fcurr.types import Dataset, Head, Loss, Lower, Rows


@dataclass(frozen=True)
class Joined:
    """Rows of several data sets, one after another."""

    parts: tuple[Tensor | Rows, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        return (sum(part.shape[0] for part in self.parts), *self.parts[0].shape[1:])

    @property
    def dtype(self) -> torch.dtype:
        return self.parts[0].dtype

    @property
    def identity(self) -> str:
        found = hashlib.sha256()
        for part in self.parts:
            found.update(tree.raw(part) if isinstance(part, Tensor) else part.identity.encode())
        return found.hexdigest()

    def __getitem__(self, ids: Tensor, /) -> Tensor:
        flat = ids.reshape(-1).cpu()
        found = torch.empty(len(flat), *self.shape[1:], dtype=self.dtype)
        begin = 0
        for part in self.parts:
            here = (flat >= begin) & (flat < begin + part.shape[0])
            if bool(here.any()):
                found[here] = part[flat[here] - begin]
            begin += part.shape[0]
        return found.reshape(*ids.shape, *self.shape[1:]).to(ids.device)


def joined(named: Mapping[str, Dataset], weights: Mapping[str, float]) -> Dataset:
    """One data set of all, one after another; each is a task with a weight. BadInput where samples are not of one shape
    and kind."""
    (first, data), *others = named.items()
    for name, other in others:
        for what, a, b in (("", other.features, data.features), ("", other.x.dtype, data.x.dtype)):
            if a != b:
                shown = [str(list(value) if isinstance(value, tuple) else value) for value in (a, b)]
                words = f"samples of `{name}` are {shown[0]}, those of `{first}` {shown[1]}{what}"
                raise BadInput(f"{words}: tasks that are trained jointly have samples alike", f"tasks.{name}.data")
    sets = list(named.values())
    labels = [(own.y if own.y.ndim > 1 else own.y.unsqueeze(1)) for own in sets]
    kind = torch.float64 if any(y.dtype == torch.float64 for y in labels) else torch.float32
    columns, outputs, places = (
        list(accumulate(sizes, initial=0))
        for sizes in ([y.shape[1] for y in labels], [len(own.classes) for own in sets], [len(y) for y in labels])
    )
    y = torch.full((places[-1], columns[-1]), torch.nan, dtype=kind)
    for number, own in enumerate(labels):
        y[slice(*places[number : number + 2]), slice(*columns[number : number + 2])] = own.to(kind)
    heads = tuple(
        Head(
            name=name,
            task=own.task,  # pyright: ignore[reportArgumentType]  # one task each
            classes=own.classes,
            columns=(columns[number], columns[number + 1]),
            outputs=(outputs[number], outputs[number + 1]),
            first=places[number],
            weight=weights[name],
        )
        for number, (name, own) in enumerate(named.items())
    )
    return Dataset(
        x=_rows([own.x for own in sets]),
        y=y,
        classes=tuple(f"{head.name}: {label}" for head in heads for label in head.classes),
        groups=_groups([own.groups for own in sets]),
        heads=heads,
    )


def alone(data: Dataset, head: Head) -> tuple[Dataset, Tensor]:
    """The samples of one task as a data set of that task, and their places [sample] int64 in the whole."""
    places = head.there(data.y).nonzero().squeeze(1)
    own = data.part(places)
    return own._replace(y=head.labels(own.y), classes=head.classes, heads=()), places


def some(data: Dataset, count: int) -> Tensor:
    """Places of the first samples; of several tasks, of the first of each."""
    if not data.heads:
        return torch.arange(min(count, len(data.y)))
    return torch.cat([head.there(data.y).nonzero().squeeze(1)[:count] for head in data.heads])


class HeadLoss(NamedTuple):
    """What one task contributes to the loss of all."""

    head: Head
    loss: Loss  # of its own outputs and labels
    factor: float


def factors(heads: Sequence[Head], y: Tensor) -> list[float]:
    """One a task: w_t / sum of w times N / n_t, for n_t of N samples y [sample, column]. The mean loss of a batch is
    then, in expectation, sum over t of w_t mean_t / sum of w: it grows neither with the number of tasks nor with the
    size of one."""
    total = sum(head.weight for head in heads)
    return [head.weight / total * (len(y) / max(int(head.there(y).sum()), 1)) for head in heads]


def loss(outputs: Tensor, y: Tensor, *, heads: tuple[HeadLoss, ...]) -> Tensor:
    """The sum, over the tasks that a sample has a label of, of factor times the task's loss of its own outputs."""
    each = [torch.where(head.there(y), factor * _own(head, own, outputs, y), 0.0) for head, own, factor in heads]
    return each[0] if len(each) == 1 else torch.stack(each).sum(0)


def joint_loss(outputs: Tensor, y: Tensor, *, heads: tuple[HeadLoss, ...]) -> Lower:
    """sum over t of w_t mean_t / sum of w: means of the tasks' own losses over their own samples."""
    means = [_own(head, own, outputs, y)[head.there(y)].double().mean() for head, own, _ in heads]
    weights = torch.tensor([head.weight for head, _, _ in heads], dtype=torch.float64, device=outputs.device)
    return (weights / weights.sum() * torch.stack(means)).sum()


def _own(head: Head, loss: Loss, outputs: Tensor, y: Tensor) -> Tensor:
    """[sample] the task's loss; of a sample without its label, that of outputs of 0, which have no slope."""
    return loss(torch.where(head.there(y).unsqueeze(-1), head.of(outputs), 0.0), head.labels(y))


def _rows(parts: list[Tensor | Rows]) -> Tensor | Rows:
    tensors = [part for part in parts if isinstance(part, Tensor)]
    return torch.cat(tensors) if len(tensors) == len(parts) else Joined(tuple(parts))


def _groups(parts: list[Tensor | tuple[()]]) -> Tensor | tuple[()]:
    """Numbered on from set to set; () unless all have groups."""
    own = [part for part in parts if isinstance(part, Tensor)]
    if len(own) < len(parts):
        return ()
    begins = accumulate((int(part.max()) + 1 for part in own), initial=0)
    return torch.cat([part + begin for part, begin in zip(own, begins, strict=False)])
