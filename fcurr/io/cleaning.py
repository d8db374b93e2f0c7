"""What the store holds that no study refers to, and its removal."""

import shutil
from collections.abc import Sequence
from pathlib import Path

from fcurr.io import artefacts, journal
from fcurr.io.artefacts import Unreferenced

SHOWN = 20
SCHEDULE = "schedule.json"  # of a study, in its folder


def found(store: Path) -> list[Unreferenced]:
    """Files and folders that nothing refers to."""
    return list(artefacts.unreferenced(store, journal.JOURNAL, SCHEDULE)) if store.is_dir() else []


def told(left: Sequence[Unreferenced]) -> list[str]:
    """What would be removed, in words."""
    if not left:
        return ["nothing is left over: studies refer to all there is"]
    total = sum(_size(one.path) for one in left)
    few = [f"  {one.path}  {_size(one.path):,} bytes" for one in left[:SHOWN]]
    more = [f"  and {len(left) - SHOWN:,} more"] if len(left) > SHOWN else []
    gone = [one.study for one in left if one.study]
    studies = [f"{gone.count(s):,} of them are of a study that is not there any more: {s}" for s in dict.fromkeys(gone)]
    return [f"{len(left):,} files that no study refers to, {total / 1e6:,.1f} MB:", *few, *more, *studies]


def remove(store: Path, left: Sequence[Unreferenced]) -> int:
    """Removes of these what still nothing refers to, and says how many; a record first, so that nothing is finished
    whose files are gone."""
    with artefacts.referring(store):
        wanted = {one.path for one in left}
        paths = [one.path for one in found(store) if one.path in wanted]
        for path in sorted(paths, key=lambda path: path.parent.name != artefacts.RECORDS):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
    return len(paths)


def _size(path: Path) -> int:
    if path.is_file():
        return path.stat().st_size
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
