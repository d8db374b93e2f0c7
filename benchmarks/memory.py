"""A run's steps with freed memory kept, against glibc's own way, each in its process: python benchmarks/memory.py"""

import itertools
import statistics
import subprocess
import sys
import time
from collections import deque
from pathlib import Path

import torch

from fcurr.io import allocator, configs, runner

CONFIG = Path(__file__).parent.parent / "configs/quickstart.toml"


def measure(keep: bool) -> float:
    """Seconds of 100 steps of the quickstart's 20 members, median of five."""
    torch.set_num_threads(1)
    if keep:
        allocator.keep()
    experiment = configs.read(configs.load(CONFIG, [], [])[0])
    prepared = runner.load(experiment)
    program, run = runner.train_program(experiment, prepared, torch.rand(len(prepared.train.y)))
    times = []
    for _ in range(6):
        began = time.perf_counter()
        run = deque(itertools.islice(runner.fold.proceed(program, run), 100), maxlen=1).pop()
        times.append(time.perf_counter() - began)
    return statistics.median(times[1:])


def main() -> None:
    def child(way: str) -> float:
        return float(subprocess.run([sys.executable, __file__, way], capture_output=True, text=True, check=True).stdout)

    ratios = [child("keep") / child("give-back") for _ in range(7)]
    low, middle, high = statistics.quantiles(ratios, n=4)
    print(f"steps of a run, memory kept, of the time without: {middle:.2f} ({low:.2f} to {high:.2f})")


if __name__ == "__main__":
    print(measure(sys.argv[1] == "keep")) if len(sys.argv) > 1 else main()
