"""What commands of a study do, side by side: each takes commands with what they read, and gives their outputs in turn.

`train`, `evaluate`, `validate` and `predict` take several commands as one program, of members that share everything but
numbers, seeds and curricula.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow
import torch
from torch import Tensor

from fcurr import evaluating, training, tree
from fcurr.errors import BadInput
from fcurr.evaluating import Answers
from fcurr.io import predictions, runner, starting, store, tables
from fcurr.io.fitting import Setting, fetching, fingerprint, irreducible_anew, scored_anew, told
from fcurr.io.loggers import Logger
from fcurr.observe import Record
from fcurr.study.bind import find
from fcurr.study.config import Experiment, Start, read
from fcurr.study.members import differing
from fcurr.study.prepare import Prepared, Sampled, sampled
from fcurr.study.prepare import prepare as prepare_all
from fcurr.study.program import placed
from fcurr.study.schedule import Command, canonical
from fcurr.study.sections import PARTS
from fcurr.study.trainings import OF_A_MEMBER
from fcurr.training import ALONE
from fcurr.transfer import Source
from fcurr.types import Dataset, Params

Outputs = dict[str, Any]
READS = {
    "evaluations": "evaluation",
    "validations": "validation",
    "start": "model",
}  # role -> the output that is read; else its own name


class Work(NamedTuple):
    """A command, and what it reads."""

    command: Command
    inputs: dict[str, dict[str, Any]]  # role -> name of a command -> the output, or all of them by name


Prune = Callable[[int, Sequence[float]], list[bool]]  # iteration, metric of each command -> which do not go on


def keep(iteration: int, values: Sequence[float]) -> list[bool]:
    """All go on."""
    return [False] * len(values)


class Here(NamedTuple):
    """Where commands are performed."""

    folder: Path  # for checkpoints; what is in it continues
    asked: Callable[[], int]  # the signal that has come, or 0
    plugins: tuple[str, ...]
    tell: Callable[[int], None]  # how many steps are done
    prune: Prune = keep


class Lost(NamedTuple):
    """In the place of outputs: why there are none."""

    error: str


class Pruned(NamedTuple):
    """In the place of outputs: the trial was not worth going on with."""

    iteration: int


def prepare(work: Sequence[Work], here: Here) -> Iterator[Outputs]:
    """Which samples train, choose and judge, with the labels trained on; and for each data set, of which there are
    several in joint training, its fingerprint and the position of its first sample."""
    for own in work:
        experiment = _experiment([own], here)
        sets = runner.sets_of(experiment)
        found = sampled(experiment, runner.data_of(experiment))
        ids = {f"id of {part}": ids for part, ids in found.id.items()}
        data = torch.stack([torch.tensor(list(_digest(one))) for one in sets]).to(torch.uint8)
        first = torch.tensor([0, *(len(one.y) for one in sets)]).cumsum(0)
        yield {"samples": {**ids, "label": found.given, "true label": found.true, "data": data, "first": first}}


def irreducible(work: Sequence[Work], here: Here) -> Iterator[Outputs]:
    """What a model of the clean samples loses on every sample that can be drawn."""
    for own in work:
        experiment = _experiment([own], here)
        losses = irreducible_anew(experiment, _prepared(experiment, own), _setting(here))
        yield {"irreducible": {"loss": losses}}


def score(work: Sequence[Work], here: Here) -> Iterator[Outputs]:
    """How hard every training sample is."""
    for own in work:
        experiment = _experiment([own], here)
        prepared = _prepared(experiment, own)
        scores = scored_anew(experiment, prepared, _setting(here))
        recipe = experiment.config["score"]
        recipe = recipe if isinstance(recipe, dict) else {"fn": recipe}
        yield {"scores": tables.scores_table(prepared, scores, recipe=recipe, data=fingerprint(prepared))}


def train(work: Sequence[Work], here: Here) -> Iterator[Outputs | Lost | Pruned]:
    """Parameters and buffers at the end and at the best evaluation, and the lines of metrics."""
    work = [_chosen(own) for own in work]
    experiment = _experiment(work, here)
    prepared = _prepared(experiment, work[0])
    settings = experiment.training
    leave = settings._replace(on_nonfinite="leave") if settings.on_nonfinite == "stop" else settings
    setting = _setting(here)
    ranks: dict[int, Tensor] = {}
    scores = [_ranked(own, prepared, ranks) for own in work]
    experiment = experiment._replace(training=leave)
    pruned: dict[int, int] = {}  # member -> iteration

    def judge(iteration: int, values: Tensor) -> Tensor:
        ended = here.prune(iteration, values.tolist())
        pruned.update({place: iteration for place, over in enumerate(ended) if over and place not in pruned})
        return torch.tensor(ended, device=values.device)

    judged = judge if here.prune is not keep else None
    for losses in work[0].inputs.get("irreducible", {}).values():
        prepared = told(experiment, prepared, losses["loss"])
    journey, _ = runner.train(experiment, prepared, scores, setting, judged)
    run, record = journey
    assert isinstance(record, Record)
    rows, ends = store.metrics(here.folder), training.variables(run.train)
    for place in range(len(work)):
        if place in pruned:
            yield Pruned(pruned[place])
            continue
        last, best = tree.member(ends, place), tree.member(record.best, place)
        if not all(bool(leaf.isfinite().all()) for leaf in (*last.values(), run.train.loss[place])):
            yield Lost(f"the loss is not finite after step {int(run.last[place])}; a smaller learning rate may help")
            continue
        found = {f"last.{name}": leaf for name, leaf in last.items()} | {f"best.{n}": leaf for n, leaf in best.items()}
        found |= {"iterations": run.last[place], "best iteration": record.iteration[place]}
        own = [_numbers(row) for row in rows if row["member"] == place]
        yield {"model": found, "metrics": "".join(json.dumps(row, allow_nan=False) + "\n" for row in own)}


def evaluate(work: Sequence[Work], here: Here) -> Iterator[Outputs]:
    """What the test samples say of each model, in the end and at its best."""
    prepared, (last, best) = _judging(work, here)
    found = [_measured(prepared, prepared.test, answers) for answers in _answers(prepared, "test", (last, best))]
    for place, own in enumerate(work):
        model = _model(own)
        yield {
            "evaluation": {
                "metric": next(iter(prepared.metrics)),
                "higher": prepared.higher,
                "iterations": int(model["iterations"]),
                "best_iteration": int(model["best iteration"]),
                **{which: _at(numbers, place) for which, numbers in zip(("last", "best"), found, strict=True)},
            }
        }


def validate(work: Sequence[Work], here: Here) -> Iterator[Outputs]:
    """What the validation samples say of each model at its best, to choose by."""
    prepared, (_, best) = _judging(work, here)
    (answers,) = _answers(prepared, "validation", (best,))
    numbers = _measured(prepared, prepared.validation, answers)
    for place in range(len(work)):
        metric = next(iter(prepared.metrics))
        value = _at({metric: numbers[metric]}, place)[metric]
        yield {"validation": {"metric": metric, "higher": prepared.higher, "value": value}}


def predict(work: Sequence[Work], here: Here) -> Iterator[Outputs]:
    """What each model at its best answers to every sample."""
    prepared, (_, best) = _judging(work, here)
    wanted = _experiment([_trained(own) for own in work[:1]], here).outputs._asdict()
    parts = [part for part, asked in wanted.items() if asked]
    answers = {part: next(_answers(prepared, part, (best,))) for part in parts}
    for place in range(len(work)):
        rows = []
        for part, found in answers.items():
            alone = Answers(*(leaf[place : place + 1] for leaf in found))
            table = predictions.table(getattr(prepared, part), prepared.id[part], alone, [""])
            table = table.drop_columns(["member", "arm"])
            rows.append(table.append_column("part", pyarrow.array([part] * len(table))))
        yield {"predictions": pyarrow.concat_tables(rows) if rows else pyarrow.table({})}


def select(work: Sequence[Work], here: Here) -> Iterator[Outputs]:
    """The point with the best mean over validations; of equals the first."""
    for own in work:
        values: dict[str, list[float]] = {}
        found = list(own.inputs["validations"].values())
        for point, one in zip(own.command.parameters["points"], found, strict=True):
            values.setdefault(point, []).append(float("nan") if one["value"] is None else one["value"])
        sign = 1.0 if found[0]["higher"] else -1.0
        means = {point: sum(several) / len(several) for point, several in values.items()}
        ranked = {point: sign * mean for point, mean in means.items() if mean == mean}
        if not ranked:
            raise BadInput(f"{own.command.name}: no point has a finite {found[0]['metric']}")
        best = max(ranked, key=lambda point: ranked[point])
        table = {point: mean if mean == mean else None for point, mean in means.items()}
        yield {"choice": {"point": best, "metric": found[0]["metric"], "means": table}}


def report(work: Sequence[Work], here: Here) -> Iterator[Outputs]:
    """The numbers of all trainings, in the form of a run's results, and their curves."""
    for own in work:
        labels = own.command.parameters["labels"]
        found = list(own.inputs["evaluations"].values())
        members = [
            {"member": place, **label, **{key: one[key] for key in ("iterations", "best_iteration", "last", "best")}}
            for place, (label, one) in enumerate(zip(labels, found, strict=True))
        ]
        lines = []
        for place, (label, text) in enumerate(zip(labels, own.inputs["metrics"].values(), strict=True)):
            for line in text.splitlines():
                row = json.loads(line)
                lines.append(json.dumps({"iteration": row.pop("iteration"), "member": place, **label, **row}))
        results = {"metric": found[0]["metric"], "higher": found[0]["higher"], "members": members}
        yield {"results": results, "curves": "\n".join(lines) + "\n"}


