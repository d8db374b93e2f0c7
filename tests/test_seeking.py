"""A study that searches: its trials are the same whatever happens on the way, and each ends once."""

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
from small import contents, fcurr, written
from test_studies import IRIS, _lines, _run, _started

from fcurr.io import artefacts, journal, routines, searching, seeking
from fcurr.io.searching import Finished

pytest.importorskip("optuna")

SPACE = {"optimizer.learning_rate": {"low": 0.001, "high": 0.5, "log": True}, "model.hidden": [[4], [6]]}
SEARCH = IRIS | {
    "split": {"fn": "stratified", "validation": 0.2, "test": 0.2},
    "sweep": {"method": "tpe", "trials": 11, **SPACE},
    "members": {"seed": [0, 1]},
}


class Cut(BaseException):
    """As if the process had been killed."""


def _trials(folder: Path) -> list[Finished]:
    """How every trial ended."""
    return searching.finished(searching.reopened(folder / "runs/small" / seeking.FILE))


def _swept(**changes: Any) -> dict[str, Any]:
    return SEARCH | {"sweep": SEARCH["sweep"] | changes}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A search that nothing happened to."""
    folder = tmp_path_factory.mktemp("whole")
    result = _run(folder, SEARCH)
    assert result.exit_code == 0, result.stderr
    return folder, _trials(folder), result


def test_a_search_ends_with_the_best_of_its_trials(whole):
    folder, trials, result = whole
    assert [one.number for one in trials] == list(range(11)) and {one.state for one in trials} == {"complete"}
    best = max(trials, key=lambda one: one.value)
    said = next(line for line in result.stderr.splitlines() if line.startswith("the best of 11 trials is "))
    assert said.startswith(f"the best of 11 trials is {best.number}, {best.value:.4g} on validation: ")
    assert f"optimizer.learning_rate = {best.point['optimizer.learning_rate']}" in said
    assert _started(folder)["train"] == 22  # two seeds a trial


def test_the_value_of_a_trial_is_the_mean_of_the_validations_of_its_trainings(whole):
    folder, trials, _ = whole
    values: dict[int, list[float]] = {}
    for key, line in journal.read(folder / "runs/small").items():
        if line["name"].startswith("validate/"):
            record = artefacts.record(folder / "runs/store", key)
            assert record is not None
            number = int(line["name"].partition("trial=")[2].partition(",")[0])
            found = artefacts.get(folder / "runs/store", record.outputs["validation"])
            values.setdefault(number, []).append(found["value"])
    assert {one.number: one.value for one in trials} == {
        number: pytest.approx(sum(several) / 2) for number, several in values.items()
    }


def test_a_search_that_has_ended_does_nothing_when_it_is_begun_again(whole):
    folder, trials, _ = whole
    before, lines = contents(folder / "runs/store"), len(_lines(folder))
    result = _run(folder, SEARCH)
    assert result.exit_code == 0 and "done" in result.stderr.splitlines()[1]
    assert _started(folder, lines) == {} and len(_lines(folder)) == lines
    assert contents(folder / "runs/store") == before and _trials(folder) == trials
    plan = fcurr("plan", written(folder, SEARCH), "--out", folder / "runs", "--json")
    assert {command["state"] for command in json.loads(plan.stdout)["commands"]} == {"done"}


MOMENTS = {
    "before a trial is told": (searching, "tell"),
    "before a training": (routines.runner, "train"),
}
MORE = {
    "when a trial is asked for": (searching, "ask"),
    "while it is evaluated": (routines.runner.observe, "evaluated"),
    "before a record is written": (artefacts, "commit"),
}


@pytest.mark.parametrize("moment", [*MOMENTS, *(pytest.param(moment, marks=pytest.mark.long) for moment in MORE)])
def test_a_search_that_is_cut_off_anywhere_and_begun_again_has_the_same_trials(moment, whole, tmp_path):
    _, trials, result = whole
    module, name = (MOMENTS | MORE)[moment]
    real, cuts = getattr(module, name), 0
    for nth in (1, 5, 3, 20):
        came = 0

        def deadly(*arguments: Any, **named: Any) -> Any:
            nonlocal came
            came += 1
            if came == nth:  # noqa: B023
                raise Cut
            return real(*arguments, **named)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(module, name, deadly)
            try:
                _run(tmp_path, SEARCH)
            except Cut:
                cuts += 1
    assert cuts > 2
    again = _run(tmp_path, SEARCH)
    assert again.exit_code == 0 and _trials(tmp_path) == trials
    assert again.stderr.splitlines()[-1] == result.stderr.splitlines()[-1]  # the best
    ends = [line["name"] for line in _lines(tmp_path) if line["event"] == "finished" and not line["reused"]]
    assert len(set(ends)) == len(ends)


def test_more_trials_go_on_with_those_there_were(whole, tmp_path):
    _, trials, _ = whole
    assert _run(tmp_path, _swept(trials=4)).exit_code == 0
    assert _trials(tmp_path) == trials[:4]
    lines = len(_lines(tmp_path))
    assert _run(tmp_path, SEARCH).exit_code == 0
    assert _trials(tmp_path) == trials
    assert _started(tmp_path, lines)["train"] == 14
    assert _run(tmp_path, _swept(trials=2)).exit_code == 0  # fewer than there are
    assert _trials(tmp_path) == trials


def test_another_search_in_the_same_folder_is_refused_and_begun_if_told_to(whole, tmp_path):
    assert _run(tmp_path, _swept(trials=2)).exit_code == 0
    before = contents(tmp_path / "runs")
    other = _swept(trials=2, seed=1)
    result = _run(tmp_path, other)
    assert result.exit_code == 2 and result.stderr.splitlines()[-1].endswith(
        "sweep.seed: was 0 when this search began, and is 1: another search needs another name or a folder of its own"
    )
    assert {n: c for n, c in contents(tmp_path / "runs").items() if "search.db" in n} == {
        n: c for n, c in before.items() if "search.db" in n
    }
    assert _run(tmp_path, other, "--fresh").exit_code == 0
    assert _trials(tmp_path) != whole[1][:2] and len(_trials(tmp_path)) == 2


def test_two_trials_at_once_are_one_program(tmp_path):
    config = _swept(trials=4, at_once=2) | {"study": {"routines": ["evaluate"]}}
    config["sweep"] = {key: value for key, value in config["sweep"].items() if key != "model.hidden"}
    result = _run(tmp_path, config)
    assert result.exit_code == 0 and result.stderr.count("training (4 members): 30/30") == 2
    assert [one.state for one in _trials(tmp_path)] == ["complete"] * 4
    lines = len(_lines(tmp_path))
    with contextlib.suppress(Cut), pytest.MonkeyPatch.context() as patch:
        patch.setattr(routines.runner, "train", _cut)
        _run(tmp_path, config | {"sweep": config["sweep"] | {"trials": 6}})
    assert _started(tmp_path, lines) == {"train": 4}
    assert _run(tmp_path, config | {"sweep": config["sweep"] | {"trials": 6}}).exit_code == 0
    assert len(_trials(tmp_path)) == 6


def _cut(*arguments: Any, **named: Any) -> None:
    raise Cut


PRUNED = _swept(trials=14, pruner="median", at_once=1)
PRUNED["training"] = {"total_iterations": 60, "batch_size": 16, "evaluate_every": 10}


def test_trials_that_are_not_worth_going_on_with_are_pruned_and_are_no_failures(tmp_path):
    result = _run(tmp_path, PRUNED)
    assert result.exit_code == 0, result.stderr
    trials = _trials(tmp_path)
    pruned = [one.number for one in trials if one.state == "pruned"]
    assert pruned and {one.state for one in trials} == {"pruned", "complete"} and len(trials) == 14
    assert min(pruned) > 4
    assert f"trial {pruned[0]}: pruned" in result.stderr and "failed" not in result.stderr
    trained = {line["name"] for line in _lines(tmp_path) if line["event"] == "pruned"}
    assert {int(name.partition("trial=")[2].partition(",")[0]) for name in trained} == {*pruned}
    judged = [line["name"] for line in journal.read(tmp_path / "runs/small").values() if "evaluate/" in line["name"]]
    assert len(judged) == 2 * (14 - len(pruned))
    lines = len(_lines(tmp_path))
    again = _run(tmp_path, PRUNED)
    assert again.exit_code == 0 and _started(tmp_path, lines) == {} and _trials(tmp_path) == trials
    assert not list((tmp_path / "runs/store/working").iterdir())


@pytest.mark.long
def test_a_search_that_prunes_and_is_cut_off_has_the_same_trials(tmp_path):
    assert _run(tmp_path / "whole", PRUNED).exit_code == 0
    real, said = searching.report, 0

    def deadly(*arguments: Any) -> bool:
        nonlocal said
        said += 1
        found = real(*arguments)
        if said % 23 == 0:
            raise Cut
        return found

    cuts = 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(searching, "report", deadly)
        while True:
            try:
                assert _run(tmp_path / "cut", PRUNED).exit_code == 0
                break
            except Cut:
                cuts += 1
    assert cuts > 1
    assert _trials(tmp_path / "cut") == _trials(tmp_path / "whole")


def test_a_trial_that_fails_is_told_as_failed_and_the_search_goes_on(tmp_path):
    config = _swept(trials=6, **{"optimizer.learning_rate": [0.05, 1e30]}) | {"study": {}}
    result = _run(tmp_path, config)
    trials = _trials(tmp_path)
    wrong = [one.number for one in trials if one.point["optimizer.learning_rate"] == 1e30]
    assert 0 < len(wrong) < 6
    assert [one.number for one in trials if one.state == "failed"] == wrong
    assert result.exit_code == 0  # it found something
    assert f"trial {wrong[0]}: failed" in result.stderr
    told = [line for line in result.stderr.splitlines() if line.startswith("failed: train/")]
    assert {int(line.partition("trial=")[2].partition(",")[0]) for line in told} == {*wrong}
    assert "again: " not in result.stderr  # a trial that has ended is not tried again
    members = json.loads((tmp_path / "runs/small/results.json").read_text())["members"]
    assert {member["trial"] for member in members} == {one.number for one in trials} - {*wrong}
    assert _run(tmp_path, config).exit_code == 0  # the others are done


def test_the_first_trial_that_fails_stops_a_search_if_told_to(tmp_path):
    config = _swept(trials=6, **{"optimizer.learning_rate": [1e29, 1e30]})
    result = _run(tmp_path, config, "--fail-fast")
    assert result.exit_code == 1 and len(_trials(tmp_path)) == 1


def test_a_part_of_a_search_cannot_be_asked_for(tmp_path):
    result = _run(tmp_path, _swept(trials=2), "--only", "prepare/*")
    assert result.exit_code == 2, result.stderr


def _models(folder: Path) -> list[Path]:
    return sorted((folder / "runs/store/model").iterdir())


SMALL = _swept(trials=3) | {"study": {"routines": ["evaluate"]}, "members": {"seed": [0]}}


def test_a_search_whose_config_changed_is_begun_anew_and_found_again_when_it_is_changed_back(tmp_path):
    longer = SMALL | {"training": SMALL["training"] | {"total_iterations": 40}}
    assert _run(tmp_path, SMALL).exit_code == 0
    first = _trials(tmp_path)
    result = _run(tmp_path, longer)
    assert result.exit_code == 0 and "failed" not in result.stderr
    assert "of another config, other files or other code: the search is anew" in result.stderr
    second = _trials(tmp_path)
    alone = _run(tmp_path / "alone", longer)
    assert second == _trials(tmp_path / "alone") and [one.value for one in second] != [one.value for one in first]
    best = [line for line in result.stderr.splitlines() if line.startswith("the best of 3 trials is ")]
    assert best and best == [line for line in alone.stderr.splitlines() if line.startswith("the best of")]
    lines = len(_lines(tmp_path))
    assert _run(tmp_path, SMALL).exit_code == 0
    assert _trials(tmp_path) == first and _started(tmp_path, lines).get("train", 0) == 0


def test_what_changes_no_number_leaves_a_search_as_it_was(tmp_path):
    assert _run(tmp_path, SMALL).exit_code == 0
    first, lines = _trials(tmp_path), len(_lines(tmp_path))
    other = SMALL | {"study": {"routines": ["evaluate"], "width": 3}}
    other["training"] = SMALL["training"] | {"save_every": 7}
    result = _run(tmp_path, other)
    assert result.exit_code == 0 and "anew" not in result.stderr
    assert _trials(tmp_path) == first and _started(tmp_path, lines) == {}


@pytest.mark.parametrize("pruner", ["none", "median"])
def test_a_model_that_is_gone_is_trained_again_and_its_trial_stays_as_it_was(pruner, tmp_path):
    config = SMALL | {"sweep": SMALL["sweep"] | {"pruner": pruner}}
    assert _run(tmp_path, config).exit_code == 0
    trials, lines, gone = _trials(tmp_path), len(_lines(tmp_path)), _models(tmp_path)[0]
    before = gone.read_bytes()
    gone.unlink()
    result = _run(tmp_path, config)
    assert result.exit_code == 0 and "failed" not in result.stderr
    assert _started(tmp_path, lines)["train"] == 1 and gone.read_bytes() == before
    assert _trials(tmp_path) == trials


def test_a_trial_that_failed_is_tried_again_once_a_run_and_counts_when_what_was_wrong_is_mended(whole, tmp_path):
    real, config = routines.runner.train, _swept(trials=4) | {"study": {"routines": ["evaluate"]}}

    def broken(*arguments: Any, **named: Any) -> Any:
        raise OSError("the disk is away")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(routines.runner, "train", broken)
        assert _run(tmp_path, config).exit_code == 1
    assert [(one.number, one.state) for one in _trials(tmp_path)] == [(number, "failed") for number in range(4)]
    assert routines.runner.train is real
    result = _run(tmp_path, config)
    assert result.exit_code == 0, result.stderr
    assert _trials(tmp_path) == whole[1][:4]


def test_a_search_cut_within_a_batch_of_two_has_the_trials_of_one_that_was_not(tmp_path):
    config = _swept(trials=14, at_once=2) | {"study": {"routines": ["train"]}, "members": {"seed": [0]}}
    assert _run(tmp_path / "whole", config).exit_code == 0
    real, told = searching.tell, 0

    def deadly(search: Any, number: int, value: Any) -> None:
        nonlocal told
        told += 1
        if told in (2, 7, 12):  # the first of two is told, the second is not
            raise Cut
        real(search, number, value)

    cuts = 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(searching, "tell", deadly)
        while True:
            try:
                assert _run(tmp_path / "cut", config).exit_code == 0
                break
            except Cut:
                cuts += 1
    assert cuts == 3
    assert _trials(tmp_path / "cut") == _trials(tmp_path / "whole")


REFUSED = {
    "trainings that do not fit in a program": (
        {"study": {"width": 1}},
        "study.width: a pruner judges a trial by one program, and its 2 trainings do not fit in 1 members: width = 2",
    ),
    "inner folds": (
        {"cross_validation": {"folds": 2, "inner_folds": 2}, "split": {"fn": "stratified_k_fold"}},
        "cross_validation.inner_folds: a search chooses by itself: leave inner_folds out",
    ),
    "folds": (
        {"cross_validation": {"folds": 2}, "split": {"fn": "stratified_k_fold"}},
        "sweep.pruner: a pruner judges a trial by one program, and cross-validation makes several: leave one of them",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_search_that_cannot_judge_its_trials_is_refused_at_the_door(case, tmp_path):
    changes, words = REFUSED[case]
    result = _run(tmp_path, _swept(trials=2, pruner="median") | changes)
    assert result.exit_code == 2 and words in result.stderr, result.stderr
    assert not (tmp_path / "runs/small" / seeking.FILE).exists()


def test_a_pruner_sees_every_trial_whole_however_many_there_are_at_once(tmp_path):
    config = _swept(trials=4, pruner="median", at_once=4) | {"study": {"routines": ["train"], "width": 5}}
    config["sweep"] = {key: value for key, value in config["sweep"].items() if key != "model.hidden"}
    real, told = searching.report, []

    def noted(search: Any, number: int, iteration: int, value: float) -> bool:
        told.append((number, iteration))
        return real(search, number, iteration, value)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(searching, "report", noted)
        assert _run(tmp_path, config).exit_code == 0
    assert told and len({*told}) == len(told)  # each trial's mean once an iteration, by the one program it is in


def test_a_pruner_with_trainings_that_cannot_be_one_program_is_refused_at_the_door(tmp_path):
    before = {key: value for key, value in SEARCH.items() if key not in ("sweep", "name", "study")}
    start = {"config": str(written(tmp_path, before, "first.toml"))}  # every seed goes on from its own
    config = _swept(trials=2, pruner="median") | {"start": start}
    config["sweep"] = {key: value for key, value in config["sweep"].items() if key != "model.hidden"}
    result = _run(tmp_path, config)
    words = "sweep.pruner: a pruner judges a trial by one program, and its trainings differ in more than numbers, seeds"
    assert result.exit_code == 2 and words in result.stderr, result.stderr
    config["sweep"] = config["sweep"] | {"pruner": "none", "method": "tpe"}
    assert _run(tmp_path, config).exit_code == 0
    assert [one.state for one in _trials(tmp_path)] == ["complete"] * 2
