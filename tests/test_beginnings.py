"""A training that goes on from another of the same study."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from small import CONFIG, fcurr, written

from fcurr.errors import BadInput
from fcurr.io import facts
from fcurr.study.planning import plan

FIRST: dict[str, Any] = {
    **{key: CONFIG[key] for key in ("seed", "data", "split", "model", "optimizer", "members")},
    "training": {"total_iterations": 20, "batch_size": 16},
}


def _then(**start: Any) -> dict[str, Any]:
    return copy.deepcopy(FIRST) | {"name": "then", "start": {"config": "first.toml", **start}}


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    written(tmp_path, FIRST, "first.toml")
    return tmp_path


def _plan(config: dict[str, Any]):
    return plan(config, facts.gathered(config, ())).commands


def _models(folder: Path, name: str) -> dict[str, torch.Tensor]:
    records = [json.loads(path.read_text()) for path in (folder / "runs/store/records").iterdir()]
    (found,) = [record for record in records if record["name"] == name]
    return safetensors.torch.load_file(folder / "runs/store" / found["outputs"]["model"]["file"])


def test_the_other_is_trained_first_and_each_goes_on_from_the_one_with_its_seed(here):
    commands = _plan(_then())
    for seed in (0, 1):
        read = commands[f"train/random[seed={seed}]"].inputs["start"]
        assert read == (f"train/first/random[seed={seed}]",)
    still = _then() | {"optimizer": {"fn": "sgd", "learning_rate": 0.0}, "study": {"routines": ["train"]}}
    result = fcurr("run", written(here, still, "then.toml"), "--engine", "inline")
    assert result.exit_code == 0, result.stderr
    for seed in (0, 1):
        first, last = (_models(here, f"train/{name}random[seed={seed}]") for name in ("first/", ""))
        for key in (key for key in first if key.startswith("best.")):
            assert torch.equal(last[key.replace("best", "last")], first[key]), key  # a rate of 0 moves nothing


def test_what_is_trained_first_is_trained_anew_when_its_config_changes(here):
    before = {name: command.key for name, command in _plan(_then()).items()}
    written(here, FIRST | {"training": {"total_iterations": 21, "batch_size": 16}}, "first.toml")
    after = {name: command.key for name, command in _plan(_then()).items()}
    changed = {name.partition("[")[0] for name in before if after[name] != before[name]}
    assert changed == {"train/first/random", "train/random", "evaluate/random", "predict/random", "report"}


def test_a_member_may_be_named_and_has_to_be_where_seeds_do_not_tell(here):
    commands = _plan(_then(member=1))
    assert commands["train/random[seed=0]"].inputs["start"] == ("train/first/random[seed=1]",)
    written(here, FIRST | {"members": {"seed": [7, 8]}}, "first.toml")
    with pytest.raises(BadInput) as wrong:
        _plan(_then())
    assert str(wrong.value) == "first.toml comes to 2 trainings, 0 with the seed 0: name one with `member`"
    with pytest.raises(BadInput) as wrong:
        _plan(_then(member=2))
    assert (str(wrong.value), wrong.value.where) == ("first.toml has members 0 to 1, no 2", "start.member")
    written(here, FIRST | {"members": {"seed": [7]}}, "first.toml")
    assert _plan(_then())["train/random[seed=1]"].inputs["start"] == ("train/first/random[seed=7]",)


def test_a_study_and_a_config_that_is_not_there_cannot_be_trained_first(here):
    for more in ({"sweep": {"optimizer.learning_rate": [0.1]}}, {"start": {"config": "first.toml"}}):
        written(here, FIRST | more, "first.toml")
        result = fcurr("plan", written(here, _then(), "then.toml"))
        assert result.exit_code == 2
        assert result.stderr.endswith("start.config: first.toml is a study: what is trained first is one run\n")
    (here / "first.toml").unlink()
    result = fcurr("plan", written(here, _then(), "then.toml"))
    assert (result.exit_code, len(result.stderr.splitlines())) == (2, 1)
    assert "first.toml" in result.stderr


def test_a_model_is_not_chosen_by_samples_that_its_beginning_was_fitted_on(here):
    config = _then() | {"split": {"fn": "stratified", "validation": 0.3, "test": 0.1}, "study": {"routines": ["train"]}}
    result = fcurr("run", written(here, config, "then.toml"), "--engine", "inline")
    assert result.exit_code == 1
    assert "would select on" in result.stderr and "that what it reads was fitted on" in result.stderr
    recorded = config | {"study": {"routines": ["train"], "leakage": "record"}}
    result = fcurr("run", written(here, recorded, "then.toml"), "--engine", "inline")
    assert result.exit_code == 0, result.stderr
    records = [json.loads(path.read_text()) for path in (here / "runs/store/records").iterdir()]
    leaks = [leak for record in records for leak in record["leaks"]]
    assert leaks and all("that what it reads was fitted on" in leak for leak in leaks)
