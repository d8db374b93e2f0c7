"""Studies and runs as they lie on the disk: how far they are. Imports nothing slow."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fcurr.errors import BadInput
from fcurr.io import journal, toml

SHOWN = 12  # commands under way or failed that are listed
ORDER = ("finished", "progress", "started", "stopped", "failed", "pruned", "planned")
SAID = {"finished": "done", "progress": "under way", "started": "under way", "planned": "to do"}


def status(folder: Path, *, everything: bool = False) -> tuple[list[str], dict[str, Any]]:
    """How far a study is, from its journal: in words, and as data."""
    found = journal.read(folder)
    counts: dict[str, int] = {}
    for event in ORDER:
        number = sum(record["event"] == event for record in found.values())
        if number:
            said = SAID.get(event, event)
            counts[said] = counts.get(said, 0) + number
    last = max((record["time"] for record in found.values()), default=0.0)
    head = f"study {folder.name}: {len(found):,} commands: " + ", ".join(f"{n:,} {said}" for said, n in counts.items())
    lines = [f"{head}; last heard of {_ago(last)}", *_listed(found, everything)]
    return lines, {"name": folder.name, "counts": counts, "commands": list(found.values())}


def _listed(found: dict[str, dict[str, Any]], everything: bool) -> Iterator[str]:
    """Commands that are under way or failed, and all of them if asked."""
    told = [record for record in found.values() if everything or record["event"] not in ("finished", "planned")]
    for record in told if everything else told[:SHOWN]:
        more = {
            "progress": f", step {record.get('iteration', 0):,}",
            "failed": f": {record.get('error', '')}",
            "finished": f", {record.get('seconds', 0.0):.1f} s{', reused' if record.get('reused') else ''}",
        }.get(record["event"], "")
        yield f"  {SAID.get(record['event'], record['event'])}  {record['name']}{more}"
    if not everything and len(told) > SHOWN:
        yield f"  and {len(told) - SHOWN:,} more; --all lists them"


def _ago(moment: float) -> str:
    seconds = max(0.0, time.time() - moment)
    if seconds < 120:
        return f"{seconds:.0f} s ago"
    return f"{seconds / 60:.0f} min ago" if seconds < 7200 else f"{seconds / 3600:.0f} h ago"


def runs(out: Path) -> list[str]:
    """A line for every run and study in a folder."""
    if not out.is_dir():
        raise BadInput(f"there is no folder {out}")
    lines = [line for folder in sorted(out.iterdir()) if folder.is_dir() for line in _run(folder)]
    return lines or [f"{out} holds no runs"]


def _run(folder: Path) -> Iterator[str]:
    if (folder / journal.JOURNAL).is_file():
        yield status(folder)[0][0]
    elif (folder / "identity.json").is_file():
        state = _table(folder / "status.json").get("status", "begun")
        members = _table(folder / "results.json").get("members", [])
        data = _data(folder)
        yield f"run {folder.name}: {state}{f', {len(members)} members' if members else ''}{data}"


def _table(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _data(folder: Path) -> str:
    try:
        data = toml.read(folder / "config.toml")[0].get("data", {})
    except (BadInput, OSError):
        return ""
    name = data if isinstance(data, str) else data.get("fn", "")
    return f", on {name}" if name else ""
