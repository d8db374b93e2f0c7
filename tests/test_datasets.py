"""Data sets from files: what is read is what was written, and what cannot be read is said in words."""

import gzip
import inspect
import os
import pickle
import random
import struct
import threading
import tracemalloc
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.csv
import pyarrow.parquet
import pytest
import sklearn.datasets
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor
from torch.utils.data import IterableDataset, TensorDataset
from worlds import public

from fcurr.errors import BadInput
from fcurr.io import datasets, published
from fcurr.io.stored import Mapped, from_torch
from fcurr.types import Dataset

numpy_rng = partial(np.random.default_rng, 0)


def said(read, folder: Path) -> tuple[str, str]:
    """The words of a BadInput, with the folder as ~, and the key they belong to."""
    with pytest.raises(BadInput) as raised:
        read()
    return str(raised.value).replace(str(folder), "~"), raised.value.where


def everything(data: Dataset) -> Tensor:
    return data.x[torch.arange(len(data.y))]


def assert_is_indexed_as_a_tensor(data: Dataset) -> None:
    whole, size = everything(data), len(data.y)
    assert tuple(data.x.shape) == tuple(whole.shape) and data.x.dtype == whole.dtype
    generator = torch.Generator().manual_seed(0)
    for shape in ((), (1,), (7,), (2, 3), (2, 1, 3)):
        ids = torch.randint(size, shape, generator=generator)
        assert torch.equal(data.x[ids], whole[ids]), shape
    some = data.part(torch.arange(size).flip(0))
    assert torch.equal(some.take(torch.tensor([0, 1])).x, whole.flip(0)[:2])


# What comes with scikit-learn


@pytest.mark.parametrize("name", ["iris", "wine", "breast_cancer", "diabetes", "linnerud"])
def test_the_sets_of_scikit_learn_are_given_as_they_are(name):
    data, right = getattr(datasets, name)(), getattr(sklearn.datasets, f"load_{name}")()
    np.testing.assert_array_equal(everything(data).numpy(), right.data.astype(np.float32))
    np.testing.assert_array_equal(data.y.numpy().squeeze(), right.target.astype(data.y.numpy().dtype).squeeze())
    if name == "diabetes":
        assert (data.task, data.y.shape, data.classes) == ("regression", (442, 1), ("progression",))
    elif name == "linnerud":
        assert (data.task, data.y.shape, data.classes) == ("regression", (20, 3), ("Weight", "Waist", "Pulse"))
    else:
        assert data.task == "classification" and data.classes == tuple(right.target_names)


def test_digits_are_pictures_in_0_to_1():
    data, right = datasets.digits(), sklearn.datasets.load_digits()
    assert data.x.shape == (1797, 1, 8, 8) and data.classes == tuple("0123456789")
    np.testing.assert_array_equal(everything(data).numpy()[:, 0] * 16, right.images)


# Arrays


@pytest.mark.parametrize(
    "y, task, right, classes",
    [
        (np.array([3, 1, 3, 7]), "classification", [1, 0, 1, 2], ("1", "3", "7")),
        (np.array([3.0, 1.0, 3.0, 7.0]), "classification", [1, 0, 1, 2], ("1", "3", "7")),
        (np.array(["b", "a", "b", "c"]), "classification", [1, 0, 1, 2], ("a", "b", "c")),
        (np.eye(4, 2, dtype=bool), "multi-label", np.eye(4, 2, dtype=bool), ("0", "1")),
        (np.eye(4, 2), "multi-label", np.eye(4, 2, dtype=bool), ("0", "1")),
        (np.array([0.5, 1, -2, 3]), "regression", [[0.5], [1], [-2], [3]], ("0",)),
        (np.arange(8).reshape(4, 2), "regression", [[0, 1], [2, 3], [4, 5], [6, 7]], ("0", "1")),
    ],
)
def test_the_labels_of_arrays_mean_what_the_task_says(y, task, right, classes, tmp_path):
    x = numpy_rng().normal(size=(4, 2, 3))
    np.savez(tmp_path / "data.npz", x=x, y=y)
    np.save(tmp_path / "x.npy", x)
    np.save(tmp_path / "y.npy", y)
    for data in (
        datasets.npz(path=f"{tmp_path}/data.npz", task=task),
        datasets.mapped(path=str(tmp_path), task=task),
        from_torch(TensorDataset(torch.tensor(x), torch.tensor(y)), task=task) if y.dtype.kind != "U" else None,
    ):
        if data is not None:
            assert data.task == task and data.classes == classes and data.features == (2, 3)
            np.testing.assert_array_equal(data.y.numpy(), np.asarray(right, dtype=data.y.numpy().dtype))
            np.testing.assert_array_equal(everything(data).numpy(), x.astype(np.float32))


LABELS = [
    ([0, 1], "classification", "3 samples do not fit labels of shape [2]"),
    (0, "classification", "3 samples do not fit labels of shape []"),
    (
        [[0, 1]] * 3,
        "classification",
        "labels of shape [3, 2] are not a class each, [3]: "
        'sets of classes are task = "multi-label", numbers task = "regression"',
    ),
    ([1j, 2, 3], "classification", "labels are complex128: a label is a whole number or a text"),
    (
        [0.5, 1, 2],
        "classification",
        "labels are fractions, or not finite: a label is a whole number or a text; "
        'finite numbers of any kind are task = "regression"',
    ),
    ([0, 1, 1], "multi-label", "labels of shape [3] are not sets of classes: [sample, class] is right"),
    (
        [[0, 2]] * 3,
        "multi-label",
        "labels that are sets of classes are 0 or 1, or false or true, and these are not",
    ),
    (np.ones((3, 1, 1)), "regression", "targets of shape [3, 1, 1] are not [sample] or [sample, target]"),
    (["a", "b", "c"], "regression", "targets are <U1, not numbers"),
    ([1, np.nan, np.inf], "regression", "the target of sample 1 is not a finite number of float32 (2 are not)"),
    ([1, 2, 1e300], "regression", "the target of sample 2 is not a finite number of float32 (1 are not)"),
]


