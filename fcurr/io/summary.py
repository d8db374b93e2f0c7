"""What a run found: the table, results.json, and the story its report tells."""

import json
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow
import torch
from torch import Tensor

from fcurr import evaluating, joint, observe, training
from fcurr.evaluating import Answers
from fcurr.io import files, predictions, store, tables
from fcurr.io import weights as weighing
from fcurr.io.report import Arm, Picture, Story, render
from fcurr.io.runner import Outcome, fetching
from fcurr.io.watching import finite
from fcurr.io.weights import Weighted
from fcurr.observe import Record
from fcurr.reweighting import Weighing
from fcurr.study.config import Experiment
from fcurr.study.members import controls
from fcurr.study.prepare import Prepared, beginning
from fcurr.study.program import placed, weights
from fcurr.types import Dataset, Params

HARDEST, SHOWN = 0.4, 18  # the share of the samples searched for wrong labels; pictures shown of either kind


class Judged(NamedTuple):
    """What the test samples say, of parameters in the end and at the best evaluation."""

    last: dict[str, Tensor]  # name -> [member]
    best: dict[str, Tensor]
    answers: Answers  # of the best


def judged(outcome: Outcome) -> Judged:
    """The test samples are looked at here, once, after all training."""
    prepared, (run, record) = outcome.prepared, outcome.journey
    assert isinstance(record, Record)
    test = placed(prepared.test, run.iteration.device)
    last, best = (_answers(outcome, test, found) for found in (training.variables(run.train), record.best))
    measure = partial(evaluating.measured, y=test.y, metrics=prepared.metrics)
    return Judged(measure(last), measure(best), best)


def _answers(outcome: Outcome, data: Dataset, variables: Params) -> Answers:
    prepared = outcome.prepared
    return evaluating.answers(
        variables,
        data,
        model=prepared.model,
        loss=prepared.entries["loss"],
        chunk=outcome.experiment.training.inference_batch_size,
        fetch=fetching(data, next(iter(variables.values())).device),
    )


def results(outcome: Outcome, found_out: Judged, weighted: list[Weighted]) -> dict[str, Any]:
    """The table and the facts of a finished run, as data."""
    prepared, (run, record) = outcome.prepared, outcome.journey
    assert isinstance(record, Record)
    tracked, table = next(iter(prepared.metrics)), []
    for name, members in groups(outcome).items():
        ends, tops = (observe.spread(numbers[tracked][members]) for numbers in (found_out.last, found_out.best))
        table.append(
            {
                "arm": name,
                "last_mean": finite(ends.mean),
                "last_std": finite(ends.deviation),
                "best_mean": finite(tops.mean),
                "best_std": finite(tops.deviation),
                "seeds": len(members),
            }
        )
    members = [
        {
            "member": place,
            "arm": member.arm,
            **member.axes,
            "iterations": int(run.last[place]),
            "best_iteration": int(record.iteration[place]),
            "last": {name: finite(float(values[place])) for name, values in found_out.last.items()},
            "best": {name: finite(float(values[place])) for name, values in found_out.best.items()},
        }
        for place, member in enumerate(outcome.experiment.members)
    ]
    return {
        "metric": tracked,
        "higher": prepared.higher,
        "table": table,
        "members": members,
        "confusion": confusions(outcome, found_out.answers),
        "classes": list(prepared.train.classes),
        **({"tasks": _tasks(outcome, found_out.answers)} if prepared.test.heads else {}),
        "facts": dict(facts(outcome, weighted)),
        "iteration": int(run.iteration),
        "found": found(outcome),
        "weights": {arm.name: {key: finite(value) for key, value in arm.found.items()} for arm in weighted},
    }


def _known(outcome: Outcome) -> np.ndarray | None:
    """[train] bool: wrongly labelled; None if none is."""
    wrong = wrongly(outcome.prepared).numpy()
    return wrong if wrong.any() else None


def confusions(outcome: Outcome, answers: Answers) -> dict[str, list[list[int]]] | None:
    """arm -> [class][class]: test samples of the row's class taken for the column's, over all seeds."""
    return _confusions(outcome, outcome.prepared.test, answers)


def _tasks(outcome: Outcome, answers: Answers) -> dict[str, Any]:
    """name -> what is known of a task: its kind, classes or targets, the place of its first sample among all, weight,
    and confusion as of a task alone."""
    test, found = outcome.prepared.test, {}
    for head in test.heads:
        own, places = joint.alone(test, head)
        answered = Answers(head.of(answers.outputs[:, places.to(answers.outputs.device)]), answers.losses)
        facts = {"task": head.task, "classes": list(head.classes), "first": head.first, "weight": head.weight}
        found[head.name] = {**facts, "confusion": _confusions(outcome, own, answered)}
    return found


