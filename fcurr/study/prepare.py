"""From an experiment and its data to what is trained on: pure, and checked before anything is trained."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fcurr import joint, transfer, tree
from fcurr.errors import BadInput
from fcurr.evaluating import CHUNK
from fcurr.inputs import scaled
from fcurr.joint import HeadLoss
from fcurr.precision import mixed
from fcurr.study import kinds, units
from fcurr.study.bind import Call, build, flowing, guarded
from fcurr.study.config import Experiment, Start
from fcurr.study.judging import judges
from fcurr.study.parting import parted, without_clean
from fcurr.training import as_it_is, in_order
from fcurr.transfer import Agreement, Source
from fcurr.types import Augment, Batch, Dataset, Head, Loss, Metric, Model, Optimizer, Params


class Started(NamedTuple):
    """What the model starts from, and what of it stays."""

    source: Source
    agreement: Agreement
    other: str  # the tensors of another shape, in words
    frozen: tuple[str, ...]


class Sampled(NamedTuple):
    """Which samples train, choose and judge, and what is said of those that train."""

    id: dict[str, Tensor]  # train, validation, test, and clean if there is -> [sample] int64, positions in the data set
    true: Tensor  # [train, ...], the labels before noise
    given: Tensor  # [train, ...], the labels that are trained on


class Prepared(NamedTuple):
    """The data as it is trained on, and the model."""

    train: Dataset  # the samples trained on, with the labels as given
    true: Tensor  # [train, ...], the labels before noise
    clean: Dataset | None  # samples known to be right, which are not in `train`
    id: dict[str, Tensor]  # train, validation, test, and clean if there is -> [sample] int64, positions in the data set
    validation: Dataset
    test: Dataset
    model: Model
    augment: Augment
    metrics: dict[str, Metric]  # by the name they are written under; the first is tracked
    higher: bool  # whether more of the tracked metric is better
    entries: dict[str, Any]  # what the run gives to whoever asks for it by name
    scratch: Model  # the model without what it starts from: models that score have not seen other data
    start: Started | None = None


def sampled(experiment: Experiment, data: Dataset) -> Sampled:
    """Splits, clean samples, class sizes, labels."""
    parts, entries = experiment.components, _entries(experiment, data)
    split = parted(parts["split"], entries, data)
    ids, few = split.train, split.train[:0]
    if "clean" in parts:
        split, few = without_clean(parts["clean"], entries, split, data.y)
        ids = split.train
    if "imbalance" in parts:
        ids = ids[guarded(parts["imbalance"], build(parts["imbalance"], entries), data.y[ids])]
    true = data.y[ids]
    given = _noisy(parts["noise"], entries, true) if "noise" in parts else true
    clean = {"clean": few} if len(few) else {}
    return Sampled({"train": ids, "validation": split.validation, "test": split.test} | clean, true, given)


def _entries(experiment: Experiment, data: Dataset) -> dict[str, Any]:
    return {
        "seed": experiment.seed,
        "classes": len(data.classes),
        "features": data.features,
        "task": data.task,
        "batch_size": experiment.training.batch_size,
    }


def prepare(
    experiment: Experiment, data: Dataset, source: Source | None = None, samples: Sampled | None = None
) -> Prepared:
    """Splits, class sizes, labels, model; BadInput where they do not fit. `source` are the tensors that [start] names,
    if there is one; `samples` are those of the experiment, if they are known."""
    parts, entries = experiment.components, _entries(experiment, data)
    _finite(data)
    kinds.check(experiment, data)
    ids, true, given = sampled(experiment, data) if samples is None else samples
    train = data.part(ids["train"])._replace(y=given)
    model = build(parts["model"], entries)
    if not isinstance(model, Model):
        raise BadInput(f"{parts['model'].name} gives a {type(model).__name__}, not a Model", "model")
    if "scaling" in parts:
        fitted = guarded(parts["scaling"], build(parts["scaling"], entries), train.x)
        model = scaled(model, fitted.shift, fitted.factor)
    scratch = mixed(model, experiment.training.precision)
    start = None
    if experiment.start is not None:
        if source is None:
            raise ValueError("the experiment has a [start]: its tensors are needed as `source`")
        model, start = _started(model, experiment.start, source)
    model = mixed(model, experiment.training.precision)
    entries |= {"model": model, "dataset_size": len(true), "total_iterations": experiment.training.total_iterations}
    if data.task == "classification":
        entries["counts"] = torch.bincount(given, minlength=len(data.classes))
    if data.heads:
        entries["heads"] = _heads(experiment, entries, data.heads, given)
    chain = [build(call, entries) for call in experiment.lists["augment"]]
    augment = partial(in_order, chain=chain) if chain else as_it_is
    loss = entries["loss"] = build(parts["loss"], entries)
    _fits(model, data)
    _tried(experiment, model, loss, augment, train, entries.get("heads", ()))
    optimizer = build(parts["optimizer"], entries)
    if not isinstance(optimizer, Optimizer):
        raise BadInput(f"{parts['optimizer'].name} gives a {type(optimizer).__name__}, not an Optimizer", "optimizer")
    found = judges(experiment, entries, model, data)
    return Prepared(
        train=train,
        true=true,
        clean=data.part(ids["clean"]) if "clean" in ids else None,
        id=ids,
        validation=data.part(ids["validation"]),
        test=data.part(ids["test"]),
        model=model,
        augment=augment,
        metrics=found.metrics,
        higher=found.higher,
        entries=entries,
        scratch=scratch,
        start=start,
    )


def _heads(experiment: Experiment, entries: dict[str, Any], heads: tuple[Head, ...], y: Tensor) -> tuple[HeadLoss, ...]:
    """What each task contributes to the loss; y are the labels that are trained on."""
    found = []
    for head, factor in zip(heads, joint.factors(heads, y), strict=True):
        alone = {**entries, "task": head.task, "classes": len(head.classes)}
        found.append(HeadLoss(head, build(experiment.tasks[head.name].loss, alone), factor))
    return tuple(found)


def _started(model: Model, start: Start, source: Source) -> tuple[Model, Started]:
    """The model that begins where another ended."""
    try:
        tensors = transfer.offered(source.tensors, only=start.only, without=start.without)
        found = transfer.agreement(model, tensors)
        frozen = transfer.held(model, start.freeze)
    except BadInput as wrong:
        where = f"start.{wrong.where}" if wrong.where else "start"
        raise BadInput(f"{source.name}: {wrong}" if wrong.where != "freeze" else str(wrong), where) from None
    other = transfer.differing(model, tensors, found.other)
    begun = transfer.frozen(transfer.started(model, tensors), frozen)
    return begun, Started(source, found, other, frozen)


def beginning(prepared: Prepared) -> list[tuple[str, str]]:
    """What the model starts from, as facts: what was taken, what was not, what stays."""
    if prepared.start is None:
        return []
    source, found, other, frozen = prepared.start
    count = len(found.taken) + len(found.other) + len(found.missing)
    by_seed = ([other] if found.other else []) + ([transfer.listed(found.missing)] if found.missing else [])
    told = {
        "started from": f"{source.name}, {len(found.taken)} of the model's {count} tensors",
        "by seed": ", ".join(by_seed),
        "not used": transfer.listed(found.unknown) if found.unknown else "",
        "frozen": transfer.listed(frozen) if frozen else "",
    }
    return [(name, words) for name, words in told.items() if words]


def harder(call: Call) -> bool:
    """Whether a score points to the harder samples; a score that does not say is BadInput."""
    sense = units.sense(units.hints(call.function).get("return"))
    if sense is None:
        raise BadInput(
            f"{call.name} does not say which way it points: annotate its result Harder or Easier", call.where
        )
    return sense.harder


def tried(call: Call, prepared: Prepared) -> None:
    """BadInput where a score has no sense, or does not give one number a sample for a model that is not yet trained."""
    harder(call)
    if len(flowing(call.function)) == 2:
        params, buffers = prepared.model.init(0)
        few = prepared.train.take(torch.arange(min(4, len(prepared.train.y))))
        with torch.no_grad():
            values = guarded(call, build(call, prepared.entries), {**params, **buffers}, few)
        _one_each(call, values, len(few.y))


def _one_each(call: Call, values: Any, samples: int) -> None:
    if not isinstance(values, Tensor) or values.shape != (samples,):
        what = list(values.shape) if isinstance(values, Tensor) else f"a {type(values).__name__}"
        raise BadInput(f"{call.name} gives {what} for {samples} samples: a tensor of one number each", call.where)


def difficulty(experiment: Experiment, prepared: Prepared, fit: Callable[[Dataset, Tensor], Params]) -> Tensor:
    """[train] float64, larger is harder: the experiment's score of every training sample.

    `fit(data, seen)` trains a member for each row of `seen`. A score of (data) trains as it likes; a score of (params,
    batch) is taken with one model that was trained on everything.
    """
    call = experiment.components["score"]
    sign = 1.0 if harder(call) else -1.0
    train = prepared.train
    score = build(call, {**prepared.entries, "fit": fit})
    if len(flowing(call.function)) == 1:
        values = guarded(call, score, train)
    else:
        seen = torch.ones(1, len(train.y), dtype=torch.bool)
        params = tree.member(fit(train, seen), 0)
        with torch.no_grad():
            few = (train.take(ids) for ids in torch.arange(len(train.y)).split(CHUNK))
            values = torch.cat(
                [guarded(call, score, params, tree.map(lambda x: x.to(_device(params)), b)) for b in few]
            )
    _one_each(call, values, len(train.y))
    if not bool(values.isfinite().all()):
        worst = int((~values.isfinite()).nonzero()[0])
        raise BadInput(
            f"{call.name} gives {float(values[worst])} for sample {int(prepared.id['train'][worst])}", call.where
        )
    return sign * values.double().cpu()


def _finite(data: Dataset) -> None:
    if len(data.y) == 0:
        raise BadInput("there are no samples", "data")
    if not isinstance(data.x, Tensor):
        return  # looking at all of it is reading all of it; a step says what is not finite
    bad = ~data.x.isfinite().flatten(1).all(1)
    if bool(bad.any()):
        raise BadInput(
            f"sample {int(bad.nonzero()[0])} has a value that is not a finite number ({int(bad.sum())} samples have)",
            "data",
        )


def _noisy(call: Call, entries: dict[str, Any], true: Tensor) -> Tensor:
    """The labels after noise, which must still be labels."""
    given = guarded(call, build(call, entries), true)
    whole = isinstance(given, Tensor) and given.shape == true.shape and given.dtype == true.dtype
    if not whole or bool((given < 0).any()) or bool((given >= entries["classes"]).any()):
        raise BadInput(f"{call.name} does not give a label in [0, {entries['classes']}) a sample, int64", call.where)
    return given


def _fits(model: Model, data: Dataset) -> None:
    """Whether the model takes the samples and has an output for every class."""
    try:
        params, buffers = model.init(0)
        with torch.no_grad():
            outputs = model.apply({**params, **buffers}, data.x[joint.some(data, 2)])
    except Exception as wrong:  # a stranger's model may raise anything
        first = (str(wrong).splitlines() or [type(wrong).__name__])[0]
        raise BadInput(f"the model does not take samples of shape {list(data.features)}: {first}", "model") from wrong
    if outputs.ndim != 2 or outputs.shape[1] < len(data.classes):
        given = list(outputs.shape[1:])
        what = {"regression": "targets", "joint": "classes and targets"}.get(data.task, "classes")
        raise BadInput(f"the model has {given} outputs a sample, the labels have {len(data.classes)} {what}", "model")


def _tried(
    experiment: Experiment,
    model: Model,
    loss: Loss,
    augment: Augment,
    train: Dataset,
    heads: tuple[HeadLoss, ...],
) -> None:
    """Whether augmentations and loss take the samples, and the loss, or that of every task, gives a number a sample."""
    call, place = experiment.components["loss"], (torch.tensor(0), torch.tensor(0))
    few = train.take(joint.some(train, 2))
    for own in experiment.lists["augment"]:
        changed = guarded(own, augment, few, place)
        if not isinstance(changed, Batch) or changed.x.shape != few.x.shape:
            raise BadInput(f"{own.name} does not give a batch of samples like those it is given", own.where)
    params, buffers = model.init(0)
    with torch.no_grad():
        for batch in (few, augment(few, place)):
            outputs = model.apply({**params, **buffers}, batch.x)
            for head, own, _ in heads:
                there, mine = head.there(batch.y), experiment.tasks[head.name].loss
                each = guarded(mine, own, head.of(outputs)[there], head.labels(batch.y)[there])
                _unreduced(mine, each, int(there.sum()))
            _unreduced(call, guarded(call, loss, outputs, batch.y), len(few.y))


def _unreduced(call: Call, each: Any, samples: int) -> None:
    if not isinstance(each, Tensor) or each.shape != (samples,):
        raise BadInput(f"{call.name} does not give one number a sample, unreduced", call.where)


def _device(params: Params) -> torch.device:
    return next(iter(params.values())).device
