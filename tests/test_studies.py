"""A study does what is to be done, once; what it finds is what its runs find alone."""

import contextlib
import copy
import http.server
import json
import platform
import shlex
import shutil
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from small import CONFIG, contents, fcurr, written
from typer.testing import Result

from fcurr.io import artefacts, cleaning, conducting, configs, execute, journal, performing, progress, studying
from fcurr.io.artefacts import Record
from fcurr.study.schedule import Command, Schedule

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
    assert sorted(failed) == [
        "score/cross_validated_loss 2",
        "train/plain[optimizer.learning_rate=1e+30, seed=0]",
        "train/plain[optimizer.learning_rate=1e+30, seed=1]",
    ]
    words = "the loss is not finite after step 2; a smaller learning rate may help"
    assert failed["train/plain[optimizer.learning_rate=1e+30, seed=0]"] == words
    assert f"failed: train/plain[optimizer.learning_rate=1e+30, seed=0]: {words}\n" in result.stderr
    found = json.loads((tmp_path / "runs/small/results.json").read_text())["members"]
    same = json.loads((finished / "runs/small/results.json").read_text())["members"]
    strip = lambda members: [{k: v for k, v in m.items() if k != "member"} for m in members]  # noqa: E731
    assert strip(found) == [m for m in strip(same) if m["optimizer.learning_rate"] == 0.1]
    assert "of 4 of 8 trainings: the others did not come to their end" in result.stdout


PASTED = {**STUDY, "study": {"routines": ["train"]}, "arms": {"an arm [of two]": {}, "plain": STUDY["arms"]["plain"]}}
FAULTY = """\
import os

def meddle(values):
    if os.path.exists({path!r}):
        raise RuntimeError("there is a stone in the way")
    return values
"""


def _plugin(folder: Path, text: str, name: str) -> None:
    """A module beside the config."""
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.py").write_text(text)


def test_the_command_that_tries_again_what_failed_can_be_pasted_into_a_shell(tmp_path, monkeypatch):
    stone = tmp_path / "stone"
    stone.write_text("")
    _plugin(tmp_path, FAULTY.format(path=str(stone)), "stony")
    config = PASTED | {"hooks": {"train": {"before": "stony:meddle"}}}
    arguments = ["--plugin", "stony", "--engine", "inline", "--only", "train/an arm*rate=0.1,*"]
    given = ["run", written(tmp_path, config), "--out", tmp_path / "runs", *arguments]
    monkeypatch.setattr(sys, "argv", ["fcurr", *map(str, given)])
    result = fcurr(*given)
    said = result.stderr
    assert result.exit_code == 1 and "Traceback" not in said
    failed = [line for line in said.splitlines() if line.startswith("failed: ")]
    assert failed[0] == (
        "failed: train/an arm [of two][optimizer.learning_rate=0.1, seed=0]: RuntimeError: there is a stone in the way"
    )
    assert len(failed) == 2
    told = [line.partition("in full: ")[2] for line in said.splitlines() if "in full: " in line]
    assert all("in meddle" in Path(path).read_text() for path in told) and len(told) == 2
    again = [shlex.split(line.partition("again: ")[2]) for line in said.splitlines() if "again: " in line]
    stone.unlink()
    since = len(_lines(tmp_path))
    assert again[0][0] == "fcurr" and fcurr(*again[0][1:]).exit_code == 0
    begun = [line["name"] for line in _lines(tmp_path)[since:] if line["event"] == "started"]
    assert begun == ["train/an arm [of two][optimizer.learning_rate=0.1, seed=0]"]


def test_a_failure_stops_all_that_is_not_begun_if_told_to(tmp_path):
    own = {"bad": {"function": "steps:fails"}, "good": {"function": "steps:numbers", "parameters": {"size": 3}}}
    config = STUDY | {"study": {"routines": []}, "commands": own}
    result = _run(tmp_path / "fast", config, "--plugin", "steps", "--fail-fast")
    assert result.exit_code == 1 and _started(tmp_path / "fast") == {"bad": 1}
    assert "failed: bad: RuntimeError: the disk of the moon is full" in result.stderr
    result = _run(tmp_path / "slow", config, "--plugin", "steps")
    assert result.exit_code == 1 and _started(tmp_path / "slow") == {"bad": 1, "good": 1}
    assert result.stderr.endswith("fcurr: 1 of 2 commands failed\n")


