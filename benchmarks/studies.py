"""What a study costs beside its commands, and what it saves: python benchmarks/studies.py [runs compared, of 120]"""

import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tomli_w

from fcurr.io import conducting, engines, facts, journal, reading, studying, toml
from fcurr.io.engines import Engine
from fcurr.io.performing import Place, perform
from fcurr.study import history, planning
from fcurr.study.schedule import Command, Schedule, scheduled

ROUNDS, EACH = 15, 20  # rounds of all candidates; commands in each
QUICKSTART = Path(__file__).parents[1] / "configs/quickstart.toml"
PACES = [
    {"fn": name, "initial_size": 0.2, "final_iteration": 1.0} for name in ("linear", "quadratic", "root", "one_step")
]
GRID = {
    "curriculum.pace": PACES,
    "curriculum.order": ["easy_first", "hard_first"],
    "curriculum.sampling": ["unbalanced", "balanced", "original"],
}


def number(inputs: dict[str, Any], *, of: int) -> dict[str, int]:
    """A command that costs nothing itself."""
    return {"number": of}


def cheap(first: int) -> Schedule:
    """Commands that nobody has performed."""
    own = [
        Command(f"c{n}", "studies:number", {"parameters": {"of": n}}, outputs=("value",))
        for n in range(first, first + EACH)
    ]
    return scheduled(own, {})


def seconds(function: Callable[[], object]) -> float:
    began = time.perf_counter()
    function()
    return time.perf_counter() - began


def overhead(folder: Path) -> None:
    """Milliseconds a command, in turn: the function alone, performed here, and given to engines."""
    place = Place(folder / "study", folder / "store", ("studies",), Path(__file__).parent)
    place.study.mkdir(parents=True)
    place.store.mkdir()
    journal.append(place.study, ["{}\n"])
    ready = {f"--engine local --jobs {jobs}": engines.local(jobs) for jobs in (1, 2)}
    first = 0

    def here() -> None:
        for command in cheap(first).commands.values():
            perform([command], place)

    def given(engine: Engine) -> None:
        outcome = conducting.conduct(cheap(first), place, engine, width=1, fail_fast=True, asked=lambda: 0)
        assert len(outcome.done) == EACH, outcome

    candidates: dict[str, Callable[[], object]] = {
        "the function alone": lambda: [number({}, of=n) for n in range(EACH)],
        "performed here": here,
        **{name: (lambda engine=engine: given(engine)) for name, engine in ready.items()},
    }
    times: dict[str, list[float]] = {name: [] for name in candidates}
    try:
        for turn in range(-2, ROUNDS):
            for name, function in candidates.items():
                first += EACH
                taken = 1000 * seconds(function) / EACH
                times[name] += [taken] if turn >= 0 else []
    finally:
        for engine in ready.values():
            engine.close(False)
    print("\na command (target: at most 50 ms over the command itself)\n")
    print("| candidate | ms a command, median (quartiles) |\n|---|---|")
    for name, own in times.items():
        low, middle, high = statistics.quantiles(own, n=4)
        print(f"| {name} | {middle:.3f} ({low:.3f} to {high:.3f}) |")


def plans() -> None:
    """Ten thousand commands, planned."""
    config = grid(sweep={"optimizer.learning_rate": {"from": 1e-3, "to": 1.0, "steps": 667, "log": True}})
    found = facts.gathered(config, [])
    taken = [seconds(lambda: planning.plan(config, found)) for _ in range(5)]
    many = len(planning.plan(config, found).commands)
    middle = statistics.median(taken)
    print(f"\nplanning {many:,} commands: {middle:.2f} s, median of 5 (target: at most 2 s for 10,000)")


def statuses(folder: Path) -> None:
    """A journal of a million lines, of ten thousand commands, read."""
    folder.mkdir()
    keys = [f"{n:016x}" for n in range(10_000)]
    with (folder / journal.JOURNAL).open("w") as file:
        for turn in range(100):
            event = "planned" if turn == 0 else "finished" if turn == 99 else "progress"
            more = {"seconds": 1.0, "reused": 0} if event == "finished" else {"iteration": turn}
            file.writelines(history.line(k, event, name=f"train/{k}", time=1e9 + turn, **more) for k in keys)
    taken = [seconds(lambda: reading.status(folder)) for _ in range(5)]
    print(f"status of a million lines: {statistics.median(taken):.2f} s, median of 5 (target: at most 1 s)")


def grid(**changes: Any) -> dict[str, Any]:
    """The quickstart without its arms, swept."""
    table = toml.read(QUICKSTART)[0]
    del table["arms"]
    return {**table, "name": "grid", "sweep": GRID, **changes}


def fcurr(config: dict[str, Any], folder: Path) -> float:
    """Seconds of `fcurr run` in a process of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.toml").write_text(tomli_w.dumps(config))
    command = [sys.executable, "-c", "from fcurr_cli.main import main; main()", "run", str(folder / "config.toml")]
    return seconds(lambda: subprocess.run([*command, "--out", str(folder)], check=True, capture_output=True))


def single(config: dict[str, Any], changes: dict[str, Any], seed: int) -> dict[str, Any]:
    """The config of one run of the grid."""
    curriculum = {key.rpartition(".")[2]: value for key, value in changes.items()}
    return {**config, "name": "one", "curriculum": curriculum, "members": {"seed": [seed]}}


def saves(folder: Path, compared: int) -> None:
    """120 runs as a study, against some of them as runs: wall time, and how far their numbers are apart."""
    config = grid()
    points = [
        (p, o, s, seed) for p in range(4) for o in range(2) for s in range(3) for seed in config["members"]["seed"]
    ]
    keys, values = list(GRID), list(GRID.values())
    whole = fcurr(config, folder / "study")
    found = json.loads((folder / "study/grid" / studying.RESULTS).read_text())["members"]
    taken, apart = [], 0.0
    for n, (*places, seed) in enumerate(random.Random(0).sample(points, compared)):
        changes = {key: among[place] for key, among, place in zip(keys, values, places, strict=True)}
        taken.append(fcurr(single({k: v for k, v in config.items() if k != "sweep"}, changes, seed), folder / f"{n}"))
        (alone,) = json.loads((folder / f"{n}/one/results.json").read_text())["members"]
        (same,) = [row for row in found if row["seed"] == seed and all(row[key] == changes[key] for key in keys)]
        for which in ("last", "best"):
            apart = max([apart, *(abs(alone[which][m] - same[which][m]) for m in alone[which])])
    all_of_them = len(points) * statistics.mean(taken)
    print(f"\n{len(points)} runs as one study: {whole:.0f} s")
    print(
        f"{compared} of them as runs: {statistics.mean(taken):.1f} s each; {len(points)} would take {all_of_them:.0f} s"
    )
    print(f"ratio: {whole / all_of_them:.3f} (target: at most 0.2); numbers differ by {apart:.3g} at most")


def main() -> None:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with tempfile.TemporaryDirectory() as name:
        overhead(Path(name) / "overhead")
        plans()
        statuses(Path(name) / "status")
        saves(Path(name) / "runs", int(sys.argv[1]) if len(sys.argv) > 1 else 6)


if __name__ == "__main__":
    main()
