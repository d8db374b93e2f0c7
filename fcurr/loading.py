"""The same curriculum for people who keep their own trainer: samplers for torch's DataLoader, and a weighted mean.

Step t of a run draws the same samples here as in fcurr's own training. A sampler is mutable because torch's protocol
is. It holds what is to be drawn, the step at which an iteration begins, and how far that iteration has drawn.

A DataLoader draws ahead: with workers, several batches have been drawn that are not yet trained on. A sampler cannot
see training, so whoever saves says how many batches have been trained on: `state_dict(trained=...)`.
"""

from collections.abc import Iterator
from typing import Any, get_args

import torch
from torch import Tensor
from torch.utils.data import Sampler

from fcurr import rng, sampler, tree
from fcurr.errors import BadInput
from fcurr.sampler import Clock, Lessons
from fcurr.types import Iterations, Samples

AHEAD = 32  # steps whose samples are drawn together
EXACT = 2**53 - 1  # integers up to here are read back exactly from any JSON


class CurriculumBatchSampler(Sampler[list[int]]):
    """Batches of ids from a step to the end of a run; `DataLoader(data, batch_sampler=...)`.

    `batch_size` counts the samples of a step over all ranks. Each of `replicas` ranks yields its own consecutive part,
    so that the parts, in the order of the ranks, are the batch that one process would train on. `total_iterations`
    counts steps or passes, as the clock does.

    One iteration is the whole run, or, for trainers that count epochs, `steps_per_epoch` steps of it; a trainer that
    iterates again gets the next ones. That epoch is the trainer's: passes over the data begin and end wherever the
    pace puts them. The iteration after a state is loaded yields what was left of the epoch, and no iteration goes
    beyond the end of the run. `len` is the number of batches in a whole epoch.
    """

    def __init__(
        self,
        lessons: Lessons,
        *,
        batch_size: Samples,
        total_iterations: Iterations,
        clock: Clock = "step",
        replicas: int = 1,
        rank: int = 0,
        steps_per_epoch: Iterations | None = None,
    ) -> None:
        if lessons.key.ndim:
            raise BadInput(
                f"these are the lessons of {len(lessons.key)} runs, and a sampler draws for one:"
                " make them with sampler.lessons(order, sizes, key)"
            )
        if clock not in get_args(Clock):
            raise BadInput(f'clock = "{clock}" is not one of {", ".join(get_args(Clock))}')
        if batch_size < 1 or total_iterations < 1:
            raise BadInput(
                f"batch_size = {batch_size} and total_iterations = {total_iterations}: both are at least 1",
            )
        if replicas < 1 or not 0 <= rank < replicas:
            raise BadInput(f"rank {rank} of {replicas} replicas: ranks are numbered from 0 to replicas - 1")
        if batch_size % replicas:
            raise BadInput(
                f"a batch of {batch_size} cannot be shared equally by {replicas} replicas: batch_size counts the"
                f" samples of all ranks together; {batch_size - batch_size % replicas or replicas} would do"
            )
        asked = sampler.steps(lessons, total_iterations=total_iterations, batch_size=batch_size, clock=clock)
        self.total = int(asked)  # steps of the run
        self.epoch = self.total if steps_per_epoch is None else steps_per_epoch  # steps of an epoch
        if self.epoch < 1 or self.total % self.epoch:
            raise BadInput(
                f"{self.total} steps are not whole epochs of {self.epoch} steps: steps_per_epoch divides the steps"
                " of the run; without it, an epoch is the whole run"
            )
        self.lessons, self.together = lessons, batch_size
        self.clock: Clock = clock
        self.batch_size, self.drop_last = batch_size // replicas, False  # as torch's BatchSampler has them
        self.first = rank * self.batch_size  # this rank's part of a batch
        self.step = self.drawn = 0  # steps before this iteration's first; steps drawn

    def __len__(self) -> int:
        return self.epoch

    def __iter__(self) -> Iterator[list[int]]:
        end = self._end()
        if self.drawn == end:  # whoever comes back for more has had all of these
            self.step = end
        if self.drawn != self.step:
            raise BadInput(
                f"the last iteration began at step {self.step} and was broken off after {self.drawn - self.step}"
                " batches had been drawn, perhaps ahead of training: call seek(trained) with the batches trained on,"
                " counted from the start of the run; and if an epoch is to be shorter, set steps_per_epoch"
            )
        step, end = self.step, self._end()
        cursor = sampler.seek(self.lessons, step, batch_size=self.together, clock=self.clock)
        while step < end:
            ids, cursors = sampler.ahead(
                cursor,
                torch.tensor(step),
                self.lessons,
                steps=min(AHEAD, end - step),
                batch_size=self.together,
                clock=self.clock,
            )
            for own in ids[:, self.first : self.first + self.batch_size].tolist():
                self.drawn = step = step + 1
                yield own
            cursor = tree.member(cursors, -1)

    def _end(self) -> int:
        """The step at which this iteration's epoch ends."""
        return min(self.step - self.step % self.epoch + self.epoch, self.total)

    def seek(self, trained: int) -> None:
        """Begin the next iteration after so many batches, counted from the start of the run."""
        if not 0 <= trained <= self.total:
            raise BadInput(f"{trained} batches cannot have been trained on: a run has 0 to {self.total}")
        self.step = self.drawn = trained

    def state_dict(self, *, trained: int | None = None) -> dict[str, Any]:
        """Where training stands, as integers and a word that JSON can hold; the same on every rank.

        `trained`: batches trained on, counted from the start of the run. It may be left out only if nothing was drawn
        since `seek` or `load_state_dict`.
        """
        if trained is None and self.drawn != self.step:
            raise BadInput(
                f"{self.drawn} batches have been drawn, and a loader draws ahead of training: say how many have been"
                " trained on, state_dict(trained=...); for torchdata's StatefulDataLoader, give it AsDrawn(sampler)"
            )
        if trained is not None and not 0 <= trained <= self.drawn:
            raise BadInput(f"{trained} batches cannot have been trained on: {self.drawn} have been drawn")
        return {"step": self.drawn if trained is None else trained, **self._marks()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Begin the next iteration where the state was saved, on any number of ranks. Refuses the state of another
        curriculum, data set or batch size, and changes nothing then."""
        for name, mark in self._marks().items():
            if name not in state or "step" not in state:
                raise BadInput(f"this is not the state of a sampler: it has {', '.join(map(str, state)) or 'nothing'}")
            if state[name] != mark:
                raise BadInput(f"the state was saved under another {_MARKS[name].format(state[name], mark)}")
        self.seek(state["step"])

    def _marks(self) -> dict[str, Any]:
        """What a state belongs to. An order tells one data set from another; sizes after the last change are left out,
        for they hold for ever."""
        sizes = self.lessons.sizes[self.lessons.pace]
        changes = (sizes[1:] != sizes[:-1]).nonzero()
        order = self.lessons.orders[self.lessons.order]
        return {
            "clock": self.clock,
            "batch_size": self.together,
            "samples": len(order),
            "order": _digest(order),
            "sizes": _digest(sizes[: int(changes[-1]) + 2 if len(changes) else 1]),
            "key": _digest(self.lessons.key.reshape(1)),
        }


_MARKS = {
    "clock": "clock: {}, and this sampler's is {}",
    "batch_size": "batch size: {}, and this sampler's is {}, counted over all ranks",
    "samples": "data set: of {} samples in the order, and this one has {}",
    "order": "order of the samples: other data, other scores or another way to order them",
    "sizes": "pace: the numbers of samples in play differ",
    "key": "key: another seed",
}


def _digest(numbers: Tensor) -> int:
    """A number that is another one for other numbers, or other places of them."""
    return int(rng.fold(numbers.long(), torch.arange(len(numbers), device=numbers.device)).sum()) & EXACT


class CurriculumSampler(Sampler[int]):
    """The ids of CurriculumBatchSampler, one by one: `DataLoader(data, sampler=..., batch_size=...)`, with the batch
    size of this rank, or a divisor of it if gradients are accumulated. Steps are counted as the batch sampler counts
    them. `len` is the number of ids in a whole epoch."""

    def __init__(
        self,
        lessons: Lessons,
        *,
        batch_size: Samples,
        total_iterations: Iterations,
        clock: Clock = "step",
        replicas: int = 1,
        rank: int = 0,
        steps_per_epoch: Iterations | None = None,
    ) -> None:
        self.batches = CurriculumBatchSampler(
            lessons,
            batch_size=batch_size,
            total_iterations=total_iterations,
            clock=clock,
            replicas=replicas,
            rank=rank,
            steps_per_epoch=steps_per_epoch,
        )

    def __len__(self) -> int:
        return len(self.batches) * self.batches.batch_size

    def __iter__(self) -> Iterator[int]:
        batches = iter(self.batches)
        return (one for batch in batches for one in batch)

    def seek(self, trained: int) -> None:
        """As CurriculumBatchSampler.seek."""
        self.batches.seek(trained)

    def state_dict(self, *, trained: int | None = None) -> dict[str, Any]:
        """As CurriculumBatchSampler.state_dict: `trained` counts steps, not samples."""
        return self.batches.state_dict(trained=trained)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """As CurriculumBatchSampler.load_state_dict."""
        self.batches.load_state_dict(state)


class AsDrawn(Sampler[list[int]]):
    """The same batches for torchdata's StatefulDataLoader, which asks where a sampler stands as it draws a batch, and
    hands the answer out with that batch: here a state without an argument is right, and is what has been drawn."""

    def __init__(self, batches: CurriculumBatchSampler) -> None:
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self.batches)

    def state_dict(self) -> dict[str, Any]:
        return self.batches.state_dict(trained=self.batches.drawn)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.batches.load_state_dict(state)


def weighted_mean(losses: Tensor, weights: Tensor) -> Tensor:
    """sum(w * l) / sum(w): the mean of the losses [batch], each counted as often as its weight [batch] says.

    Scaling all weights changes nothing. A weight of zero is the same as leaving the sample out, also if its loss is
    not finite. If all weights are zero there is nothing to average, and the mean is 0. Weights are never negative;
    that is not checked, for it would wait on the device.
    """
    if losses.shape != weights.shape:
        raise BadInput(f"losses {list(losses.shape)} and weights {list(weights.shape)}: one weight a loss is wanted")
    counted = torch.where((weights == 0) & ~losses.isfinite(), 0, losses)
    total = weights.sum()
    return (weights * counted).sum() / torch.where(total == 0, 1, total)
