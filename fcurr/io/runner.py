"""A run, from a config to its folder: score, train, evaluate, save, report."""

import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.func import vmap

from fcurr import evaluating, fold, joint, observe, training, tree
from fcurr.bilevel.learned_weights import Learned, signal_to_noise
from fcurr.errors import BadInput
from fcurr.io import environment, files, parallel, signals, starting, store, watching
from fcurr.io.fitting import Setting, fetching, fingerprint, informed, scored
from fcurr.io.journey import Diverged, Journey, Stopped, Watch, travel
from fcurr.io.loggers import Logger
from fcurr.io.steps import Steps
from fcurr.observe import Record
from fcurr.reweighting import Weighing
from fcurr.study.bind import Call, build, guarded
from fcurr.study.config import Experiment
from fcurr.study.drawing import Scores
from fcurr.study.prepare import Prepared, prepare
from fcurr.study.program import placed, train_program
from fcurr.training import ALONE, Team
from fcurr.types import Dataset, Params, State


class Outcome(NamedTuple):
    experiment: Experiment
    prepared: Prepared
    scores: Tensor | None  # [train] float64, larger is harder
    journey: Journey  # at the end
    varying: Params  # hyperparameters in which members differ: name -> [member]


def load(experiment: Experiment) -> Prepared:
    """The data, read and checked."""
    return prepare(experiment, data_of(experiment), starting.source(experiment.start))


def data_of(experiment: Experiment) -> Dataset:
    """All samples."""
    sets = sets_of(experiment)
    if not experiment.tasks:
        return sets[0]
    weights = {name: task.weight for name, task in experiment.tasks.items()}
    return joint.joined(dict(zip(weights, sets, strict=True)), weights)


def sets_of(experiment: Experiment) -> list[Dataset]:
    """The data set, or those of several tasks in their order."""
    calls = [task.data for task in experiment.tasks.values()] or [experiment.components["data"]]
    return [_read(call, experiment.seed) for call in calls]


def _read(call: Call, seed: int) -> Dataset:
    data = build(call, {"seed": seed})
    if not isinstance(data, Dataset):
        raise BadInput(f"{call.name} gives a {type(data).__name__}, not a Dataset", call.where)
    return data


def identity(experiment: Experiment, prepared: Prepared, plugins: dict[str, str]) -> dict[str, Any]:
    """What makes a run this one, beside its config: plugins, members in their order, the data, what it starts from."""
    members = [
        [member.arm, member.seed, json.loads(json.dumps(member.axes, default=str))] for member in experiment.members
    ]
    start = {} if prepared.start is None else {"start": starting.digest(prepared.start.source.tensors)}
    return {"plugins": plugins, "members": members, "data": fingerprint(prepared), **start}


def holds(folder: Path, experiment: Experiment, prepared: Prepared, plugins: dict[str, str]) -> bool:
    """Whether the folder holds this run, or a part of it."""
    if folder.parent.exists() and not folder.parent.is_dir():
        raise BadInput(f"{folder.parent} is not a folder")
    return store.agree(folder, experiment.config, identity(experiment, prepared, plugins))


def start_or_continue(
    experiment: Experiment,
    prepared: Prepared,
    folder: Path,
    plugins: dict[str, str],
    *,
    team: Team = ALONE,
    loggers: Sequence[Logger] = (),
) -> Outcome:
    """Everything a run computes, beginning where the folder's checkpoints stand; the folder must be held."""
    itself = identity(experiment, prepared, plugins)
    writes = team.rank == 0
    if writes:
        new = not store.agree(folder, experiment.config, itself)
        if new:
            store.clear(folder)
        store.write_config(folder, experiment.config, itself)
        if new:
            files.write_json(folder / store.ENVIRONMENT, environment.describe())
        files.write_json(folder / store.STATUS, {"status": "running"})
    parallel.meet(team)
    with signals.asked_to_stop() as asked:
        here = Setting(folder, parallel.agreed(asked, team), team, loggers)
        try:
            scores = scored(experiment, prepared, here) if "score" in experiment.components else None
            prepared = informed(experiment, prepared, here)
            journey, varying = train(experiment, prepared, scores, here)
        except (Stopped, Diverged, BadInput) as halt:
            status = {Stopped: "interrupted", Diverged: "diverged"}.get(type(halt), "failed")
            if writes:
                files.write_json(folder / store.STATUS, {"status": status, "detail": str(halt)})
            raise
    return Outcome(experiment, prepared, scores, journey, varying)


Judge = Callable[[int, Tensor], Tensor]  # iteration, tracked metric [member] -> [member] bool, who ends here


