"""A run, from a config to its folder: score, train, evaluate, save, report."""

import hashlib
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fcurr import observe, training
from fcurr.errors import BadInput, Halt
from fcurr.io import checkpoint, environment, files, progress, signals, store
from fcurr.observe import Record
from fcurr.study.bind import build
from fcurr.study.config import Experiment
from fcurr.study.prepare import Prepared, difficulty, prepare
from fcurr.study.program import fit_program, train_program
from fcurr.training import Program, Run
from fcurr.types import Dataset, Params


class Journey(NamedTuple):
    """What a checkpoint holds."""

    run: Run
    record: Record | tuple[()]  # () while scoring


class Stopped(Halt):
    """A signal came; the step was finished and the state is on the disk."""

    def __init__(self, signal: int, done: int, total: int) -> None:
        super().__init__(f"stopped after step {done} of {total}")
        self.signal = signal


class Diverged(Halt):
    """A loss is not a number any more."""


class Watch(NamedTuple):
    """How a program is watched."""

    label: str
    names: list[str]  # of the members, in messages
    file: Path  # where its checkpoint is
    save_every: int
    asked: Callable[[], int]  # the signal that has come, or 0


class Outcome(NamedTuple):
    experiment: Experiment
    prepared: Prepared
    scores: Tensor | None  # [train] float64, larger is harder
    record: Record


def load(experiment: Experiment) -> Prepared:
    """The data, read and checked."""
    data = build(experiment.components["data"], {"seed": experiment.seed})
    if not isinstance(data, Dataset):
        raise BadInput(f"{experiment.components['data'].name} gives a {type(data).__name__}, not a Dataset", "data")
    return prepare(experiment, data)


def identity(experiment: Experiment, prepared: Prepared, plugins: dict[str, str]) -> dict[str, Any]:
    """What makes a run this one, beside its config: plugins, members in their order, the data."""
    members = [
        [member.arm, member.seed, json.loads(json.dumps(member.axes, default=str))] for member in experiment.members
    ]
    return {"plugins": plugins, "members": members, "data": fingerprint(prepared)}


def fingerprint(prepared: Prepared) -> str:
    """A hash of all samples and labels that are trained on, chosen by and judged by."""
    digest = hashlib.sha256()
    for part in (prepared.train.x, prepared.train.y, prepared.id, *prepared.validation, *prepared.test):
        digest.update(part.contiguous().numpy().tobytes())
    return digest.hexdigest()


def holds(folder: Path, experiment: Experiment, prepared: Prepared, plugins: dict[str, str]) -> bool:
    """Whether the folder holds this run, or a part of it."""
    if folder.parent.exists() and not folder.parent.is_dir():
        raise BadInput(f"{folder.parent} is not a folder")
    return store.agree(folder, experiment.config, identity(experiment, prepared, plugins))


def start_or_continue(experiment: Experiment, prepared: Prepared, folder: Path, plugins: dict[str, str]) -> Outcome:
    """Everything a run computes, beginning where the folder's checkpoints stand; the folder must be held."""
    itself = identity(experiment, prepared, plugins)
    if not store.agree(folder, experiment.config, itself):
        store.clear(folder)
        store.write_config(folder, experiment.config, itself)
        files.write_json(folder / store.ENVIRONMENT, environment.describe())
    with signals.asked_to_stop() as asked:
        try:
            scores = _scores(experiment, prepared, folder, asked) if "score" in experiment.components else None
            record = _train(experiment, prepared, scores, folder, asked)
        except Stopped as stop:
            files.write_json(folder / store.STATUS, {"status": "interrupted", "detail": str(stop)})
            raise
        except Diverged as wrong:
            files.write_json(folder / store.STATUS, {"status": "diverged", "detail": str(wrong)})
            raise
    return Outcome(experiment, prepared, scores, record)


def _scores(experiment: Experiment, prepared: Prepared, folder: Path, asked: Callable[[], int]) -> Tensor:
    """The difficulty of the training samples, from the folder if it is there already."""
    from fcurr.io import tables  # pyarrow

    path = folder / store.SCORES
    if path.exists():
        return tables.read_scores(path, prepared.id)

    def fit(data: Dataset, seen: Tensor) -> Params:
        program, run = fit_program(experiment, prepared, data, seen)
        names = [f"model {member} of the score" for member in range(len(seen))]
        watch = Watch(
            f"scoring ({len(seen)} models)", names, folder / store.SCORING, experiment.training.save_every, asked
        )
        journey = _travel(program, _where(Journey(run, ()), watch.file), watch)
        return training.variables(journey.run.train)

    scores = difficulty(experiment, prepared, fit)
    recipe = experiment.config["score"]
    recipe = recipe if isinstance(recipe, dict) else {"fn": recipe}
    tables.write_scores(path, prepared, scores, recipe=recipe, data=fingerprint(prepared))
    (folder / store.SCORING).unlink(missing_ok=True)
    return scores


