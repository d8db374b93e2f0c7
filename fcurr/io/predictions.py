"""What the best parameters of every member answer to every sample, as tables: Apache Parquet, readable by anything."""

import io
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import torch
from torch import Tensor

from fcurr import evaluating, joint
from fcurr.evaluating import Answers
from fcurr.io import files
from fcurr.types import Dataset, Head, Task


def write(path: Path, data: Dataset, ids: Tensor, found: Answers, arms: list[str]) -> None:
    """Answers as a file."""
    write_table(path, table(data, ids, found, arms))


def table(data: Dataset, ids: Tensor, found: Answers, arms: list[str]) -> pyarrow.Table:
    """A row a member and sample: the member's number and arm, the sample's place in the data set, its target as
    trained on, the prediction, the loss, and the outputs. Several tasks come one after another, with a column of their
    names; their targets and predictions are texts, and the outputs a task's own."""
    if data.heads:
        return pyarrow.concat_tables([_of_head(data, head, ids, found, arms) for head in data.heads])
    members, samples = found.losses.shape
    predicted = torch.stack([evaluating.predicted(outputs, kind(data)) for outputs in found.outputs])
    columns = {
        "member": torch.arange(members).repeat_interleave(samples).numpy(),
        "arm": [arm for arm in arms for _ in range(samples)],
        "id": ids.repeat(members).numpy(),
        "target": named(data.y, data) * members,
        "prediction": [name for own in predicted for name in named(own, data)],
        "loss": found.losses.flatten().cpu().numpy(),
        "output": _lists(found.outputs.flatten(0, 1)),
    }
    return pyarrow.table(columns)


def _of_head(data: Dataset, head: Head, ids: Tensor, found: Answers, arms: list[str]) -> pyarrow.Table:
    """The rows of one task."""
    own, places = joint.alone(data, head)
    answers = Answers(head.of(found.outputs[:, places]), found.losses[:, places])
    plain = table(own, ids[places.cpu()], answers, arms)
    columns = {name: plain[name] for name in plain.column_names}
    for name in ("target", "prediction"):
        columns[name] = pyarrow.array([_text(value) for value in plain[name].to_pylist()])
    columns["output"] = plain["output"].cast(pyarrow.list_(pyarrow.float32()))
    first = {name: columns.pop(name) for name in ("member", "arm", "id")}
    return pyarrow.table({**first, "task": [head.name] * len(plain), **columns})


def _text(value: Any) -> str:
    """A class, a list of classes or a list of numbers as one text."""
    if isinstance(value, list):
        return "; ".join(f"{part:.9g}" if isinstance(part, float) else part for part in value)
    return value


def tasks(y: Tensor, data: Dataset) -> dict[str, list[str]]:
    """A column `task` of the name of each sample's task; none where there is one."""
    if not data.heads:
        return {}
    names = [""] * len(y)
    for head in data.heads:
        for place in head.there(y).nonzero().squeeze(1).tolist():
            names[place] = head.name
    return {"task": names}


def named(y: Tensor, data: Dataset) -> list[Any]:
    """Labels [sample, ...] as people write them: a class, a list of classes, a list of numbers; of several tasks a
    text."""
    if data.heads:
        texts = [""] * len(y)
        for head in data.heads:
            own, places = joint.alone(data._replace(y=y), head)
            for place, value in zip(places.tolist(), named(own.y, own), strict=True):
                texts[place] = _text(value)
        return texts
    if data.task == "classification":
        return [data.classes[c] for c in y.tolist()]
    if data.task == "regression":
        return y.cpu().float().tolist()
    return [[name for name, there in zip(data.classes, row, strict=True) if there] for row in y.tolist()]


def kind(data: Dataset) -> Task:
    """The task of a data set that has one."""
    assert data.task != "joint"
    return data.task


def write_table(path: Path, table: pyarrow.Table) -> None:
    """Parquet, whole or not at all."""
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(table, buffer)
    files.write(path, buffer.getvalue())


def _lists(values: Tensor) -> pyarrow.Array:
    """[row, ...] as a list a row."""
    flat = values.flatten(1).cpu().float().numpy()
    return pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(flat.reshape(-1)), flat.shape[1])