def own(work: Sequence[Work], here: Here) -> Iterator[Outputs]:
    """Somebody's own function: (what it reads, by the names of commands, **parameters) -> a value."""
    for one in work:
        command = one.command
        function = find(command.function, None, f"commands.{command.name}.function", here.plugins)
        inputs = {name: value for values in one.inputs.values() for name, value in values.items()}
        yield {"value": function(inputs, **command.parameters["parameters"])}


def _experiment(work: Sequence[Work], here: Here) -> Experiment:
    """The trainings of all commands as members of one experiment."""
    found = [read(own.command.config, here.plugins) for own in work]
    members = [member for one in found for member in one.members]
    return found[0]._replace(members=members, varying=differing(members))


def _digest(data: Dataset) -> bytes:
    """A hash of a data set's samples, whatever their labels; of samples that are not in memory, of what they are
    called."""
    return hashlib.sha256(tree.raw(data.x) if isinstance(data.x, Tensor) else data.x.identity.encode()).digest()


def _chosen(own: Work) -> Work:
    """A training of the point that was chosen; any other as it is."""
    if "choice" not in own.inputs:
        return own
    (choice,) = own.inputs["choice"].values()
    found = own.command.config["among"][choice["point"]]
    scores = {name: table for name, table in own.inputs.get("scores", {}).items() if name == found["scores"]}
    return Work(own.command._replace(config=found["config"]), {**own.inputs, "scores": scores})