@pytest.mark.parametrize("y, task, words", LABELS, ids=str)
def test_labels_that_do_not_fit_are_named(y, task, words, tmp_path):
    np.savez(tmp_path / "data.npz", x=np.ones((3, 2)), y=np.asarray(y))
    assert said(lambda: datasets.npz(path=f"{tmp_path}/data.npz", task=task), tmp_path) == (words, "")


@pytest.mark.parametrize(
    "x, words",
    [
        (np.ones(3), "samples of shape [] have no features: [sample, feature, ...] is right"),
        (np.ones((3, 2, 0)), "samples of shape [2, 0] have no features: [sample, feature, ...] is right"),
        (np.array([["a"]] * 3), "samples are <U1, not numbers"),
    ],
)
def test_samples_that_are_no_samples_are_named(x, words, tmp_path):
    np.savez(tmp_path / "data.npz", x=x, y=np.arange(3))
    np.save(tmp_path / "x.npy", x)
    np.save(tmp_path / "y.npy", np.arange(3))
    assert said(lambda: datasets.npz(path=f"{tmp_path}/data.npz"), tmp_path)[0] == words
    assert said(lambda: datasets.mapped(path=str(tmp_path)), tmp_path)[0] == words


def written_arrays(folder: Path, x: np.ndarray, y: np.ndarray | None = None) -> str:
    np.save(folder / "x.npy", x)
    np.save(folder / "y.npy", np.arange(len(x)) % 2 if y is None else y)
    return str(folder)


@pytest.mark.parametrize(
    "kind, dtype, factor",
    [
        ("u1", torch.float32, 1 / 255),
        ("f2", torch.float32, 1),
        ("f4", torch.float32, 1),
        (">f4", torch.float32, 1),
        ("f8", torch.float32, 1),
        ("?", torch.float32, 1),
        ("i8", torch.int64, 1),
        (">i4", torch.int64, 1),
        ("u2", torch.int64, 1),
        ("i1", torch.int64, 1),
    ],
)
def test_mapped_bytes_are_in_0_to_1_other_whole_numbers_stay_whole_and_the_rest_is_float32(
    kind, dtype, factor, tmp_path
):
    x = numpy_rng().integers(0, 127, (20, 2, 3)).astype(kind)
    data = datasets.mapped(path=written_arrays(tmp_path, x))
    assert isinstance(data.x, Mapped) and data.x.dtype == dtype
    assert_is_indexed_as_a_tensor(data)
    np.testing.assert_allclose(everything(data).numpy(), x.astype(np.float64) * factor, rtol=1e-7)


def test_mapped_samples_may_be_larger_than_memory_and_only_those_that_are_taken_are_read(tmp_path):
    shape = (70_000, 3, 1000, 1000)  # 210 GB, in a file that has holes
    large = np.lib.format.open_memmap(tmp_path / "x.npy", mode="w+", dtype=np.uint8, shape=shape)
    large[69_999] = 255
    del large
    np.save(tmp_path / "y.npy", np.arange(70_000) % 2)
    if (tmp_path / "x.npy").stat().st_blocks > 2**24:
        pytest.skip("files have no holes here")
    data = datasets.mapped(path=str(tmp_path))
    tracemalloc.start()
    batch = data.take(torch.tensor([[69_999, 0], [5, 69_999]]))
    assert tracemalloc.get_traced_memory()[1] < 2**24
    tracemalloc.stop()
    (tmp_path / "x.npy").unlink()
    assert batch.x.mean((2, 3, 4)).tolist() == [[1, 0], [0, 1]] and batch.y.tolist() == [[1, 0], [1, 1]]


def test_arrays_that_cannot_be_mapped_are_named(tmp_path):
    read = partial(datasets.mapped, path=str(tmp_path))
    assert said(partial(datasets.mapped, path=f"{tmp_path}/no"), tmp_path) == ("there is no folder ~/no", "path")
    assert said(read, tmp_path) == ("there is no file ~/x.npy", "x")
    written_arrays(tmp_path, np.ones((9, 4)))
    assert said(partial(read, y="z.npy"), tmp_path) == ("there is no file ~/z.npy", "y")
    torn = "is not a readable .npy array, or not all of it is there: "
    for name in ("x", "y"):
        whole = (tmp_path / f"{name}.npy").read_bytes()
        for broken in (whole[:-8], whole[:20], b"", b"nothing of the kind"):
            (tmp_path / f"{name}.npy").write_bytes(broken)
            words, where = said(read, tmp_path)
            assert words.startswith(f"~/{name}.npy {torn}") and where == name
        (tmp_path / f"{name}.npy").write_bytes(whole)
    np.save(tmp_path / "x.npy", np.array([{}] * 9), allow_pickle=True)
    assert said(read, tmp_path)[0].startswith(f"~/x.npy {torn}")
    np.save(tmp_path / "y.npy", np.array([{}] * 9), allow_pickle=True)
    np.save(tmp_path / "x.npy", np.ones((9, 4)))
    assert said(read, tmp_path)[0].startswith(f"~/y.npy {torn}")