OWN = {
    "first": {"function": "steps:numbers", "parameters": {"size": 4}},
    "second": {"function": "steps:scaled", "inputs": "first", "parameters": {"factor": 2.5}},
    "sums": {"function": "steps:total", "inputs": ["first", "sec*"]},
}


INTERRUPTED = """\
import signal

def first(inputs):
    signal.raise_signal(signal.SIGINT)
    return 1

def second(inputs):
    return 2
"""


EDITS = """\
from pathlib import Path

def edits(values):
    path = Path({path!r})
    path.write_text(path.read_text().replace(".5,", ".25,"))
    return values
"""


def test_what_is_made_while_a_file_changes_is_not_kept_as_made_from_what_it_was(tmp_path):
    table = tmp_path / "table.csv"
    rows = [f"{n},{(n * 7) % 11}.5,{'ab'[n % 2]}" for n in range(60)]
    table.write_text("\n".join(["u,v,label", *rows]) + "\n")
    split = {"fn": "stratified", "validation": 0.2, "test": 0.2}
    config = IRIS | {"data": {"fn": "csv", "path": str(table)}, "split": split, "study": {"routines": ["train"]}}
    config |= {"hooks": {"train": {"after": "edits:edits"}}}
    before = table.read_text()
    _plugin(tmp_path, EDITS.format(path=str(table)), "edits")
    result = _run(tmp_path, config, "--plugin", "edits")
    assert result.exit_code == 1 and table.read_text() != before
    assert f"{table} has changed since the study was planned; run it again\n" in result.stderr
    assert set(_states(tmp_path, config, "--plugin", "edits").values()) == {"to run"}
    table.write_text(before)
    states = _states(tmp_path, config, "--plugin", "edits")
    assert {name.partition("/")[0]: state for name, state in states.items()} == {"prepare": "done", "train": "to run"}


def test_ctrl_c_during_a_command_that_does_not_ask_stops_the_study_after_it(tmp_path):
    _plugin(tmp_path, INTERRUPTED, "interrupted")
    own = {"first": {"function": "interrupted:first"}, "second": {"function": "interrupted:second", "inputs": "first"}}
    config = STUDY | {"study": {"routines": []}, "commands": own}
    result = _run(tmp_path, config, "--plugin", "interrupted")
    assert result.exit_code == 130 and "stopped; nothing is lost; to go on: fcurr " in result.stderr
    assert _states(tmp_path, config, "--plugin", "interrupted") == {"first": "done", "second": "to run"}
    assert _run(tmp_path, config, "--plugin", "interrupted").exit_code == 0
    assert _started(tmp_path) == {"first": 1, "second": 1}


def test_results_of_another_config_are_gone_before_anything_is_performed(brief):
    folder, names = brief / "runs/small", ("results.json", "metrics.jsonl", "comparison")
    whole = {key: value for key, value in STUDY.items() if key != "study"}
    assert _run(brief, whole).exit_code == 0
    assert all((folder / name).exists() for name in names)
    assert _run(brief, whole, "--only", "prepare*").exit_code == 0
    assert all((folder / name).exists() for name in names)  # they are of this config
    longer = copy.deepcopy(whole)
    longer["training"]["total_iterations"] = 50
    assert _run(brief, longer, "--only", "prepare*").exit_code == 0
    assert not any((folder / name).exists() for name in names)
    said = fcurr("export", folder, brief / "weights.safetensors")
    assert said.exit_code == 2 and "is a study without results: it has not come to its end" in said.stderr


def test_commands_of_ones_own_read_each_other_and_need_leave(tmp_path):
    config = STUDY | {"study": {"routines": []}, "commands": OWN}
    refused = _run(tmp_path, config)
    assert refused.exit_code == 2
    assert "`steps:numbers` is code from outside fcurr; to allow it, add --plugin steps" in refused.stderr
    assert not (tmp_path / "runs/small").exists()
    result = _run(tmp_path, config, "--plugin", "steps")
    assert result.exit_code == 0 and "finished, 3 commands; the store is " in result.stdout
    assert _output(tmp_path, "sums", "value") == {"first": 6.0, "second": 15.0}
    assert torch.equal(_output(tmp_path, "second", "value")["numbers"], 2.5 * torch.arange(4, dtype=torch.float64))


