"""Data sets from files, side by side: each gives samples, and labels that say the task.

`task` says what labels mean: a class each ("classification"), a set of classes each ("multi-label"), or numbers
("regression"). Classes without names are numbered in sorted order, and what they were called is kept. Small sets are
in memory, as float32; `mapped`, `images` and `hugging_face` read samples when they are taken. Any
torch.utils.data.Dataset becomes a data set by `fcurr.io.stored.from_torch`.
"""

import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from annotated_types import MinLen

from fcurr.errors import BadInput
from fcurr.io import columns, hugging, pictures, published, stored
from fcurr.io.labelled import in_memory, labelled
from fcurr.types import Dataset, Side, Task, Unit
from fcurr.types import Path as Name

Columns = Annotated[str | tuple[str, ...], Unit("name of a column, or list of such names")]
Column = Annotated[str, MinLen(1), Unit("name of a column")]
Array = Annotated[str, MinLen(1), Unit("name of an array")]
Separator = Annotated[str, MinLen(1), Unit("text between classes")]
Split = Annotated[str, MinLen(1), Unit("name of a split")]
Size = Annotated[tuple[Side, ...], Unit("size of pictures, [channel, height, width]")]


def digits() -> Dataset:
    """1,797 scans of handwritten digits, 1 x 8 x 8 in [0, 1], shipped in scikit-learn. Alpaydin and Kaynak (1998)."""
    found = _shipped("load_digits", "digits")
    return labelled(in_memory(found.images[:, None] / 16), found.target, task="classification")


def iris() -> Dataset:
    """150 flowers of 3 species, 4 lengths in cm, shipped in scikit-learn. Fisher (1936)."""
    return _classes("load_iris", "iris")


def wine() -> Dataset:
    """178 wines of 3 growers, 13 measurements in units of very different sizes, shipped in scikit-learn. Forina et al.
    (1991)."""
    return _classes("load_wine", "wine")


def breast_cancer() -> Dataset:
    """569 tumours, malignant or benign, 30 measurements in units of very different sizes, shipped in scikit-learn.
    Street, Wolberg and Mangasarian (1993)."""
    return _classes("load_breast_cancer", "breast_cancer")


def diabetes() -> Dataset:
    """442 patients, 10 measurements, each centred and of norm 1; the target is the progression of the disease after a
    year, 25 to 346. Shipped in scikit-learn. Efron et al. (2004)."""
    found = _shipped("load_diabetes", "diabetes")
    return labelled(in_memory(found.data), found.target, task="regression", names=("progression",))


def linnerud() -> Dataset:
    """20 men, counts of 3 exercises; the targets are weight, waist and pulse. Shipped in scikit-learn. Tenenhaus
    (1998)."""
    found = _shipped("load_linnerud", "linnerud")
    return labelled(in_memory(found.data), found.target, task="regression", names=tuple(found.target_names))


def npz(
    *, path: Name, x: Array = "x", y: Array = "y", task: Task = "classification", group: Array | None = None
) -> Dataset:
    """A NumPy archive with an array of samples and an array of labels, named `x` and `y` unless said otherwise; and
    one of groups, a whole number or a text each, if `group` names it.

    Labels are [sample] whole numbers or texts, a class each; [sample, class] true and false, or 1 and 0, multi-label;
    [sample] or [sample, target] numbers, regression.
    """
    if not Path(path).is_file():
        raise BadInput(f"there is no file {path}", "path")
    if not zipfile.is_zipfile(path):
        raise BadInput(f"{path} is not a .npz archive, which is a zip file", "path")
    try:
        with np.load(path, allow_pickle=False) as archive:
            for name in (x, y) if group is None else (x, y, group):
                if name not in archive:
                    raise BadInput(f"{path} has no array `{name}`; it has {', '.join(archive)}", "path")
            groups = None if group is None else archive[group]
            return labelled(in_memory(archive[x]), archive[y], task=task, groups=groups)
    except BadInput:
        raise
    except Exception as wrong:
        raise BadInput(f"{path} is not a readable .npz archive: {wrong}", "path") from None


def csv(
    *,
    path: Name,
    label: Columns = "label",
    task: Task = "classification",
    separator: Separator = ";",
    group: Column | None = None,
) -> Dataset:
    """A table as text, a header first: `label` names the column of the label, `group` that of a group, if there is one,
    and every other column is a feature.

    Regression: `label` names one column of numbers or more. Multi-label: columns of 1 and 0, a class each; or one
    column of texts, each a sample's classes with `separator` between them, and none where it is empty.
    """
    return columns.table(path, "csv", label=label, task=task, separator=separator, group=group)


