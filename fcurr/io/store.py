"""A run's folder: who holds it, what is in it."""

import contextlib
import json
import os
import platform
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import tomli_w
from filelock import FileLock, Timeout

from fcurr.errors import BadInput
from fcurr.io import files, toml

CONFIG, CODE, STATUS = "config.toml", "code.json", "status.json"
METRICS, SCORES = "metrics.jsonl", "scores.parquet"
CHECKPOINT, SCORING, RESULTS, REPORT = "checkpoint.safetensors", "scoring.safetensors", "results.json", "report.html"
ENVIRONMENT = "environment.json"
WRITTEN = (CONFIG, CODE, STATUS, METRICS, SCORES, CHECKPOINT, SCORING, RESULTS, REPORT, ENVIRONMENT)


@contextlib.contextmanager
def held(folder: Path) -> Iterator[None]:
    """The folder, made if it is not there, and nobody else's until the end."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / ".lock")
        with lock.acquire(timeout=0):
            files.write(folder / ".holder", f"process {os.getpid()} on {platform.node()}")
            yield
            (folder / ".holder").unlink(missing_ok=True)
    except Timeout:
        holder = folder / ".holder"
        who = holder.read_text() if holder.exists() else "another process"
        raise BadInput(f"{folder} is held by {who}; wait for it, or give another name with name=...") from None


def agree(folder: Path, config: Mapping[str, Any], code: Mapping[str, str]) -> bool:
    """Whether the folder already holds a run of this config and this outside code (module: hash of its file). BadInput
    if it holds something else; a run that got nowhere is nothing."""
    if not _own(folder):
        return False
    there = {"config": toml.read(folder / CONFIG)[0], "code": json.loads((folder / CODE).read_text())}
    here = json.loads(json.dumps({"config": config, "code": code}, default=str))
    if there == here:
        return True
    if not any((folder / name).exists() for name in (SCORES, SCORING, CHECKPOINT)):
        return False
    key, old, new = next(_differences(there, here))
    what = f"{key.removeprefix('config.')} = {old}, not {new}" if key.startswith("config.") else f"another {key[5:]}.py"
    raise BadInput(
        f"{folder} holds a run with {what}; name=... starts another beside it, --fresh throws it away and starts anew"
    )


def finished(folder: Path) -> bool:
    """Whether the run in a folder has come to its end."""
    path = folder / STATUS
    return path.exists() and json.loads(path.read_text()).get("status") == "finished"


def clear(folder: Path) -> None:
    """Throws away what a run left, and nothing else."""
    if _own(folder):
        for name in WRITTEN:
            (folder / name).unlink(missing_ok=True)


def _own(folder: Path) -> bool:
    """Whether there is a run in a folder; BadInput if there is something else."""
    if (folder / CONFIG).exists():
        return True
    strange = [entry.name for entry in folder.iterdir() if entry.name[0] != "."] if folder.exists() else []
    if any(name not in WRITTEN for name in strange):
        raise BadInput(f"{folder} is not a run's folder: it holds {strange[0]}; give another name with name=...")
    return False


def write_config(folder: Path, config: Mapping[str, Any], code: Mapping[str, str]) -> None:
    """The config as run, overrides included, and which outside code it calls."""
    files.write_json(folder / CODE, dict(code))
    files.write(folder / CONFIG, tomli_w.dumps(json.loads(json.dumps(config, default=str))))


def metrics(folder: Path, until: int | None = None) -> list[dict[str, Any]]:
    """The lines of the metrics file up to an iteration; a last line that was cut short is left out."""
    path = folder / METRICS
    rows = []
    for line in path.read_text().splitlines() if path.exists() else []:
        with contextlib.suppress(json.JSONDecodeError):
            row = json.loads(line)
            if until is None or row["iteration"] <= until:
                rows.append(row)
    return rows


def rewrite_metrics(folder: Path, rows: list[dict[str, Any]]) -> None:
    files.write(folder / METRICS, "".join(_line(row) for row in rows))


def append_metrics(folder: Path, rows: list[dict[str, Any]]) -> None:
    """One line a row, on the disk when this returns."""
    with open(folder / METRICS, "a") as file:
        file.write("".join(_line(row) for row in rows))
        file.flush()
        os.fsync(file.fileno())


def _line(row: dict[str, Any]) -> str:
    return json.dumps(row, allow_nan=False) + "\n"


def _differences(old: Mapping[str, Any], new: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, str, str]]:
    for key in [*old, *(key for key in new if key not in old)]:
        a, b = old.get(key), new.get(key)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            yield from _differences(a, b, f"{path}{key}.")
        elif a != b:
            yield f"{path}{key}", _shown(a), _shown(b)


def _shown(value: Any) -> str:
    return "nothing" if value is None else json.dumps(value, default=str)
