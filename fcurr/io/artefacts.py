"""The store that studies share: what commands made, in files named by the command's key.

A file's kind follows from its content: tensors by name (.safetensors), a table (.parquet), text (.txt), bytes (.bin),
or JSON. A command is finished when its record is there, which is written last and holds the digest of every file.
"""

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import safetensors.torch
from filelock import FileLock
from torch import Tensor

from fcurr.errors import BadInput
from fcurr.io import checkpoint, files
from fcurr.study import provenance
from fcurr.study.provenance import Seen

RECORDS, WORKING, LOCKS, REFERENCES = "records", "working", "locks", "references"


class Record(NamedTuple):
    """What a finished command left."""

    key: str
    name: str  # of the command that made it first
    function: str
    outputs: dict[str, dict[str, str]]  # name -> file, in the store; sha256
    seen: Seen
    leaks: tuple[str, ...]  # uses of samples that ought not to be, where a study records them
    seconds: float
    steps: int  # of training, or 1
    environment: dict[str, str]


def put(store: Path, output: str, key: str, value: Any) -> dict[str, str]:
    """Writes an output, whole or not at all."""
    suffix, content = encoded(value)
    place = f"{output}/{key}{suffix}"
    (store / output).mkdir(parents=True, exist_ok=True)
    files.write(store / place, content)
    return {"file": place, "sha256": hashlib.sha256(content).hexdigest()}


def get(store: Path, entry: Mapping[str, str]) -> Any:
    """Reads an output; BadInput where it is not what was written."""
    path = store / entry["file"]
    try:
        content = path.read_bytes()
    except OSError as wrong:
        raise BadInput(f"{path} cannot be read: {wrong.strerror}; the same command makes it anew") from None
    if hashlib.sha256(content).hexdigest() != entry["sha256"]:
        raise BadInput(f"{path} is not what was written there: its content has changed; delete it to make it anew")
    return decoded(path.suffix, content)


def commit(store: Path, record: Record) -> None:
    """The command is finished when this returns."""
    (store / RECORDS).mkdir(parents=True, exist_ok=True)
    content = json.dumps(record._asdict(), separators=(",", ":"), allow_nan=False)
    files.write(_record(store, record.key), content)


def record(store: Path, key: str) -> Record | None:
    """The record of a finished command whose files are all there."""
    try:
        table = json.loads(_record(store, key).read_bytes())
        found = Record(**table | {"seen": provenance.union([table["seen"]]), "leaks": tuple(table["leaks"])})
        whole = all((store / entry["file"]).is_file() for entry in found.outputs.values())
    except FileNotFoundError:
        return None
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as wrong:
        words = f"{_record(store, key)} is not a record of a command ({type(wrong).__name__}: {wrong})"
        raise BadInput(f"{words}; delete it to make it anew") from None
    return found if whole else None


def recorded(store: Path) -> set[str]:
    """The keys of all records."""
    folder = store / RECORDS
    return {path.stem for path in folder.iterdir() if path.suffix == ".json"} if folder.is_dir() else set()


def _working(folder: Path) -> list[str]:
    """The keys of a program that is under way."""
    try:
        return [command["key"] for command in json.loads((folder / "work.json").read_bytes())]
    except (OSError, ValueError, LookupError, TypeError):
        return []


def _record(store: Path, key: str) -> Path:
    return store / RECORDS / f"{key}.json"


def encoded(value: Any) -> tuple[str, bytes]:
    """(suffix, content) of an output: equal values give equal bytes."""
    if isinstance(value, Mapping) and value and all(isinstance(leaf, Tensor) for leaf in value.values()):
        plain = {name: leaf.detach().cpu().contiguous() for name, leaf in sorted(value.items())}
        return ".safetensors", safetensors.torch.save(checkpoint.unshared(plain))
    if isinstance(value, bytes):
        return ".bin", value
    if isinstance(value, str):
        return ".txt", value.encode()
    if type(value).__module__.startswith("pyarrow"):
        return ".parquet", _parquet(value)
    try:
        return ".json", json.dumps(value, separators=(",", ":"), allow_nan=False).encode()
    except (TypeError, ValueError) as wrong:
        words = "tensors by name, a pyarrow table, text, bytes, or what JSON holds"
        raise BadInput(f"a command gave {type(value).__name__}, which is not {words}: {wrong}") from None


