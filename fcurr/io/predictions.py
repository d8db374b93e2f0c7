"""What the best parameters of every member answer to every sample, as tables: Apache Parquet, readable by anything."""

import io
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import torch
from torch import Tensor

from fcurr import evaluating
from fcurr.evaluating import Answers
from fcurr.io import files
from fcurr.types import Dataset


def write(path: Path, data: Dataset, ids: Tensor, found: Answers, arms: list[str]) -> None:
    """A row a member and sample: the member's number and arm, the sample's place in the data set, its target as
    trained on, the prediction, the loss, and the outputs."""
    members, samples = found.losses.shape
    predicted = torch.stack([evaluating.predicted(outputs, data.task) for outputs in found.outputs])
    columns = {
        "member": torch.arange(members).repeat_interleave(samples).numpy(),
        "arm": [arm for arm in arms for _ in range(samples)],
        "id": ids.repeat(members).numpy(),
        "target": named(data.y, data) * members,
        "prediction": [name for own in predicted for name in named(own, data)],
        "loss": found.losses.flatten().cpu().numpy(),
        "output": _lists(found.outputs.flatten(0, 1)),
    }
    write_table(path, pyarrow.table(columns))


def named(y: Tensor, data: Dataset) -> list[Any]:
    """Labels [sample, ...] as people write them: a class, a list of classes, a list of numbers."""
    if data.task == "classification":
        return [data.classes[c] for c in y.tolist()]
    if data.task == "regression":
        return y.cpu().float().tolist()
    return [[name for name, there in zip(data.classes, row, strict=True) if there] for row in y.tolist()]


def write_table(path: Path, table: pyarrow.Table) -> None:
    """Parquet, whole or not at all."""
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(table, buffer)
    files.write(path, buffer.getvalue())


def _lists(values: Tensor) -> pyarrow.Array:
    """[row, ...] as a list a row."""
    flat = values.flatten(1).cpu().float().numpy()
    return pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(flat.reshape(-1)), flat.shape[1])
