"""A study's journal: JSON lines that are only ever added to, each on the disk before what it says is relied upon."""

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from fcurr.errors import BadInput
from fcurr.study import history

JOURNAL = "journal.jsonl"


def append(folder: Path, lines: Iterable[str], *, sync: bool = True) -> None:
    """Adds lines at once. What a writer that was killed left half written is closed first."""
    data = "".join(lines).encode()
    if not data:
        return
    handle = os.open(folder / JOURNAL, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
    try:
        size = os.fstat(handle).st_size
        if size and os.pread(handle, 1, size - 1) != b"\n":
            data = b"\n" + data
        written = 0
        while written < len(data):  # all at once, unless the disk is full
            written += os.write(handle, data[written:])
        if sync:
            os.fsync(handle)
    finally:
        os.close(handle)


def read(folder: Path) -> dict[str, dict[str, Any]]:
    """key -> the last record of every command in the study's plan."""
    path = folder / JOURNAL
    if not path.is_file():
        raise BadInput(f"{folder} is not the folder of a study: it has no {JOURNAL}")
    lines = path.read_bytes().split(b"\n")
    try:
        return history.standing(history.latest(lines))
    except ValueError:  # a line that was cut short may look whole
        return history.standing(history.latest(list(filter(_whole, lines))))


def _whole(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:
        return False
