"""The whole loop of a run on digits, against its bare steps and against the imperative loop: python benchmarks/loop.py

All that a run does from its first step to its last checkpoint: drawing, stepping, the loss of every step in a file, an
evaluation a pass with its line of metrics, the state at the end on the disk. A 64-256-10 perceptron, batch 64, SGD with
momentum. Times are the processor's, of all threads, so that others on the machine hardly count.
"""

import copy
import json
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import redirect_stderr
from io import StringIO
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch
from interleave import network, quiet
from torch import Tensor, nn

from fcurr import fold, tree
from fcurr.fold import Program
from fcurr.io import configs, journey, runner
from fcurr.io.journey import Journey, Look, Watch
from fcurr.types import Batch, Dataset

BATCH, RATE, MOMENTUM = 64, 0.01, 0.9
Way = Callable[[], object]


class Whole(NamedTuple):
    """A run made ready: it is its loop that is timed."""

    program: Program
    start: Journey
    watch: Watch
    look: Look
    validation: Dataset
    steps: int

    def go(self) -> Journey:
        """From the start to the end, in its folder."""
        shutil.rmtree(self.watch.folder, ignore_errors=True)
        with redirect_stderr(StringIO()):
            return journey.travel(self.program, [self.start], self.watch, self.look)


def whole(folder: Path, *, members: int, hidden: int, layers: int, **settings: Any) -> Whole:
    """What `fcurr run` calls for so many members."""
    config = {
        "name": "loop",
        "seed": 0,
        "data": {"fn": "digits"},
        "split": {"fn": "stratified", "validation": 0.15, "test": 0.25},
        "model": {"fn": "mlp", "hidden": [hidden] * layers},
        "optimizer": {"fn": "sgd", "learning_rate": RATE, "momentum": MOMENTUM},
        "training": {"batch_size": BATCH, **settings},
        "members": {"seed": list(range(members))},
    }
    experiment = configs.read(config)
    prepared = runner.load(experiment)
    caught: list[Any] = []

    def catch(program: Program, here: list[Journey], *rest: Any) -> Journey:
        caught.extend([program, here[0], *rest])
        return here[0]

    with mock.patch.object(runner, "travel", catch):
        runner.start_or_continue(experiment, prepared, folder, {})
    program, start, watch, look = caught
    return Whole(program, start, watch, look, prepared.validation, fold.length(start.run))


def by_passes(folder: Path, members: int, passes: int) -> Whole:
    """The 64-256-10 perceptron, for so many passes over the data, an evaluation a pass, saved at the end."""
    return whole(
        folder, members=members, hidden=256, layers=1, clock="epoch", total_iterations=passes, save_every=passes
    )


def bare(run: Whole) -> Callable[[], Any]:
    """The same steps on the same batches, all drawn before; the state at the end."""
    first, program = run.start.run, run.program
    batches, step = list(drawn(run)), getattr(program.step, "give", None)

    def go() -> Any:
        state = first.train
        for batch in batches:
            if step is None:
                state = program.step(program.varying, state, batch)
            else:
                given = [program.varying, state, batch]
                del state
                state = step(given)  # as the loop does: the old state is given away
        return state

    return go


def drawn(run: Whole) -> Iterator[Batch]:
    """The batches of a run."""
    first, program = run.start.run, run.program
    ids, _ = fold.sampler.ahead(
        first.cursor,
        first.iteration,
        program.lessons,
        steps=run.steps,
        batch_size=program.batch_size,
        clock=program.clock,
    )
    yield from map(program.data.take, ids)


def imperative(run: Whole, members: int, folder: Path, **options: Any) -> Way:
    """The loop as everybody writes it, once a member: as many steps, the same work."""
    data, validation, loss_of = run.program.data, run.validation, nn.CrossEntropyLoss()
    (x, y), (held_x, held_y) = flat(data), flat(validation)
    start = network()

    def one(member: int, x: Tensor, y: Tensor, held_x: Tensor, held_y: Tensor) -> None:
        net, done, best = copy.deepcopy(start), 0, -1.0
        kept = copy.deepcopy(net.state_dict())
        optimizer = torch.optim.SGD(net.parameters(), lr=RATE, momentum=MOMENTUM, **options)
        generator = torch.Generator().manual_seed(member)
        with open(folder / "steps.jsonl", "w") as steps, open(folder / "metrics.jsonl", "w") as metrics:
            while done < run.steps:
                for ids in torch.randperm(len(y), generator=generator).split(BATCH)[: run.steps - done]:
                    optimizer.zero_grad()
                    loss = loss_of(net(x[ids]), y[ids])
                    loss.backward()
                    optimizer.step()
                    done += 1
                    steps.write(f'{{"iteration": {done}, "loss": {loss.item()}}}\n')
                net.eval()
                with torch.no_grad():
                    outputs = net(held_x)
                    share = (outputs.argmax(1) == held_y).double().mean().item()
                    row = {"iteration": done, "loss": loss_of(outputs, held_y).item(), "accuracy": share}
                net.train()
                metrics.write(json.dumps(row) + "\n")
                if share > best:
                    best, kept = share, copy.deepcopy(net.state_dict())
        torch.save({"model": net.state_dict(), "optimizer": optimizer.state_dict(), "best": kept}, folder / "last.pt")

    def go() -> None:
        for member in range(members):
            one(member, x, y, held_x, held_y)

    return go


def flat(data: Dataset) -> tuple[Tensor, Tensor]:
    """All samples, each a row of numbers, and their labels."""
    everything = data.take(torch.arange(len(data.y)))
    return everything.x.flatten(1), everything.y


def seconds(ways: dict[str, Way], rounds: int) -> dict[str, list[float]]:
    """name -> what it took in each round, in seconds of the processor (all threads); the ways take turns."""
    found: dict[str, list[float]] = {name: [] for name in ways}
    for way in ways.values():
        way()
    for _ in range(rounds):
        for name, way in ways.items():
            began = time.process_time()
            way()
            found[name].append(time.process_time() - began)
    return found


def quartiles(values: Sequence[float]) -> str:
    low, middle, high = statistics.quantiles(values, n=4)
    return f"{middle:.2f} ({low:.2f} to {high:.2f})"


def main() -> None:
    quiet()
    torch.manual_seed(0)
    for members, passes, rounds in ((1, 120, 9), (16, 24, 7)):
        with tempfile.TemporaryDirectory() as name:
            (folder := Path(name, "run")).mkdir()
            run = by_passes(folder, members, passes)
            alone = bare(run)
            assert tree.equal(run.go().run.train, alone()), "the loop and its bare steps end in different states"
            ways = {
                "loop": run.go,
                "steps": alone,
                "fused": imperative(run, members, Path(name), fused=True),
                "default": imperative(run, members, Path(name)),
            }
            found = seconds(ways, rounds)
        outside = [1 - b / a for a, b in zip(found["loop"], found["steps"], strict=True)]
        print(f"\n{members} member{'s' if members > 1 else ''}, {run.steps} steps\n")
        print("| of the loop | median (quartiles) |\n|---|---|")
        print(f"| share of its time outside the step (target: at most 0.15) | {quartiles(outside)} |")
        for key, words in {"fused": "fused torch.optim.SGD", "default": "torch.optim.SGD as it comes"}.items():
            speed = [b / a for a, b in zip(found["loop"], found[key], strict=True)]
            print(f"| steps per second, of the imperative loop's, {words} (target: 1.0) | {quartiles(speed)} |")


if __name__ == "__main__":
    main()
