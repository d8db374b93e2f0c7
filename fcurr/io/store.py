"""A run's folder: who holds it, what is in it."""

import contextlib
import json
import os
import platform
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import tomli_w
from filelock import FileLock, Timeout

from fcurr.errors import BadInput
from fcurr.io import files, toml

CONFIG, IDENTITY, STATUS = "config.toml", "identity.json", "status.json"
METRICS, STEPS, SCORES = "metrics.jsonl", "steps.jsonl", "scores.parquet"
CHECKPOINTS, SCORING, PREDICTIONS = "checkpoints", "scoring", "predictions"  # folders
WEIGHTS, IRREDUCIBLE = "weights.parquet", "irreducible.parquet"
RESULTS, REPORT, TABLE, ENVIRONMENT = "results.json", "report.html", "metrics.parquet", "environment.json"
WRITTEN = (STATUS, METRICS, STEPS, TABLE, SCORES, WEIGHTS, IRREDUCIBLE, RESULTS, REPORT, ENVIRONMENT, CONFIG, IDENTITY)
FOLDERS = (CHECKPOINTS, SCORING, PREDICTIONS, "tensorboard", "wandb", "mlflow")
MAY_CHANGE = ("name", "observers", "loggers", "training.save_every", "training.device")  # of a run that is gone on with


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


def agree(folder: Path, config: Mapping[str, Any], identity: Mapping[str, Any]) -> bool:
    """Whether the folder holds a run of this config, with this identity: plugins, members, data. BadInput if it holds
    another run, or something else; a run that got nowhere is nothing."""
    if not own(folder) or not any((folder / name).exists() for name in (SCORES, SCORING, CHECKPOINTS)):
        return False
    if not (folder / CONFIG).exists():  # --fresh was killed
        return False
    there = {"config": toml.read(folder / CONFIG)[0], **read_json(folder / IDENTITY)}
    here = json.loads(json.dumps({"config": config, **identity}, default=str))
    for key, old, new in _differences(there, here):
        kind, _, rest = key.partition(".")
        if kind == "config" and (
            _longer(rest, old, new) or any(rest == k or rest.startswith(f"{k}.") for k in MAY_CHANGE)
        ):
            continue
        _refuse(folder, kind, rest, old, new)
    return True


def _longer(key: str, old: str, new: str) -> bool:
    return key == "training.total_iterations" and old.isdigit() and new.isdigit() and int(new) > int(old)


def _refuse(folder: Path, kind: str, rest: str, old: str, new: str) -> None:
    what = {
        "config": f"a run with {rest} = {old}, not {new}",
        "plugins": f"a run with another {rest}.py",
        "members": "a run with its arms or members in another order",
        "data": "a run on other samples or labels",
        "start": "a run that started from other weights",
    }[kind]
    raise BadInput(f"{folder} holds {what}; name=... starts another beside it, --fresh throws it away and starts anew")


def finished(folder: Path, config: Mapping[str, Any]) -> bool:
    """Whether the run in a folder has come to its end, and the config asks for no more iterations."""
    path = folder / STATUS
    if not path.exists() or read_json(path).get("status") != "finished" or not (folder / RESULTS).exists():
        return False
    return toml.read(folder / CONFIG)[0]["training"]["total_iterations"] == config["training"]["total_iterations"]


def clear(folder: Path) -> None:
    """Throws away what a run left, and nothing else."""
    if own(folder):
        (folder / CONFIG).unlink(missing_ok=True)  # first: a run without it is being thrown away
        for name in FOLDERS:
            shutil.rmtree(folder / name, ignore_errors=True)
        for name in WRITTEN:  # last of all that it is one
            (folder / name).unlink(missing_ok=True)


def own(folder: Path) -> bool:
    """Whether a run has written to a folder; BadInput if somebody else has."""
    if (folder / IDENTITY).exists():
        return True
    if (folder / "journal.jsonl").exists():
        raise BadInput(f"{folder} is the folder of a study, and this is one run; give another name with name=...")
    strange = sorted(entry.name for entry in folder.iterdir() if entry.name[0] != ".") if folder.exists() else []
    if strange:
        raise BadInput(f"{folder} is not a run's folder: it holds {strange[0]}; give another name with name=...")
    return False


def read_json(path: Path) -> dict[str, Any]:
    """A table that a run wrote."""
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError) as wrong:
        raise BadInput(f"{path} cannot be read: {wrong}; --fresh starts anew") from None
    if not isinstance(found, dict):
        raise BadInput(f"{path} is not what a run writes there; --fresh starts anew")
    return found


def write_config(folder: Path, config: Mapping[str, Any], identity: Mapping[str, Any]) -> None:
    """The config as run, changes included, and what else makes the run this one; first of all that it is one."""
    files.write_json(folder / IDENTITY, dict(identity))
    files.write(folder / CONFIG, tomli_w.dumps(json.loads(json.dumps(config, default=str))))


def metrics(folder: Path, until: int | None = None) -> list[dict[str, Any]]:
    """The lines of the metrics file up to an iteration; a last line that was cut short is left out."""
    path = folder / METRICS
    rows = []
    for line in path.read_text().splitlines() if path.exists() else []:
        with contextlib.suppress(ValueError):
            row = json.loads(line)
            if until is None or row["iteration"] <= until:
                rows.append(row)
    return rows


def rewrite_metrics(folder: Path, rows: list[dict[str, Any]]) -> None:
    files.write(folder / METRICS, "".join(_line(row) for row in rows))


def append_metrics(folder: Path, rows: list[dict[str, Any]]) -> None:
    """One line a row."""
    with open(folder / METRICS, "a") as file:
        file.write("".join(_line(row) for row in rows))


def sync(*paths: Path) -> None:
    """What has been written to files is on the disk when this returns."""
    for path in paths:
        if path.exists():
            with open(path, "rb") as file:
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