def _confusions(outcome: Outcome, test: Dataset, answers: Answers) -> dict[str, list[list[int]]] | None:
    if test.task != "classification":
        return None
    count = partial(evaluating.confusion, y=test.y.to(answers.outputs.device), classes=len(test.classes))
    return {
        name: sum(count(answers.outputs[place]) for place in members).tolist()  # pyright: ignore
        for name, members in groups(outcome).items()
    }


def groups(outcome: Outcome) -> dict[str, list[int]]:
    """The members of each row of the table: those that differ in their seed only."""
    grouped: dict[str, list[int]] = {}
    for place, member in enumerate(outcome.experiment.members):
        others = "".join(f", {key} = {value}" for key, value in member.axes.items() if key != "seed")
        grouped.setdefault(f"{member.arm}{others}", []).append(place)
    return grouped


def found(outcome: Outcome) -> dict[str, int] | None:
    """How many of the wrongly labelled samples are among the hardest."""
    wrong = wrongly(outcome.prepared)
    if outcome.scores is None or not bool(wrong.any()):
        return None
    hard = observe.hardest(outcome.scores, HARDEST)
    return {"wrong": int(wrong.sum()), "among_hardest": int((wrong & hard).sum()), "hardest": int(hard.sum())}


def wrongly(prepared: Prepared) -> Tensor:
    """[train] bool: whose label is not the one before noise."""
    given, true = prepared.train.y, prepared.true
    same = (given == true) | (given.isnan() & true.isnan())  # a label that is not there
    return ~same.reshape(len(true), -1).all(1)


def facts(outcome: Outcome, weighted: list[Weighted]) -> list[tuple[str, str]]:
    """What was trained, in words."""
    prepared, experiment = outcome.prepared, outcome.experiment
    wrong = int(wrongly(prepared).sum())
    listed = [
        ("samples to train on", f"{len(prepared.train.y):,}"),
        ("to choose by, to judge by", f"{len(prepared.validation.y):,} and {len(prepared.test.y):,}"),
        _labels(prepared.train),
        (
            "members",
            f"{len(experiment.members)}, {_most(experiment)}",
        ),
    ]
    listed += beginning(prepared)
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
    return listed + weighing.fact(weighted, _known(outcome))


def _labels(train: Dataset) -> tuple[str, str]:
    """How many classes or targets; of several tasks, of each, and of how many samples it is trained."""
    if not train.heads:
        return "targets" if train.task == "regression" else "classes", str(len(train.classes))
    told = []
    for head in train.heads:
        what = "targets" if head.task == "regression" else "classes"
        told.append(f"{head.name} ({what}: {len(head.classes)}, samples: {int(head.there(train.y).sum()):,})")
    return "tasks", ", ".join(told)


def _most(experiment: Experiment) -> str:
    """1,000 steps each."""
    settings = experiment.training
    return f"{'at most ' if settings.patience else ''}{settings.total_iterations:,} {settings.clock}s each"


def write(outcome: Outcome, folder: Path) -> dict[str, Any]:
    """results.json, metrics.parquet, predictions and report.html."""
    seen, weighted = judged(outcome), _weighted(outcome, folder)
    rows, found_out = store.metrics(folder), results(outcome, seen, weighted)
    predictions.write_table(folder / store.TABLE, pyarrow.Table.from_pylist(rows))
    _write_predictions(outcome, folder / store.PREDICTIONS, seen.answers)
    files.write_json(folder / store.RESULTS, found_out)
    files.write(folder / store.REPORT, render(story(outcome, folder, found_out, weighted)))
    return found_out


def _write_predictions(outcome: Outcome, folder: Path, of_test: Answers) -> None:
    prepared, (run, record) = outcome.prepared, outcome.journey
    assert isinstance(record, Record)
    folder.mkdir(exist_ok=True)
    arms = [member.arm for member in outcome.experiment.members]
    for name, wanted in outcome.experiment.outputs._asdict().items():
        if wanted:
            data = placed(getattr(prepared, name), run.iteration.device)
            answers = of_test if name == "test" else _answers(outcome, data, record.best)
            predictions.write(folder / f"{name}.parquet", data, prepared.id[name], answers, arms)