def test_the_identity_of_files_follows_their_sizes_and_times_and_not_the_folder(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        written_arrays(tmp_path / name, np.ones((4, 2)))
        os.utime(tmp_path / name / "x.npy", ns=(1, 10**18))
    one, other = (datasets.mapped(path=f"{tmp_path}/{name}").x.identity for name in ("a", "b"))
    assert one == other == datasets.mapped(path=f"{tmp_path}/a").x.identity
    os.utime(tmp_path / "b/x.npy", ns=(1, 10**18 + 1))
    assert datasets.mapped(path=f"{tmp_path}/b").x.identity != one
    np.save(tmp_path / "b/x.npy", np.ones((4, 3)))
    os.utime(tmp_path / "b/x.npy", ns=(1, 10**18))
    assert datasets.mapped(path=f"{tmp_path}/b").x.identity != one


# Tables

ROWS = {"a": [1.5, 2, 3, 4], "t": [0.25, 1, 2, 3], "b": [1, 0, 0, 1], "u": [0, 1, 0, 1], "label": ["y", "x", "y", "z"]}


def written_table(folder: Path, kind: str, columns: dict = ROWS) -> str:
    path, table = folder / f"data.{kind}", pyarrow.table(columns)
    (pyarrow.csv.write_csv if kind == "csv" else pyarrow.parquet.write_table)(table, path)
    return str(path)


every_kind = pytest.mark.parametrize("kind", ["csv", "parquet"])


@every_kind
def test_a_table_has_a_class_each_sets_of_classes_or_targets_in_the_columns_named(kind, tmp_path):
    read = partial(getattr(datasets, kind), path=written_table(tmp_path, kind))
    classes = read()
    assert classes.y.tolist() == [1, 0, 1, 2] and classes.classes == ("x", "y", "z") and classes.features == (4,)
    path = written_table(tmp_path, kind, {name: rows for name, rows in ROWS.items() if name != "label"})
    read = partial(getattr(datasets, kind), path=path)
    targets = read(label=("t", "a"), task="regression")
    assert targets.task == "regression" and targets.classes == ("t", "a")
    assert targets.y.tolist() == [[0.25, 1.5], [1, 2], [2, 3], [3, 4]]
    assert everything(targets).tolist() == [[1, 0], [0, 1], [0, 0], [1, 1]]
    assert read(label="t", task="regression").y.tolist() == [[0.25], [1], [2], [3]]
    sets = read(label=("b", "u"), task="multi-label")
    assert sets.task == "multi-label" and sets.classes == ("b", "u")
    assert sets.y.tolist() == [[True, False], [False, True], [False, False], [True, True]]
    assert read(label="b", task="multi-label").y.tolist() == [[True], [False], [False], [True]]


@every_kind
@pytest.mark.parametrize("separator", [";", ", ", "|"])
def test_the_classes_of_a_sample_may_be_one_text(kind, separator, tmp_path):
    texts = ["rock" + separator + "jazz", None, "jazz", separator + "folk" + separator + " rock "]
    path = written_table(tmp_path, kind, {"a": [1, 2, 3, 4], "label": texts})
    data = getattr(datasets, kind)(path=path, task="multi-label", separator=separator)
    assert data.classes == ("folk", "jazz", "rock") and data.task == "multi-label"
    assert data.y.int().tolist() == [[0, 1, 1], [0, 0, 0], [0, 1, 0], [1, 0, 1]]


def test_texts_that_parquet_keeps_as_a_dictionary_are_texts(tmp_path):
    column = pyarrow.array(["p;q", "q", "p"]).dictionary_encode()
    path = written_table(tmp_path, "parquet", {"a": [1, 2, 3], "label": column})
    assert datasets.parquet(path=path, task="multi-label").classes == ("p", "q")
    assert datasets.parquet(path=path).classes == ("p", "p;q", "q")


@every_kind
def test_columns_that_do_not_fit_are_named(kind, tmp_path):
    path = written_table(tmp_path, kind, {**ROWS, "hole": [1.0, None, 2, 3]})
    read, file = partial(getattr(datasets, kind), path=path), f"~/data.{kind}"
    listed = "a, t, b, u, label, hole"
    cases = [
        ({}, f"{file}: column `hole` has no value in row 2 after the header", "path"),
        ({"label": ("a", "c"), "task": "regression"}, f"{file} has no column `c`; it has {listed}", "label"),
        ({"label": ("a", "a"), "task": "regression"}, "column `a` is named twice", "label"),
        ({"label": (), "task": "regression"}, "no column is named: a label is in one column or more", "label"),
        (
            {"label": ("a", "b")},
            "a class each is in one column, not in `a`, `b`: "
            'a column a class is task = "multi-label", a column a target task = "regression"',
            "label",
        ),
        (
            {"label": ("hole",), "task": "regression"},
            f"{file}: column `label` is string, not numbers",
            "path",
        ),
    ]
    for given_, words, where in cases:
        assert said(partial(read, **given_), tmp_path) == (words, where)
    whole = partial(
        getattr(datasets, kind), path=written_table(tmp_path, kind, {k: v for k, v in ROWS.items() if k != "label"})
    )
    cases = [
        (
            {"label": ("b", "a"), "task": "multi-label"},
            f"{file}: column `a` has 1.5 in row 1 after the header: a class is 0 or 1",
            "label",
        ),
        ({"label": tuple("atbu"), "task": "regression"}, f"{file} has no column beside `a`, `t`, `b`, `u`", "path"),
    ]
    for given_, words, where in cases:
        assert said(partial(whole, **given_), tmp_path) == (words, where)
    empty = written_table(tmp_path, kind, {"a": [1, 2], "label": [";", " ; "]})
    words = said(partial(getattr(datasets, kind), path=empty, task="multi-label"), tmp_path)
    assert words == (f"{file}: column `label` names no class at all", "label")


# Pictures


def written_pictures(folder: Path, pictures: dict[str, np.ndarray]) -> str:
    for name, pixels in pictures.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / name)
    return str(folder)


def test_a_folder_of_pictures_has_a_class_a_sub_folder(tmp_path):
    colours = numpy_rng().integers(0, 256, (5, 6, 4, 3), dtype=np.uint8)
    names = ["dog/1.png", "cat/b.bmp", "cat/A.PNG", "cat/deep/c.ppm", "owl/.hidden.png"]
    path = written_pictures(tmp_path, dict(zip(names, colours, strict=True)))
    (tmp_path / "cat/notes.txt").write_text("not a picture")
    (tmp_path / "read me.txt").write_text("not a picture")
    (tmp_path / ".cache").mkdir()
    (tmp_path / "owl/o.png").write_bytes((tmp_path / "dog/1.png").read_bytes())
    data = datasets.images(path=path, size=(3, 6, 4))
    assert data.classes == ("cat", "dog", "owl") and data.y.tolist() == [0, 0, 0, 1, 2]
    assert_is_indexed_as_a_tensor(data)
    right = colours[[2, 1, 3, 0, 0]].transpose(0, 3, 1, 2).astype(np.float32) / 255
    np.testing.assert_array_equal(everything(data).numpy(), right)


