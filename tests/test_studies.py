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

from fcurr.io import artefacts, configs, execute, journal, studying
from fcurr.io.artefacts import Record
from fcurr.study.schedule import Command

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


def test_the_command_that_tries_again_what_failed_can_be_pasted_into_a_shell(tmp_path):
    stone = tmp_path / "stone"
    stone.write_text("")
    _plugin(tmp_path, FAULTY.format(path=str(stone)), "stony")
    config = PASTED | {"hooks": {"train": {"before": "stony:meddle"}}}
    arguments = ["--plugin", "stony", "--engine", "inline", "--only", "train/an arm*rate=0.1,*"]
    child = process("run", written(tmp_path, config), "--out", tmp_path / "runs", *arguments)
    _, said = child.communicate()
    assert child.returncode == 1 and "Traceback" not in said
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
    child = process(*again[0][1:])
    _, said = child.communicate()
    assert again[0][0] == "fcurr" and child.returncode == 0, said
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


@pytest.mark.parametrize("case", CASES)
def test_every_training_of_a_study_finds_what_the_same_config_finds_alone(case, tmp_path):
    _plugin(tmp_path, NET, "layered")
    result = _run(tmp_path, CASES[case], "--plugin", "layered")
    assert result.exit_code == 0, result.stderr
    found = _evaluations(tmp_path)
    trainings = _trainings(tmp_path, CASES[case])
    assert {train.name.replace("train/", "evaluate/") for train in trainings} >= found.keys() and len(found) >= 4
    for number, train in enumerate(trainings):
        folder = tmp_path / "alone" / str(number)
        config = {**train.config, "name": str(number), "controls": False}
        assert execute.execute(configs.read(config, ["layered"]), folder, {"layered": ""})
        (one,) = json.loads((folder / "results.json").read_text())["members"]
        own = found.get(train.name.replace("train/", "evaluate/"))
        if own is None:  # the same as another: a random order has no pace
            continue
        assert own["iterations"] == one["iterations"] and own["best_iteration"] == one["best_iteration"]
        for which in ("last", "best"):
            print(train.name, which, {k: own[which][k] - one[which][k] for k in own[which]})
            assert own[which] == pytest.approx({key: one[which][key] for key in own[which]}, rel=1e-6, abs=1e-6)
