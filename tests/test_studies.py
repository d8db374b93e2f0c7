"""A study does what is to be done, once; what it finds is what its runs find alone."""

import copy
import json
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from small import CONFIG, contents, fcurr, process, written
from typer.testing import Result

from fcurr.io import artefacts, journal
from fcurr.io.artefacts import Record

BRIEF = {"routines": ["prepare", "score", "train", "evaluate"]}  # without what takes long and tells nothing here
STUDY = CONFIG | {"study": BRIEF, "sweep": {"optimizer.learning_rate": [0.1, 0.05]}}
KINDS = ("prepare", "score", "train", "evaluate", "predict", "report", "select", "validate")


def _run(folder: Path, config: dict[str, Any] = STUDY, *more: str) -> Result:
    """The study, in this process."""
    folder.mkdir(exist_ok=True)
    result = fcurr("run", written(folder, config), "--out", folder / "runs", "--engine", "inline", *more)
    assert "Traceback" not in result.stderr
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def _lines(folder: Path, name: str = "small") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "runs" / name / journal.JOURNAL).read_text().splitlines()]


def _started(folder: Path, since: int = 0, name: str = "small") -> dict[str, int]:
    """function -> how many commands were begun, after so many lines of the journal."""
    names = [line["name"] for line in _lines(folder, name)[since:] if line["event"] == "started"]
    kinds = [name.partition("/")[0] for name in names]
    return {kind: kinds.count(kind) for kind in dict.fromkeys(kinds)}


def _plan(folder: Path, config: dict[str, Any] = STUDY, *more: str) -> dict[str, Any]:
    """The plan, as data."""
    result = fcurr("plan", written(folder, config), "--out", folder / "runs", "--json", *more)
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


def _states(folder: Path, config: dict[str, Any] = STUDY, *more: str) -> dict[str, str]:
    return {command["name"]: command["state"] for command in _plan(folder, config, *more)["commands"]}


def _record(folder: Path, name: str, study: str = "small") -> Record:
    """What a command of this name left."""
    (key,) = {key for key, line in journal.read(folder / "runs" / study).items() if line["name"] == name}
    found = artefacts.record(folder / "runs/store", key)
    assert found is not None, name
    return found


def _output(folder: Path, name: str, output: str, study: str = "small") -> Any:
    return artefacts.get(folder / "runs/store", _record(folder, name, study).outputs[output])