def test_pictures_are_resized_and_made_grey_or_coloured(tmp_path):
    ramp = np.repeat(np.arange(0, 256, 4, dtype=np.uint8)[None], 32, axis=0)  # 32 x 64, dark to light
    path = written_pictures(
        tmp_path, {"a/1.png": ramp, "a/2.png": np.stack([ramp, ramp, ramp], 2), "b/3.png": ramp > 99}
    )
    grey, coloured = (datasets.images(path=path, size=(channels, 8, 16)) for channels in (1, 3))
    assert grey.features == (1, 8, 16) and coloured.features == (3, 8, 16)
    one, same, edge = everything(grey)
    torch.testing.assert_close(one, same)
    means = torch.tensor(ramp.astype(np.float32)).reshape(8, 4, 16, 4).mean((1, 3)) / 255
    torch.testing.assert_close(one[0, :, 1:-1], means[:, 1:-1], atol=1.5 / 255, rtol=0)  # a ramp's mean is its middle
    assert set(edge.flatten().tolist()) >= {0.0, 1.0}
    assert torch.equal(everything(coloured)[0], one.expand(3, 8, 16))
    assert grey.x.identity != coloured.x.identity


def test_palettes_transparency_and_grey_with_alpha_are_read_as_colours(tmp_path):
    colour = np.zeros((4, 4, 3), dtype=np.uint8)
    colour[..., 0] = 255
    picture = Image.fromarray(colour)
    (tmp_path / "a").mkdir()
    picture.convert("P").save(tmp_path / "a/1.png")
    picture.convert("P").save(tmp_path / "a/2.png", transparency=b"\x00\x80")
    picture.convert("RGBA").save(tmp_path / "a/3.png")
    picture.convert("L").convert("LA").save(tmp_path / "a/4.png")
    found = everything(datasets.images(path=str(tmp_path), size=(3, 4, 4)))
    for one in found[:3]:
        assert torch.equal(one.mean((1, 2)), torch.tensor([1.0, 0.0, 0.0]))
    assert found[3].std() < 1e-6


def test_pictures_that_cannot_be_read_are_named(tmp_path):
    read = partial(datasets.images, size=(3, 4, 4))
    assert said(partial(read, path=f"{tmp_path}/no"), tmp_path) == ("there is no folder ~/no", "path")
    (tmp_path / "set").mkdir()
    path = f"{tmp_path}/set"
    assert said(partial(read, path=path), tmp_path) == ("~/set has no sub-folders: one a class is right", "path")
    (tmp_path / "set/a").mkdir()
    words, where = said(partial(read, path=path), tmp_path)
    assert words.startswith("~/set/a has no pictures; their names end in .png, .jpg, ") and where == "path"
    pixels = numpy_rng().integers(0, 256, (40, 40, 3), dtype=np.uint8)
    written_pictures(tmp_path / "set", {"a/1.png": pixels, "a/2.jpg": pixels, "a/3.png": pixels})
    for size in ((3, 4), (2, 4, 4), (3, 4, 4, 4), ()):
        words = f"{list(size)} is not a size of pictures: [channel, height, width], 1 channel or 3"
        assert said(partial(read, path=path, size=size), tmp_path) == (words, "size")
    (tmp_path / "set/a/1.png").write_bytes((tmp_path / "set/a/1.png").read_bytes()[:1000])
    (tmp_path / "set/a/2.jpg").write_text("no picture")
    Image.fromarray(np.full((4, 4), 1000, dtype=np.uint16)).save(tmp_path / "set/a/3.png")
    data = read(path=path)
    assert said(lambda: data.x[torch.tensor([0])], tmp_path)[0].startswith("~/set/a/1.png is not a readable picture: ")
    assert said(lambda: data.x[torch.tensor(1)], tmp_path)[0] == "~/set/a/2.jpg is not a picture that Pillow knows"
    words = "~/set/a/3.png is not a readable picture: a picture of mode I;16 has more than 8 bits a channel"
    assert said(lambda: data.take(torch.tensor([[2]])), tmp_path)[0] == words
    written_pictures(tmp_path / "set", {"loose.png": pixels})
    words = "~/set: loose.png lies in no class: a sub-folder a class is right"
    assert said(partial(read, path=path), tmp_path) == (words, "path")


# The formats of CIFAR and MNIST


