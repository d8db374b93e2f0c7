"""Timing for people with noisy machines: candidates in turn, in one process, on one thread, as ratios to the first."""

import copy
import statistics
import time
from collections.abc import Callable

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from fcurr.io import allocator

ROUNDS, SLICE = 41, 0.04  # rounds of all candidates; seconds a candidate is repeated for in each


def quiet() -> None:
    """One thread, and freed memory kept by the process, for all candidates alike."""
    torch.set_num_threads(1)
    allocator.keep()


def ratios(candidates: dict[str, Callable[[], object]], rounds: int = ROUNDS) -> dict[str, tuple[float, float, float]]:
    """Median and quartiles, over rounds, of each candidate's time divided by the first one's in the same round."""
    repeats = {}
    for name, function in candidates.items():
        for _ in range(3):
            function()
        began = time.perf_counter()
        function()
        repeats[name] = max(1, int(SLICE / (time.perf_counter() - began)))
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(rounds):
        for name, function in candidates.items():
            began = time.perf_counter()
            for _ in range(repeats[name]):
                function()
            times[name].append((time.perf_counter() - began) / repeats[name])
    first = times[next(iter(candidates))]
    found = {}
    for name, own in times.items():
        low, middle, high = statistics.quantiles([a / b for a, b in zip(own, first, strict=True)], n=4)
        found[name] = (middle, low, high)
    return found


def show(title: str, found: dict[str, tuple[float, float, float]]) -> None:
    print(f"\n{title}\n")
    print("| candidate | time, median (quartiles) | throughput |\n|---|---|---|")
    for name, (middle, low, high) in found.items():
        print(f"| {name} | {middle:.2f} ({low:.2f} to {high:.2f}) | {1 / middle:.3g} |")


def most(function: Callable[[], object]) -> float:
    """Bytes given out at once, at most, above what was there before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        function()
    now, peak = 0, 0
    for event in sorted(seen.profiler.kineto_results.events(), key=lambda event: event.start_ns()):  # type: ignore
        if event.name() == "[memory]":
            now += event.nbytes()
            peak = max(peak, now)
    return peak


def network() -> nn.Sequential:
    """The 64-256-10 perceptron of the benchmarks."""
    return nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 10))


def imperative(
    x: torch.Tensor, y: torch.Tensor, runs: int, kind: type[torch.optim.Optimizer], **options: object
) -> Callable[[], None]:
    """One step of each of several runs, as everybody writes it."""
    start, loss = network(), nn.CrossEntropyLoss()
    pairs = []
    for _ in range(runs):
        net = copy.deepcopy(start)
        pairs.append((net, kind(net.parameters(), **options)))  # type: ignore[arg-type]

    def step() -> None:
        for net, optimizer in pairs:
            optimizer.zero_grad()
            loss(net(x), y).backward()
            optimizer.step()

    return step
