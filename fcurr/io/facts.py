"""What a plan has to know that no config says: the code that commands call, and the contents of files it names."""

import ast
import functools
import hashlib
import importlib.util
import itertools
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from fcurr.errors import BadInput
from fcurr.io import starting, toml
from fcurr.study.roles import ROLES
from fcurr.study.schedule import fingerprint
from fcurr.study.sections import ROUTINES
from fcurr.study.trainings import Facts, texts

NAMES_A_FILE = ("path", "weights", "run")  # last parts of keys of a config
READ_WHOLE = 2**28  # bytes; of a folder with more, the names, sizes and times of files are hashed
INSTALLED = ("site-packages", "dist-packages")  # where everything is beside everything
FURTHER = ("validate", "select")  # routines that no config names


def gathered(config: Mapping[str, Any], plugins: Iterable[str]) -> Facts:
    """The facts of a config, read from where one stands."""
    ours = code("fcurr.io.routines", *(role.module for role in ROLES.values()))
    modules = {module: code(module) for module in plugins}
    named = {text for text in texts(config) if text.partition(":")[0] in modules}
    own = {name: modules[name.partition(":")[0]] for name in named}
    configs = {path: _config(path) for path in sorted(_texts(config, ("start", "config")))}
    files: dict[str, str] = {}
    for one in (config, *configs.values()):
        files |= _files(one)
    return Facts(dict.fromkeys((*ROUTINES, *FURTHER), ours) | own, modules, files, configs)


def _config(path: str) -> dict[str, Any]:
    """A config that is trained first, as it is in its file."""
    table, _ = toml.read(Path(path))
    return {"name": Path(path).stem, **table}


def _files(config: Mapping[str, Any]) -> dict[str, str]:
    """path -> a hash of what is there, of whatever a config names that is there. Of a run that is started from, only of
    the weights that can be taken."""
    runs = _texts(config, ("start", "run"))
    named = ((at, v) for at, v in _entries(config) if at[-1] in NAMES_A_FILE and isinstance(v, str) and v)
    read = {path for at, path in named if at[-2:] != ("start", "run")}
    found = {path: content(Path(path)) for path in sorted(read) if Path(path).exists()}
    return found | {path: _weights(path, config) for path in sorted(runs - read) if Path(path).exists()}


def _weights(run: str, config: Mapping[str, Any]) -> str:
    """A hash of the weights that a config can take from a run: those of the members it names, or of the best one. What
    cannot be read has none: whoever takes it says why."""
    from fcurr.io import using  # pyarrow

    start = config.get("start")
    asked = {key: [v for at, v in _entries(config) if at[-2:] == ("start", key)] for key in ("member", "which")}
    for key, default in (("member", None), ("which", "best")):
        if not isinstance(start, Mapping) or key not in start:
            asked[key].append(default)
    found = []
    for member, which in itertools.product(*asked.values()):
        try:
            found.append(starting.digest(using.weights(Path(run), member, which).variables))
        except (BadInput, OSError, LookupError, TypeError, ValueError):
            found.append("")
    return fingerprint(sorted({*found}))


def _entries(value: Any, at: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """(parts of the dotted key, value): every value in a config that is no table and no list, of lists each."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _entries(inner, (*at, *key.split(".")))
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _entries(inner, at)
    else:
        yield at, value


def _texts(config: Mapping[str, Any], last: tuple[str, str]) -> set[str]:
    """The texts under keys that end so, in a sweep or an arm as well."""
    return {value for at, value in _entries(config) if at[-2:] == last and isinstance(value, str) and value}


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
    others = [other for other in _bared(tree, package) if _beside(other, name)]
    if path.name == "__init__.py":
        others += [f"{name}.{file.stem}" for file in path.parent.glob("*.py") if file.name != "__init__.py"]
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest(), tuple(sorted({*others}))


def content(path: Path) -> str:
    """A hash of a file, or of a folder's files."""
    digest = hashlib.sha256()
    if path.is_file():
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()[:16]
    files = sorted(_walked(path))
    small = sum(file.stat().st_size for file in files) <= READ_WHOLE
    for file in files:
        size, time = file.stat().st_size, file.stat().st_mtime_ns
        digest.update(f"{file.relative_to(path)}\0{size}\0{'' if small else time}\0".encode())
        if small:
            digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


def _walked(folder: Path, above: tuple[Path, ...] = ()) -> Iterator[Path]:
    """The files of a folder and of those in it, links followed; a link to a folder it is in is not."""
    real = folder.resolve()
    if real in above:
        return
    for path in folder.iterdir():
        if path.is_dir():
            yield from _walked(path, (*above, real))
        elif path.is_file():
            yield path


def _source(module: str) -> Path | None:
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, ValueError, AttributeError):
        return None
    path = Path(spec.origin) if spec is not None and spec.origin else None
    return path if path is not None and path.suffix == ".py" else None


def _beside(other: str, module: str) -> bool:
    """Whether a module belongs to the one that imports it: the same package, or one in the same folder."""
    first, own = other.partition(".")[0], module.partition(".")[0]
    if first == own:
        return True
    place = _place(own)
    return place is not None and place.name not in INSTALLED and _place(first) == place


def _place(package: str) -> Path | None:
    """The folder that a module or a package is in; a package may have no __init__.py."""
    found = _source(package)
    if found is not None:
        return found.parent.parent if found.name == "__init__.py" else found.parent
    try:
        spec = importlib.util.find_spec(package)
    except (ImportError, ValueError, AttributeError):
        return None
    places = list(spec.submodule_search_locations or ()) if spec is not None else []
    return Path(places[0]).parent if places else None


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
