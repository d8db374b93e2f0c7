"""Data sets from files, side by side: each gives samples as float32 and labels as numbers from 0.

Labels are numbered in sorted order, and what they were called is kept.
"""

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fcurr.errors import BadInput
from fcurr.types import Dataset
from fcurr.types import Path as Name


def digits() -> Dataset:
    """1,797 scans of handwritten digits, 1 x 8 x 8 in [0, 1], shipped in scikit-learn. Alpaydin and Kaynak (1998)."""
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise BadInput('digits come with scikit-learn: pip install "fcurr[data]"') from None
    found: Any = load_digits()
    return _dataset(found.images[:, None] / 16, found.target)


def npz(*, path: Name, x: str = "x", y: str = "y") -> Dataset:
    """A NumPy archive with an array of samples and an array of labels, named `x` and `y` unless said otherwise."""
    _exists(path)
    if not zipfile.is_zipfile(path):
        raise BadInput(f"{path} is not a .npz archive, which is a zip file", "path")
    try:
        with np.load(path, allow_pickle=False) as archive:
            for name in (x, y):
                if name not in archive:
                    raise BadInput(f"{path} has no array `{name}`; it has {', '.join(archive)}", "path")
            return _dataset(archive[x], archive[y])
    except BadInput:
        raise
    except Exception as wrong:
        raise BadInput(f"{path} is not a readable .npz archive: {wrong}", "path") from None


def csv(*, path: Name, label: str = "label") -> Dataset:
    """A table as text, a header first: the column `label`, and every other column a feature."""
    return _table(path, label, "csv")


def parquet(*, path: Name, label: str = "label") -> Dataset:
    """A table in Apache Parquet: the column `label`, and every other column a feature."""
    return _table(path, label, "parquet")


def _table(path: str, label: str, kind: str) -> Dataset:
    _exists(path)
    try:
        import pyarrow.csv
        import pyarrow.parquet
        from pyarrow import types
    except ImportError:
        raise BadInput('tables are read by pyarrow: pip install "fcurr[data]"') from None
    empty = pyarrow.csv.ConvertOptions(strings_can_be_null=True)  # a text that is not there is no label
    try:
        table = pyarrow.csv.read_csv(path, convert_options=empty) if kind == "csv" else pyarrow.parquet.read_table(path)
    except Exception as wrong:
        first = (str(wrong).splitlines() or [type(wrong).__name__])[0]
        raise BadInput(f"{path} is not a readable {kind} table: {first}", "path") from None
    if twice := {name for name in table.column_names if table.column_names.count(name) > 1}:
        raise BadInput(f"{path} has two columns `{min(twice)}`", "path")
    if label not in table.column_names:
        raise BadInput(f"{path} has no column `{label}`; it has {', '.join(table.column_names)}", "label")
    columns = []
    for name in table.column_names:
        if name == label:
            continue
        if table[name].null_count:
            row = table[name].is_null().to_pylist().index(True) + 1
            raise BadInput(f"{path}: column `{name}` has no value in row {row} after the header", "path")
        kind = table[name].type
        if not any(is_kind(kind) for is_kind in (types.is_integer, types.is_floating, types.is_boolean)):
            raise BadInput(f"{path}: column `{name}` is {kind}, not numbers", "path")
        columns.append(np.asarray(table[name].to_numpy(), dtype=np.float32))
    if not columns:
        raise BadInput(f"{path} has no column beside `{label}`", "path")
    if table[label].null_count:
        row = table[label].is_null().to_pylist().index(True) + 1
        raise BadInput(f"{path}: column `{label}` has no value in row {row} after the header", "path")
    return _dataset(np.stack(columns, axis=1), np.asarray(table[label].to_pylist()))


def _dataset(x: NDArray[Any], y: NDArray[Any]) -> Dataset:
    if y.ndim != 1 or len(x) != len(y):
        raise BadInput(f"{len(x)} samples do not fit labels of shape {list(y.shape)}")
    if x.dtype.kind not in "fiub":
        raise BadInput(f"samples are {x.dtype}, not numbers")
    if x.ndim < 2 or 0 in x.shape[1:]:
        raise BadInput(f"samples of shape {list(x.shape[1:])} have no features: [sample, feature, ...] is right")
    if y.dtype.kind not in "fiubUS":
        raise BadInput(f"labels are {y.dtype}: a label is a whole number or a text")
    if y.dtype.kind == "f" and not (np.isfinite(y).all() and np.all(y == np.round(y))):
        raise BadInput("labels are fractions, or not finite: a label is a whole number or a text")
    names, numbers = np.unique(y.astype(np.int64) if y.dtype.kind == "f" else y, return_inverse=True)
    return Dataset(
        x=torch.from_numpy(np.ascontiguousarray(x, dtype=np.float32)),
        y=torch.from_numpy(np.ascontiguousarray(numbers, dtype=np.int64)),
        classes=tuple(str(name) for name in names),
    )


def _exists(path: str) -> None:
    if not Path(path).is_file():
        raise BadInput(f"there is no file {path}", "path")
