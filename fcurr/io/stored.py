"""Samples that are not in memory: memory-mapped arrays, and any torch.utils.data.Dataset."""

import hashlib
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils import data as torch_data

from fcurr.errors import BadInput
from fcurr.io.labelled import has_features, labelled
from fcurr.types import Dataset, Task


def as_samples(array: NDArray[Any]) -> Tensor:
    """The numbers a model is given: bytes (uint8) as float32 divided by 255, other whole numbers as int64, and all else
    as float32."""
    if array.dtype == np.uint8:
        return torch.from_numpy(np.require(array, requirements=["C", "W"])).to(torch.float32).div_(255)
    kind = np.int64 if array.dtype.kind in "iu" else np.float32
    return torch.from_numpy(np.require(array, kind, ["C", "W"]))


def dtype_of(kind: np.dtype[Any]) -> torch.dtype:
    """The dtype of `as_samples`."""
    if kind.kind not in "fiub":
        raise BadInput(f"samples are {kind}, not numbers")
    return torch.int64 if kind.kind in "iu" and kind != np.uint8 else torch.float32


def identity(files: Iterable[Path], *, folder: Path, also: object = ()) -> str:
    """A digest of files' names in the folder, sizes and times, and of what else the samples depend on."""
    digest = hashlib.sha256(repr(also).encode())
    for file in files:
        found = file.stat()
        digest.update(f"\n{file.relative_to(folder).as_posix()} {found.st_size} {found.st_mtime_ns}".encode())
    return digest.hexdigest()


@dataclass(frozen=True, eq=False)
class Mapped:
    """Rows of an array in a file, which is read where it is indexed."""

    array: NDArray[Any]  # [sample, ...], memory-mapped
    identity: str

    @property
    def shape(self) -> tuple[int, ...]:
        return self.array.shape

    @property
    def dtype(self) -> torch.dtype:
        return dtype_of(self.array.dtype)

    def __getitem__(self, ids: Tensor, /) -> Tensor:
        return as_samples(np.asarray(self.array[ids.cpu().numpy()])).to(ids.device)


def mapped(path: str, x: str, y: str, *, task: Task) -> Dataset:
    """The folder's array file `x` memory-mapped, its array file `y` read."""
    folder = Path(path)
    if not folder.is_dir():
        raise BadInput(f"there is no folder {path}", "path")
    samples, labels = _array(folder / x, "x", lazily=True), _array(folder / y, "y", lazily=False)
    dtype_of(samples.dtype)
    has_features(samples.shape)
    rows = Mapped(samples, identity([folder / x], folder=folder))
    return labelled(rows, labels, task=task)


def _array(file: Path, key: str, lazily: bool) -> NDArray[Any]:
    if not file.is_file():
        raise BadInput(f"there is no file {file}", key)
    try:
        return np.load(file, mmap_mode="r" if lazily else None, allow_pickle=False)
    except Exception as wrong:
        first = (str(wrong).splitlines() or [type(wrong).__name__])[0]
        raise BadInput(f"{file} is not a readable .npy array, or not all of it is there: {first}", key) from None


@dataclass(frozen=True, eq=False)
class Items:
    """Rows of a torch data set of pairs, one call a sample."""

    dataset: Any
    shape: tuple[int, ...]
    dtype: torch.dtype
    identity: str
    lock: threading.Lock = field(default_factory=threading.Lock)  # batches may be fetched by several threads

    def __getitem__(self, ids: Tensor, /) -> Tensor:
        with self.lock:
            rows = [_sample(self.dataset[place], place, self.shape[1:]) for place in ids.flatten().tolist()]
        x = torch.stack(rows) if rows else torch.empty(0, *self.shape[1:], dtype=self.dtype)
        return x.reshape(*ids.shape, *self.shape[1:]).to(ids.device)


def from_torch(
    dataset: Any, *, task: Task = "classification", classes: Sequence[str] = (), groups: Sequence[int | str] = ()
) -> Dataset:
    """Any torch.utils.data.Dataset with places and a length whose items are pairs (x, y), read where it is indexed.

    Every item is read once here, for its label and for the identity of the samples, which is a digest of them all.
    `classes` are names of the classes, by number; without them labels are numbered in sorted order. `groups` are one
    an item, or none. Items must be the same each time they are read: a random transform is refused where it shows, and
    belongs into an augmentation. x is anything torch.as_tensor takes, of one shape: bytes become float32 divided by
    255, other whole numbers int64, and all else float32.
    """
    if isinstance(dataset, torch_data.IterableDataset) or not (
        hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")
    ):
        raise BadInput(f"{type(dataset).__name__} has no places and no length: a map-style data set has")
    if len(dataset) == 0:
        raise BadInput(f"{type(dataset).__name__} has no samples")
    first = _sample(dataset[0], 0)
    if not torch.equal(first, _sample(dataset[0], 0)):
        raise BadInput(
            "sample 0 is another when it is read again: what is random belongs into an augmentation, "
            "which is a function of the run's key"
        )
    shape = (len(dataset), *first.shape)
    has_features(shape)
    digest, y = hashlib.sha256(f"{len(dataset)} {list(first.shape)} {first.dtype}".encode()), []
    for place in range(len(dataset)):
        item = dataset[place]
        digest.update(_sample(item, place, tuple(first.shape)).contiguous().view(torch.uint8).numpy().data)
        y.append(np.asarray(item[1]))
    if len({label.shape for label in y}) > 1:
        raise BadInput("labels are not all of one shape")
    rows = Items(dataset, shape, first.dtype, digest.hexdigest())
    return labelled(rows, np.stack(y), task=task, names=classes, groups=np.asarray(groups) if len(groups) else None)


def _sample(item: Any, place: int, shape: tuple[int, ...] | None = None) -> Tensor:
    """x of a pair (x, y)."""
    if not isinstance(item, tuple | list) or len(item) != 2:
        raise BadInput(f"item {place} is not a pair (x, y) but a {type(item).__name__}")
    try:
        x = as_samples(torch.as_tensor(item[0]).detach().cpu().numpy())
    except (TypeError, ValueError, RuntimeError) as wrong:
        raise BadInput(f"x of item {place} is a {type(item[0]).__name__}, which is no tensor: {wrong}") from None
    if shape is not None and tuple(x.shape) != shape:
        raise BadInput(f"x of item {place} has shape {list(x.shape)}, of item 0 {list(shape)}: one shape is right")
    return x
