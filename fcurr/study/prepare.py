"""From an experiment and its data to what is trained on: pure, and checked before anything is trained."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fcurr import curriculum, losses, metrics, tree, weighting
from fcurr.bilevel import methods
from fcurr.data import clean, splits
from fcurr.data.splits import Splits
from fcurr.errors import BadInput
from fcurr.evaluating import CHUNK
from fcurr.inputs import scaled
from fcurr.precision import mixed
from fcurr.scoring import pointwise
from fcurr.study import units
from fcurr.study.bind import Call, build, flowing, guarded, resolve
from fcurr.study.config import Experiment
from fcurr.training import as_it_is, in_order
from fcurr.types import Augment, Batch, Dataset, Loss, Metric, Model, Optimizer, Params, Task


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


def prepare(experiment: Experiment, data: Dataset) -> Prepared:
    """Splits, class sizes, labels, model; BadInput where they do not fit."""
    parts, seed = experiment.components, experiment.seed
    _finite(data)
    entries: dict[str, Any] = {
        "seed": seed,
        "classes": len(data.classes),
        "features": data.features,
        "task": data.task,
        "batch_size": experiment.training.batch_size,
    }
    _of_classes(experiment, data)
    split = guarded(parts["split"], build(parts["split"], entries), data.y)
    if not isinstance(split, Splits):
        raise BadInput(f"{parts['split'].name} gives a {type(split).__name__}, not Splits", "split")
    for name, part in zip(split._fields, split, strict=True):
        if len(part) == 0:
            raise BadInput(f"of {len(data.y)} samples none is left to {_USE[name]}: the {name} split is empty", "split")
    ids, few = split.train, split.train[:0]
    if "clean" in parts:
        split, few = _parted(parts["clean"], entries, split, data.y)
        ids = split.train
    if "imbalance" in parts:
        ids = ids[guarded(parts["imbalance"], build(parts["imbalance"], entries), data.y[ids])]
    true = data.y[ids]
    given = _noisy(parts["noise"], entries, true) if "noise" in parts else true
    train = data.part(ids)._replace(y=given)
    model = build(parts["model"], entries)
    if not isinstance(model, Model):
        raise BadInput(f"{parts['model'].name} gives a {type(model).__name__}, not a Model", "model")
    if "scaling" in parts:
        fitted = guarded(parts["scaling"], build(parts["scaling"], entries), train.x)
        model = scaled(model, fitted.shift, fitted.factor)
    model = mixed(model, experiment.training.precision)
    entries |= {"model": model, "dataset_size": len(ids), "total_iterations": experiment.training.total_iterations}
    if data.task == "classification":
        entries["counts"] = torch.bincount(given, minlength=len(data.classes))
    chain = [build(call, entries) for call in experiment.lists["augment"]]
    augment = partial(in_order, chain=chain) if chain else as_it_is
    loss = entries["loss"] = build(parts["loss"], entries)
    _fits(model, data)
    _tried(experiment, model, loss, augment, train)
    optimizer = build(parts["optimizer"], entries)
    if not isinstance(optimizer, Optimizer):
        raise BadInput(f"{parts['optimizer'].name} gives a {type(optimizer).__name__}, not an Optimizer", "optimizer")
    calls = experiment.lists["metrics"] or [resolve(name, "metric", "metrics") for name in metrics.DEFAULT[data.task]]
    named: dict[str, Metric] = {_label(call): partial(_measured, call, build(call, entries)) for call in calls}
    _measures(calls, named, model, data)
    return Prepared(
        train=train,
        true=true,
        clean=data.part(few) if len(few) else None,
        id={"train": ids, "validation": split.validation, "test": split.test} | ({"clean": few} if len(few) else {}),
        validation=data.part(split.validation),
        test=data.part(split.test),
        model=model,
        augment=augment,
        metrics=named,
        higher=_higher(calls[0]),
        entries=entries,
    )


_USE = {"train": "train on", "validation": "choose by", "test": "judge by"}


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


def _parted(call: Call, entries: dict[str, Any], split: Splits, y: Tensor) -> tuple[Splits, Tensor]:
    """(the parts without them, the clean samples)."""
    chosen = guarded(call, build(call, entries | {"among": split.train}), y)
    if not isinstance(chosen, Tensor) or chosen.ndim != 1 or chosen.dtype != torch.int64 or len(chosen) == 0:
        raise BadInput(f"{call.name} does not give the positions of some samples, [sample] int64", call.where)
    inside = bool((chosen >= 0).all()) and bool((chosen < len(y)).all())
    if not inside or len(chosen.unique()) < len(chosen):
        raise BadInput(f"{call.name} gives a position twice, or one that is none of {len(y)} samples", call.where)
    left = Splits(*(part[~torch.isin(part, chosen)] for part in split))
    for name, part in zip(left._fields, left, strict=True):
        if len(part) == 0:
            raise BadInput(f"{call.name} leaves no samples to {_USE[name]}", call.where)
    return left, chosen


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
            outputs = model.apply({**params, **buffers}, data.x[torch.arange(min(2, len(data.y)))])
    except Exception as wrong:  # a stranger's model may raise anything
        first = (str(wrong).splitlines() or [type(wrong).__name__])[0]
        raise BadInput(f"the model does not take samples of shape {list(data.features)}: {first}", "model") from wrong
    if outputs.ndim != 2 or outputs.shape[1] < len(data.classes):
        given = list(outputs.shape[1:])
        what = "targets" if data.task == "regression" else "classes"
        raise BadInput(f"the model has {given} outputs a sample, the labels have {len(data.classes)} {what}", "model")


def _tried(experiment: Experiment, model: Model, loss: Loss, augment: Augment, train: Dataset) -> None:
    """Whether augmentations and loss take the samples, and the loss gives a number a sample."""
    call, place = experiment.components["loss"], (torch.tensor(0), torch.tensor(0))
    few = train.take(torch.arange(min(2, len(train.y))))
    for own in experiment.lists["augment"]:
        changed = guarded(own, augment, few, place)
        if not isinstance(changed, Batch) or changed.x.shape != few.x.shape:
            raise BadInput(f"{own.name} does not give a batch of samples like those it is given", own.where)
    params, buffers = model.init(0)
    with torch.no_grad():
        for batch in (few, augment(few, place)):
            each = guarded(call, loss, model.apply({**params, **buffers}, batch.x), batch.y)
            if not isinstance(each, Tensor) or each.shape != few.y.shape[:1]:
                raise BadInput(f"{call.name} does not give one number a sample, unreduced", "loss")


def _measures(calls: list[Call], named: dict[str, Metric], model: Model, data: Dataset) -> None:
    """Whether every metric gives a number, and says which way it points."""
    if len(named) < len(calls):
        raise BadInput(f"{calls[-1].name} is asked for twice", "metrics")
    few = data.take(torch.arange(min(8, len(data.y))))
    params, buffers = model.init(0)
    with torch.no_grad():
        outputs = model.apply({**params, **buffers}, few.x)
    for call, metric in zip(calls, named.values(), strict=True):
        _higher(call)
        metric(outputs, few.y)


def _measured(call: Call, metric: Metric, outputs: Tensor, y: Tensor) -> Tensor:
    """What a metric says, or BadInput where it is not one number."""
    value = guarded(call, metric, outputs, y)
    if not isinstance(value, Tensor) or value.shape != ():
        what = list(value.shape) if isinstance(value, Tensor) else f"a {type(value).__name__}"
        raise BadInput(f"{call.name} gives {what}: a metric is one number, a tensor without axes", call.where)
    return value


def _higher(call: Call) -> bool:
    """Whether more of a metric is better; a metric that does not say is BadInput."""
    direction = units.direction(units.hints(call.function).get("return"))
    if direction is None:
        raise BadInput(f"{call.name} does not say which way it points: annotate its result Higher or Lower", call.where)
    return direction.higher


def _label(call: Call) -> str:
    """The name a metric is written under: label_f1_micro."""
    return "_".join([call.name.rpartition(":")[2], *(str(value) for value in call.fixed.values())])


def _of_classes(experiment: Experiment, data: Dataset) -> None:
    """BadInput for components that are for labels of another kind."""
    labels = {"classification": "a class each", "multi-label": "sets of classes", "regression": "numbers"}
    calls = [experiment.components[key] for key in ("loss", "score") if key in experiment.components]
    for member in experiment.members:
        calls += [call for call in (member.weighting, member.reweighting) if call is not None]
    for call in [*calls, *experiment.lists["metrics"], *(member.loss for member in experiment.members)]:
        task = _TASKS.get(call.function)
        if task is not None and task != data.task:
            raise BadInput(
                f"{call.name} is for labels that are {labels[task]}, and these are {labels[data.task]}", call.where
            )
    if data.task == "classification":
        return
    what = "sets of classes" if data.task == "multi-label" else "numbers"
    own = [
        experiment.components[key] for key in ("split", "noise", "imbalance", "clean") if key in experiment.components
    ]
    for call in [*own, *(member.curriculum.sampling for member in experiment.members)]:
        if call.function not in (
            splits.shuffled,
            splits.published,
            clean.drawn,
            clean.listed,
            curriculum.unbalanced,
        ) and call.function.__module__.startswith("fcurr."):
            others = {"split": "shuffled", "clean": "drawn", "curriculum.sampling": "unbalanced"}
            instead = f"; {others[call.where]} does not" if call.where in others else ""
            raise BadInput(f"{call.name} wants a class a sample, and the labels are {what}{instead}", call.where)


_TASKS: dict[Callable[..., Any], Task] = {
    **{getattr(losses, name): task for name, task in losses.TASKS.items()},
    **{getattr(metrics, name): task for name, task in metrics.TASKS.items()},
    **{getattr(weighting, name): task for name, task in weighting.TASKS.items()},
    methods.class_aware_meta_weight_net: "classification",
    **dict.fromkeys((pointwise.margin, pointwise.confidence, pointwise.entropy), "classification"),
}


def _device(params: Params) -> torch.device:
    return next(iter(params.values())).device
