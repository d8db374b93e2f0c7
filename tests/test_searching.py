"""Searches by Optuna: reproducible, resumable, shared."""

import itertools
import math
import multiprocessing
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fcurr.errors import BadInput
from fcurr.io import searching
from fcurr.io.searching import Finished, Search
from fcurr.study import sweeping
from fcurr.types import Direction

LOWER, HIGHER = Direction(higher=False), Direction(higher=True)
TABLE: dict[str, Any] = {
    "method": "tpe",
    "trials": 14,
    "seed": 3,
    "optimizer": {"learning_rate": {"low": 1e-4, "high": 1.0, "log": True}, "fn": ["sgd", "adam"]},
    "curriculum.pace": ["none", {"fn": "root", "power": [2.0]}],
    "model.width": {"low": 4, "high": 64, "log": True},
    "fit.share": {"from": 0.0, "to": 1.0, "steps": 11},
    "training.batch_size": [64],
}


def opened(folder: Path, table: dict[str, Any] = TABLE, direction: Direction = LOWER, total: int = 81) -> Search:
    return searching.opened(folder / "search.db", sweeping.read(table), direction, "study", total=total)


def worth(point: dict[str, Any]) -> float:
    """Lower is better; best near a learning rate of 0.03."""
    rate, share = point["optimizer.learning_rate"], point["fit.share"]
    return (math.log10(rate) + 1.5) ** 2 + abs(share - 0.3) + (point["curriculum.pace"] == "none") + 0.0


def went(search: Search, until: int = 10**9) -> None:
    while len(searching.finished(search)) < until and (trial := searching.ask(search)) is not None:
        searching.tell(search, trial.number, worth(trial.point))


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> list[Finished]:
    search = opened(tmp_path_factory.mktemp("whole"))
    went(search)
    return searching.finished(search)


def test_a_search_ends_after_its_trials_each_within_its_space(whole):
    assert [one.number for one in whole] == list(range(14)) and {one.state for one in whole} == {"complete"}
    for one in whole:
        point = one.point
        assert list(point) == list(sweeping.read(TABLE).spaces) and one.value == worth(point)
        assert 1e-4 <= point["optimizer.learning_rate"] <= 1.0 and point["optimizer.fn"] in ("sgd", "adam")
        assert point["curriculum.pace"] in ("none", {"fn": "root", "power": [2.0]})
        assert type(point["model.width"]) is int and 4 <= point["model.width"] <= 64
        assert point["fit.share"] in [n / 10 for n in range(11)] and point["training.batch_size"] == 64


def test_the_first_trials_are_those_of_a_random_search_and_later_ones_are_proposed(whole):
    drawn = sweeping.points(sweeping.read(TABLE))
    assert [one.point for one in whole[:10]] == drawn[:10]
    assert not any(one.point == point for one, point in zip(whole[10:], drawn[10:], strict=True))


def test_a_search_cut_off_after_any_trial_proposes_what_one_that_was_not_would(whole, tmp_path):
    for _ in TABLE:  # more openings than trials: a new object for every trial
        went(opened(tmp_path), len(searching.finished(opened(tmp_path))) + 2)
    assert searching.finished(opened(tmp_path)) == whole


def test_a_search_cut_off_within_any_trial_gives_it_out_again_once_and_ends_as_if_it_had_not_been(whole, tmp_path):
    for number in itertools.count():
        search = opened(tmp_path)
        assert searching.resume(search) == ([number - 1] if number else [])
        if number:
            again = searching.ask(search)
            assert again is not None and (again.number, again.point) == (number - 1, whole[number - 1].point)
            searching.tell(search, again.number, worth(again.point))
        if searching.ask(search) is None:  # begun, and its process dies
            break
    assert searching.finished(opened(tmp_path)) == whole and searching.resume(opened(tmp_path)) == []


def test_a_trial_that_was_made_and_had_no_point_yet_has_the_one_it_would_have_had(whole, tmp_path):
    went(opened(tmp_path), 12)
    search = opened(tmp_path)
    search.study.ask()  # Optuna's trial 12, whose parameters were never written
    assert searching.resume(search) == [12]
    went(opened(tmp_path))
    assert searching.finished(opened(tmp_path)) == whole


