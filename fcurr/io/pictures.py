"""Pictures in files, read with Pillow where they are indexed."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fcurr.errors import BadInput
from fcurr.io.labelled import labelled
from fcurr.io.stored import as_samples, identity
from fcurr.types import Dataset

ENDINGS = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm")
_MODES = {1: "L", 3: "RGB"}
_DEEP = ("I", "F")  # how the names of Pillow's modes with more than 8 bits a channel begin


@dataclass(frozen=True, eq=False)
class Pictures:
    """Rows of picture files."""

    files: tuple[Path, ...]
    size: tuple[int, ...]  # channel, height, width
    identity: str

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self.files), *self.size)

    @property
    def dtype(self) -> torch.dtype:
        return torch.float32

    def __getitem__(self, ids: Tensor, /) -> Tensor:
        pixels = np.empty((ids.numel(), *self.size), dtype=np.uint8)
        for row, place in zip(pixels, ids.flatten().tolist(), strict=True):
            row[:] = _read(self.files[place], self.size)
        return as_samples(pixels.reshape(*ids.shape, *self.size)).to(ids.device)


def folder_of_classes(path: str, *, size: tuple[int, ...]) -> Dataset:
    """A sub-folder a class, its pictures in it or deeper."""
    sized(size)
    folder = Path(path)
    if not folder.is_dir():
        raise BadInput(f"there is no folder {path}", "path")
    inside = sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
    if loose := [entry.name for entry in inside if _is_picture(entry)]:
        raise BadInput(f"{path}: {loose[0]} lies in no class: a sub-folder a class is right", "path")
    names = [entry.name for entry in inside if entry.is_dir()]
    if not names:
        raise BadInput(f"{path} has no sub-folders: one a class is right", "path")
    classes = [sorted(file for file in (folder / name).rglob("*") if _is_picture(file)) for name in names]
    for name, files in zip(names, classes, strict=True):
        if not files:
            raise BadInput(f"{folder / name} has no pictures; their names end in {', '.join(ENDINGS)}", "path")
    files = [file for one in classes for file in one]
    rows = Pictures(tuple(files), size, identity(files, folder=folder, also=size))
    return labelled(
        rows, np.repeat(np.arange(len(names)), [len(one) for one in classes]), task="classification", names=names
    )


def sized(size: Sequence[int]) -> None:
    """BadInput where this is no size of pictures, or there is no Pillow."""
    if len(size) != 3 or size[0] not in _MODES:
        raise BadInput(f"{list(size)} is not a size of pictures: [channel, height, width], 1 channel or 3", "size")
    try:
        import PIL  # noqa: F401
    except ImportError:
        raise BadInput('pictures are read by Pillow: pip install "fcurr[data]"') from None


def pixels(picture: Any, size: Sequence[int]) -> NDArray[np.uint8]:
    """[channel, height, width] of a Pillow picture, resized by averaging and linear interpolation, sides apart."""
    from PIL import Image

    if picture.mode.startswith(_DEEP):
        raise BadInput(f"a picture of mode {picture.mode} has more than 8 bits a channel")
    channels, height, width = size
    if picture.mode in ("P", "PA"):
        picture = picture.convert("RGBA" if "transparency" in picture.info or picture.mode == "PA" else "RGB")
    picture = picture.convert(_MODES[channels])
    if picture.size != (width, height):
        picture = picture.resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(picture).reshape(height, width, channels).transpose(2, 0, 1)


def _read(file: Path, size: Sequence[int]) -> NDArray[np.uint8]:
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(file) as picture:
            return pixels(picture, size)
    except UnidentifiedImageError:
        raise BadInput(f"{file} is not a picture that Pillow knows") from None
    except Exception as wrong:  # torn files raise many kinds
        first = (str(wrong).splitlines() or [type(wrong).__name__])[0]
        raise BadInput(f"{file} is not a readable picture: {first}") from None


def _is_picture(file: Path) -> bool:
    return file.suffix.lower() in ENDINGS and not file.name.startswith(".") and file.is_file()
