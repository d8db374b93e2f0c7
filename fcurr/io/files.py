"""Files that are written whole or not at all."""

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_MASK = os.umask(0)
os.umask(_MASK)


@contextlib.contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A temporary file beside the path, to write to; then to the disk, and renamed: a reader never sees half of it."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_MASK)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def write(path: Path, content: bytes | str) -> None:
    """A small file, whole or not at all."""
    with whole(path) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


def write_json(path: Path, content: Any) -> None:
    write(path, json.dumps(content, indent=1, allow_nan=False) + "\n")


def leftovers(folder: Path) -> list[Path]:
    """Temporary files of writers that were killed."""
    return [path for path in folder.rglob(".*.tmp") if path.is_file()]