def _weighted(outcome: Outcome, folder: Path) -> list[Weighted]:
    """What samples count in the end, where they are weighted: written as a table, and given by arm. An arm that is
    trained on the clean samples alone has no weights of training samples, and one that weighs all alike nothing to
    tell."""
    run, _ = outcome.journey
    experiment, prepared = outcome.experiment, outcome.prepared
    if not isinstance(run.train.weighing, Weighing):
        return []
    data = placed(prepared.train, run.iteration.device)
    losses = _answers(outcome, data, training.variables(run.train)).losses
    counts = weights(experiment, prepared, outcome.varying, run.train, losses)
    if counts is None:
        return []
    tables.write_weights(folder / store.WEIGHTS, prepared, counts, losses, [m.arm for m in experiment.members])
    rows, arms = store.metrics(folder), []
    for name, places in groups(outcome).items():
        own = [row for row in rows if row["member"] in places]
        times = np.array(sorted({row["iteration"] for row in own}))
        effective, snr = (_grid(own, key, times, places) for key in ("effective_sample_size", "hypergradient_snr"))
        counted = counts[places].cpu().numpy()
        first = experiment.members[places[0]]
        arm = Weighted(
            name=name,
            learned=first.reweighting is not None and first.weighting is None,
            weights=counted,
            losses=losses[places].cpu().numpy(),
            iterations=times,
            effective=effective,
            snr=snr,
            found=weighing.numbers(counted, snr, _known(outcome)),
        )
        arms += [arm] if first.samples != "clean" and weighing.worth_telling(arm) else []
    return arms


def story(outcome: Outcome, folder: Path, found_out: dict[str, Any], weighted: list[Weighted]) -> Story:
    """All that the report shows."""
    rows, tracked, training = store.metrics(folder), found_out["metric"], outcome.experiment.training
    scores = outcome.scores
    order = None if scores is None else torch.argsort(scores, stable=True)
    pictured = weighing.pictured(weighted)
    counting, mean = ([], None) if pictured is None else weighing.by_weight(pictured)
    extra = controls(outcome.experiment.config)
    return Story(
        name=outcome.experiment.name,
        metric=tracked,
        higher=found_out["higher"],
        length=f"{'at most ' if training.patience else ''}{training.total_iterations:,} {training.clock}s",
        summary=list(found_out["facts"].items()),
        arms=[_arm(name, rows, members, f"validation_{tracked}") for name, members in groups(outcome).items()],
        table=[{key: np.nan if value is None else value for key, value in row.items()} for row in found_out["table"]],
        confusion={name: np.array(counts) for name, counts in (found_out["confusion"] or {}).items()},
        classes=found_out["classes"],
        scores=None if scores is None else scores.numpy(),
        wrong=_known(outcome),
        easiest=[] if order is None else _pictures(outcome, order[:SHOWN], scores),
        hardest=[] if order is None else _pictures(outcome, order.flip(0)[:SHOWN], scores),
        controls=[n for n, places in groups(outcome).items() if outcome.experiment.members[places[0]].arm in extra],
        weighted=weighted,
        lightest=_pictures(outcome, counting[:SHOWN], mean),
        heaviest=_pictures(outcome, counting[::-1][:SHOWN], mean),
        config=(folder / store.CONFIG).read_text(),
        environment=json.loads((folder / store.ENVIRONMENT).read_text()),
    )


def _arm(name: str, rows: list[dict[str, Any]], members: list[int], validation: str) -> Arm:
    """The curves of the members that differ in their seed only."""
    own = [row for row in rows if row["member"] in members]
    iterations = np.array(sorted({row["iteration"] for row in own}))
    sizes = _grid(own, "size", iterations, members)
    return Arm(
        name=name,
        iterations=iterations,
        validation=_grid(own, validation, iterations, members),
        loss=_grid(own, "loss", iterations, members),
        sizes=np.nan_to_num(sizes[:, 0]).astype(int),
    )


def _grid(rows: list[dict[str, Any]], key: str, iterations: np.ndarray, members: list[int]) -> np.ndarray:
    """[evaluation, member] of a metric; null is nan. A member keeps its last value until it is evaluated again."""
    grid = np.full((len(iterations), len(members)), np.nan)
    place = {iteration: row for row, iteration in enumerate(iterations.tolist())}
    for row in rows:
        value = np.nan if row.get(key) is None else row[key]
        grid[place[row["iteration"]] :, members.index(row["member"])] = value
    return grid


def _pictures(outcome: Outcome, places: Any, values: Any) -> list[Picture]:
    """The samples at these places as pictures, if they are: [height, width], or one or three planes of it; with their
    values [sample]."""
    train = outcome.prepared.train
    shape = train.features
    images = isinstance(train.x, Tensor) and train.task == "classification"
    if values is None or not images or not (len(shape) == 2 or (len(shape) == 3 and shape[0] in (1, 3))):
        return []
    assert isinstance(train.x, Tensor)
    low, high = train.x.min(), train.x.max()
    shown = []
    for place in places.tolist():
        pixels = ((train.x[place] - low) / (high - low).clamp(min=1e-12)).numpy()
        if len(shape) == 3:
            pixels = pixels[0] if shape[0] == 1 else np.moveaxis(pixels, 0, -1)
        given, true = (train.classes[int(labels[place])] for labels in (train.y, outcome.prepared.true))
        shown.append(Picture(int(outcome.prepared.id["train"][place]), pixels, given, true, float(values[place])))
    return shown
