"""From an experiment and its data to what is trained on: pure, and checked before anything is trained."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fcurr import tree
from fcurr.data.splits import Splits
from fcurr.errors import BadInput
from fcurr.study import units
from fcurr.study.bind import Call, build, flowing, guarded
from fcurr.study.config import Experiment
from fcurr.types import Batch, Dataset, Loss, Model, Optimizer, Params


class Prepared(NamedTuple):
    """The data as it is trained on, and the model."""

    train: Dataset  # the samples trained on, with the labels as given
    true: Tensor  # [train] int64, the labels before noise
    id: Tensor  # [train] int64, positions in the data set
    validation: Batch
    test: Batch
    model: Model
    entries: dict[str, Any]  # what the run gives to whoever asks for it by name


def prepare(experiment: Experiment, data: Dataset) -> Prepared:
    """Splits, class sizes, labels, model; BadInput where they do not fit."""
    parts, seed = experiment.components, experiment.seed
    _finite(data)
    entries: dict[str, Any] = {"seed": seed, "classes": len(data.classes), "features": data.features}
    split = guarded(parts["split"], build(parts["split"], entries), data.y)
    if not isinstance(split, Splits):
        raise BadInput(f"{parts['split'].name} gives a {type(split).__name__}, not Splits", "split")
    for name, part in zip(split._fields, split, strict=True):
        if len(part) == 0:
            raise BadInput(f"of {len(data.y)} samples none is left to {_USE[name]}: the {name} split is empty", "split")
    ids = split.train
    if "imbalance" in parts:
        ids = ids[guarded(parts["imbalance"], build(parts["imbalance"], entries), data.y[ids])]
    true = data.y[ids]
    given = _noisy(parts["noise"], entries, true) if "noise" in parts else true
    model = build(parts["model"], entries)
    if not isinstance(model, Model):
        raise BadInput(f"{parts['model'].name} gives a {type(model).__name__}, not a Model", "model")
    entries |= {"model": model, "dataset_size": len(ids), "total_iterations": experiment.training.total_iterations}
    entries["loss"] = build(parts["loss"], entries)
    _fits(model, data)
    _counts(parts["loss"], entries["loss"], model, data)
    optimizer = build(parts["optimizer"], entries)
    if not isinstance(optimizer, Optimizer):
        raise BadInput(f"{parts['optimizer'].name} gives a {type(optimizer).__name__}, not an Optimizer", "optimizer")
    return Prepared(
        train=Dataset(data.x[ids], given, data.classes),
        true=true,
        id=ids,
        validation=data.take(split.validation),
        test=data.take(split.test),
        model=model,
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
            values = guarded(call, score, params, train.take(torch.arange(len(train.y))))
    _one_each(call, values, len(train.y))
    if not bool(values.isfinite().all()):
        worst = int((~values.isfinite()).nonzero()[0])
        raise BadInput(f"{call.name} gives {float(values[worst])} for sample {int(prepared.id[worst])}", call.where)
    return sign * values.double()


def _finite(data: Dataset) -> None:
    if len(data.y) == 0:
        raise BadInput("there are no samples", "data")
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
            outputs = model.apply({**params, **buffers}, data.x[:2])
    except Exception as wrong:  # a stranger's model may raise anything
        first = (str(wrong).splitlines() or [type(wrong).__name__])[0]
        raise BadInput(f"the model does not take samples of shape {list(data.features)}: {first}", "model") from wrong
    if outputs.ndim != 2 or outputs.shape[1] < len(data.classes):
        given = list(outputs.shape[1:])
        raise BadInput(f"the model has {given} outputs a sample, the labels have {len(data.classes)} classes", "model")


def _counts(call: Call, loss: Loss, model: Model, data: Dataset) -> None:
    """Whether the loss gives a number a sample."""
    params, buffers = model.init(0)
    with torch.no_grad():
        losses = guarded(call, loss, model.apply({**params, **buffers}, data.x[:2]), data.y[:2])
    if not isinstance(losses, Tensor) or losses.shape != data.y[:2].shape:
        raise BadInput(f"{call.name} does not give one number a sample, unreduced", "loss")
