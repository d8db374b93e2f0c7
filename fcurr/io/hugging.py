"""Local files read by Hugging Face's `datasets`: what save_to_disk wrote, or a file of rows. Never the network."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fcurr.errors import BadInput
from fcurr.io.labelled import has_features, labelled
from fcurr.io.pictures import pixels, sized
from fcurr.io.stored import as_samples, dtype_of, identity
from fcurr.types import Dataset, Task

_READERS = {".parquet": "from_parquet", ".json": "from_json", ".jsonl": "from_json", ".csv": "from_csv"}
_UNEVEN = "rows of several shapes, or with gaps: one shape of numbers is right"


@dataclass(frozen=True, eq=False)
class Table:
    """Rows of some columns: pictures in one, or numbers in one or more."""

    table: Any  # a datasets.Dataset of these columns
    names: tuple[str, ...]
    kind: np.dtype[Any]  # of the numbers in the file
    shape: tuple[int, ...]
    identity: str
    size: tuple[int, ...] | None = None  # of pictures

    @property
    def dtype(self) -> torch.dtype:
        return dtype_of(self.kind)

    def __getitem__(self, ids: Tensor, /) -> Tensor:
        found = self.table[ids.flatten().tolist()]
        if self.size is not None:
            rows = np.stack([pixels(picture, self.size) for picture in found[self.names[0]]])
        else:
            rows = np.stack([_regular(found[name], name, self.kind) for name in self.names], axis=1)
            if rows.shape[1:] not in (self.shape[1:], (1, *self.shape[1:])):
                raise BadInput(f"column `{self.names[0]}` has {_UNEVEN}", "x")
        return as_samples(rows.reshape(*ids.shape, *self.shape[1:])).to(ids.device)


def local(
    path: str, *, x: Sequence[str], label: Sequence[str], split: str | None, size: tuple[int, ...] | None, task: Task
) -> Dataset:
    """The columns `x` as samples, the columns `label` as labels."""
    table, files = _read(path, split)
    for key, names in (("x", x), ("label", label)):
        for name in names:
            if name not in table.column_names:
                raise BadInput(f"{path} has no column `{name}`; it has {', '.join(table.column_names)}", key)
        if not names:
            raise BadInput("no column is named", key)
    folder = Path(path) if Path(path).is_dir() else Path(path).parent
    digest = identity(files, folder=folder, also=(tuple(x), split, size))
    rows = _rows(table, tuple(x), size, digest)
    has_features(rows.shape)
    y, classes = _labels(table, label, task)
    return labelled(rows, y, task=task, names=classes)


def _rows(table: Any, names: tuple[str, ...], size: tuple[int, ...] | None, digest: str) -> Table:
    import datasets

    for name in names:
        if table.data.column(name).null_count:
            raise BadInput(f"column `{name}` has a row without a value", "x")
    features = [table.features[name] for name in names]
    if len(names) == 1 and isinstance(features[0], datasets.Image):
        if size is None:
            raise BadInput(
                f"column `{names[0]}` holds pictures: size = [channel, height, width] says how large", "size"
            )
        sized(size)
        shape, kind = (len(table), *size), np.dtype(np.uint8)
        return Table(table.select_columns(list(names)), names, kind, shape, digest, size)
    if size is not None:
        raise BadInput(f"column `{names[0]}` holds no pictures, so it has no size to choose", "size")
    kind = np.result_type(*(_number(feature, name) for feature, name in zip(features, names, strict=True)))
    numbers = table.select_columns(list(names)).with_format("numpy")
    first = [_regular(numbers[[0]][name], name, kind) for name in names]
    if len(names) > 1 and (wide := [name for name, one in zip(names, first, strict=True) if one.ndim > 1]):
        raise BadInput(f"column `{wide[0]}` has more than a number a row, and stands beside others", "x")
    inner = (len(names),) if first[0].ndim == 1 else first[0].shape[1:]
    return Table(numbers, names, kind, (len(table), *inner), digest)


def _number(feature: Any, name: str) -> np.dtype[Any]:
    """The dtype of the numbers in a column."""
    while hasattr(feature, "feature"):
        feature = feature.feature
    try:
        kind = np.dtype(str(getattr(feature, "dtype", None)))
    except TypeError:
        kind = np.dtype(object)
    if kind.kind not in "fiub":
        what = getattr(feature, "dtype", type(feature).__name__)
        raise BadInput(f"column `{name}` is {what}, not numbers or pictures", "x")
    return kind


def _regular(found: Any, name: str, kind: np.dtype[Any]) -> NDArray[Any]:
    """[sample, ...] of a column."""
    rows = np.asarray(found) if not isinstance(found, list) else _stacked(found, name, "x")
    if rows.dtype.kind not in "fiub" or (rows.dtype.kind == "f" and kind.kind in "iu"):  # nan is all that float has
        raise BadInput(f"column `{name}` has {_UNEVEN}", "x")
    return rows.astype(kind)


def _stacked(rows: list[Any], name: str, key: str = "label") -> NDArray[Any]:
    try:
        return np.stack([np.asarray(row) for row in rows])
    except ValueError:
        raise BadInput(f"column `{name}` has {_UNEVEN}", key) from None


def _labels(table: Any, names: Sequence[str], task: Task) -> tuple[NDArray[Any], Sequence[str]]:
    """What labels say, and the names of the classes or targets, where the columns have some."""
    import datasets

    columns = {name: list(table.select_columns([name]).with_format(None)[:][name]) for name in names}
    for name, rows in columns.items():
        if None in rows:
            raise BadInput(f"column `{name}` has no value in row {rows.index(None)}, counted from 0", "label")
    if len(names) > 1:
        if task == "classification":
            raise BadInput("a class each is in one column: several are multi-label or regression, by `task`", "label")
        return _stacked(list(zip(*columns.values(), strict=True)), names[0]), tuple(names)
    feature, rows = table.features[names[0]], columns[names[0]]
    if isinstance(feature, datasets.ClassLabel) and task == "classification":
        return np.asarray(rows), tuple(feature.names)
    if task == "multi-label" and isinstance(rows[0], list):
        inner = getattr(feature, "feature", None)
        if isinstance(inner, datasets.ClassLabel):
            return _sets(rows, list(range(len(inner.names)))), tuple(inner.names)
        if getattr(inner, "dtype", None) in ("string", "large_string"):
            classes = sorted({name for row in rows for name in row})
            return _sets(rows, classes), classes
    y = _stacked(rows, names[0])
    return y, tuple(names) if task != "classification" and y.ndim == 1 else ()


def _sets(rows: list[Any], classes: Sequence[Any]) -> NDArray[np.bool_]:
    return np.asarray([[one in row for one in classes] for row in rows], dtype=np.bool_)


def _read(path: str, split: str | None) -> tuple[Any, list[Path]]:
    """The table, and the files that it stands in."""
    try:
        import datasets
    except ImportError:
        raise BadInput('this is read by datasets: pip install "fcurr[hugging-face]"') from None
    place = Path(path)
    if not place.exists():
        raise BadInput(f"there is no file or folder {path}", "path")
    if place.is_file() and place.suffix not in _READERS:
        raise BadInput(f"{path} does not end in {', '.join(_READERS)}", "path")
    try:
        with _quiet(datasets):
            if place.is_dir():
                found = datasets.load_from_disk(path)
            else:
                found = getattr(datasets.Dataset, _READERS[place.suffix])(path)
    except Exception as wrong:  # torn files raise many kinds
        cause = wrong.__cause__ or wrong
        first = (str(cause).splitlines() or [type(cause).__name__])[0]
        what = "a folder that save_to_disk wrote" if place.is_dir() else f"a {place.suffix[1:]} file"
        raise BadInput(f"{path} is not readable as {what}: {first}", "path") from None
    files = sorted(place.rglob("*.arrow")) if place.is_dir() else [place]
    if isinstance(found, datasets.DatasetDict):
        if split is not None and split not in found:
            raise BadInput(f"{path} has no split `{split}`; it has {', '.join(map(str, found))}", "split")
        return (datasets.concatenate_datasets(list(found.values())) if split is None else found[split]), files
    if split is not None:
        raise BadInput(f"{path} has no splits", "split")
    return found, files


@contextmanager
def _quiet(datasets: Any) -> Iterator[None]:
    """No progress bars, and no log of what is raised anyway."""
    shown, verbosity = datasets.utils.is_progress_bar_enabled(), datasets.logging.get_verbosity()
    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    try:
        yield
    finally:
        datasets.logging.set_verbosity(verbosity)
        if shown:
            datasets.enable_progress_bars()
