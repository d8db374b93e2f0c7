"""Who may import whom: imports point one way."""

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

HOME = Path(__file__).parents[1]
FLOORS = [
    {"types", "errors"},
    {"tree", "rng", "autodiff", "layers", "ghost", "routes", "mapping", "tracing", "keyed", "networks"},
    {"pacing", "weighting", "scoring", "losses", "metrics", "precision", "inputs", "transfer", "joint"}
    | {"optim", "schedules", "models", "data"},
    {"curriculum", "sampler", "training", "reweighting", "fold", "evaluating", "observe", "views", "loading", "finding"}
    | {"bilevel", "study", "testing"},
    {"io"},
]
SIDEWAYS = {
    ("mapping", "tree"),
    ("autodiff", "tree"),
    ("ghost", "tree"),
    ("routes", "ghost"),
    ("routes", "autodiff"),
    ("ghost", "rng"),
    ("ghost", "layers"),
    ("ghost", "autodiff"),
    ("tracing", "tree"),
    ("keyed", "rng"),
    ("fold", "sampler"),
    ("fold", "training"),
    ("reweighting", "training"),
    ("bilevel", "reweighting"),
    ("bilevel", "training"),
    ("views", "training"),
    ("loading", "sampler"),
    ("study", "sampler"),
    ("study", "training"),
    ("study", "fold"),
    ("study", "reweighting"),
    ("study", "bilevel"),
    ("study", "evaluating"),
    ("study", "curriculum"),
}  # ours now
IMPURE = {"os", "time", "json", "logging", "sys", "pathlib"}  # files, the clock, the terminal
WORDS = {("study", "json")}  # writes values in messages, as words


class Source(NamedTuple):
    room: str  # "pacing", "scoring", ...; "" for fcurr/__init__.py
    name: str
    tree: ast.Module


def sources() -> Iterator[Source]:
    for path in sorted((HOME / "fcurr").rglob("*.py")):
        parts = path.relative_to(HOME / "fcurr").with_suffix("").parts
        yield Source("" if parts == ("__init__",) else parts[0], "/".join(parts), ast.parse(path.read_text()))


def imported(tree: ast.AST) -> Iterator[str]:
    """Dotted names: "fcurr.rng", "torch.func.vmap"."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def ours(source: Source) -> set[str]:
    return {name.split(".")[1] for name in imported(source.tree) if name.startswith("fcurr.")} - {source.room}


def floor(room: str) -> int:
    return next(number for number, rooms in enumerate(FLOORS) if room in rooms)


SOURCES = list(sources())
every_source = pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.name)


def test_every_room_has_a_floor():
    assert {source.room for source in SOURCES} - {""} <= set.union(*FLOORS)


@every_source
def test_imports_point_downwards_and_rooms_of_one_floor_do_not_know_each_other(source):
    for other in ours(source):
        assert floor(other) < floor(source.room) or (source.room, other) in SIDEWAYS, f"{source.name} imports {other}"


@every_source
def test_nothing_imports_the_command_line(source):
    assert not [name for name in imported(source.tree) if name.split(".")[0] == "fcurr_cli"]


@every_source
def test_only_the_edge_looks_at_files_at_the_clock_and_at_the_terminal(source):
    if source.room == "io":
        return
    names = {name.split(".")[0] for name in imported(source.tree)}
    assert {name for name in names & IMPURE if (source.room, name) not in WORDS} == set()
    calls = {
        node.func.id for node in ast.walk(source.tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    }
    assert calls & {"open", "print", "input", "exit"} == set()


@every_source
def test_only_the_room_of_trees_imports_optree(source):
    assert source.room == "tree" or "optree" not in {name.split(".")[0] for name in imported(source.tree)}


def test_the_rules_see_what_they_should():
    found = set(
        imported(ast.parse("import os.path, fcurr.rng\nfrom fcurr import tree, io\nfrom fcurr.study.bind import x"))
    )
    assert found == {"os.path", "fcurr.rng", "fcurr.tree", "fcurr.io", "fcurr.study.bind.x"}
    source = Source("pacing", "pacing", ast.parse("from fcurr import io, rng\nfrom fcurr.pacing import linear"))
    assert ours(source) == {"io", "rng"} and floor("io") > floor("pacing") > floor("rng")