def test_a_command_of_ones_own_reads_trainings_by_a_pattern(brief):
    config = STUDY | {"commands": {"mine": {"function": "reader:count", "inputs": ["train/easy*", "evaluate/plain*"]}}}
    _plugin(brief, "def count(inputs):\n    return {k: sorted(v) for k, v in inputs.items()}\n", "reader")
    since = len(_lines(brief))
    assert _run(brief, config, "--plugin", "reader").exit_code == 0
    assert _started(brief, since) == {"mine": 1}
    found = _output(brief, "mine", "value")
    assert len(found) == 8 and found["train/easy_first[optimizer.learning_rate=0.1, seed=0]"] == ["metrics", "model"]
    assert "accuracy" not in found and "best" in found["evaluate/plain[optimizer.learning_rate=0.1, seed=0]"]


def test_hooks_change_what_is_read_and_made_and_their_code_is_in_the_key(brief):
    config = STUDY | {"hooks": {"evaluate": {"after": ["steps:doubled"]}}}
    since = len(_lines(brief))
    assert _run(brief, config, "--plugin", "steps").exit_code == 0
    assert _started(brief, since) == {"evaluate": 8}
    for found in _evaluations(brief).values():
        assert found["last"]["twice"] == 2 * found["last"]["accuracy"]
    _plugin(brief, "def same(values):\n    return values\n", "changing")
    config = STUDY | {"hooks": {"score": {"before": "changing:same"}}}
    assert _run(brief, config, "--plugin", "changing").exit_code == 0
    since = len(_lines(brief))
    _plugin(brief, "# a remark\ndef same(values):\n    'Words.'\n    return values\n", "changing")
    assert _run(brief, config, "--plugin", "changing").exit_code == 0
    assert _started(brief, since) == {}
    _plugin(brief, "def same(values):\n    return {**values}\n", "changing")
    assert _run(brief, config, "--plugin", "changing").exit_code == 0
    assert _started(brief, since) == {"score": 2, "train": 4, "evaluate": 4}


def _study(**changes: Any) -> dict[str, Any]:
    """A study of two rates and one seed without noise, with changes."""
    config = {**copy.deepcopy(STUDY), "members": {"seed": [0]}, **changes}
    config["training"] = STUDY["training"] | changes.get("training", {})
    return {key: value for key, value in config.items() if value is not None}


NET = """\
from torch import nn
from fcurr import models
from fcurr.types import Classes, Model, Shape

def net(*, features: Shape, classes: Classes) -> Model:
    planes, height, width = features
    def build():
        layers = [nn.Conv2d(planes, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.3), nn.Flatten()]
        return nn.Sequential(*layers, nn.Linear(4 * height * width, classes))
    return models.from_module(build=build)
"""
META = {
    "model": {"fn": "layered:net"},
    "clean": {"fn": "balanced", "size": 20},
    "reweighting": {"fn": "meta_weight_net", "hidden": 8, "warm_up": 5},
    "arms": {"one": {}, "focal": {"weighting": "focal"}},
    "sweep": {"optimizer.learning_rate": [0.1, 0.03]},
}
CASES = {
    "an order by a score, a random order, and several paces": _study(
        sweep={"curriculum.pace.initial_size": [0.2, 0.5], "optimizer.learning_rate": [0.1, 0.05]}
    ),
    "weightings in closed form": _study(
        arms={
            "focal": {"weighting": {"fn": "focal", "gamma": 1.0}},
            "superloss": {"weighting": {"fn": "superloss", "threshold": 2.3}},
        }
    ),
    "Meta-Weight-Net with controls, BatchNorm and dropout": _study(**META),
    "epochs, long tail, class weights, dropout": _study(
        model={"fn": "layered:net"},
        loss="balanced_cross_entropy",
        imbalance={"fn": "long_tail", "ratio": 5.0},
        training={"clock": "epoch", "total_iterations": 2, "batch_size": 64, "evaluate_every": 1, "save_every": 1},
    ),
    "a regression": _study(
        data="diabetes",
        split={"fn": "shuffled", "validation": 0.2, "test": 0.2},
        noise=None,
        scaling="standard",
        optimizer={"fn": "adam", "learning_rate": 0.01},
        metrics=["r2", "mean_absolute_error"],
        score={"fn": "cross_validated_loss", "folds": 2},
    ),
    "a sweep of what cannot be one program": _study(sweep={"model.hidden": [[4], [8, 4]], "split.test": [0.1, 0.2]}),
}