def test_a_search_killed_in_its_own_process_goes_on_to_the_same_trials(whole, tmp_path):
    program = """if True:
        import os, signal, sys
        from pathlib import Path
        sys.path.insert(0, sys.argv[2])
        import test_searching as t
        search = t.opened(Path(sys.argv[1]))
        t.searching.resume(search)
        t.went(search, len(t.searching.finished(search)) + 4)
        t.searching.ask(search)
        os.kill(os.getpid(), signal.SIGKILL)
    """
    for _ in range(3):
        done = subprocess.run([sys.executable, "-c", program, str(tmp_path), str(Path(__file__).parent)])
        assert done.returncode == -9
    search = opened(tmp_path)
    assert searching.resume(search) == [12]
    went(search)
    assert searching.finished(search) == whole


def test_trials_that_live_workers_have_are_left_to_them(tmp_path):
    search = opened(tmp_path)
    first, second, third = (searching.ask(search) for _ in range(3))
    assert first and second and third and searching.resume(search, under_way=[1]) == [0, 2]
    again = [searching.ask(search) for _ in range(3)]
    assert [one.number for one in again if one] == [0, 2, 3] and again[:2] == [first, third]
    assert searching.resume(search, under_way=[0, 1, 2, 3]) == []


def test_more_trials_go_on_with_a_search_and_a_search_that_is_done_has_none(tmp_path, whole):
    short = {**TABLE, "trials": 11}
    went(opened(tmp_path, short))
    assert searching.ask(opened(tmp_path, short)) is None
    went(opened(tmp_path))
    assert searching.finished(opened(tmp_path)) == whole


def test_told_again_a_trial_counts_once_and_as_it_was(tmp_path):
    search = opened(tmp_path, {**TABLE, "pruner": "median"})
    ends: list[Any] = [0.5, "pruned", "failed", math.nan, math.inf]
    for end in ends:
        trial = searching.ask(search)
        assert trial is not None
        if end == "pruned":
            searching.report(search, trial.number, 10, 7.5)
        for _ in range(2):
            searching.tell(search, trial.number, end)
        searching.tell(search, trial.number, 99.0)
    found = [(one.number, one.value, one.state) for one in searching.finished(search)]
    assert found == [
        (0, 0.5, "complete"),
        (1, 7.5, "pruned"),
        (2, None, "failed"),
        (3, None, "failed"),
        (4, None, "failed"),
    ]


def test_a_random_search_by_optuna_has_the_points_of_the_sweep(tmp_path):
    table = {**TABLE, "method": "random", "pruner": "hyperband"}
    search = opened(tmp_path, table)
    went(search)
    assert [one.point for one in searching.finished(search)] == sweeping.points(sweeping.read(table))


def test_the_direction_of_the_metric_is_the_direction_of_the_search(tmp_path):
    near: dict[bool, list[float]] = {}
    for direction in (LOWER, HIGHER):
        folder = tmp_path / str(direction.higher)
        folder.mkdir()
        search = opened(folder, {"method": "tpe", "trials": 40, "x.y": {"low": 0.0, "high": 1.0}}, direction)
        while (trial := searching.ask(search)) is not None:
            searching.tell(search, trial.number, trial.point["x.y"])
        near[direction.higher] = [one.point["x.y"] for one in searching.finished(search)[20:]]
    assert sum(near[False]) / 20 < 0.25 and sum(near[True]) / 20 > 0.75


@pytest.mark.parametrize("pruner", ["none", "median", "hyperband"])
@pytest.mark.parametrize("direction", [LOWER, HIGHER], ids=["lower", "higher"])
def test_a_pruner_ends_what_is_clearly_worse_and_never_the_best(pruner, direction, tmp_path):
    search = opened(tmp_path, {**TABLE, "method": "random", "trials": 24, "pruner": pruner}, direction)
    sign, ended = (1.0 if direction.higher else -1.0), {}
    while (trial := searching.ask(search)) is not None:
        quality = (trial.number * 7 + 5) % 24  # all different, in no order
        for iteration in (1, 3, 9, 27, 81):
            if searching.report(search, trial.number, iteration, sign * quality):
                ended[quality] = iteration
                searching.tell(search, trial.number, "pruned")
                break
        else:
            searching.tell(search, trial.number, sign * quality)
    assert len(searching.finished(search)) == 24 and 23 not in ended
    if pruner == "none":
        assert not ended
    else:
        assert len(ended) >= 6 and sum(ended) / len(ended) < 11.5


