"""What a run is judged by: its metrics, by the names they are written under."""

from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fcurr import joint, metrics
from fcurr.errors import BadInput
from fcurr.study import units
from fcurr.study.bind import Call, build, guarded, resolve
from fcurr.study.config import Experiment
from fcurr.types import Dataset, Head, Metric, Model


class Judges(NamedTuple):
    metrics: dict[str, Metric]  # the first is tracked
    higher: bool  # whether more of the tracked metric is better


def judges(experiment: Experiment, entries: Mapping[str, Any], model: Model, data: Dataset) -> Judges:
    """The metrics of a config, or those of the task; of several tasks the joint loss, and the metrics of each under its
    name and the task's. BadInput where one does not give a number, or does not say which way it points."""
    calls: dict[str, Call] = {}
    found: dict[str, Metric] = {}
    if data.heads:
        found["joint_loss"] = partial(joint.joint_loss, heads=entries["heads"])
        for head in data.heads:
            alone = {**entries, "task": head.task, "classes": len(head.classes)}
            for call in experiment.tasks[head.name].metrics or _defaults(head.task):
                name = _named(f"{_label(call)}_{head.name}", call, calls)
                found[name] = partial(_of_head, metric=partial(_measured, call, build(call, alone)), head=head)
    else:
        for call in experiment.lists["metrics"] or _defaults(data.task):
            name = _named(_label(call), call, calls)
            found[name] = partial(_measured, call, build(call, entries))
    few = data.take(joint.some(data, 8))
    params, buffers = model.init(0)
    with torch.no_grad():
        outputs = model.apply({**params, **buffers}, few.x)
    for name, metric in found.items():
        if name in calls:
            _higher(calls[name])
        metric(outputs, few.y)
    return Judges(found, not data.heads and _higher(next(iter(calls.values()))))


def _defaults(task: Any) -> list[Call]:
    return [resolve(name, "metric", "metrics") for name in metrics.DEFAULT[task]]


def _named(name: str, call: Call, calls: dict[str, Call]) -> str:
    if name in calls:
        raise BadInput(f"{call.name} is asked for twice", call.where.partition("[")[0])
    calls[name] = call
    return name


def _of_head(outputs: Tensor, y: Tensor, *, metric: Metric, head: Head) -> Tensor:
    """A metric of the samples that have a label of a task."""
    there = head.there(y)
    return metric(head.of(outputs[there]), head.labels(y[there]))


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