def _evaluations(folder: Path, study: str = "small") -> dict[str, dict[str, Any]]:
    """name -> what every evaluation says."""
    names = [line["name"] for line in journal.read(folder / "runs" / study).values()]
    return {name: _output(folder, name, "evaluation", study) for name in names if name.startswith("evaluate/")}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A study that has come to its end."""
    folder = tmp_path_factory.mktemp("finished")
    result = _run(folder, {key: value for key, value in STUDY.items() if key != "study"})
    assert result.exit_code == 0, result.stderr
    return folder


@pytest.fixture
def brief(tmp_path, finished):
    """The same with fewer routines, in a folder of its own."""
    shutil.copytree(finished / "runs/store", tmp_path / "runs/store", ignore=shutil.ignore_patterns("references"))
    assert _run(tmp_path).exit_code == 0
    assert _started(tmp_path) == {}
    return tmp_path


def test_a_study_that_is_run_again_does_nothing_twice(finished):
    whole = {key: value for key, value in STUDY.items() if key != "study"}
    assert _started(finished) == {"prepare": 1, "score": 2, "train": 8, "evaluate": 8, "predict": 8, "report": 1}
    before, lines = contents(finished / "runs/store"), _lines(finished)
    result = _run(finished, whole)
    assert result.exit_code == 0
    assert contents(finished / "runs/store") == before
    assert _lines(finished) == lines
    assert "28 commands: 28 done" in result.stderr
    assert "| easy_first | 0.05" in result.stdout and "report: " in result.stdout


def test_a_plan_and_a_status_tell_of_every_command_in_words_and_as_data(finished):
    whole = {key: value for key, value in STUDY.items() if key != "study"}
    found = _plan(finished, whole)
    assert {command["state"] for command in found["commands"]} == {"done"}
    assert found["name"] == "small" and found["programs"] == [] and found["seconds"] == 0
    names = {command["name"]: command for command in found["commands"]}
    assert len(names) == 28
    for command in found["commands"]:
        assert command["function"] in KINDS and len(command["key"]) == 16 and command["why"] == ""
        assert all(name in names for several in command["inputs"].values() for name in several)
        assert _record(finished, command["name"]).key == command["key"]
    told = fcurr("plan", written(finished, whole), "--out", finished / "runs", "--all").stdout
    assert told.startswith("study small: 28 commands: 28 done\n")
    assert all(name in told for name in names)
    status = fcurr("status", finished / "runs/small")
    assert status.stdout.startswith("study small: 28 commands: 28 done; last heard of ")
    data = json.loads(fcurr("status", finished / "runs/small", "--json").stdout)
    assert data["counts"] == {"done": 28} and data["name"] == "small"
    assert {line["name"]: line["command"] for line in data["commands"]} == {n: c["key"] for n, c in names.items()}
    everything = fcurr("status", finished / "runs/small", "--all").stdout
    assert all(name in everything for name in names)


def test_runs_and_studies_of_a_folder_are_listed(finished):
    folder = finished / "runs"
    alone = folder / "alone"
    alone.mkdir()
    (alone / "identity.json").write_text("{}")
    (alone / "status.json").write_text('{"status": "finished"}')
    said = fcurr("ls", "runs", "--out", folder).stdout.splitlines()
    shutil.rmtree(alone)
    assert said[0] == "run alone: finished"
    assert said[1].startswith("study small: 28 commands: 28 done; last heard of ") and len(said) == 2


def test_what_a_study_found_is_in_its_folder(finished):
    found = json.loads((finished / "runs/small/results.json").read_text())
    assert [sorted(member) for member in found["members"]] == [
        sorted(["member", "arm", "optimizer.learning_rate", "seed", "iterations", "best_iteration", "last", "best"])
    ] * 8
    numbers = {name.partition("/")[2]: found for name, found in _evaluations(finished).items()}
    for member in found["members"]:
        name = f"{member['arm']}[optimizer.learning_rate={member['optimizer.learning_rate']}, seed={member['seed']}]"
        assert member["last"] == numbers[name]["last"] and member["best"] == numbers[name]["best"]
    curves = [json.loads(line) for line in (finished / "runs/small/metrics.jsonl").read_text().splitlines()]
    assert {line["member"] for line in curves} == set(range(8)) and max(line["iteration"] for line in curves) == 40


def test_a_changed_config_does_anew_what_depends_on_the_change_and_says_so_before(brief):
    longer = copy.deepcopy(STUDY)
    longer["training"]["total_iterations"] = 50
    assert {state for name, state in _states(brief, longer).items() if name.startswith("train/")} == {"to run"}
    since = len(_lines(brief))
    result = _run(brief, longer)
    assert _started(brief, since) == {"train": 8, "evaluate": 8}
    said = result.stderr.splitlines()
    words = "8 anew, changed: training.total_iterations 40 -> 50: train/plain[optimizer.learning_rate=0.1, seed=0], ..."
    assert words in said
    assert said.index(words) < next(n for n, line in enumerate(said) if line.startswith("training ("))
    back = len(_lines(brief))
    before = contents(brief / "runs/store")
    result = _run(brief)  # as it was
    assert _started(brief, back) == {}
    again = [line for line in _lines(brief)[back:] if line["event"] == "finished"]
    assert len(again) == 16 and all(line["reused"] == 1 for line in again)
    after = contents(brief / "runs/store")
    assert {n: c for n, c in after.items() if "references" not in n} == {
        n: c for n, c in before.items() if "references" not in n
    }


def test_a_value_that_is_added_to_a_sweep_trains_only_the_new(brief):
    more = STUDY | {"sweep": {"optimizer.learning_rate": [0.1, 0.02, 0.05]}}
    since = len(_lines(brief))
    assert _run(brief, more).exit_code == 0
    assert _started(brief, since) == {"score": 1, "train": 4, "evaluate": 4}
    new = [line["name"] for line in _lines(brief)[since:] if line["event"] == "started" and "train/" in line["name"]]
    assert all("learning_rate=0.02" in name for name in new)


def test_a_second_study_that_shares_the_store_takes_what_is_there(brief):
    other = STUDY | {"name": "other", "sweep": {"optimizer.learning_rate": [0.05, 0.03]}}
    states = _states(brief, other)
    assert {states[name] for name in states if "learning_rate=0.05" in name} == {"to reuse"}
    assert {states[name] for name in states if "learning_rate=0.03" in name} == {"to run"}
    assert _run(brief, other).exit_code == 0
    assert _started(brief, 0, "other") == {"score": 1, "train": 4, "evaluate": 4}
    reused = {line["name"]: line["reused"] for line in _lines(brief, "other") if line["event"] == "finished"}
    assert all(flag == ("0.05" in name) for name, flag in reused.items() if "learning_rate=" in name)
    assert set(_states(brief, other).values()) == {"done"} == set(_states(brief).values())


def test_a_part_of_a_study_leaves_the_rest_as_it_was(brief):
    name = "train/plain[optimizer.learning_rate=0.1, seed=0]"
    before = set(journal.read(brief / "runs/small"))
    assert _run(brief, STUDY, "--only", name).exit_code == 0
    assert set(journal.read(brief / "runs/small")) == before
    assert fcurr("clean", "--out", brief / "runs", "--yes").exit_code == 0
    assert set(_states(brief).values()) == {"done"}


def test_only_some_commands_are_performed_with_what_they_read(tmp_path):
    result = _run(tmp_path, STUDY, "--only", "train/easy_first*rate=0.1*", "--only", "prepare/*")
    assert result.exit_code == 0 and _started(tmp_path) == {"prepare": 1, "score": 1, "train": 2}
    assert len(journal.read(tmp_path / "runs/small")) == 19  # the others are planned
    assert list(_states(tmp_path, STUDY, "--only", "score/*").values()) == ["done", "done", "to run"]
    wrong = _run(tmp_path, STUDY, "--only", "trian/*")
    assert wrong.exit_code == 2
    assert wrong.stderr == "fcurr: no command is called trian/*; fcurr plan --all lists them\n"


DIVERGING = STUDY | {"sweep": {"optimizer.learning_rate": [0.1, 1e30]}, "study": {}}


def test_a_training_that_diverges_fails_alone_and_the_others_are_reported(finished, tmp_path):
    result = _run(tmp_path, DIVERGING)
    assert result.exit_code == 1
    failed = {line["name"]: line["error"] for line in _lines(tmp_path) if line["event"] == "failed"}
    assert all("1e+30" in name for name in failed) and "train/plain[optimizer.learning_rate=1e+30, seed=0]" in failed
    words = "the loss is not finite after step 1; a smaller learning rate may help"
    assert failed["train/plain[optimizer.learning_rate=1e+30, seed=0]"] == words
    assert f"failed: train/plain[optimizer.learning_rate=1e+30, seed=0]: {words}\n" in result.stderr
    there = _evaluations(tmp_path) if False else None
    assert there is None
    found = json.loads((tmp_path / "runs/small/results.json").read_text())["members"]
    same = json.loads((finished / "runs/small/results.json").read_text())["members"]
    strip = lambda members: [{k: v for k, v in m.items() if k != "member"} for m in members]  # noqa: E731
    assert strip(found) == [m for m in strip(same) if m["optimizer.learning_rate"] == 0.1]
    assert "of 4 of 8 trainings: the others did not come to their end" in result.stdout