def _trainings(folder: Path, config: dict[str, Any]) -> list[Command]:
    """The trainings of a study."""
    table, _ = configs.load(written(folder, config), [], ["layered"])
    here = studying.opened(table, ["layered"], folder / "runs", folder)
    return [command for command in here.schedule.commands.values() if command.function == "train"]


LONG = ("Meta-Weight-Net with controls, BatchNorm and dropout", "a sweep of what cannot be one program")


@pytest.mark.parametrize("case", [pytest.param(case, marks=[pytest.mark.long] * (case in LONG)) for case in CASES])
def test_every_training_of_a_study_finds_what_the_same_config_finds_alone(case, tmp_path):
    _plugin(tmp_path, NET, "layered")
    result = _run(tmp_path, CASES[case], "--plugin", "layered")
    assert result.exit_code == 0, result.stderr
    assert "one by one" not in result.stderr
    found = _evaluations(tmp_path)
    trainings = _trainings(tmp_path, CASES[case])
    assert {train.name.replace("train/", "evaluate/") for train in trainings} >= found.keys() and len(found) >= 4
    for number, train in enumerate(trainings[:: len(trainings) // 4]):
        folder = tmp_path / "alone" / str(number)
        config = {**train.config, "name": str(number), "controls": False}
        assert execute.execute(configs.read(config, ["layered"]), folder, {"layered": ""})
        (one,) = json.loads((folder / "results.json").read_text())["members"]
        own = found.get(train.name.replace("train/", "evaluate/"))
        if own is None:  # the same as another: a random order has no pace
            continue
        assert own["iterations"] == one["iterations"] and own["best_iteration"] == one["best_iteration"]
        for which in ("last", "best"):
            assert own[which] == pytest.approx({key: one[which][key] for key in own[which]}, rel=1e-6, abs=1e-6)


def test_a_program_of_one_training_is_bit_for_bit_the_run_alone(tmp_path):
    config = _study(study=BRIEF | {"width": 1}, sweep={"optimizer.learning_rate": [0.1]})
    assert _run(tmp_path, config).exit_code == 0
    (train,) = (train for train in _trainings(tmp_path, config) if "easy_first" in train.name)
    folder = tmp_path / "alone"
    assert execute.execute(configs.read(train.config | {"name": "alone"}), folder, {})
    (one,) = json.loads((folder / "results.json").read_text())["members"]
    own = _evaluations(tmp_path)[train.name.replace("train/", "evaluate/")]
    assert all(own[which][key] == one[which][key] for which in ("last", "best") for key in own[which])


IRIS = {
    "name": "small",
    "data": "iris",
    "model": {"fn": "mlp", "hidden": [4]},
    "optimizer": {"fn": "sgd", "learning_rate": 0.1},
    "training": {"total_iterations": 30, "batch_size": 16, "evaluate_every": 10},
    "study": {"routines": ["evaluate"]},
}
NESTED = IRIS | {
    "split": {"fn": "stratified_k_fold", "folds": 3},
    "cross_validation": {"folds": 3, "inner_folds": 2},
    "sweep": {"optimizer.learning_rate": [0.001, 0.2]},
    "members": {"seed": [0, 1]},
}


def _leaking(leakage: str, use: dict[str, str]) -> dict[str, Any]:
    own = {"mine": {"function": "counting:names", "inputs": "train/*", "uses": use}}
    split = {"fn": "stratified", "validation": 0.2, "test": 0.2}
    return IRIS | {"split": split, "commands": own, "study": {"routines": [], "leakage": leakage}}


def test_who_calibrates_or_evaluates_on_what_was_trained_on_is_refused_or_written_down(tmp_path):
    _plugin(tmp_path, "def names(inputs):\n    return sorted(inputs)\n", "counting")
    result = _run(tmp_path, _leaking("refuse", {"calibrate": "train"}), "--plugin", "counting")
    assert result.exit_code == 1
    (said,) = [line for line in result.stderr.splitlines() if line.startswith("failed: ")]
    assert said.startswith("failed: mine: mine would calibrate on 90 samples that what it reads was fitted on (")
    assert said.endswith('; leakage = "record" in [study] goes on and writes it down')
    result = _run(tmp_path, _leaking("record", {"calibrate": "train"}), "--plugin", "counting")
    assert result.exit_code == 0
    (told,) = _record(tmp_path, "mine").leaks
    again = _run(tmp_path, _leaking("refuse", {"calibrate": "train"}) | {"name": "other"}, "--plugin", "counting")
    assert again.exit_code == 1 and said in again.stderr.splitlines()  # it does not take what another wrote down
    assert told.startswith("calibrate on 90 samples that what it reads was fitted on (")
    fine = _run(tmp_path, _leaking("refuse", {"calibrate": "validation"}), "--plugin", "counting")
    assert fine.exit_code == 0
    result = _run(tmp_path, _leaking("refuse", {"evaluate": "validation"}), "--plugin", "counting")
    assert "mine would evaluate on 30 samples that what it reads was selected on (" in result.stderr


def _ids(folder: Path, key: str, part: str) -> set[int]:
    record = artefacts.record(folder / "runs/store", key)
    assert record is not None
    return set(artefacts.get(folder / "runs/store", record.outputs["samples"])[f"id of {part}"].tolist())


def test_nested_cross_validation_chooses_inside_and_judges_by_what_no_choice_has_seen(tmp_path):
    result = _run(tmp_path, NESTED)
    assert result.exit_code == 0, result.stderr
    names = [line["name"] for line in journal.read(tmp_path / "runs/small").values()]
    judged = [name for name in names if name.startswith("evaluate/")]
    assert len(judged) == 6  # folds and seeds
    tested: list[int] = []
    for name in judged:
        record = _record(tmp_path, name)
        (test,) = record.seen["evaluate"]
        own = _ids(tmp_path, *test)
        for use in ("fit", "select", "calibrate"):
            for key, part in record.seen.get(use, ()):
                assert not own & _ids(tmp_path, key, part), (name, use)
        assert (
            len({*record.seen["fit"], *record.seen["select"]}) == 6 and record.leaks == ()
        )  # two inner folds, and all
        tested += sorted(own) if "seed=0" in name else []
    assert sorted(tested) == list(range(150))
    for name in (name for name in names if name.startswith("select/")):
        choice, fold = _output(tmp_path, name, "choice"), name.partition("split.fold=")[2][0]
        values: dict[str, list[float]] = {}
        for other in names:
            if other.startswith("validate/") and f"split.fold={fold}," in other:
                rate = other.partition("learning_rate=")[2].partition(",")[0]
                values.setdefault(rate, []).append(_output(tmp_path, other, "validation")["value"])
        means = {rate: sum(several) / len(several) for rate, several in values.items()}
        assert all(len(several) == 4 for several in values.values())  # inner folds and seeds
        better = max(means, key=lambda rate: means[rate])
        assert choice["point"] == f"[optimizer.learning_rate={better}]"
        assert choice["means"] == pytest.approx({f"[optimizer.learning_rate={r}]": m for r, m in means.items()})
        (train,) = (t for t in _trainings(tmp_path, NESTED) if t.name.endswith(f"fold={fold}, seed=1], chosen"))
        alone = train.config["among"][choice["point"]]["config"] | {"name": fold}
        assert alone["optimizer"]["learning_rate"] == float(better)
        assert execute.execute(configs.read(alone), tmp_path / "alone" / fold, {})
        (one,) = json.loads((tmp_path / "alone" / fold / "results.json").read_text())["members"]
        own = _output(tmp_path, train.name.replace("train/", "evaluate/"), "evaluation")
        assert own["best"] == pytest.approx({key: one["best"][key] for key in own["best"]}, rel=1e-6, abs=1e-6)


class Heard:
    """A web server of this machine, and what it was told."""

    def __init__(self, code: int = 200) -> None:
        heard = self
        self.bodies: list[dict[str, Any]] = []

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                heard.bodies.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
                assert self.headers["Content-Type"] == "application/json"
                self.send_response(code)
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:
                pass

        self.server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server.server_address[1]}/notice"

    def __enter__(self) -> "Heard":
        self.thread = threading.Thread(target=self.server.serve_forever)
        self.thread.start()
        return self

    def __exit__(self, *wrong: object) -> None:
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()


FINE = {"function": "steps:numbers", "parameters": {"size": 3}}


def _telling(function: str, **notify: Any) -> dict[str, Any]:
    return STUDY | {"study": {"routines": []}, "commands": {"one": FINE | {"function": function}}, "notify": notify}


def test_a_web_address_is_told_when_a_study_ends_and_when_it_fails(tmp_path):
    with Heard() as heard:
        assert _run(tmp_path, _telling("steps:numbers", webhook=heard.address), "--plugin", "steps").exit_code == 0
        config = _telling("steps:fails", webhook=heard.address)
        assert _run(tmp_path, config, "--plugin", "steps").exit_code == 1
    first, second = heard.bodies
    host = platform.node()
    assert first == {
        "text": f"fcurr: study small on {host}: finished, 1 commands",
        "study": "small",
        "host": host,
        "outcome": "finished, 1 commands",
    }
    assert second["outcome"] == "1 of 1 commands failed"


@pytest.mark.parametrize("address", ["closed", "refusing", "ftp://x y/", "http://a b/", "nonsense"])
def test_an_address_that_does_not_listen_is_a_line_and_stops_nothing(address, tmp_path):
    heard = Heard(500)
    with contextlib.nullcontext() if address != "refusing" else heard:
        url = heard.address if address in ("closed", "refusing") else address
        if address == "closed":
            heard.server.server_close()
        result = _run(tmp_path, _telling("steps:numbers", webhook=url), "--plugin", "steps")
    assert result.exit_code == 0 and "finished, 1 commands" in result.stdout
    assert len([line for line in result.stderr.splitlines() if line.startswith("the notice could not be sent to")]) == 1


def test_the_desktop_is_told_by_the_program_that_is_there(tmp_path, monkeypatch):
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "notify-send").write_text(f'#!/bin/sh\nprintf "%s|" "$@" > {tmp_path}/said\n')
    (tools / "notify-send").chmod(0o755)
    monkeypatch.setenv("PATH", str(tools))
    assert _run(tmp_path, _telling("steps:numbers", desktop=True), "--plugin", "steps").exit_code == 0
    assert (tmp_path / "said").read_text() == "fcurr: study small|finished, 1 commands|"
    monkeypatch.setenv("PATH", "")
    result = _run(tmp_path, _telling("steps:numbers", desktop=True), "--plugin", "steps")
    assert result.exit_code == 0 and "there is no desktop to notify" in result.stderr


