"""What a checkpoint of 25 M parameters with momentum costs a run: python benchmarks/saving.py

A run's own loop, which saves so seldom that the background is done with a save long before the next. The pause is how
much longer it is from the end of a step to the beginning of the next when there is a save between them, beside the time
of copying all that is saved. What a save costs is how much longer the steps of the half that begins with it take than
those of the half without, the pause included, and how much more the processor works, which is what it costs where no
core is idle; a minute's share of either is what saving once a minute costs.
"""

import statistics
import tempfile
import time
from pathlib import Path

import torch
from interleave import quiet
from loop import quartiles, whole
from torch import Tensor

from fcurr import tree
from fcurr.io import checkpoint

HIDDEN, LAYERS, BATCH = 2235, 6, 16
SAVES, HALF = 6, 20  # saves that are looked at; steps while there may be a save, and steps while there is none


def main() -> None:
    quiet()
    torch.manual_seed(0)
    total = 2 * HALF * (SAVES + 1)
    begins: list[float] = []  # of steps
    ends: list[float] = []
    rests: list[float] = []  # when the loop goes on after the end of a step, and a save
    processor: list[float] = []  # seconds of the processor at the ends
    copying: list[float] = []
    with tempfile.TemporaryDirectory() as name:
        run = whole(
            Path(name),
            members=1,
            hidden=HIDDEN,
            layers=LAYERS,
            batch_size=BATCH,
            total_iterations=total,
            evaluate_every=total,
            save_every=2 * HALF,
        )
        operations = run.program.step.run  # type: ignore[attr-defined]

        def stamped(given: list[Tensor]) -> list[Tensor]:
            begins.append(time.perf_counter())
            return operations(given)

        def asked() -> int:
            """After every step, before its save."""
            ends.append(time.perf_counter())
            processor.append(time.process_time())
            done = len(ends)
            if done % (2 * HALF) == HALF:
                late = done > HALF and not written(run.watch.folder, done - HALF)
                assert not late, "a save took longer than the steps that were to wait for it"
            if done % (2 * HALF) == HALF + HALF // 2:
                copied = tree.map(torch.clone, run.start)
                copying.append(time.perf_counter() - ends[-1])
                del copied
            rests.append(time.perf_counter())
            return 0

        step = run.program.step._replace(run=stamped)  # type: ignore[attr-defined]
        program, watch = run.program._replace(step=step), run.watch._replace(asked=asked)
        run._replace(program=program, watch=watch).go()
        size = sum(leaf.nbytes for leaf in tree.leaves(run.start)) / 2**20
    between = [begin - rest for rest, begin in zip(rests[:-1], begins[1:], strict=True)]  # between[n - 1]: after step n
    pauses, lost, work = [], [], []
    for save in range(2 * HALF, total, 2 * HALF):  # the step that is saved
        half, end = save + HALF, save + 2 * HALF
        pauses.append(between[save - 1] - statistics.median(between[half : end - 1]))
        copied = copying[save // (2 * HALF)]
        lost.append((ends[half - 1] - ends[save - 1]) - (ends[end - 1] - ends[half - 1] - copied))
        work.append((processor[half - 1] - processor[save - 1]) - (processor[end - 1] - processor[half - 1] - copied))
    print(f"\nSaving {size:.0f} MiB (parameters, momentum, the best parameters); {len(lost)} saves\n")
    print("| of a save | median (quartiles) |\n|---|---|")
    share = [pause / copied for pause, copied in zip(pauses, copying[1:], strict=True)]
    print(f"| the pause, of copying the state (target: at most 1) | {quartiles(share)} |")
    print(f"| seconds lost, % of a minute (target: at most 3) | {quartiles([100 * one / 60 for one in lost])} |")
    print(f"| seconds of the processor, % of a minute | {quartiles([100 * one / 60 for one in work])} |")
    print(f"\nCopying: {1000 * statistics.median(copying):.0f} ms.")


def written(folder: Path, done: int) -> bool:
    """Whether the checkpoint of a step is on the disk."""
    return any(int(path.stem.partition("-")[2]) == done for path in checkpoint.listed(folder))


if __name__ == "__main__":
    main()
