"""What learned weights are worth on digits: label noise, and long tails. python benchmarks/reweighting.py [noise|tail]

Runs configs/meta_weight_net.toml with changes, five seeds an arm, and prints test accuracy in %, last and best on
validation, mean and standard deviation over seeds."""

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from fcurr.io import configs
from fcurr.io.execute import execute
from fcurr.study.config import read
from fcurr.study.members import merge

CONFIG = Path(__file__).parents[1] / "configs" / "meta_weight_net.toml"
METHODS = (
    *("meta_weight_net", "class_aware_meta_weight_net", "sample_weights"),
    *("label_correction", "learning_to_reweight"),
)


def row(config: dict[str, Any], changes: dict[str, Any], out: Path) -> list[dict[str, Any]]:
    """The table of a run."""
    folder = out / "run"
    execute(read(merge(config, changes)), folder, {}, fresh=True)
    return json.loads((folder / "results.json").read_text())["table"]


def show(title: str, columns: list[str], cells: dict[str, list[str]]) -> None:
    print(f"\n{title}\n\n| arm | {' | '.join(columns)} |\n|{'---|' * (len(columns) + 1)}")
    for arm, found in cells.items():
        print(f"| {arm} | {' | '.join(found)} |")


def told(found: dict[str, Any]) -> str:
    last, best = (f"{100 * found[f'{k}_mean']:.1f} ± {100 * found[f'{k}_std']:.1f}" for k in ("last", "best"))
    return f"{last} ({best})"


def noise(config: dict[str, Any], out: Path) -> None:
    """Symmetric noise, 100 clean samples."""
    shares, cells = (0.0, 0.4, 0.6), {}
    for share in shares:
        seen: set[str] = set()
        for method in METHODS:
            controls = method == METHODS[0]
            changes = {"noise": {"share": share}, "reweighting": {"fn": method}, "controls": controls}
            for found in row(config, changes, out):
                if found["arm"] not in seen:
                    seen.add(found["arm"])
                    cells.setdefault(found["arm"], []).append(told(found))
    show("Label noise: test accuracy, last (best on validation)", [f"{share:.0%} wrong" for share in shares], cells)


def tail(config: dict[str, Any], out: Path) -> None:
    """Long tails, 20 clean samples, no noise."""
    ratios, cells = (1.0, 10.0, 50.0), {}
    arms = {
        "meta_weight_net": {},
        "class_balanced": {"weighting": "class_balanced"},
        "focal": {"weighting": "focal"},
    }
    for ratio in ratios:
        seen: set[str] = set()
        for method in METHODS[:2]:
            own = {method if name == "meta_weight_net" else name: change for name, change in arms.items()}
            changes: dict[str, Any] = {"clean": {"size": 20}, "reweighting": {"fn": method}, "arms": own}
            changes |= {"imbalance": {"fn": "long_tail", "ratio": ratio}, "noise": {"share": 0.0}}
            for found in row(config, changes, out):
                if found["arm"] not in seen and found["arm"] != "trimmed":
                    seen.add(found["arm"])
                    cells.setdefault(found["arm"], []).append(told(found))
    show("Long tails: test accuracy, last (best on validation)", [f"ratio {ratio:.0f}" for ratio in ratios], cells)


def main() -> None:
    (config, _), wanted = configs.load(CONFIG, [], []), sys.argv[1:] or ["noise", "tail"]
    with tempfile.TemporaryDirectory() as folder:
        for name in wanted:
            {"noise": noise, "tail": tail}[name](config, Path(folder))


if __name__ == "__main__":
    main()
