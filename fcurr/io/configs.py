"""A config file and the changes of a command line; the plugins it may use; and where a wrong key was written."""

import hashlib
import importlib.util
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from fcurr.errors import BadInput
from fcurr.io import toml
from fcurr.study.config import read
from fcurr.study.members import override

__all__ = ["BadInput", "beside", "hashes", "load", "located", "read"]


class Source(NamedTuple):
    path: Path
    places: toml.Places
    changed: tuple[str, ...]  # dotted keys set on the command line


def load(path: Path, changes: Sequence[str], plugins: Sequence[str]) -> tuple[dict[str, Any], Source]:
    """The config with its changes. Plugins are looked for beside the config as well."""
    table, places = toml.read(path)
    source = Source(path, places, tuple(change.partition("=")[0] for change in changes))
    for change in changes:
        key, equals, text = change.partition("=")
        if not equals or not all(key.split(".")):
            raise BadInput(f"`{change}` is not a change to the config: key=value, such as optimizer.learning_rate=0.05")
        try:
            table = _changed(table, key, toml.value(text))
        except BadInput as wrong:
            raise located(wrong, source) from None
    _unswept(table, source)
    table.setdefault("name", path.stem)
    beside(path.resolve().parent, plugins)
    return table, source


def _unswept(table: dict[str, Any], source: Source) -> None:
    """BadInput for a change to a key that a sweep sets anew at every point."""
    sweep = table.get("sweep")
    if not isinstance(sweep, dict):
        return
    for key in source.changed:
        inner: Any = sweep
        for part in key.split("."):
            inner = inner.get(part) if isinstance(inner, dict) else None
        if not key.startswith("sweep.") and (key in sweep or inner is not None):
            raise located(BadInput(f"it is swept: change sweep.{key}", key), source)


def _changed(table: dict[str, Any], key: str, value: Any) -> dict[str, Any]:
    """The config with a value set; a key of a sweep may be written with dots, as one text."""
    section, _, rest = key.partition(".")
    own = table.get(section)
    if section == "sweep" and isinstance(own, dict) and rest in own:
        return {**table, section: {**own, rest: value}}
    return override(table, key, value)


def beside(folder: Path, plugins: Sequence[str]) -> None:
    """Lets plugins, if there are any, be found in a folder."""
    if plugins and str(folder) not in sys.path:
        sys.path.insert(0, str(folder))


def hashes(plugins: Sequence[str]) -> dict[str, str]:
    """The plugins and the hash of each one's file."""
    found = {}
    for module in plugins:
        try:
            spec = importlib.util.find_spec(module)
        except (ImportError, ValueError):
            spec = None
        if spec is None:
            raise BadInput(f"--plugin {module}: there is no such module beside the config or installed")
        origin = Path(spec.origin) if spec.origin else None
        found[module] = hashlib.sha256(origin.read_bytes()).hexdigest() if origin and origin.is_file() else "unknown"
    return found


def _holds(key: str, other: str) -> bool:
    return other == key or other.startswith(f"{key}.")


def located(wrong: BadInput, source: Source) -> BadInput:
    """The same message, with file, line and column of the key before it; or the nearest table that holds it."""
    if not wrong.where:
        return BadInput(str(wrong)) if str(wrong).startswith(str(source.path)) else wrong
    plain = re.sub(r"\[\d+\]", "", wrong.where)  # of a list, where the list begins
    if any(_holds(key, plain) or _holds(plain, key) for key in source.changed):
        return BadInput(f"{wrong.where} (on the command line): {wrong}")
    key = plain
    while key and key not in source.places:
        key = key.rpartition(".")[0]
    line, column = source.places.get(key, (1, 1))
    return BadInput(f"{source.path}:{line}:{column}: {wrong.where}: {wrong}")