def parquet(
    *,
    path: Name,
    label: Columns = "label",
    task: Task = "classification",
    separator: Separator = ";",
    group: Column | None = None,
) -> Dataset:
    """A table in Apache Parquet: `label` names the column of the label, `group` that of a group, if there is one, and
    every other column is a feature.

    Regression: `label` names one column of numbers or more. Multi-label: columns of 1 and 0, a class each; or one
    column of texts, each a sample's classes with `separator` between them, and none where it is empty.
    """
    return columns.table(path, "parquet", label=label, task=task, separator=separator, group=group)


def mapped(*, path: Name, x: Array = "x.npy", y: Array = "y.npy", task: Task = "classification") -> Dataset:
    """A folder with two NumPy arrays as .npy files; samples may be larger than memory and are read when they are taken.

    Samples [sample, ...] of bytes (uint8), as pictures are kept, are given as float32 divided by 255; other whole
    numbers, as tokens are, as int64; and all floating-point numbers as float32. Labels are read at once, as in `npz`.
    """
    return stored.mapped(path, x, y, task=task)


def images(*, path: Name, size: Size) -> Dataset:
    """A folder of pictures with a sub-folder a class, read when they are taken, as float32 in [0, 1].

    Every picture is resized to `size`, [channel, height, width], whatever its own sides are to one another; 1 channel
    is grey, 3 are red, green and blue. Classes are in the order of their folders' names.
    """
    return pictures.folder_of_classes(path, size=size)


def cifar10(*, path: Name) -> Dataset:
    """CIFAR-10, 3 x 32 x 32 in [0, 1], 10 classes: the first 50,000 are published to train, the last 10,000 to test.

    `path` is the folder of the binary version, with data_batch_1.bin. The Python version is pickle and is never read.
    Krizhevsky (2009).
    """
    return published.cifar(path, published.CIFAR10, label=0)


def cifar100(*, path: Name, label: Literal["fine", "coarse"] = "fine") -> Dataset:
    """CIFAR-100, 3 x 32 x 32 in [0, 1]: the first 50,000 are published to train, the last 10,000 to test.

    100 classes, or the 20 they belong to with `label` "coarse". `path` is the folder of the binary version, with
    train.bin. The Python version is pickle and is never read. Krizhevsky (2009).
    """
    return published.cifar(path, published.CIFAR100, label=("coarse", "fine").index(label))


def mnist(*, path: Name) -> Dataset:
    """MNIST, Fashion-MNIST or another in their four files, 1 x 28 x 28 in [0, 1], 10 classes.

    The first 60,000 are published to train, the last 10,000 to test. `path` is the folder with train-images-idx3-ubyte
    and the others, each as it is or as .gz. LeCun et al. (1998); Xiao, Rasul and Vollgraf (2017).
    """
    return published.idx_pictures(path)


def hugging_face(
    *,
    path: Name,
    x: Columns = "image",
    label: Columns = "label",
    size: Size | None = None,
    split: Split | None = None,
    task: Task = "classification",
) -> Dataset:
    """Local files read by Hugging Face's `datasets`, and never the network: a folder that save_to_disk wrote, or a file
    .parquet, .json, .jsonl or .csv. Samples are read when they are taken.

    `x` names a column of pictures, resized to `size` as in `images`; a column of numbers or of lists of one shape,
    given as in `mapped`; or several columns of a number each. `label` names the column of the label; several are
    targets, or classes as 1 and 0. `split` is one of several; without it all are taken, one after another.
    """
    return hugging.local(path, x=_names(x), label=_names(label), split=split, size=size, task=task)


def _names(names: str | tuple[str, ...]) -> Sequence[str]:
    return (names,) if isinstance(names, str) else names


def _classes(loader: str, title: str) -> Dataset:
    found = _shipped(loader, title)
    names = [str(name) for name in found.target_names]
    return labelled(in_memory(found.data), found.target, task="classification", names=names)


def _shipped(loader: str, title: str) -> Any:
    try:
        from sklearn import datasets
    except ImportError:
        raise BadInput(f'{title} come with scikit-learn: pip install "fcurr[data]"') from None
    return getattr(datasets, loader)()