def decoded(suffix: str, content: bytes) -> Any:
    """The value again."""
    if suffix == ".safetensors":
        return dict(sorted(safetensors.torch.load(content).items()))  # which gives them in any order
    if suffix == ".parquet":
        import pyarrow.parquet

        return pyarrow.parquet.read_table(pyarrow.BufferReader(content))
    if suffix == ".txt":
        return content.decode()
    return content if suffix == ".bin" else json.loads(content)


def _parquet(table: Any) -> bytes:
    import pyarrow.parquet

    buffer = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(table, buffer)
    return buffer.getvalue().to_pybytes()


def lock(store: Path, name: str) -> FileLock:
    """The lock of a command, by its key, or of something else that is one person's at a time."""
    (store / LOCKS).mkdir(parents=True, exist_ok=True)
    return FileLock(store / LOCKS / f"{name}.lock")


@contextlib.contextmanager
def referring(store: Path) -> Iterator[None]:
    """Within it nobody else notes what a study refers to, or removes what no study does."""
    with lock(store, REFERENCES):
        yield


def refer(store: Path, study: Path, keys: list[str]) -> None:
    """Notes what a study refers to, so that `unreferenced` keeps it. A study is named as seen from the store: both may
    be moved together."""
    (store / REFERENCES).mkdir(parents=True, exist_ok=True)
    seen = Path(os.path.relpath(study.resolve(), store.resolve())).as_posix()
    name = hashlib.sha256(seen.encode()).hexdigest()[:16]
    files.write(store / REFERENCES / f"{name}.json", json.dumps({"study": seen, "keys": keys}))


class Unreferenced(NamedTuple):
    """What no study refers to."""

    path: Path
    study: str = ""  # the one that did, which is not there any more


def unreferenced(store: Path, journal: str, schedule: str) -> Iterator[Unreferenced]:
    """Files that no study refers to, by what it noted or by its schedule, whose folder, with its journal, is still
    there; and what writers that were killed left behind."""
    kept: set[str] = set()
    gone: dict[str, str] = {}  # key -> a study that is not there any more
    for path in sorted((store / REFERENCES).glob("*.json")):
        table = _told(path)
        try:
            study, keys = str(table["study"]), set(table["keys"])
        except (LookupError, TypeError):
            raise _unclear(path) from None
        if (store.resolve() / study / journal).is_file():
            kept |= keys
        else:
            gone |= dict.fromkeys(keys, study)
            yield Unreferenced(path, study)
    for path in sorted(store.resolve().parent.glob(f"*/{schedule}")):
        if (path.parent / journal).is_file():
            try:
                kept |= {command["key"] for command in _told(path)["commands"]}
            except (LookupError, TypeError):
                raise _unclear(path) from None
    for key in list(kept):  # the samples that results have seen are needed to tell a leak
        if (found := record(store, key)) is not None:
            kept |= {samples for parts in found.seen.values() for samples, _ in parts}
    for folder in sorted(path for path in store.iterdir() if path.is_dir() and path.name not in (REFERENCES, LOCKS)):
        for path in sorted(folder.iterdir()):
            if folder.name == WORKING:
                keys = _working(path)
                if kept.isdisjoint(keys):
                    yield Unreferenced(path, next((gone[key] for key in keys if key in gone), ""))
            elif path.name[0] == ".":  # somebody may be writing it, unless the command is finished
                key = path.name.split(".")[1]
                if key not in kept or _record(store, key).exists():
                    yield Unreferenced(path, gone.get(key, ""))
            elif (key := path.name.split(".")[0]) not in kept:
                yield Unreferenced(path, gone.get(key, ""))


def _told(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except ValueError:
        raise _unclear(path) from None


def _unclear(path: Path) -> BadInput:
    return BadInput(f"{path} does not say what a study refers to: run that study again, or delete it")