def test_reports_that_are_made_again_after_a_restart_are_answered_as_they_were(tmp_path):
    table = {**TABLE, "method": "random", "pruner": "median"}
    search = opened(tmp_path, table)
    for number in range(5):
        trial = searching.ask(search)
        for iteration in (1, 2, 3, 4):
            assert searching.report(search, number, iteration, float(number - iteration)) is False
        assert trial is not None and trial.number == number
        searching.tell(search, number, float(number))
    searching.ask(search)
    curve = {1: 0.5, 2: -0.5, 3: -0.5, 4: -0.5}  # the medians of the others are 1, 0, -1, -2
    said = {iteration: searching.report(search, 5, iteration, value) for iteration, value in curve.items()}
    assert said == {1: False, 2: False, 3: True, 4: True}
    later = opened(tmp_path, table)
    assert searching.resume(later) == [5]
    searching.ask(later)
    assert {iteration: searching.report(later, 5, iteration, value) for iteration, value in curve.items()} == said


def test_of_a_trial_that_has_ended_nothing_more_is_written(tmp_path):
    table = {**TABLE, "method": "random", "pruner": "median"}
    search = opened(tmp_path, table)
    for number in range(5):
        searching.ask(search)
        searching.report(search, number, 10, 0.0)
        searching.tell(search, number, 0.0)
    for iteration in (10, 20):
        searching.ask(search)
        assert searching.report(search, 5, iteration, 1.0)
    searching.tell(search, 5, "pruned")
    before = searching.finished(search)
    assert not searching.report(search, 0, 10, 99.0) and not searching.report(search, 0, 30, 99.0)
    assert not searching.report(search, 5, 5, 99.0) and searching.report(search, 5, 30, -99.0)
    assert searching.finished(search) == before
    assert search.study.trials[0].intermediate_values == {10: 0.0}
    assert search.study.trials[5].intermediate_values == {10: 1.0}


def test_without_a_pruner_nothing_is_reported(tmp_path):
    search = opened(tmp_path)
    searching.ask(search)
    before = (tmp_path / "search.db").read_bytes()
    assert not searching.report(search, 0, 1, 1.0)
    assert (tmp_path / "search.db").read_bytes() == before


@pytest.mark.parametrize("end", ["failed", math.nan])
def test_a_trial_that_failed_is_given_out_again_when_a_search_is_begun_again_and_then_counts_as_it_ends(end, tmp_path):
    search = opened(tmp_path)
    for number in range(12):
        trial = searching.ask(search)
        assert trial is not None and trial.number == number  # not again in the same run
        searching.tell(search, number, end if number in (2, 11) else worth(trial.point))
    wrong = [one for one in searching.finished(search) if one.state == "failed"]
    assert [one.number for one in wrong] == [2, 11]
    for ends in ({2: "failed", 11: 0.5}, {2: 0.25}):
        later = opened(tmp_path)
        assert searching.resume(later) == list(ends)
        for number, ended in ends.items():
            again = searching.ask(later)
            assert again is not None and again.number == number
            assert again.point == next(one.point for one in wrong if one.number == number)
            searching.tell(later, number, ended)
    found = searching.finished(opened(tmp_path))
    assert {one.number: one.value for one in found if one.number in (2, 11)} == {2: 0.25, 11: 0.5}
    assert len(found) == 12 and {one.state for one in found} == {"complete"}


def test_searches_of_two_names_in_one_file_know_nothing_of_one_another(tmp_path, whole):
    path, sweep = tmp_path / "search.db", sweeping.read(TABLE)
    one, other = (searching.opened(path, sweep, LOWER, name, total=81) for name in ("one", "other"))
    went(one, 11)
    assert searching.finished(other) == []
    went(other)
    went(searching.opened(path, sweep, LOWER, "one", total=81))
    assert searching.finished(one) == searching.finished(other) == whole


