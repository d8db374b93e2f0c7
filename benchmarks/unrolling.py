"""What a hypergradient through K inner steps costs, in time and memory: python benchmarks/unrolling.py [figure.svg]

A perceptron with four hidden layers of 256 units, batch 512, SGD with momentum, a weight a sample. Time in plain
training steps, one thread, interleaved. Memory: the most that torch's allocator has given out at once, in sets of
parameters (momentum is a second set), above what was there before."""

import sys
from functools import partial

import torch
from interleave import most, quiet, ratios

from fcurr import losses, models, optim, tree
from fcurr.autodiff import losses_and_grad
from fcurr.bilevel.problem import Descent, Weighted
from fcurr.bilevel.unrolling import adjoint, unrolled
from fcurr.types import Batch

STEPS, HIDDEN, BATCH = (1, 2, 4, 8, 16), (256,) * 4, 512
WAYS = {"unrolled": unrolled, "adjoint": adjoint}


def problem(count: int):
    """(outer, inner, params, meta, descent) with so many inner steps."""
    numbers = torch.Generator().manual_seed(0)
    model = models.mlp(features=(64,), classes=10, hidden=HIDDEN)
    optimizer = optim.sgd(learning_rate=0.05, momentum=0.9)
    params, _ = model.init(0)

    def batch() -> Batch:
        x, y = torch.randn(BATCH, 64, generator=numbers), torch.randint(0, 10, (BATCH,), generator=numbers)
        return Batch(x=x, y=y, id=torch.arange(BATCH))

    def each(params, batch):
        return losses.cross_entropy(model.apply(params, batch.x), batch.y)

    inner = Weighted(each, lambda meta, own, batch: (torch.sigmoid(meta[batch.id]) * own).mean())
    outer = partial(lambda params, meta, clean: each(params, clean).mean(), clean=batch())
    descent = Descent(optimizer, optimizer.init(params), [batch() for _ in range(count)])
    return outer, inner, params, torch.zeros(BATCH), descent


def plain():
    _, inner, params, _, descent = problem(1)
    weights = torch.full((BATCH,), 1 / BATCH)
    step = lambda params: (inner.losses(params, descent.batches[0]), {})  # noqa: E731
    return lambda: descent.optimizer.update(  # type: ignore[union-attr]
        losses_and_grad(step, params, weights)[2], descent.memory, params
    )


def main() -> None:
    quiet()
    sets = 4 * sum(leaf.numel() for leaf in tree.leaves(problem(1)[2]))
    candidates = {"a plain training step": plain()}
    for count in STEPS:
        candidates |= {f"{name}, K = {count}": partial(way, *problem(count)) for name, way in WAYS.items()}
    times = ratios(candidates, 11)
    memory = {name: most(function) / sets for name, function in candidates.items()}
    print("| way | time in plain steps, median (quartiles) | memory in parameter sets |\n|---|---|---|")
    for name, (middle, low, high) in times.items():
        print(f"| {name} | {middle:.1f} ({low:.1f} to {high:.1f}) | {memory[name]:.1f} |")
    if sys.argv[1:]:
        draw(sys.argv[1], times, memory)


def draw(path: str, times: dict[str, tuple[float, float, float]], memory: dict[str, float]) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 2.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    for name, colour in zip(WAYS, ("#c2571a", "#2a6fb0"), strict=True):
        own = [f"{name}, K = {count}" for count in STEPS]
        left.plot(STEPS, [times[key][0] for key in own], "o-", color=colour, markersize=4)
        right.plot(STEPS, [memory[key] for key in own], "o-", color=colour, markersize=4, label=name)
    left.set_title("time, in plain training steps", fontsize=9, loc="left")
    right.set_title("memory, in sets of parameters", fontsize=9, loc="left")
    for axes in (left, right):
        axes.set_xlabel("inner steps K", fontsize=9)
        axes.set_xlim(left=0)
        axes.set_ylim(bottom=0)
        axes.tick_params(labelsize=8)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
    right.legend(frameon=False, fontsize=9)
    figure.savefig(path)


if __name__ == "__main__":
    main()
