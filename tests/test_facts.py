"""Facts: whatever a result depends on that is in no config, and nothing else."""

import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from small import CONFIG, fcurr, written

from fcurr.errors import BadInput
from fcurr.io import facts, starting
from fcurr.study.config import Start

ONE = CONFIG | {"arms": {"plain": {"curriculum": {"order": "random", "pace": {"fn": "none"}}}}}
ONE = {key: value for key, value in ONE.items() if key not in ("score", "fit", "curriculum", "noise")}
ONE["training"] = {"total_iterations": 10, "batch_size": 16, "evaluate_every": 5}


@pytest.fixture(autouse=True)
def _beside(tmp_path, monkeypatch):
    """Where files and modules are looked for."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if str(tmp_path) in str(getattr(sys.modules[name], "__path__", getattr(sys.modules[name], "__file__", ""))):
            del sys.modules[name]


def _written(path: str, text: str) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(text)


NAMED: dict[str, dict[str, Any]] = {
    "the data": {"data": {"fn": "csv", "path": "a.csv"}},
    "a dotted key of a sweep": {"sweep": {"data.path": ["b.csv", "a.csv"]}},
    "a table of a sweep": {"sweep": {"data": {"path": ["b.csv", "a.csv"]}}},
    "a list of components": {"sweep": {"data": ["digits", {"fn": "csv", "path": "a.csv"}]}},
    "weights of a sweep": {"sweep": {"start.weights": ["a.csv"]}},
    "an arm": {"arms": {"one": {"start": {"weights": "a.csv"}}}},
    "members": {"members": {"start.weights": ["a.csv", "b.csv"]}},
    "a task": {"tasks": {"one": {"data": {"fn": "csv", "path": "a.csv"}}}},
    "a list of an own command": {"commands": {"mine": {"function": "m:f", "parameters": {"path": ["b.csv", "a.csv"]}}}},
}


@pytest.mark.parametrize("where", NAMED)
def test_a_file_is_known_by_its_content_wherever_a_config_names_it(where):
    _written("a.csv", "one")
    before = facts.gathered(NAMED[where], ()).files
    assert "a.csv" in before and "b.csv" not in before  # there is none
    _written("a.csv", "two")
    after = facts.gathered(NAMED[where], ()).files
    assert after.keys() == before.keys() and after["a.csv"] != before["a.csv"]


def test_texts_that_name_no_file_are_not_taken_for_one():
    _written("digits", "a file that is called like a data set")
    assert facts.gathered({"name": "digits", "data": "digits", "start": {"weights": ""}}, ()).files == {}


def test_a_sweep_over_files_is_done_anew_where_one_of_them_changed():
    for name in ("a", "b"):
        _written(f"{name}.csv", "x,label\n" + "".join(f"{n},{n % 2}\n" for n in range(40)))
    config = ONE | {"data": {"fn": "csv", "path": "a.csv"}, "sweep": {"data.path": ["a.csv", "b.csv"]}}
    config |= {"model": {"fn": "mlp", "hidden": [2]}, "members": {"seed": [0]}, "study": {"routines": ["train"]}}
    assert fcurr("run", written(Path(), config), "--out", "runs", "--engine", "inline").exit_code == 0
    _written("b.csv", "x,label\n" + "".join(f"{-n},{n % 2}\n" for n in range(40)))
    plan = fcurr("plan", written(Path(), config), "--out", "runs").stdout
    assert "2 done" in plan and "2 to run" in plan, plan


def test_files_behind_links_belong_to_a_folder_and_loops_end():
    _written("real/x.txt", "1")
    Path("set").mkdir()
    os.symlink("../real", "set/class")
    os.symlink("../set", "set/loop")
    os.symlink("nowhere", "set/broken")
    before = facts.content(Path("set"))
    assert facts.content(Path("set")) == before
    _written("real/x.txt", "2")
    assert facts.content(Path("set")) != before
    _written("real/x.txt", "1")
    assert facts.content(Path("set")) == before
    os.rename("set/class", "set/other")
    assert facts.content(Path("set")) != before


PACKAGES = {
    "a folder without __init__.py": ("plug.py", "from parts import helper\n", "parts/helper.py"),
    "a folder within it": ("plug.py", "import parts.deep.helper\n", "parts/deep/helper.py"),
    "a plugin in a folder without __init__.py": ("parts/plug.py", "from . import helper\n", "parts/helper.py"),
    "beside the folder of a plugin": ("parts/plug.py", "import helper\n", "helper.py"),
    "a module beside": ("plug.py", "import helper\n", "helper.py"),
}


@pytest.mark.parametrize("case", PACKAGES)
def test_code_that_a_plugin_imports_is_a_part_of_it_in_packages_of_any_kind(case):
    path, imports, other = PACKAGES[case]
    name = path.removesuffix(".py").replace("/", ".")
    _written(path, imports)
    _written(other, "x = 1\n")
    before = facts.code(name)
    _written(other, "x = 1  # a comment\n")
    assert facts.code(name) == before
    _written(other, "x = 22\n")
    assert facts.code(name) != before


@pytest.fixture(params=["a run", "a study"])
def trained(request) -> dict[str, Any]:
    """The config of a run that has trained, or of a study that has, in runs/first."""
    config = (
        ONE | {"name": "first"} | ({"study": {"routines": ["evaluate", "report"]}} if "study" in request.param else {})
    )
    result = fcurr(
        "run", written(Path(), config), "--out", "runs", *(("--engine", "inline") if "study" in config else ())
    )
    assert result.exit_code == 0, result.stderr
    return config


def _hash(**start: Any) -> str:
    return facts.gathered({"start": {"run": "runs/first", **start}}, ()).files["runs/first"]


def test_of_a_run_that_is_started_from_only_its_weights_count(trained):
    before = _hash()
    beside = ("notes.txt", "logs/a.txt", "report.html")
    for name in beside:
        _written(f"runs/first/{name}", "of no weight")
    assert _hash() == before
    for name in beside:
        Path("runs/first", name).unlink()
    Path("runs/first/logs").rmdir()
    assert _hash(member=0) != _hash(member=1) and before in (_hash(member=0), _hash(member=1))
    swept = {"start": {"run": "runs/first"}, "sweep": {"start.member": [0, 1]}}
    assert facts.gathered(swept, ()).files["runs/first"] not in (_hash(member=0), _hash(member=1))
    trained["optimizer"] = trained["optimizer"] | {"learning_rate": 0.2}
    again = fcurr("run", written(Path(), trained), "--out", "runs", *(() if "study" in trained else ("--fresh",)))
    assert again.exit_code == 0, again.stderr
    assert _hash() != before


def test_a_run_that_is_not_there_or_cannot_be_read_is_told_by_who_starts_from_it():
    assert facts.gathered({"start": {"run": "nowhere"}}, ()).files == {}
    Path("empty").mkdir()
    assert facts.gathered({"start": {"run": "empty"}}, ()).files.keys() == {"empty"}
    for run in ("nowhere", "empty"):
        with pytest.raises(BadInput) as told:
            starting.source(Start(run=run))
        assert told.value.where == "start.run"


def test_the_hash_of_weights_is_of_their_numbers():
    tensors = {"a": torch.zeros(2), "b": torch.ones(1)}
    assert starting.digest(tensors) == starting.digest(dict(reversed(tensors.items())))
    assert starting.digest(tensors) != starting.digest(tensors | {"a": torch.tensor([0.0, 1e-30])})
