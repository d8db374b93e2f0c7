"""What the store holds that no study refers to, and its removal."""

import shutil
from collections.abc import Sequence
from pathlib import Path

from fcurr.io import artefacts, journal

SHOWN = 20


def found(store: Path) -> list[Path]:
    """Files and folders that nothing refers to."""
    return list(artefacts.unreferenced(store, journal.JOURNAL)) if store.is_dir() else []


def told(paths: Sequence[Path]) -> list[str]:
    """What would be removed, in words."""
    if not paths:
        return ["nothing is left over: studies refer to all there is"]
    total = sum(_size(path) for path in paths)
    few = [f"  {path}  {_size(path):,} bytes" for path in paths[:SHOWN]]
    more = [f"  and {len(paths) - SHOWN:,} more"] if len(paths) > SHOWN else []
    return [f"{len(paths):,} files that no study refers to, {total / 1e6:,.1f} MB:", *few, *more]


def remove(paths: Sequence[Path]) -> None:
    """Removes them; a record first, so that nothing is finished whose files are gone."""
    for path in sorted(paths, key=lambda path: path.parent.name != artefacts.RECORDS):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _size(path: Path) -> int:
    if path.is_file():
        return path.stat().st_size
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