def _train(
    experiment: Experiment, prepared: Prepared, scores: Tensor | None, folder: Path, asked: Callable[[], int]
) -> Record:
    program, run = train_program(experiment, prepared, scores)
    members, settings = experiment.members, experiment.training
    limits, last = training.lengths(program), training.length(program)
    names = [f"{m.arm}{''.join(f', {key} = {value}' for key, value in m.axes.items())}" for m in members]
    watch = Watch(f"training ({len(members)} members)", names, folder / store.CHECKPOINT, settings.save_every, asked)
    start = _where(Journey(run, observe.blank(training.variables(run.train), len(members))), watch.file)
    store.rewrite_metrics(folder, store.metrics(folder, until=int(start.run.iteration)))

    def look(journey: Journey) -> Journey:
        run, record = journey
        assert isinstance(record, Record)
        record = observe.stepped(record, run.train.loss, run.iteration <= limits)
        if int(run.iteration) % settings.evaluate_every == 0 or int(run.iteration) == last:
            variables = training.variables(run.train)
            validation = training.correct(variables, prepared.validation, model=prepared.model)
            test = training.correct(variables, prepared.test, model=prepared.model)
            at = torch.minimum(run.iteration, limits)
            store.append_metrics(folder, _rows(experiment, prepared, run, record, validation, test))
            record = observe.evaluated(record, at, variables, validation, test)
        return Journey(run, record)

    journey = _travel(program, start, watch, look)
    assert isinstance(journey.record, Record)
    return journey.record


def _where(start: Journey, file: Path) -> Journey:
    """Where the checkpoint stands, or the start."""
    return checkpoint.load(file, start) if file.exists() else start


def _travel(
    program: Program, journey: Journey, watch: Watch, look: Callable[[Journey], Journey] = lambda journey: journey
) -> Journey:
    """The fold over a program, watched: it shows how far it is, saves, stops when asked, and refuses to go on from, or
    to save, what is not finite."""
    last, done = training.length(program), int(journey.run.iteration)
    if done >= last:
        return journey
    with progress.bar(watch.label, last, done) as tick:
        for run in training.proceed(program, journey.run):
            _finite("loss", run.train.loss, run, watch)
            journey = look(Journey(run, journey.record))
            done += 1
            tick(1)
            stop = watch.asked()
            if stop or done % watch.save_every == 0 or done == last:
                for name, leaf in run.train.params.items():
                    _finite(f"parameter {name}", leaf, run, watch)
                checkpoint.save(watch.file, journey, iteration=done)
            if stop and done < last:
                raise Stopped(stop, done, last)
    return journey


def _finite(what: str, values: Tensor, run: Run, watch: Watch) -> None:
    """Diverged, naming step and members, unless every number [member, ...] is finite."""
    if bool(values.isfinite().all()):
        return
    bad = ~values.reshape(len(values), -1).isfinite()
    wrong = bad.any(1).nonzero().flatten().tolist()
    value = float(values.reshape(len(values), -1)[wrong[0]][bad[wrong[0]]][0])
    which = "; ".join(watch.names[member] for member in wrong[:3])
    which += f"; and {len(wrong) - 3} more" if len(wrong) > 3 else ""
    kept = f"the last good checkpoint is {watch.file}" if watch.file.exists() else "no checkpoint had been written yet"
    said = f"the {what} became {value} at step {int(run.iteration)} in {which}"
    raise Diverged(f"{said}; {kept}; a smaller learning rate or clipping may help")


def _rows(
    experiment: Experiment, prepared: Prepared, run: Run, record: Record, validation: Tensor, test: Tensor
) -> list[dict[str, Any]]:
    """A line of metrics a member; the loss of a member that had finished before is null."""
    loss = (record.loss / record.batches).tolist()
    return [
        {
            "iteration": int(run.iteration),
            "member": place,
            "arm": member.arm,
            **member.axes,
            "size": int(run.cursor.size[place]),
            "epoch": int(run.cursor.epoch[place]),
            "loss": loss[place] if math.isfinite(loss[place]) else None,
            "validation": int(validation[place]) / len(prepared.validation.y),
            "test": int(test[place]) / len(prepared.test.y),
        }
        for place, member in enumerate(experiment.members)
    ]