def test_what_no_study_refers_to_is_shown_and_then_removed_and_nothing_else(brief):
    other = _study(name="other", sweep={"optimizer.learning_rate": [0.05, 0.03]})
    assert _run(brief, other).exit_code == 0
    shared = set(_states(brief)) & set(_states(brief, other))
    assert shared
    before = contents(brief / "runs/store")
    unneeded = [name for name in before if name.startswith("predictions/") or name.startswith("results/")]
    assert len(unneeded) == 9  # of the study that this store was copied from
    shown = fcurr("clean", "--out", brief / "runs")
    assert shown.exit_code == 0 and "nothing was removed; --yes removes them" in shown.stdout
    assert "files that no study refers to" in shown.stdout and contents(brief / "runs/store") == before
    shutil.rmtree(brief / "runs/other")  # a study that is thrown away
    working = brief / "runs/store/working/00"
    kept = brief / "runs/store/working/11"
    for folder, key in ((working, "0" * 16), (kept, next(iter(journal.read(brief / "runs/small"))))):
        folder.mkdir(parents=True)
        (folder / "work.json").write_text(json.dumps([{"key": key}]))
    (brief / "runs/store/model/.0000000000000000.safetensors.77.tmp").write_text("half")
    removed = fcurr("clean", "--out", brief / "runs", "--yes")
    assert removed.exit_code == 0 and removed.stdout.endswith("removed\n")
    assert set(_states(brief).values()) == {"done"}
    assert kept.exists() and not working.exists()
    needed = set(journal.read(brief / "runs/small"))
    left = contents(brief / "runs/store")
    keys = {Path(name).name.partition(".")[0] for name in left if name.split("/")[0] not in ("locks", "references")}
    assert keys - {"work"} == needed and len([name for name in left if name.startswith("references/")]) == 1
    assert fcurr("clean", "--out", brief / "runs").stdout == "nothing is left over: studies refer to all there is\n"
    shutil.rmtree(kept)


