"""What a run found: the table, results.json, and the story its report tells."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fcurr import observe
from fcurr.io import files, store
from fcurr.io.report import Arm, Picture, Story, render
from fcurr.io.runner import Outcome

HARDEST, SHOWN = 0.4, 18  # the share of the samples searched for wrong labels; pictures shown of either kind


def results(outcome: Outcome, folder: Path) -> dict[str, Any]:
    """The table and the facts of a finished run, as data."""
    rows = store.metrics(folder)
    final = max(row["iteration"] for row in rows)
    last = {row["member"]: row["test"] for row in rows if row["iteration"] == final}
    best = (outcome.record.test.double() / len(outcome.prepared.test.y)).tolist()
    table = []
    for name, members in groups(outcome).items():
        ends = observe.spread(torch.tensor([last[m] for m in members]))
        tops = observe.spread(torch.tensor([best[m] for m in members]))
        table.append(
            {
                "arm": name,
                "last_mean": ends.mean,
                "last_std": ends.deviation,
                "best_mean": tops.mean,
                "best_std": tops.deviation,
                "seeds": len(members),
            }
        )
    return {"table": table, "facts": dict(facts(outcome)), "iteration": final, "found": found(outcome)}


def groups(outcome: Outcome) -> dict[str, list[int]]:
    """The members of each row of the table: those that differ in their seed only."""
    grouped: dict[str, list[int]] = {}
    for place, member in enumerate(outcome.experiment.members):
        others = "".join(f", {key} = {value}" for key, value in member.axes.items() if key != "seed")
        grouped.setdefault(f"{member.arm}{others}", []).append(place)
    return grouped


def found(outcome: Outcome) -> dict[str, int] | None:
    """How many of the wrongly labelled samples are among the hardest."""
    wrong = outcome.prepared.train.y != outcome.prepared.true
    if outcome.scores is None or not bool(wrong.any()):
        return None
    hard = observe.hardest(outcome.scores, HARDEST)
    return {"wrong": int(wrong.sum()), "among_hardest": int((wrong & hard).sum()), "hardest": int(hard.sum())}


def facts(outcome: Outcome) -> list[tuple[str, str]]:
    """What was trained, in words."""
    prepared, experiment = outcome.prepared, outcome.experiment
    wrong = int((prepared.train.y != prepared.true).sum())
    listed = [
        ("samples to train on", f"{len(prepared.train.y):,}"),
        ("to choose by, to judge by", f"{len(prepared.validation.y):,} and {len(prepared.test.y):,}"),
        ("classes", str(len(prepared.train.classes))),
        (
            "members",
            f"{len(experiment.members)}, {experiment.training.total_iterations:,} {experiment.training.clock}s each",
        ),
    ]
    if "noise" in experiment.components:
        share = f"{wrong / len(prepared.train.y):.1%}"
        listed.append(
            ("label noise", f"{experiment.components['noise'].name}, {wrong:,} wrong training labels ({share})")
        )
    if (hits := found(outcome)) is not None:
        part = f"{hits['among_hardest'] / hits['wrong']:.1%}"
        listed.append(
            (
                f"among the hardest {HARDEST:.0%}",
                f"{hits['among_hardest']:,} of {hits['wrong']:,} wrong labels ({part})",
            )
        )
    return listed


def write(outcome: Outcome, folder: Path) -> dict[str, Any]:
    """results.json and report.html."""
    found_out = results(outcome, folder)
    files.write_json(folder / store.RESULTS, found_out)
    files.write(folder / store.REPORT, render(story(outcome, folder, found_out["table"])))
    return found_out


def story(outcome: Outcome, folder: Path, table: list[dict[str, Any]]) -> Story:
    """All that the report shows."""
    rows = store.metrics(folder)
    iterations = np.array(sorted({row["iteration"] for row in rows}))
    curves = {
        key: _grid(rows, key, len(iterations), len(outcome.experiment.members))
        for key in ("test", "validation", "loss", "size")
    }
    arms = [
        Arm(
            name=name,
            accuracy=curves["test"][:, members],
            validation=curves["validation"][:, members],
            loss=curves["loss"][:, members],
            sizes=curves["size"][:, members[0]].astype(int),
        )
        for name, members in groups(outcome).items()
    ]
    scores, prepared = outcome.scores, outcome.prepared
    wrong = prepared.train.y != prepared.true
    order = None if scores is None else torch.argsort(scores, stable=True)
    return Story(
        name=outcome.experiment.name,
        summary=facts(outcome),
        iterations=iterations,
        arms=arms,
        table=table,
        scores=None if scores is None else scores.numpy(),
        wrong=wrong.numpy() if bool(wrong.any()) else None,
        easiest=[] if order is None else _pictures(outcome, order[:SHOWN]),
        hardest=[] if order is None else _pictures(outcome, order.flip(0)[:SHOWN]),
        config=(folder / store.CONFIG).read_text(),
        environment=json.loads((folder / store.ENVIRONMENT).read_text()),
    )


def _grid(rows: list[dict[str, Any]], key: str, evaluations: int, members: int) -> np.ndarray:
    """[evaluation, member] of a metric; null is nan."""
    values = [np.nan if row[key] is None else row[key] for row in rows]
    return np.array(values, dtype=float).reshape(evaluations, members)


def _pictures(outcome: Outcome, places: Tensor) -> list[Picture]:
    """Samples as pictures, if they are: [height, width], or one or three planes of it."""
    train, scores = outcome.prepared.train, outcome.scores
    shape = train.features
    if scores is None or not (len(shape) == 2 or (len(shape) == 3 and shape[0] in (1, 3))):
        return []
    low, high = train.x.min(), train.x.max()
    shown = []
    for place in places.tolist():
        pixels = ((train.x[place] - low) / (high - low).clamp(min=1e-12)).numpy()
        if len(shape) == 3:
            pixels = pixels[0] if shape[0] == 1 else np.moveaxis(pixels, 0, -1)
        given, true = (train.classes[int(labels[place])] for labels in (train.y, outcome.prepared.true))
        shown.append(Picture(int(outcome.prepared.id[place]), pixels, given, true, float(scores[place])))
    return shown
