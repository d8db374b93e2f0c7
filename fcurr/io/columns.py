"""Tables, as text or as Parquet: from columns to samples and labels."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from fcurr.errors import BadInput
from fcurr.io.labelled import in_memory, labelled
from fcurr.types import Dataset, Task


def table(
    path: str, kind: str, *, label: str | tuple[str, ...], task: Task, separator: str, group: str | None = None
) -> Dataset:
    """The columns that `label` and `group` name, and every other column a feature; `kind` is csv or parquet."""
    found = _read(path, kind)
    names = (label,) if isinstance(label, str) else label
    _named(found, names, path, task)
    taken = names if group is None else (*names, group)
    groups = None if group is None else _grouped(found, group, names, path)
    features = [_numbers(found, name, path, np.float32) for name in found.column_names if name not in taken]
    if not features:
        raise BadInput(f"{path} has no column beside {_listed(taken)}", "path")
    x = in_memory(np.stack(features, axis=1))
    if task == "classification":
        _whole(found, names[0], path)
        return labelled(x, np.asarray(found[names[0]].to_pylist()), task=task, groups=groups)
    if task == "multi-label" and len(names) == 1 and _is_text(found[names[0]].type):
        y, classes = _separated(found[names[0]].to_pylist(), separator)
        if not classes:
            raise BadInput(f"{path}: column `{names[0]}` names no class at all", "label")
        return labelled(x, y, task=task, names=classes, groups=groups)
    columns = [_numbers(found, name, path) for name in names]
    if task == "multi-label":
        for name, column in zip(names, columns, strict=True):
            if (odd := ~np.isin(column, (0, 1))).any():
                row = int(odd.argmax())
                raise BadInput(
                    f"{path}: column `{name}` has {column[row]:g} in row {row + 1} after the header: a class is 0 or 1",
                    "label",
                )
    return labelled(x, np.stack(columns, axis=1), task=task, names=names, groups=groups)


def _read(path: str, kind: str) -> Any:
    """A pyarrow table without two columns of one name."""
    if not Path(path).is_file():
        raise BadInput(f"there is no file {path}", "path")
    try:
        import pyarrow.csv
        import pyarrow.parquet
    except ImportError:
        raise BadInput('tables are read by pyarrow: pip install "fcurr[data]"') from None
    empty = pyarrow.csv.ConvertOptions(strings_can_be_null=True)  # a text that is not there is no label
    try:
        found = pyarrow.csv.read_csv(path, convert_options=empty) if kind == "csv" else pyarrow.parquet.read_table(path)
    except Exception as wrong:
        first = (str(wrong).splitlines() or [type(wrong).__name__])[0]
        raise BadInput(f"{path} is not a readable {kind} table: {first}", "path") from None
    if twice := {name for name in found.column_names if found.column_names.count(name) > 1}:
        raise BadInput(f"{path} has two columns `{min(twice)}`", "path")
    return found


def _named(found: Any, names: Sequence[str], path: str, task: Task) -> None:
    """Whether the columns of the labels are there, and are as many as the task has."""
    for name in names:
        if name not in found.column_names:
            raise BadInput(f"{path} has no column `{name}`; it has {', '.join(found.column_names)}", "label")
        if names.count(name) > 1:
            raise BadInput(f"column `{name}` is named twice", "label")
    if not names:
        raise BadInput("no column is named: a label is in one column or more", "label")
    if task == "classification" and len(names) > 1:
        raise BadInput(
            f"a class each is in one column, not in {_listed(names)}: "
            'a column a class is task = "multi-label", a column a target task = "regression"',
            "label",
        )


def _grouped(found: Any, group: str, labels: Sequence[str], path: str) -> NDArray[Any]:
    """[sample], whole numbers or texts."""
    if group not in found.column_names:
        raise BadInput(f"{path} has no column `{group}`; it has {', '.join(found.column_names)}", "group")
    if group in labels:
        raise BadInput(f"column `{group}` is the label already", "group")
    _whole(found, group, path)
    return np.asarray(found[group].to_pylist())


def _numbers(found: Any, name: str, path: str, dtype: DTypeLike = np.float64) -> NDArray[Any]:
    """[sample]."""
    from pyarrow import types

    _whole(found, name, path)
    kind = found[name].type
    if not any(is_kind(kind) for is_kind in (types.is_integer, types.is_floating, types.is_boolean)):
        raise BadInput(f"{path}: column `{name}` is {kind}, not numbers", "path")
    return np.asarray(found[name].to_numpy(), dtype=dtype)


def _whole(found: Any, name: str, path: str) -> None:
    if found[name].null_count:
        row = found[name].is_null().to_pylist().index(True) + 1
        raise BadInput(f"{path}: column `{name}` has no value in row {row} after the header", "path")


def _is_text(kind: Any) -> bool:
    from pyarrow import types

    kind = kind.value_type if types.is_dictionary(kind) else kind
    return types.is_string(kind) or types.is_large_string(kind)


def _separated(cells: Sequence[str | None], separator: str) -> tuple[NDArray[np.bool_], list[str]]:
    """[sample, class] and the classes in sorted order; a cell without text is no class."""
    sets = [{part.strip() for part in (cell or "").split(separator)} - {""} for cell in cells]
    classes = sorted(set[str]().union(*sets))
    y = np.zeros((len(sets), len(classes)), dtype=np.bool_)
    place = {name: number for number, name in enumerate(classes)}
    for row, names in zip(y, sets, strict=True):
        row[[place[name] for name in names]] = True
    return y, classes


def _listed(names: Sequence[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)