OF_OWN = STUDY | {"study": {"routines": []}, "commands": OWN}


def _made(folder: Path) -> dict[str, bytes]:
    kept = (artefacts.LOCKS, artefacts.REFERENCES)
    return {name: data for name, data in contents(folder / "store").items() if name.split("/")[0] not in kept}


def test_what_is_kept_is_kept_where_studies_are_moved_and_where_one_is_renamed(tmp_path):
    assert _run(tmp_path, OF_OWN, "--plugin", "steps").exit_code == 0
    moved = tmp_path / "moved"
    (tmp_path / "runs").rename(moved)
    made = _made(moved)
    assert len(made) == 6
    assert fcurr("clean", "--out", moved).stdout == "nothing is left over: studies refer to all there is\n"
    (moved / "small").rename(moved / "renamed")
    shown = fcurr("clean", "--out", moved, "--yes")
    assert shown.stdout.startswith("1 files that no study refers to, ") and _made(moved) == made
    assert "1 of them are of a study that is not there any more: ../small\nremoved\n" in shown.stdout
    (moved / "renamed").rename(tmp_path / "away")
    assert fcurr("clean", "--out", moved).stdout.startswith("6 files that no study refers to, ")
    (tmp_path / "away").rename(moved / "renamed")
    (moved / "renamed/schedule.json").write_text("[")
    broken = fcurr("clean", "--out", moved, "--yes")
    assert broken.exit_code == 2 and _made(moved) == made
    assert "renamed/schedule.json does not say what a study refers to" in broken.stderr