_HELD: dict[str, Prepared] = {}  # the last one that was prepared: commands that follow each other share their data


def _prepared(experiment: Experiment, own: Work) -> Prepared:
    """The data and the model of an experiment, from the last command if they are the same."""
    drop = (*OF_A_MEMBER, "score", "fit", "outputs")
    shared = {key: value for key, value in experiment.config.items() if key not in drop}
    key = canonical([shared, own.command.parameters.get("files"), *map(own.command.reads.get, ("start", "samples"))])
    if "hooks" in own.command.parameters:  # which may have changed the samples
        key = canonical([key, own.command.key])
    if key not in _HELD:
        _HELD.clear()
        start = experiment.start
        source = _begun(own, start) if start is not None and start.config else starting.source(start)
        _HELD[key] = prepare_all(experiment, runner.data_of(experiment), source, _samples(own))
    return _HELD[key]


def _samples(own: Work) -> Sampled:
    """The samples that a command is given."""
    (found,) = own.inputs["samples"].values()
    ids = {part: found[f"id of {part}"] for part in PARTS if f"id of {part}" in found}
    return Sampled(ids, found["true label"], found["label"])


def _begun(own: Work, start: Start) -> Source:
    """What a training of this study starts from: another one of it."""
    ((name, model),) = own.inputs["start"].items()
    return Source(_which(model, start.which), name)


def _setting(here: Here) -> Setting:
    def log(rows: list[dict[str, Any]]) -> None:
        here.tell(rows[-1]["iteration"] if rows else 0)

    return Setting(here.folder, here.asked, ALONE, [Logger(log=log, close=lambda: None)])


def _ranked(own: Work, prepared: Prepared, known: dict[int, Tensor]) -> Tensor | None:
    """The scores of a training's samples; the same tensor for the same table."""
    tables_of = list(own.inputs.get("scores", {}).values())
    if not tables_of:
        return None
    if id(tables_of[0]) not in known:
        known[id(tables_of[0])] = tables.scores_of(tables_of[0], prepared.id["train"])
    return known[id(tables_of[0])]


def _numbers(row: Mapping[str, Any]) -> dict[str, Any]:
    """A line of metrics without saying whose it is."""
    keys = list(row)
    return {"iteration": row["iteration"], **{key: row[key] for key in keys[keys.index("size") :]}}


def _model(own: Work) -> Params:
    (found,) = own.inputs["model"].values()
    return found


def _trained(own: Work) -> Work:
    """What is found out of a model: with the config that was chosen, and no beginning, as it has its end."""
    own = _chosen(own)
    config = {key: value for key, value in own.command.config.items() if key != "start"}
    return own._replace(command=own.command._replace(config=config))


def _judging(work: Sequence[Work], here: Here) -> tuple[Prepared, tuple[Params, Params]]:
    """The data, and the variables of all models, last and best."""
    work = [_trained(own) for own in work]
    experiment = _experiment(work, here)
    models = [_model(own) for own in work]
    last, best = (tree.stack([_which(model, which) for model in models]) for which in ("last", "best"))
    return _prepared(experiment, work[0]), (last, best)


def _which(model: Params, which: str) -> Params:
    return {name[len(which) + 1 :]: leaf for name, leaf in model.items() if name.startswith(f"{which}.")}


def _answers(prepared: Prepared, part: str, several: Sequence[Params]) -> Iterator[Answers]:
    data: Dataset = getattr(prepared, part)
    for variables in several:
        device = next(iter(variables.values())).device
        yield evaluating.answers(
            variables,
            placed(data, device),
            model=prepared.model,
            loss=prepared.entries["loss"],
            fetch=fetching(data, device),
        )


def _measured(prepared: Prepared, data: Dataset, answers: Answers) -> dict[str, Tensor]:
    return evaluating.measured(answers, data.y, prepared.metrics)


def _at(numbers: Mapping[str, Tensor], place: int) -> dict[str, float | None]:
    values = {name: float(found[place]) for name, found in numbers.items()}
    return {name: value if value - value == 0 else None for name, value in values.items()}


_ALL = (prepare, score, irreducible, train, evaluate, validate, predict, select, report)
ROUTINES = {function.__name__: function for function in _ALL}
