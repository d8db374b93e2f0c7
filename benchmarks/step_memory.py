"""Memory of one step of a 10 M-parameter network, beside the imperative step's: python benchmarks/step_memory.py

Six hidden layers of 1400 units, SGD with momentum, batch 64; each way in a process of its own. Two measures of the most
that a step needs, parameters and momentum counted in: the bytes that torch's allocator has given out (its profiler
writes down every one), and the resident size of the process, over what it was after the same way with a network so
small that it is nothing: libraries are loaded then. Making ready is building and, where there is tracing, tracing.
"""

import gc
import json
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from interleave import quiet
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile, record_function

from fcurr import fold, losses, models, optim, rng, tracing, training, tree
from fcurr.types import Batch, Dataset

FEATURES, CLASSES, BATCH, RATE, MOMENTUM = 64, 10, 64, 1e-4, 0.9
LARGE, SMALL = (1400,) * 6, (8,) * 6  # units of hidden layers
STEPS = 8
TARGET = 1.25


Widths = tuple[int, ...]


class Way(NamedTuple):
    """A network that is stepped."""

    step: Callable[[], object]
    held: Callable[[], list[Tensor]]  # what is there between two steps


def imperative(hidden: Widths, **options: Any) -> Way:
    widths = (FEATURES, *hidden)
    layers = [layer for pair in zip(widths, hidden, strict=False) for layer in (nn.Linear(*pair), nn.ReLU())]
    net, loss_of, (x, y, _) = nn.Sequential(*layers, nn.Linear(hidden[-1], CLASSES)), nn.CrossEntropyLoss(), batch()
    optimizer = torch.optim.SGD(net.parameters(), lr=RATE, momentum=MOMENTUM, **options)

    def step() -> None:
        loss_of(net(x), y).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    def held() -> list[Tensor]:
        momentum = [state["momentum_buffer"] for state in optimizer.state.values()]
        return [*net.parameters(), *momentum]

    return Way(step, held)


def eager(hidden: Widths) -> Way:
    method, first = begun(hidden)
    return kept(method.step, first)


def called(hidden: Widths) -> Way:
    method, first = begun(hidden)
    return kept(tracing.traced(method.step, first, batch()), first)


def kept(step: Callable[..., Any], first: Any) -> Way:
    """A fold that keeps only its newest state; the caller holds the old one until it has the new one."""
    here, seen = [first], batch()
    del first

    def go() -> None:
        here[0] = step(here[0], seen)

    return Way(go, lambda: tree.leaves(here[0]))


def given(hidden: Widths) -> Way:
    method, first = begun(hidden)
    step, here, seen = tracing.traced(method.step, first, batch()), [first], batch()
    del first

    def go() -> None:
        here.append(step.give([here.pop(), seen]))

    return Way(go, lambda: tree.leaves(here[0]))


def run(hidden: Widths) -> Way:
    """What `fcurr run` does."""
    method, first = begun(hidden)
    x, y, _ = batch()
    program = fold.seen_program(
        Dataset(x=x, y=y, classes=tuple(map(str, range(CLASSES)))),
        torch.ones(1, BATCH, dtype=torch.bool),
        step=lambda varying, state, seen: method.step(state, seen),
        key=rng.fold(0, 1),
        batch_size=BATCH,
        total_iterations=1000,
    )
    states = tree.map(lambda leaf: leaf.unsqueeze(0), first)
    step = fold.together(program.step, {}, states, tree.map(lambda leaf: leaf.unsqueeze(0), batch()))
    program = program._replace(step=step)
    here = [fold.begin(program, states)]
    del first, states
    steps = fold.steps(program, here)
    return Way(lambda: next(steps), lambda: tree.leaves(here[0].train))


WAYS = {
    "imperative, fused torch.optim.SGD": partial(imperative, fused=True),
    "imperative, torch.optim.SGD(foreach=True)": partial(imperative, foreach=True),
    "imperative, torch.optim.SGD as it comes": imperative,
    "fcurr train_step": eager,
    "fcurr train_step, traced": called,
    "fcurr train_step, traced, its state given away": given,
    "fcurr, the fold of a run": run,
}


def batch() -> Batch:
    numbers = torch.Generator().manual_seed(0)
    x = torch.randn(BATCH, FEATURES, generator=numbers)
    return Batch(x=x, y=torch.randint(0, CLASSES, (BATCH,), generator=numbers), id=torch.arange(BATCH))


def begun(hidden: Widths) -> tuple[Any, Any]:
    model = models.mlp(features=(FEATURES,), classes=CLASSES, hidden=hidden)
    optimizer = optim.sgd(learning_rate=RATE, momentum=MOMENTUM)
    method = training.gradient_descent(model=model, loss=losses.cross_entropy, optimizer=optimizer)
    return method, method.init(0)


def measure(name: str) -> dict[str, float]:
    """MiB: the most that torch had given out in a step; the most that was resident in some steps, and before them."""
    quiet()
    small = WAYS[name](SMALL)
    for _ in range(2):
        small.step()
    given_out(small)
    del small
    gc.collect()
    bare = resident("VmRSS")
    forget()
    way = WAYS[name](LARGE)
    made = resident("VmHWM") - bare
    for _ in range(2):
        way.step()
    gc.collect()
    forget()
    for _ in range(STEPS):
        way.step()
    return {"resident": resident("VmHWM") - bare, "made": made, "given": given_out(way), "rest": rest(way)}


def given_out(way: Way) -> float:
    """MiB: the most in one step. The profiler sees a free only of what it saw allocated, so it sees steps before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        way.step()
        way.step()
        with record_function("the step"):
            way.step()
    events = sorted(seen.profiler.kineto_results.events(), key=lambda event: event.start_ns())  # pyright: ignore
    begun = next(event.start_ns() for event in events if event.name() == "the step")
    now = most = 0
    for event in events:
        now += event.nbytes() if event.name() == "[memory]" else 0  # pyright: ignore
        most = max(most, now) if event.start_ns() > begun else now
    return rest(way) + (most - now) / 2**20


def rest(way: Way) -> float:
    """MiB of what is there between two steps."""
    return (
        sum({leaf.untyped_storage().data_ptr(): leaf.untyped_storage().nbytes() for leaf in way.held()}.values())
        / 2**20
    )


def forget() -> None:
    """The most that was resident, from now on (Linux)."""
    Path("/proc/self/clear_refs").write_text("5")


def resident(what: str) -> float:
    """MiB: the resident size of this process, now (VmRSS) or at its most (VmHWM)."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines[what].split()[0]) / 2**10


def main() -> None:
    found = {}
    for name in WAYS:
        child = subprocess.run([sys.executable, __file__, name], capture_output=True, text=True, check=True)
        found[name] = json.loads(child.stdout)
    first = next(iter(found.values()))
    print(f"\nOne step of a 10 M-parameter network (target: at most {TARGET} of the first row)\n")
    print(f"At rest, parameters and momentum: {first['rest']:.0f} MiB.\n")
    print("| way | most given out, MiB | of the first | most resident, MiB | of the first | making it ready, MiB |")
    print("|---|---|---|---|---|---|")
    for name, row in found.items():
        shares = {key: row[key] / first[key] for key in ("given", "resident")}
        print(
            f"| {name} | {row['given']:.0f} | {shares['given']:.2f} "
            f"| {row['resident']:.0f} | {shares['resident']:.2f} | {row['made']:.0f} |"
        )


if __name__ == "__main__":
    print(json.dumps(measure(sys.argv[1]))) if len(sys.argv) > 1 else main()
