"""The file formats in which CIFAR and MNIST were published."""

import gzip
import math
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fcurr.errors import BadInput
from fcurr.io.labelled import labelled
from fcurr.io.stored import as_samples
from fcurr.types import Dataset

_PIXELS = 3 * 32 * 32


class Cifar(NamedTuple):
    """Files of records: a byte a label, then 3 x 32 x 32 bytes, red, green, blue."""

    title: str
    archive: str  # the binary version, as it is published
    files: tuple[str, ...]  # training first
    pickles: tuple[str, ...]  # what the Python version has instead
    labels: tuple[int, ...]  # how many classes each label byte has
    names: tuple[str, ...]  # files with a class name a line, one a label byte


CIFAR10 = Cifar(
    title="CIFAR-10",
    archive="cifar-10-binary.tar.gz",
    files=(*(f"data_batch_{number}.bin" for number in range(1, 6)), "test_batch.bin"),
    pickles=("data_batch_1", "test_batch", "batches.meta"),
    labels=(10,),
    names=("batches.meta.txt",),
)
CIFAR100 = Cifar(
    title="CIFAR-100",
    archive="cifar-100-binary.tar.gz",
    files=("train.bin", "test.bin"),
    pickles=("train", "test", "meta"),
    labels=(20, 100),
    names=("coarse_label_names.txt", "fine_label_names.txt"),
)


def cifar(path: str, kind: Cifar, *, label: int) -> Dataset:
    """All files of the folder, one after another; `label` says which label byte counts."""
    folder = _folder(path)
    for file in kind.files:
        if not (folder / file).is_file():
            raise BadInput(f"{path} {_instead(folder, file, kind)}", "path")
    parts = [_records(folder / file, kind) for file in kind.files]
    sizes = [len(part) for part in parts]
    if kind is CIFAR10 and len(set(sizes)) > 1:
        most = max(sizes, key=sizes.count)
        odd = next(number for number, size in enumerate(sizes) if size != most)
        raise BadInput(f"{folder / kind.files[odd]} has {sizes[odd]} pictures, and other files {most}", "path")
    whole = np.concatenate(parts)
    x = as_samples(whole[:, len(kind.labels) :].reshape(-1, 3, 32, 32))
    names = _names(folder / kind.names[label], kind.labels[label])
    return labelled(x, whole[:, label].astype(np.int64), task="classification", names=names)


def _instead(folder: Path, file: str, kind: Cifar) -> str:
    if found := [name for name in kind.pickles if (folder / name).is_file()]:
        return (
            f"holds `{found[0]}`, of the Python version of {kind.title}, which is pickle and is never read: "
            f"the binary version, {kind.archive}, has {file}"
        )
    return f"has no {file}; it is the folder that {kind.archive} unpacks to"


def _records(file: Path, kind: Cifar) -> NDArray[np.uint8]:
    """[picture, label bytes and pixels]."""
    length = len(kind.labels) + _PIXELS
    found = np.fromfile(file, dtype=np.uint8)
    if len(found) == 0 or len(found) % length:
        raise BadInput(
            f"{file} has {len(found)} bytes, which are no whole pictures of {kind.title} of {length} bytes each", "path"
        )
    found = found.reshape(-1, length)
    for place, classes in enumerate(kind.labels):
        if (bad := found[:, place] >= classes).any():
            at = int(bad.argmax())
            raise BadInput(
                f"{file}: picture {at} has label {found[at, place]}, and there are {classes} classes", "path"
            )
    return found


def _names(file: Path, count: int) -> list[str]:
    """A name a line; the numbers, where there is no such file."""
    if not file.is_file():
        return [str(number) for number in range(count)]
    names = file.read_text(encoding="utf-8", errors="replace").split()
    if len(names) != count:
        raise BadInput(f"{file} has {len(names)} names for {count} classes", "path")
    return names


MNIST_FILES = (
    ("train-images-idx3-ubyte", "t10k-images-idx3-ubyte"),
    ("train-labels-idx1-ubyte", "t10k-labels-idx1-ubyte"),
)
_DIGITS = 10


def idx_pictures(path: str) -> Dataset:
    """Pictures and labels of the folder's four files, training first."""
    folder = _folder(path)
    x, y = ([_idx(folder, name) for name in names] for names in MNIST_FILES)
    for pictures, labels, name in zip(x, y, MNIST_FILES[1], strict=True):
        if len(pictures) != len(labels):
            raise BadInput(f"{folder / name} has {len(labels)} labels for {len(pictures)} pictures", "path")
        if (bad := labels >= _DIGITS).any():
            at = int(bad.argmax())
            raise BadInput(f"{folder / name}: label {at} is {labels[at]}, and there are {_DIGITS} classes", "path")
    if x[0].shape[1:] != x[1].shape[1:]:
        raise BadInput(
            f"{path}: pictures to train are {list(x[0].shape[1:])}, to test {list(x[1].shape[1:])}: one size is right",
            "path",
        )
    names = [str(number) for number in range(_DIGITS)]
    samples = as_samples(np.concatenate(x)[:, None])
    return labelled(samples, np.concatenate(y).astype(np.int64), task="classification", names=names)


def _idx(folder: Path, name: str) -> NDArray[np.uint8]:
    """A file of unsigned bytes: two bytes 0, 8, the number of axes, their lengths as big-endian int32, the bytes."""
    axes = int(name.split("-idx")[1][0])
    file = next((f for f in (folder / name, folder / f"{name}.gz") if f.is_file()), None)
    if file is None:
        raise BadInput(f"{folder} has no {name}, nor {name}.gz", "path")
    opened: Any = gzip.open if file.suffix == ".gz" else open
    data = bytearray()
    try:
        with opened(file, "rb") as stream:
            magic, header = stream.read(4), stream.read(4 * axes)
            lengths = [int(length) for length in np.frombuffer(header[: len(header) // 4 * 4], dtype=">u4")]
            while len(data) <= math.prod(lengths) and (piece := stream.read(2**20)):  # a wrong header may say anything
                data += piece
    except (OSError, EOFError, zlib.error) as wrong:
        raise BadInput(f"{file} is not readable: {wrong}", "path") from None
    if magic != bytes((0, 0, 8, axes)):
        raise BadInput(
            f"{file} begins with {magic.hex(' ') or 'nothing'}, and not with 00 00 08 {axes:02x}, "
            f"as an IDX file of bytes with {axes} {'axis' if axes == 1 else 'axes'} does",
            "path",
        )
    if len(lengths) < axes:
        raise BadInput(f"{file} ends inside its header", "path")
    if len(data) != math.prod(lengths):
        much = f"only {len(data)}" if len(data) < math.prod(lengths) else "more"
        raise BadInput(f"{file} says that it holds {' x '.join(map(str, lengths))} bytes, and has {much}", "path")
    return np.frombuffer(data, dtype=np.uint8).reshape(lengths)


def _folder(path: str) -> Path:
    if not Path(path).is_dir():
        raise BadInput(f"there is no folder {path}", "path")
    return Path(path)
