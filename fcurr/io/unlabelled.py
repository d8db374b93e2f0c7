"""Samples without labels, to predict: arrays and tables."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fcurr.errors import BadInput


def read(path: Path, without: tuple[str, ...], features: tuple[int, ...]) -> Tensor:
    """[sample, *features] float32 of a .npy file, of the array `x` of a .npz archive, or of the columns of a .csv or
    .parquet table, those of the labels left out if they are there. Columns are taken in the order they stand in."""
    if not path.is_file():
        raise BadInput(f"there is no file {path}")
    kinds = {".npy": _array, ".npz": _array, ".csv": _table, ".parquet": _table}
    if path.suffix not in kinds:
        raise BadInput(f"{path} is not a file of samples: {', '.join(kinds)}")
    try:
        values = np.asarray(kinds[path.suffix](path, without))
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


def _array(path: Path, without: tuple[str, ...]) -> Any:
    found = np.load(path, allow_pickle=False)
    if isinstance(found, np.ndarray):
        return found
    if "x" not in found:
        raise BadInput(f"{path} has no array `x`; it has {', '.join(found)}")
    return found["x"]


def _table(path: Path, without: tuple[str, ...]) -> Any:
    import pyarrow.csv
    import pyarrow.parquet

    table = pyarrow.csv.read_csv(path) if path.suffix == ".csv" else pyarrow.parquet.read_table(path)
    columns = [table[name].to_numpy() for name in table.column_names if name not in without]
    return np.stack(columns, axis=1)
