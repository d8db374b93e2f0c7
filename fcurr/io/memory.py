"""What a step of training takes of memory, and the largest batch that fits: tried on an accelerator, which says when
there is no more; predicted on a processor, from processes that are measured."""

import gc
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable, Collection, Iterator
from itertools import islice
from typing import NamedTuple

import torch

from fcurr import finding, fold
from fcurr.errors import BadInput
from fcurr.io import allocator, runner
from fcurr.io.fitting import fetching
from fcurr.study.config import Experiment, read
from fcurr.study.drawing import together
from fcurr.study.prepare import Prepared
from fcurr.study.program import chosen, train_program
from fcurr.training import TrainState

MOST = 2**20  # samples in a batch, as [training] takes it
GIB, CLEAR = 2**30, 2**27  # bytes


class Fit(NamedTuple):
    """The largest batch that fits, in parts of which a batch has a whole number (training.accumulate)."""

    parts: int  # 0 if none does
    memory: Callable[[int], float]  # samples in a batch -> bytes
    why: str


def loaded(experiment: Experiment) -> Prepared:
    """What is prepared, with zeros for the losses of a model that only a run trains: they take the same memory."""
    prepared = runner.load(experiment)
    return prepared._replace(entries=prepared.entries | {"irreducible": torch.zeros(len(together(prepared).y))})


def states(experiment: Experiment, prepared: Prepared) -> Iterator[TrainState]:
    """The states [member, ...] after each step of the run, of which one is held at a time."""
    program, run = train_program(experiment, prepared, None)
    here, device = [run], run.iteration.device
    del run
    for _ in fold.steps(program, here, fetching(prepared.train, device)):
        yield here[0].train


def of_size(experiment: Experiment, prepared: Prepared, size: int) -> Iterator[TrainState]:
    """The same with batches of another size."""
    training = experiment.training._replace(batch_size=size)
    entries = prepared.entries | {"batch_size": size}
    return states(experiment._replace(training=training), prepared._replace(entries=entries))


def on_accelerator(
    experiment: Experiment, prepared: Prepared, unit: int, first: int, most: int, limit: int | None
) -> Fit:
    """Tried, by steps of all members."""
    device = chosen(experiment.training.device)
    peaks: dict[int, int] = {}

    def tried(size: int) -> bool:
        torch.accelerator.reset_peak_memory_stats(device)
        try:
            for state in islice(of_size(experiment, prepared, size), 2):
                wait(state)
        except (RuntimeError, BadInput) as wrong:
            if not _of_memory(wrong):
                raise
            return False
        peaks[size] = torch.accelerator.max_memory_allocated(device)
        return limit is None or peaks[size] <= limit

    def fits(parts: int) -> bool:
        good = tried(parts * unit)
        gc.collect()
        torch.accelerator.empty_cache()
        return good

    found = finding.largest(fits, first=first, most=most, within=1 / 16)
    if found and len(peaks) > 1:
        why = f"tried on {device}, to a sixteenth" if found < most else f"tried on {device}; all that were asked for"
    else:
        why = f"tried on {device}"
    start, slope = finding.line(list(peaks), list(peaks.values())) if len(peaks) > 1 else (0.0, 0.0)
    return Fit(found, lambda size: peaks.get(size, start + slope * size), why)


def _of_memory(wrong: BaseException) -> bool:
    """Whether an error, or what it comes from, says that memory is out."""
    signs = ("out of memory", "ALLOC_FAILED", "canUse32BitIndexMath")
    if isinstance(wrong, torch.OutOfMemoryError) or any(sign in str(wrong) for sign in signs):
        return True
    return wrong.__cause__ is not None and _of_memory(wrong.__cause__)


def on_processor(
    experiment: Experiment, plugins: Collection[str], unit: int, first: int, most: int, limit: int | None
) -> Fit:
    """The same, predicted: a process that has too much memory is killed and not told. Sizes are measured, each four
    times the last or as large as the others say that it may be, until what batches take stands out from what a process
    takes in any case; the last two are extrapolated."""
    limit = limit or _free() // 2
    peaks: dict[int, float] = {}
    for times in (4, 16, 64, 256, 1024):
        parts = min(times * first, most, _inside(peaks, limit) if len(peaks) > 1 else most)
        clear = len(peaks) > 2 and max(peaks.values()) - min(peaks.values()) > CLEAR
        if clear or parts <= max(peaks, default=0):
            break
        if math.isinf(took := _peak(experiment, plugins, parts * unit)):
            most = parts - 1
            break
        peaks[parts] = took
    if not peaks:
        return Fit(0, lambda size: math.inf, f"a process with {4 * first * unit:,} was killed")
    start, slope = _line(peaks)
    found = min(most, _inside(peaks, limit)) if len(peaks) > 1 else max(peaks) * (max(peaks.values()) <= limit)
    sizes = " and ".join(f"{parts * unit:,}" for parts in list(peaks)[-2:])
    why = f"predicted for {limit / GIB:.2f} GiB from what processes took for {sizes}"
    if found == most:
        why += "; no larger one was asked for"
    return Fit(found, lambda size: peaks.get(size // unit, start + slope * (size / unit)), why)


def _line(peaks: dict[int, float]) -> tuple[float, float]:
    """(bytes at 0, bytes a part of a batch), of the last two sizes; small ones take no less than building a program."""
    sizes = list(peaks)[-2:]
    return finding.line(sizes, [peaks[size] for size in sizes]) if len(sizes) > 1 else (peaks[sizes[0]], 0.0)


def _inside(peaks: dict[int, float], limit: int) -> int:
    """The parts of a batch that take no more than the limit, by the line."""
    start, slope = _line(peaks)
    return MOST if slope <= 0 else max(0, int((limit - start) // slope))


def _peak(experiment: Experiment, plugins: Collection[str], size: int) -> float:
    """The most bytes that a process of its own has held at once when it has read the data and trained three steps of
    this size; inf where it was killed. Only the system sees what libraries take beside torch's allocator: for
    convolutions of several members, three times what torch counts."""
    asked = {"config": experiment.config, "plugins": list(plugins), "size": size, "path": sys.path}
    program = "from fcurr.io.memory import measure; measure()"
    done = subprocess.run(
        [sys.executable, "-c", program], input=json.dumps(asked, default=str), capture_output=True, text=True
    )
    if done.returncode < 0:
        return math.inf
    if done.returncode:
        raise BadInput(f"a step of {size} samples fails: {(done.stderr.splitlines() or [''])[-1]}")
    return float(done.stdout.splitlines()[-1])


def measure() -> None:
    """What `_peak` asks of a process: a question as JSON on stdin, bytes on stdout."""
    asked = json.load(sys.stdin)
    sys.path[:] = asked["path"]
    allocator.keep()  # as a run
    experiment = read(asked["config"], asked["plugins"])
    for state in islice(of_size(experiment, loaded(experiment), asked["size"]), 3):
        wait(state)
    print(_held())


def _held() -> int:
    """Bytes that this process has held at most. On Linux not by getrusage, which remembers the parent's as well."""
    try:
        with open("/proc/self/status") as lines:
            return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _free() -> int:
    """Bytes of memory that can be had without swapping; a quarter of all where the system does not say."""
    try:
        with open("/proc/meminfo") as lines:
            return next(1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 4


def wait(state: TrainState) -> None:
    state.loss.sum().item()  # an accelerator has finished when it can say