CHANGES = {
    "a bound": (
        {"optimizer": {**TABLE["optimizer"], "learning_rate": {"low": 1e-4, "high": 2.0, "log": True}}},
        "sweep.optimizer.learning_rate",
        "was { low = 0.0001, high = 1.0, log = true } when this search began, and is { low = 0.0001, high = 2.0, log",
    ),
    "another key": ({"loss.power": [1, 2]}, "sweep.loss.power", "was not there when this search began, and is [1, 2]"),
    "a key less": ({"training.batch_size": [32]}, "sweep.training.batch_size", "was [64] when this search began, and"),
    "the seed": ({"seed": 4}, "sweep.seed", "was 3 when this search began, and is 4: another search needs another"),
    "the method": ({"method": "random"}, "sweep.method", "was tpe when this search began, and is random"),
    "the pruner": ({"pruner": "median"}, "sweep.pruner", "was none when this search began, and is median"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_search_of_something_else_is_not_gone_on_with(change, tmp_path):
    table, where, words = CHANGES[change]
    search = opened(tmp_path)
    with pytest.raises(BadInput) as told:
        opened(tmp_path, {**TABLE, **table})
    assert told.value.where == where and words in str(told.value)
    assert searching.ask(search) is not None


def test_a_search_in_the_other_direction_is_not_gone_on_with(tmp_path):
    opened(tmp_path)
    with pytest.raises(BadInput, match="the metric: was lower is better when this search began, and is higher"):
        opened(tmp_path, direction=HIGHER)


def test_a_file_that_is_no_search_or_cannot_be_made_is_named(tmp_path):
    (tmp_path / "search.db").write_bytes(b"not a search " * 500)
    with pytest.raises(BadInput, match=r"search\.db, the file of a search, cannot be used: file is not a database"):
        opened(tmp_path)
    assert (tmp_path / "search.db").read_bytes() == b"not a search " * 500


def test_a_folder_may_have_any_name(tmp_path):
    folder = tmp_path / "a b?c#d%41{e}"
    folder.mkdir()
    assert searching.ask(opened(folder)) is not None
    assert {path.name for path in folder.iterdir()} >= {"search.db"}
    assert [path.name for path in tmp_path.iterdir()] == [folder.name]


def test_without_optuna_the_message_says_how_to_install_it(tmp_path):
    program = """if True:
        import sys
        sys.modules["optuna"] = None  # what python has for a module that is not there
        from pathlib import Path
        from fcurr.errors import BadInput
        from fcurr.io import searching
        from fcurr.study import sweeping
        from fcurr.types import Direction
        sweep = sweeping.read({"method": "tpe", "trials": 2, "a.b": [1, 2]})
        try:
            searching.opened(Path(sys.argv[1]) / "x.db", sweep, Direction(True), "s", total=5)
        except BadInput as told:
            print(told.where, told)
    """
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True)
    assert done.stdout == 'sweep a search needs optuna: pip install "fcurr[sweep]"\n', done.stderr


def worker(folder: Path, number: int, out: "multiprocessing.Queue[list[int]]") -> None:
    search, mine = opened(folder), []
    while (trial := searching.ask(search)) is not None:
        mine.append(trial.number)
        searching.report(search, trial.number, 1, worth(trial.point) + number)
        searching.tell(search, trial.number, worth(trial.point))
    out.put(mine)


@pytest.mark.long
def test_workers_that_share_a_search_have_trials_of_their_own_and_lose_none(tmp_path):
    context = multiprocessing.get_context("spawn")
    out = context.Queue()
    workers = [context.Process(target=worker, args=(tmp_path, number, out)) for number in range(2)]
    for one in workers:
        one.start()
    found = [out.get(timeout=120) for _ in workers]
    for one in workers:
        one.join()
    assert sorted(itertools.chain(*found)) == list(range(14))
    done = searching.finished(opened(tmp_path))
    assert [one.number for one in done] == list(range(14)) and all(one.value == worth(one.point) for one in done)
    assert len({str(one.point) for one in done}) == 14


def test_a_search_says_nothing(tmp_path, capfd, recwarn):
    search = opened(tmp_path, {**TABLE, "pruner": "hyperband"})
    for _ in range(12):
        trial = searching.ask(search)
        assert trial is not None
        searching.report(search, trial.number, 1, 1.0)
        searching.tell(search, trial.number, worth(trial.point))
    assert capfd.readouterr() == ("", "") and not recwarn.list
