"""Samples without labels, to predict: arrays and tables."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fcurr.errors import BadInput


def read(path: Path, columns: tuple[str, ...] | None, features: tuple[int, ...]) -> Tensor:
    """[sample, *features] float32 of a .npy file, of the array `x` of a .npz archive, or of these columns of a .csv or
    .parquet table, by name; all columns in their order if there are no names."""
    if not path.is_file():
        raise BadInput(f"{path} is a folder, not a file of samples" if path.is_dir() else f"there is no file {path}")
    kinds = {".npy": _array, ".npz": _array, ".csv": _table, ".parquet": _table}
    if path.suffix not in kinds:
        raise BadInput(f"{path} is not a file of samples: {', '.join(kinds)}")
    try:
        values = np.asarray(kinds[path.suffix](path, columns))
        x = torch.from_numpy(
            np.ascontiguousarray(values, dtype=values.dtype if values.dtype == np.int64 else np.float32)
        )
    except BadInput:
        raise
    except Exception as wrong:
        first = (str(wrong).splitlines() or [type(wrong).__name__])[0]
        raise BadInput(f"{path} cannot be read as samples: {first}") from None
    if tuple(x.shape[1:]) != features:
        raise BadInput(f"{path} holds samples of shape {list(x.shape[1:])}, the run was trained on {list(features)}")
    if len(x) == 0 or not bool(x.isfinite().all()):
        raise BadInput(f"{path} holds {'no samples' if len(x) == 0 else 'a value that is not a finite number'}")
    return x


def _array(path: Path, columns: tuple[str, ...] | None) -> Any:
    found = np.load(path, allow_pickle=False)
    if isinstance(found, np.ndarray):
        return found
    if "x" not in found:
        raise BadInput(f"{path} has no array `x`; it has {', '.join(found)}")
    return found["x"]


def _table(path: Path, columns: tuple[str, ...] | None) -> Any:
    import pyarrow.csv
    import pyarrow.parquet

    table = pyarrow.csv.read_csv(path) if path.suffix == ".csv" else pyarrow.parquet.read_table(path)
    wanted = table.column_names if columns is None else columns
    for name in wanted:
        if name not in table.column_names:
            raise BadInput(f"{path} has no column `{name}`, which the run was trained on")
    return np.stack([table[name].to_numpy() for name in wanted], axis=1)


def columns(path: Path, without: tuple[str, ...]) -> tuple[str, ...]:
    """The columns of a table, in their order, but for those of the labels."""
    import pyarrow.csv
    import pyarrow.parquet

    if path.suffix == ".parquet":
        names = pyarrow.parquet.read_schema(path).names
    else:
        with pyarrow.csv.open_csv(path) as table:
            names = table.schema.names
    return tuple(name for name in names if name not in without)
