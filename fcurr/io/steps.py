"""The loss of every step, as a file: a line a step."""

import json
import os
from pathlib import Path

import torch
from torch import Tensor

from fcurr.io.watching import finite

AT_ONCE = 1024  # lines that are written together


class Steps:
    """The losses of steps that are not evaluated yet, and the file of all.

    A line is {"iteration": 12, "loss": [one a member]}; null is a loss that is not finite. Without a path nothing is
    read or written.
    """

    def __init__(self, path: Path | None, *, writes: bool = True) -> None:
        self.path, self.writes = path, writes
        self.first = 0  # steps before those in `losses`
        self.losses: list[Tensor] = []  # [member] each
        self.unwritten: list[Tensor] = []  # the last ones, that are not in the file
        self.row, self.row_end = 0, 0  # setbacks in a row, and the iteration of the last
        self.notes: dict[int, dict[str, object]] = {}  # what else happened, by iteration

    def add(self, loss: Tensor) -> int:
        """One step more; how many there are now."""
        if len(self.unwritten) >= AT_ONCE:
            self.flush()
        self.losses.append(loss)
        self.unwritten.append(loss)
        return self.first + len(self.losses)

    def note(self, **happened: object) -> None:
        """Something that happened in the last step."""
        self.notes[self.first + len(self.losses)] = happened

    def means(self, evaluated: Tensor, done: Tensor) -> tuple[Tensor, Tensor]:
        """[member] float64, the mean of the finite losses since each member's last evaluation until it was done; and
        [member] int64, how many were not finite."""
        seen = torch.stack(self.losses).double()  # [step, member]
        step = torch.arange(self.first + 1, self.first + len(seen) + 1, device=seen.device).unsqueeze(1)
        new = (step > evaluated) & (step <= done)
        good = new & seen.isfinite()
        return torch.where(good, seen, 0.0).sum(0) / good.sum(0), (new & ~good).sum(0)

    def setback(self) -> int:
        """The last step was one; how many there have been in a row."""
        done = self.first + len(self.losses)
        if done != self.row_end:
            self.row = self.row + 1 if done == self.row_end + 1 else 1
        self.row_end = done
        return self.row

    def flush(self) -> None:
        """Everything seen, in the file."""
        new, self.unwritten = self.unwritten, []
        if self.path is None or not self.writes or not new:
            return
        lines = []
        for place, losses in enumerate(torch.stack(new).tolist(), start=self.first + len(self.losses) - len(new) + 1):
            line = {"iteration": place, "loss": [finite(loss) for loss in losses], **self.notes.pop(place, {})}
            lines.append(json.dumps(line, allow_nan=False) + "\n")
        with open(self.path, "a") as file:
            file.write("".join(lines))

    def forget(self, until: int) -> None:
        """Steps up to an iteration are not asked about any more."""
        self.losses = self.losses[until - self.first :]
        self.first = until

    def keep(self, done: int, evaluated: Tensor | None) -> None:
        """The file up to an iteration; what comes after it is thrown away. The losses since the last evaluations are
        held again."""
        since = done if evaluated is None else int(evaluated.min())
        size = 0
        tail: list[list[float]] = []
        with open(self.path or os.devnull, "ab+") as file:
            file.seek(0)
            for line in file:
                try:
                    found = json.loads(line) if line.endswith(b"\n") else {}
                    iteration, losses = int(found["iteration"]), list(found["loss"])
                except (ValueError, KeyError):
                    break
                if iteration > done:
                    break
                size += len(line)
                if None in losses:
                    self.row = self.row + 1 if iteration == self.row_end + 1 else 1
                    self.row_end = iteration
                if iteration > since:
                    tail.append([torch.nan if loss is None else loss for loss in losses])
            if self.path is not None and self.writes:
                file.truncate(size)
        device = None if evaluated is None else evaluated.device
        self.losses = [torch.tensor(losses, device=device) for losses in tail]
        self.first, self.unwritten = done - len(tail), []