def train(
    experiment: Experiment, prepared: Prepared, scores: Scores, here: Setting, judge: Judge | None = None
) -> tuple[Journey, Params]:
    """The end of the journey, and the hyperparameters in which members differ."""
    program, run = train_program(experiment, prepared, scores, here.team)
    members, settings = experiment.members, experiment.training
    watched = watching.observers(
        experiment.lists["observers"], [build(call, prepared.entries) for call in experiment.lists["observers"]]
    )
    steps = Steps(here.folder / store.STEPS, writes=here.writes)
    tracked = next(iter(prepared.metrics))
    device = run.iteration.device
    measure = partial(
        evaluating.answers,
        model=prepared.model,
        loss=prepared.entries["loss"],
        chunk=settings.inference_batch_size,
        fetch=fetching(prepared.validation, device),
    )
    validation = placed(prepared.validation, device)

    def begin(journey: Journey) -> Journey:
        run, record = journey
        assert isinstance(record, Record)
        done = int(run.iteration)
        steps.keep(done, torch.where(run.iteration < run.last, record.evaluated, run.iteration))
        if here.writes:
            kept = store.metrics(here.folder, until=done)
            store.rewrite_metrics(here.folder, kept)
            for logger in here.loggers:
                logger.begin(kept)
        tired = (record.waited >= settings.patience) & (settings.patience > 0)
        need = fold.lengths(program) - run.train.iteration  # of each member's own steps
        gone = ~run.train.loss.isfinite() & (settings.on_nonfinite == "leave")
        last = torch.where(tired | gone | (need <= 0), run.last, run.iteration + need)
        return Journey(run._replace(last=last), record)

    def settle() -> None:
        steps.flush()
        if here.writes:
            store.sync(here.folder / store.STEPS, here.folder / store.METRICS)

    def look(journey: Journey, due: Tensor) -> Journey:
        run, record = journey
        assert isinstance(record, Record)
        variables, at = training.variables(run.train), torch.minimum(run.iteration, run.last)
        answers = guarded(experiment.components["loss"], measure, variables, validation)
        found = evaluating.measured(answers, validation.y, prepared.metrics)
        loss, nonfinite = steps.means(record.evaluated, at)
        numbers = {"loss": loss, "nonfinite": nonfinite}
        numbers |= {f"validation_{name}": values for name, values in found.items()}
        numbers |= _of_weights(run.train.weighing)
        rows = _rows(experiment, run, due, numbers, watching.view(watched, run.train))
        if here.writes:
            store.append_metrics(here.folder, rows)
            for logger in here.loggers:
                logger.log(rows)
        value = found[tracked]
        record = observe.evaluated(record, due, at, variables, value, prepared.higher)
        steps.forget(int(torch.where(run.iteration < run.last, record.evaluated, run.iteration).min()))
        after = run
        if program.advance is not None:
            lower = -value if prepared.higher else value
            after = after._replace(train=tree.where(due, program.advance(program.varying, run.train, lower), run.train))
        if judge is not None and bool((over := due & judge(int(run.iteration), value)).any()):
            after = after._replace(last=torch.where(over, at, after.last))
        if settings.patience and bool((tired := due & (record.waited >= settings.patience)).any()):
            after = after._replace(last=torch.where(tired, at, after.last))
        return Journey(after, record)

    start = [Journey(run, observe.blank(training.variables(run.train), len(members)))]
    del run
    watch = Watch(
        label=f"training ({len(members)} members)",
        names=[f"{m.arm}{''.join(f', {key} = {value}' for key, value in m.axes.items())}" for m in members],
        folder=here.folder / store.CHECKPOINTS,
        steps=steps,
        evaluate_every=settings.evaluate_every,
        save_every=settings.save_every,
        on_nonfinite=settings.on_nonfinite,
        asked=here.asked,
        begin=begin,
        settle=settle,
        writes=here.writes,
        fetch=fetching(prepared.train, device, here.team),
        observers=watched,
    )
    return travel(program, start, watch, look), program.varying


def _of_weights(weighing: State) -> dict[str, Tensor]:
    """name -> [member]: how samples were weighted last, and how sure their teacher is."""
    if not isinstance(weighing, Weighing):
        return {}
    found = {"weight": weighing.weight, "effective_sample_size": weighing.effective}
    if isinstance(weighing.learned, Learned):
        found["hypergradient_snr"] = vmap(signal_to_noise)(weighing.learned)
    return found


def _rows(
    experiment: Experiment,
    run: fold.Run,
    due: Tensor,
    numbers: dict[str, Tensor],
    views: dict[str, list[float | None]],
) -> list[dict[str, Any]]:
    """A line of metrics for each member that is due."""
    columns = {name: values.tolist() for name, values in numbers.items()}
    at = torch.minimum(run.iteration, run.last).tolist()
    return [
        {
            "iteration": at[place],
            "member": place,
            "arm": member.arm,
            **member.axes,
            "size": int(run.cursor.size[place]),
            "epoch": int(run.cursor.epoch[place]),
            **{name: watching.finite(values[place]) for name, values in columns.items()},
            **{name: values[place] for name, values in views.items()},
        }
        for place, member in enumerate(experiment.members)
        if due[place]
    ]