def written_cifar(folder: Path, kind: published.Cifar, pictures: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """Files of random pictures, byte for byte as the format is described; pixels and labels of them all."""
    source, x, y = random.Random(0), [], []
    for name in kind.files:
        records = []
        for _ in range(pictures):
            labels = bytes(source.randrange(classes) for classes in kind.labels)
            pixels = source.randbytes(3072)
            records.append(labels + pixels)
            x.append(
                [
                    [[pixels[c * 1024 + row * 32 + column] for column in range(32)] for row in range(32)]
                    for c in range(3)
                ]
            )
            y.append(list(labels))
        (folder / name).write_bytes(b"".join(records))
    return np.array(x), np.array(y)


def test_cifar10_is_read_from_its_binary_files_training_first(tmp_path):
    x, y = written_cifar(tmp_path, published.CIFAR10)
    data = datasets.cifar10(path=str(tmp_path))
    np.testing.assert_array_equal(everything(data).numpy(), x.astype(np.float32) / 255)
    assert data.y.tolist() == y[:, 0].tolist() and data.classes == tuple("0123456789")
    names = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
    (tmp_path / "batches.meta.txt").write_text("\n".join(names) + "\n\n")
    assert datasets.cifar10(path=str(tmp_path)).classes == tuple(names)


@pytest.mark.parametrize("label, place, count", [("coarse", 0, 20), ("fine", 1, 100)])
def test_cifar100_is_read_with_its_fine_or_its_coarse_classes(label, place, count, tmp_path):
    x, y = written_cifar(tmp_path, published.CIFAR100)
    data = datasets.cifar100(path=str(tmp_path), label=label)
    np.testing.assert_array_equal(everything(data).numpy(), x.astype(np.float32) / 255)
    assert data.y.tolist() == y[:, place].tolist() and len(data.classes) == count
    (tmp_path / f"{label}_label_names.txt").write_text("\n".join(f"name_{n}" for n in range(count)))
    assert datasets.cifar100(path=str(tmp_path), label=label).classes[3] == "name_3"


class Trap:
    """What writes a file when it is unpickled."""

    def __reduce__(self):
        return (Path.touch, (Path("unpickled"),))


@pytest.mark.parametrize(
    "read, pickled, title, archive, file",
    [
        (datasets.cifar10, "data_batch_1", "CIFAR-10", "cifar-10-binary.tar.gz", "data_batch_1.bin"),
        (datasets.cifar100, "train", "CIFAR-100", "cifar-100-binary.tar.gz", "train.bin"),
    ],
)
def test_the_python_version_of_cifar_is_never_unpickled(read, pickled, title, archive, file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / pickled).write_bytes(pickle.dumps(Trap()))
    words = (
        f"~ holds `{pickled}`, of the Python version of {title}, which is pickle and is never read: "
        f"the binary version, {archive}, has {file}"
    )
    assert said(partial(read, path=str(tmp_path)), tmp_path) == (words, "path")
    assert not Path("unpickled").exists()


def test_files_of_cifar_that_are_torn_or_foreign_are_named(tmp_path):
    read = partial(datasets.cifar10, path=str(tmp_path))
    assert said(partial(datasets.cifar10, path=f"{tmp_path}/no"), tmp_path) == ("there is no folder ~/no", "path")
    words = "~ has no data_batch_1.bin; it is the folder that cifar-10-binary.tar.gz unpacks to"
    assert said(read, tmp_path) == (words, "path")
    written_cifar(tmp_path, published.CIFAR10)
    third = tmp_path / "data_batch_3.bin"
    whole = third.read_bytes()
    for size in (0, 3072, 3 * 3073 - 1):
        third.write_bytes(whole[:size])
        words = f"~/data_batch_3.bin has {size} bytes, which are no whole pictures of CIFAR-10 of 3073 bytes each"
        assert said(read, tmp_path) == (words, "path")
    third.write_bytes(whole[: 2 * 3073])
    assert said(read, tmp_path) == ("~/data_batch_3.bin has 2 pictures, and other files 3", "path")
    third.write_bytes(whole[:3073] + b"\x0a" + whole[3074:])
    words = "~/data_batch_3.bin: picture 1 has label 10, and there are 10 classes"
    assert said(read, tmp_path) == (words, "path")
    third.write_bytes(whole)
    (tmp_path / "batches.meta.txt").write_text("a\nb\n")
    assert said(read, tmp_path) == ("~/batches.meta.txt has 2 names for 10 classes", "path")
    (tmp_path / "test_batch.bin").unlink()
    assert said(read, tmp_path)[0].startswith("~ has no test_batch.bin; ")


NAMES = ("train-images-idx3-ubyte", "t10k-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-labels-idx1-ubyte")


def written_idx(folder: Path, zipped: bool = False, train: int = 5, test: int = 2) -> tuple[np.ndarray, np.ndarray]:
    x = numpy_rng().integers(0, 256, (train + test, 4, 3), dtype=np.uint8)
    y = numpy_rng().integers(0, 10, train + test, dtype=np.uint8)
    parts = (x[:train], x[train:], y[:train], y[train:])
    for name, part in zip(NAMES, parts, strict=True):
        data = struct.pack(f">BBBB{part.ndim}I", 0, 0, 8, part.ndim, *part.shape) + bytes(part.flatten().tolist())
        (folder / (name + ".gz" * zipped)).write_bytes(gzip.compress(data) if zipped else data)
    return x, y


@pytest.mark.parametrize("zipped", [False, True])
def test_mnist_is_read_from_its_idx_files_training_first(zipped, tmp_path):
    x, y = written_idx(tmp_path, zipped)
    data = datasets.mnist(path=str(tmp_path))
    np.testing.assert_array_equal(everything(data).numpy()[:, 0], x.astype(np.float32) / 255)
    assert data.y.tolist() == y.tolist() and data.classes == tuple("0123456789") and data.features == (1, 4, 3)


def test_files_of_mnist_that_are_torn_or_foreign_are_named(tmp_path):
    read = partial(datasets.mnist, path=str(tmp_path))
    assert said(read, tmp_path) == (f"~ has no {NAMES[0]}, nor {NAMES[0]}.gz", "path")
    written_idx(tmp_path)
    whole = {name: (tmp_path / name).read_bytes() for name in NAMES}
    pictures, labels = whole[NAMES[0]], whole[NAMES[2]]
    start = "as an IDX file of bytes with 3 axes does"
    cases = [
        (NAMES[0], b"", f"~/{NAMES[0]} begins with nothing, and not with 00 00 08 03, {start}"),
        (NAMES[0], labels, f"~/{NAMES[0]} begins with 00 00 08 01, and not with 00 00 08 03, {start}"),
        (NAMES[0], pictures[:9], f"~/{NAMES[0]} ends inside its header"),
        (NAMES[0], pictures[:-1], f"~/{NAMES[0]} says that it holds 5 x 4 x 3 bytes, and has only 59"),
        (NAMES[0], pictures + b"a", f"~/{NAMES[0]} says that it holds 5 x 4 x 3 bytes, and has more"),
        (
            NAMES[0],
            pictures[:4] + b"\xff" * 12 + pictures[16:],
            f"~/{NAMES[0]} says that it holds {' x '.join(['4294967295'] * 3)} bytes, and has only 60",
        ),
        (
            NAMES[2],
            b"\x00\x00\x0d\x01" + labels[4:],
            f"~/{NAMES[2]} begins with 00 00 0d 01, and not with 00 00 08 01, as an IDX file of bytes with 1 axis does",
        ),
        (NAMES[2], labels[:-1] + b"\x0a", f"~/{NAMES[2]}: label 4 is 10, and there are 10 classes"),
        (NAMES[2], whole[NAMES[3]], f"~/{NAMES[2]} has 2 labels for 5 pictures"),
    ]
    for name, data, words in cases:
        (tmp_path / name).write_bytes(data)
        assert said(read, tmp_path) == (words, "path")
        (tmp_path / name).write_bytes(whole[name])
    (tmp_path / NAMES[1]).write_bytes(whole[NAMES[1]][:4] + struct.pack(">III", 2, 3, 4) + whole[NAMES[1]][16:])
    words = "~: pictures to train are [4, 3], to test [3, 4]: one size is right"
    assert said(read, tmp_path) == (words, "path")
    (tmp_path / NAMES[0]).unlink()
    zipped = gzip.compress(pictures)
    for data in (zipped[:-9], zipped[:30], pictures):
        (tmp_path / f"{NAMES[0]}.gz").write_bytes(data)
        assert said(read, tmp_path)[0].startswith(f"~/{NAMES[0]}.gz is not readable: ")


@given(st.binary(max_size=200))
def test_no_bytes_of_a_file_give_a_traceback(data):
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        for name in (
            *NAMES,
            *published.CIFAR10.files,
            "data.npz",
            "data.csv",
            "data.parquet",
            "x.npy",
            "y.npy",
            "a/1.png",
        ):
            (Path(folder) / name).parent.mkdir(exist_ok=True)
            (Path(folder) / name).write_bytes(data)
        for read in (datasets.mnist, datasets.cifar10, datasets.mapped):
            with pytest.raises(BadInput):
                read(path=folder)
        for kind in ("npz", "parquet"):
            with pytest.raises(BadInput):
                getattr(datasets, kind)(path=f"{folder}/data.{kind}")
        with pytest.raises(BadInput):
            datasets.images(path=folder, size=(1, 2, 2)).x[torch.tensor([0])]


# Any torch data set


class Pairs(torch.utils.data.Dataset):
    def __init__(self, x, y):
        self.x, self.y, self.readers = x, y, []

    def __len__(self):
        return len(self.x)

    def __getitem__(self, place):
        self.readers.append(threading.get_ident())
        return self.x[place], self.y[place]


def test_a_torch_data_set_is_read_where_it_is_indexed():
    x = torch.randn(9, 2, 3, generator=torch.Generator().manual_seed(0))
    source = Pairs(x, [2, 2, 0, 1, 0, 1, 2, 2, 0])
    data = from_torch(source, classes=("a", "b", "c", "none"))
    assert data.y.tolist() == source.y and data.classes == ("a", "b", "c", "none")
    read = len(source.readers)
    assert torch.equal(data.take(torch.tensor([3, 3])).x, x[[3, 3]]) and len(source.readers) == read + 2
    assert_is_indexed_as_a_tensor(data)
    assert data.x[torch.zeros(0, dtype=torch.int64)].shape == (0, 2, 3)


@pytest.mark.parametrize(
    "kind, dtype, factor",
    [(torch.uint8, torch.float32, 1 / 255), (torch.int32, torch.int64, 1), (torch.float64, torch.float32, 1)],
)
def test_the_items_of_a_torch_data_set_become_what_mapped_arrays_become(kind, dtype, factor):
    x = torch.arange(12).reshape(4, 3).to(kind)
    data = from_torch(TensorDataset(x, torch.arange(4) % 2))
    torch.testing.assert_close(everything(data), (x.double() * factor).to(dtype))


def test_the_identity_of_a_torch_data_set_is_that_of_its_samples():
    x, y = torch.arange(12.0).reshape(4, 3), [0, 1, 0, 1]
    one, same = (from_torch(Pairs(x.clone(), y)).x.identity for _ in range(2))
    assert one == same
    for other in (x + 1, x.flip(0), x[:, :, None], x[:3]):
        assert from_torch(Pairs(other, y)).x.identity != one


def test_several_targets_and_sets_of_classes_of_a_torch_data_set_are_read():
    x = torch.ones(4, 2)
    assert from_torch(Pairs(x, torch.rand(4, 3)), task="regression").y.shape == (4, 3)
    assert from_torch(Pairs(x, [0.5, 1.0, 2.0, 3.0]), task="regression").y.tolist() == [[0.5], [1], [2], [3]]
    sets = from_torch(Pairs(x, torch.eye(4, 3).bool()), task="multi-label", classes=("p", "q", "r"))
    assert torch.equal(sets.y, torch.eye(4, 3).bool()) and sets.classes == ("p", "q", "r")


class Stream(IterableDataset):
    def __iter__(self):
        yield from ()


class Noisy(Pairs):
    def __getitem__(self, place):
        return torch.rand(3), 0


def test_torch_data_sets_that_cannot_be_used_are_named(tmp_path):
    ragged = [torch.ones(2), torch.ones(3), torch.ones(2)]
    cases = [
        (Stream(), {}, "Stream has no places and no length: a map-style data set has"),
        (Pairs([], []), {}, "Pairs has no samples"),
        (Noisy([0, 0], [0, 0]), {}, "sample 0 is another when it is read again: what is random belongs into an "
         "augmentation, which is a function of the run's key"),
        (Pairs(ragged, [0, 1, 0]), {}, "x of item 1 has shape [3], of item 0 [2]: one shape is right"),
        (TensorDataset(torch.ones(3, 2)), {}, "item 0 is not a pair (x, y) but a tuple"),
        ([1, 2], {}, "item 0 is not a pair (x, y) but a int"),
        (Pairs(torch.ones(2), [0, 1]), {}, "samples of shape [] have no features: [sample, feature, ...] is right"),
        (Pairs(torch.ones(2, 2), [0, 5]), {"classes": ("a", "b")},
         "labels are not whole numbers from 0 to 1, for 2 names"),
        (Pairs(torch.ones(2, 2), [torch.ones(2), torch.ones(3)]), {}, "labels are not all of one shape"),
        (Pairs(torch.ones(2, 2), torch.ones(2, 2)), {"task": "regression", "classes": ("a",)},
         "1 names do not fit labels of 2 columns"),
    ]  # fmt: skip
    for source, fixed, words in cases:
        assert said(partial(from_torch, source, **fixed), tmp_path)[0] == words
    words = said(partial(from_torch, Pairs(["text"], [0])), tmp_path)[0]
    assert words.startswith("x of item 0 is a str, which is no tensor: ")
    wide = from_torch(Pairs(ragged[:1], [0]))
    wide.x.dataset.x = ragged[1:]
    assert said(lambda: wide.x[torch.tensor([0])], tmp_path)[0].startswith("x of item 0 has shape [3], of item 0 [2]")


# Hugging Face


@pytest.fixture
def hf(monkeypatch, tmp_path):
    """Hugging Face's datasets, without a network, and with a cache of the test's own."""
    found = pytest.importorskip("datasets")
    import socket

    def refused(*_):
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refused)
    monkeypatch.setattr(socket, "getaddrinfo", refused)
    monkeypatch.setattr(found.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return found


def test_what_save_to_disk_wrote_is_read(hf, tmp_path):
    features = hf.Features({"x": hf.Array2D((2, 3), "float32"), "label": hf.ClassLabel(names=["no", "yes", "never"])})
    x = numpy_rng().normal(size=(7, 2, 3)).astype(np.float32)
    rows = hf.Dataset.from_dict({"x": list(x), "label": [0, 1, 1, 0, 1, 0, 0]}, features=features)
    rows.save_to_disk(tmp_path / "one")
    data = datasets.hugging_face(path=f"{tmp_path}/one", x="x")
    assert_is_indexed_as_a_tensor(data)
    np.testing.assert_array_equal(everything(data).numpy(), x)
    assert data.classes == ("no", "yes", "never") and data.y.tolist() == [0, 1, 1, 0, 1, 0, 0]
    both = hf.DatasetDict({"train": rows.select(range(5)), "test": rows.select(range(5, 7))})
    both.save_to_disk(tmp_path / "two")
    read = partial(datasets.hugging_face, path=f"{tmp_path}/two", x="x")
    np.testing.assert_array_equal(everything(read()).numpy(), x)
    np.testing.assert_array_equal(everything(read(split="test")).numpy(), x[5:])
    assert said(partial(read, split="dev"), tmp_path) == ("~/two has no split `dev`; it has train, test", "split")
    assert said(partial(datasets.hugging_face, path=f"{tmp_path}/one", x="x", split="a"), tmp_path) == (
        "~/one has no splits",
        "split",
    )


def test_files_of_rows_are_read_with_a_column_or_several_of_numbers(hf, tmp_path):
    rows = {
        "a": [1, 2, 3],
        "b": [0.5, 1.5, 2.5],
        "v": [[1, 2], [3, 4], [5, 6]],
        "label": ["p", "q", "p"],
        "t": [1.0, 2.0, 4.5],
    }
    table = hf.Dataset.from_dict(rows)
    table.to_parquet(tmp_path / "d.parquet")
    table.to_json(tmp_path / "d.jsonl")
    table.remove_columns("v").to_csv(tmp_path / "d.csv")
    for kind in ("parquet", "jsonl", "csv"):
        read = partial(datasets.hugging_face, path=f"{tmp_path}/d.{kind}")
        data = read(x=("a", "b"))
        assert everything(data).tolist() == [[1, 0.5], [2, 1.5], [3, 2.5]] and data.classes == ("p", "q")
        assert data.x.dtype == torch.float32
        assert_is_indexed_as_a_tensor(data)
        assert everything(read(x="a")).tolist() == [[1], [2], [3]] and read(x="a").x.dtype == torch.int64
        targets = read(x="a", label=("t", "b"), task="regression")
        assert targets.y.tolist() == [[1, 0.5], [2, 1.5], [4.5, 2.5]] and targets.classes == ("t", "b")
        assert read(x="a", label="t", task="regression").classes == ("t",)
        if kind != "csv":
            assert everything(read(x="v")).tolist() == rows["v"]


def test_bytes_and_pictures_of_a_table_are_in_0_to_1(hf, tmp_path):
    pixels = numpy_rng().integers(0, 256, (5, 4, 6, 3), dtype=np.uint8)
    features = hf.Features({"image": hf.Image(), "raw": hf.Array2D((4, 6), "uint8"), "label": hf.Value("int64")})
    rows = {"image": [Image.fromarray(one) for one in pixels], "raw": list(pixels[..., 0]), "label": [3, 4, 3, 4, 3]}
    hf.Dataset.from_dict(rows, features=features).save_to_disk(tmp_path / "set")
    data = datasets.hugging_face(path=f"{tmp_path}/set", size=(3, 4, 6))
    assert data.classes == ("3", "4")
    assert_is_indexed_as_a_tensor(data)
    np.testing.assert_array_equal(everything(data).numpy(), pixels.transpose(0, 3, 1, 2).astype(np.float32) / 255)
    assert datasets.hugging_face(path=f"{tmp_path}/set", size=(1, 2, 2)).features == (1, 2, 2)
    raw = datasets.hugging_face(path=f"{tmp_path}/set", x="raw")
    np.testing.assert_array_equal(everything(raw).numpy(), pixels[..., 0].astype(np.float32) / 255)


def test_sets_of_classes_of_a_table_are_lists_of_names_of_numbers_or_of_0_and_1(hf, tmp_path):
    tags = hf.Features({"x": hf.Value("float32"), "tags": hf.List(hf.ClassLabel(names=["p", "q", "r"]))})
    cases = [
        (hf.Dataset.from_dict({"x": [1.0, 2, 3], "tags": [[0, 2], [], [1]]}, features=tags), ("p", "q", "r")),
        (hf.Dataset.from_dict({"x": [1.0, 2, 3], "tags": [["p", "r"], [], ["q"]]}), ("p", "q", "r")),
        (hf.Dataset.from_dict({"x": [1.0, 2, 3], "tags": [[1, 0, 1], [0, 0, 0], [0, 1, 0]]}), ("0", "1", "2")),
    ]
    for number, (table, classes) in enumerate(cases):
        table.save_to_disk(tmp_path / str(number))
        data = datasets.hugging_face(path=f"{tmp_path}/{number}", x="x", label="tags", task="multi-label")
        assert data.classes == classes
        assert data.y.int().tolist() == [[1, 0, 1], [0, 0, 0], [0, 1, 0]]


def test_tables_that_do_not_fit_are_named(hf, tmp_path):
    rows = {
        "text": ["a", "b"],
        "ragged": [[1], [1, 2]],
        "pair": [[1, 2], [3, 4]],
        "hole": [1, None],
        "holed": [[1, 2], [3, None]],
        "n": [1, 2],
        "label": [0, 1],
        "gap": [None, 1],
    }
    table = hf.Dataset.from_dict(rows)
    table.save_to_disk(tmp_path / "set")
    pictures = hf.Dataset.from_dict(
        {"image": [Image.new("L", (2, 2))], "label": [0]},
        features=hf.Features({"image": hf.Image(), "label": hf.Value("int64")}),
    )
    pictures.save_to_disk(tmp_path / "pictures")
    (tmp_path / "folder").mkdir()
    (tmp_path / "d.txt").write_text("text")
    listed = "text, ragged, pair, hole, holed, n, label, gap"
    cases = [
        ("no", {}, "there is no file or folder ~/no", "path"),
        ("d.txt", {}, "~/d.txt does not end in .parquet, .json, .jsonl, .csv", "path"),
        ("set", {"x": "c"}, f"~/set has no column `c`; it has {listed}", "x"),
        ("set", {"x": "n", "label": "c"}, f"~/set has no column `c`; it has {listed}", "label"),
        ("set", {"x": ()}, "no column is named", "x"),
        ("set", {"x": "hole"}, "column `hole` has a row without a value", "x"),
        ("set", {"x": ("n", "hole")}, "column `hole` has a row without a value", "x"),
        ("set", {"x": "text"}, "column `text` is string, not numbers or pictures", "x"),
        ("set", {"x": "n", "size": (1, 2, 2)}, "column `n` holds no pictures, so it has no size to choose", "size"),
        ("set", {"x": ("n", "pair")}, "column `pair` has more than a number a row, and stands beside others", "x"),
        ("set", {"x": "n", "label": "gap"}, "column `gap` has no value in row 0, counted from 0", "label"),
        (
            "set",
            {"x": "n", "label": ("label", "n")},
            "a class each is in one column: several are multi-label or regression, by `task`",
            "label",
        ),
        ("pictures", {}, "column `image` holds pictures: size = [channel, height, width] says how large", "size"),
        (
            "pictures",
            {"size": (2, 2, 2)},
            "[2, 2, 2] is not a size of pictures: [channel, height, width], 1 channel or 3",
            "size",
        ),
    ]
    for name, fixed, words, where in cases:
        assert said(partial(datasets.hugging_face, path=f"{tmp_path}/{name}", **fixed), tmp_path) == (words, where)
    words, where = said(partial(datasets.hugging_face, path=f"{tmp_path}/folder"), tmp_path)
    assert words.startswith("~/folder is not readable as a folder that save_to_disk wrote: ") and where == "path"
    for ending, content in (
        ("parquet", b"{nothing of the kind"),
        ("json", b"{nothing of the kind"),
        ("csv", b"n,label\n"),
    ):
        (tmp_path / f"torn.{ending}").write_bytes(content)
        words, where = said(partial(datasets.hugging_face, path=f"{tmp_path}/torn.{ending}"), tmp_path)
        assert words.startswith(f"~/torn.{ending} is not readable as a {ending} file: ") and where == "path"
    for name, ids in (("ragged", [0, 1]), ("ragged", [1]), ("holed", [0, 1])):
        data = datasets.hugging_face(path=f"{tmp_path}/set", x=name)
        words = f"column `{name}` has rows of several shapes, or with gaps: one shape of numbers is right"
        assert said(lambda data=data, ids=ids: data.x[torch.tensor(ids)], tmp_path) == (words, "x")
    words = "column `ragged` has rows of several shapes, or with gaps: one shape of numbers is right"
    read = partial(datasets.hugging_face, path=f"{tmp_path}/set", x="n", label="ragged", task="regression")
    assert said(read, tmp_path) == (words, "label")


# All of them


def test_every_data_set_is_a_component_that_says_what_it_reads():
    for read in public(datasets):
        parameters = inspect.signature(read).parameters.values()
        assert all(p.kind is p.KEYWORD_ONLY and p.annotation is not p.empty for p in parameters)
        assert read.__doc__ and inspect.signature(read).return_annotation is Dataset


@pytest.mark.parametrize(
    "module, words, read",
    [
        ("sklearn", 'iris come with scikit-learn: pip install "fcurr[data]"', datasets.iris),
        ("pyarrow.csv", 'tables are read by pyarrow: pip install "fcurr[data]"', partial(datasets.csv, path=__file__)),
        (
            "PIL",
            'pictures are read by Pillow: pip install "fcurr[data]"',
            partial(datasets.images, path=".", size=(1, 2, 2)),
        ),
        (
            "datasets",
            'this is read by datasets: pip install "fcurr[hugging-face]"',
            partial(datasets.hugging_face, path="."),
        ),
    ],
)
def test_what_is_not_installed_is_named(module, words, read, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, module, None)
    assert said(read, tmp_path)[0] == words