def test_what_a_study_begins_to_use_while_a_person_is_asked_is_not_removed(tmp_path):
    assert _run(tmp_path, OF_OWN, "--plugin", "steps").exit_code == 0
    store, made = tmp_path / "runs/store", _made(tmp_path / "runs")
    (tmp_path / "runs/small").rename(tmp_path / "away")
    left = cleaning.found(store)
    assert len(left) == len(made) + 1 and {one.study for one in left} == {"../small"}
    assert _run(tmp_path, OF_OWN | {"name": "other"}, "--plugin", "steps").exit_code == 0
    assert cleaning.remove(store, left) == 1  # what the other had noted
    assert _made(tmp_path / "runs") == made
    place = performing.Place(tmp_path / "runs/third", store)
    place.study.mkdir()
    begins = threading.Thread(target=conducting.announce, args=(Schedule({}), place))
    with artefacts.referring(store):  # whoever begins waits for whoever removes
        begins.start()
        begins.join(0.2)
        assert begins.is_alive()
    begins.join(60)
    assert not begins.is_alive() and len(list((store / artefacts.REFERENCES).iterdir())) == 2


def test_fresh_throws_nothing_away_that_another_study_performs(tmp_path, monkeypatch):
    assert _run(tmp_path, OF_OWN, "--plugin", "steps").exit_code == 0
    store, first = tmp_path / "runs/store", _record(tmp_path, "first")
    working = store / artefacts.WORKING / "other"
    working.mkdir(parents=True)
    command = Command("first", "steps:numbers", {}, key=first.key)
    (working / performing.WORK).write_text(json.dumps([command._asdict()]))
    elsewhere, say = artefacts.lock(store, first.key), progress.say
    elsewhere.acquire()
    there: list[bool] = []

    def said(line: str) -> None:
        say(line)
        if "performed by another study" in line:
            there.append((store / first.outputs["value"]["file"]).exists() and working.exists())
            elsewhere.release()

    monkeypatch.setattr(progress, "say", said)
    since = len(_lines(tmp_path))
    result = _run(tmp_path, OF_OWN, "--plugin", "steps", "--fresh")
    assert result.exit_code == 0 and there == [True]
    assert "1 commands are performed by another study and are not thrown away: first" in result.stderr
    assert _started(tmp_path, since) == {"second": 1, "sums": 1}
