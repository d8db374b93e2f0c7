"""What a plan has to know that no config says: the code that commands call, and the contents of files it names."""

import ast
import functools
import hashlib
import importlib.util
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from fcurr.io import toml
from fcurr.study.roles import ROLES
from fcurr.study.sections import ROUTINES
from fcurr.study.trainings import Facts, texts

NAMES_A_FILE = ("path", "weights", "run")  # keys of a config
READ_WHOLE = 2**28  # bytes; of a folder with more, the names, sizes and times of files are hashed
INSTALLED = ("site-packages", "dist-packages")  # where everything is beside everything
FURTHER = ("validate", "select")  # routines that no config names


def gathered(config: Mapping[str, Any], plugins: Iterable[str]) -> Facts:
    """The facts of a config, read from where one stands."""
    ours = code("fcurr.io.routines", *(role.module for role in ROLES.values()))
    modules = {module: code(module) for module in plugins}
    named = {text for text in texts(config) if text.partition(":")[0] in modules}
    found = {path: content(Path(path)) for path in sorted(set(_paths(config))) if Path(path).exists()}
    own = {name: modules[name.partition(":")[0]] for name in named}
    files, configs = found, {path: _config(path) for path in sorted(set(_first(config)))}
    for other in configs.values():
        files |= {path: content(Path(path)) for path in sorted(set(_paths(other))) if Path(path).exists()}
    return Facts(dict.fromkeys((*ROUTINES, *FURTHER), ours) | own, modules, files, configs)


def _config(path: str) -> dict[str, Any]:
    """A config that is trained first, as it is in its file."""
    table, _ = toml.read(Path(path))
    return {"name": Path(path).stem, **table}


def _first(config: Any, inside: bool = False) -> Iterator[str]:
    """The configs that [start] names, in a sweep or an arm as well."""
    if isinstance(config, Mapping):
        for key, value in config.items():
            if key == "start.config" or (inside and key == "config"):
                yield from texts(value)
            else:
                yield from _first(value, key == "start")


def code(*modules: str) -> str:
    """A hash of modules, and of those they import from their own package or folder: of what they do, not of comments,
    docstrings and layout."""
    found: dict[str, str] = {}
    rest = list(modules)
    while rest:
        name = rest.pop()
        if name not in found and (path := _source(name)) is not None:
            facts = path.stat()
            found[name], imported = _module(name, path, facts.st_mtime_ns, facts.st_size)
            rest += imported
    return hashlib.sha256(repr(sorted(found.items())).encode()).hexdigest()[:16]


@functools.cache
def _module(name: str, path: Path, time: int, size: int) -> tuple[str, tuple[str, ...]]:
    """A hash of what a module does, and the modules of its package or folder that it imports."""
    tree = ast.parse(path.read_bytes())
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    others = [other for other in _bared(tree, package) if _beside(other, name, path)]
    if path.name == "__init__.py":
        others += [f"{name}.{file.stem}" for file in path.parent.glob("*.py") if file.name != "__init__.py"]
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest(), tuple(sorted({*others}))


def content(path: Path) -> str:
    """A hash of a file, or of a folder's files."""
    digest = hashlib.sha256()
    if path.is_file():
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()[:16]
    files = sorted(file for file in path.rglob("*") if file.is_file())
    small = sum(file.stat().st_size for file in files) <= READ_WHOLE
    for file in files:
        size, time = file.stat().st_size, file.stat().st_mtime_ns
        digest.update(f"{file.relative_to(path)}\0{size}\0{'' if small else time}\0".encode())
        if small:
            digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


def _paths(config: Any) -> Iterator[str]:
    if isinstance(config, Mapping):
        for key, value in config.items():
            if key in NAMES_A_FILE and isinstance(value, str):
                yield value
            yield from _paths(value)
    elif isinstance(config, list):
        for value in config:
            yield from _paths(value)


def _source(module: str) -> Path | None:
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, ValueError, AttributeError):
        return None
    path = Path(spec.origin) if spec is not None and spec.origin else None
    return path if path is not None and path.suffix == ".py" else None


def _beside(other: str, module: str, path: Path) -> bool:
    """Whether a module belongs to the one that imports it: the same package, or a file beside it."""
    first = other.partition(".")[0]
    if first == module.partition(".")[0]:
        return True
    found = _source(first)
    if found is None or path.parent.name in INSTALLED:
        return False
    return (found.parent.parent if found.name == "__init__.py" else found.parent) == path.parent


def _bared(tree: ast.Module, package: str) -> list[str]:
    """What a module imports; takes its docstrings away."""
    imported = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imported += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) + 1 - node.level] if node.level else []
            if start := ".".join([*above, *([node.module] if node.module else [])]):
                imported += [start, *(f"{start}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            node.body = node.body[ast.get_docstring(node, clean=False) is not None :]
    return imported
