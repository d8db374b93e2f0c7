"""A study killed at any effect, or at any moment, ends as the study that was not; and nothing is done twice."""

import collections
import copy
import json
import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from small import CONFIG, contents, written
from test_reliability import _FORKS, _child, _ended, _nothing

from fcurr.io import (
    artefacts,
    conducting,
    configs,
    engines,
    files,
    journal,
    journey,
    performing,
    routines,
    signals,
    studying,
)
from fcurr.io.performing import Place
from fcurr.study.schedule import Command, Schedule, scheduled

KILLED = 137
_FORKS.set_forkserver_preload(["test_reliability", "sklearn.datasets", "pyarrow.parquet"])


def _schedule() -> Schedule:
    """Three commands: one is read by two, one reads both."""
    a = Command("a", "steps:numbers", {"parameters": {"size": 5}}, outputs=("value",))
    b = Command("b", "steps:scaled", {"parameters": {"factor": 3.0}}, {"a": ("a",)}, ("value",))
    c = Command("c", "steps:total", {"parameters": {}}, {"all": ("a", "b")}, ("value",))
    return scheduled([a, b, c], {})


def _study(folder: Path) -> None:
    place = Place(folder / "study", folder / "store", ("steps",), Path(__file__).parent)
    (folder / "study").mkdir(parents=True, exist_ok=True)
    (folder / "store").mkdir(exist_ok=True)
    conducting.announce(_schedule(), place)
    outcome = conducting.conduct(_schedule(), place, engines.inline(), width=4, fail_fast=False, asked=lambda: 0)
    assert not outcome.failed and len(outcome.done) == 3


class Effects:
    """Counts what is done to the disk; at the n-th effect the process is gone, before it or in the middle of it."""

    def __init__(self, fatal: int, torn: bool) -> None:
        self.count, self.fatal, self.torn = 0, fatal, torn
        self.replace, self.write, self.content = os.replace, os.write, Path.write_bytes

    def comes(self, half: Callable[[], object] = lambda: None) -> None:
        self.count += 1
        if self.count == self.fatal:
            if self.torn:
                half()
            os._exit(KILLED)

    def begin(self) -> None:
        effects = self

        def replace(old: Any, new: Any) -> None:
            effects.comes()
            effects.replace(old, new)

        def write(handle: int, data: bytes) -> int:
            effects.comes(lambda: effects.write(handle, data[: len(data) // 2]))
            return effects.write(handle, data)

        def write_bytes(path: Path, data: bytes) -> int:
            effects.comes(lambda: effects.content(path, data[: len(data) // 2]))
            return effects.content(path, data)

        files.os.replace, journal.os.write, Path.write_bytes = replace, write, write_bytes  # type: ignore[assignment]


def _forked(folder: Path, fatal: int, torn: bool) -> int:
    """The study in a process of its own, which dies at an effect; its exit code, or the number of its effects."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            effects = Effects(fatal, torn)
            effects.begin()
            _study(folder)
            effects.write(writing, str(effects.count).encode())
            code = 0
        finally:
            os._exit(code)
    os.close(writing)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    said = os.read(reading, 100)
    os.close(reading)
    assert code in (0, KILLED)
    return int(said) if code == 0 else 0


def _made(folder: Path) -> dict[str, bytes]:
    """What commands made, without what differs from day to day."""
    kept = {artefacts.RECORDS, artefacts.LOCKS, artefacts.REFERENCES}
    found = contents(folder / "store")
    assert not any(name.endswith(".tmp") and "/." not in name for name in found)
    return {name: data for name, data in found.items() if name.split("/")[0] not in kept and "/." not in name}


def _ends(folder: Path, study: str = "study") -> dict[str, int]:
    """How often each command came to its end."""
    counts: dict[str, int] = collections.Counter()
    for line in (folder / study / journal.JOURNAL).read_text().splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            continue  # torn
        counts[record["name"]] += record["event"] == "finished" and not record["reused"]
    return counts


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """A study that nothing happened to, and the number of its effects."""
    folder = tmp_path_factory.mktemp("straight")
    effects = _forked(folder, -1, False)
    assert _ends(folder) == {"a": 1, "b": 1, "c": 1}
    return _made(folder), effects


def _ended_as(folder: Path, straight: dict[str, bytes]) -> None:
    assert _forked(folder, -1, False) > 0
    assert _made(folder) == straight
    assert all(count <= 1 for count in _ends(folder).values())
    assert set(journal.read(folder / "study")) == {command.key for command in _schedule().commands.values()}
    assert {record["event"] for record in journal.read(folder / "study").values()} == {"finished"}


@pytest.mark.parametrize("torn", [False, True], ids=["before", "in the middle of"])
def test_a_study_killed_at_each_of_its_effects_ends_as_the_one_that_was_not(straight, torn, tmp_path):
    made, effects = straight
    assert effects > 20
    for fatal in range(1, effects + 1):
        folder = tmp_path / str(fatal)
        assert _forked(folder, fatal, torn) == 0
        _ended_as(folder, made)


def _pairs(made: dict[str, bytes], effects: int, torn: bool, folder: Path) -> None:
    """Every pair of effects, in a process that is small and so is forked fast."""
    for first in range(1, effects + 1):
        for second in range(1, effects + 1):
            shutil.rmtree(folder, ignore_errors=True)
            assert _forked(folder, first, torn) == 0
            if _forked(folder, second, not torn):  # it had less to do, and came to its end
                break
            _ended_as(folder, made)


@pytest.mark.long
@pytest.mark.parametrize("torn", [False, True], ids=["before", "in the middle of"])
def test_a_study_killed_at_each_pair_of_effects_ends_as_the_one_that_was_not(straight, torn, tmp_path):
    made, effects = straight
    assert _ended(_child(_pairs, made, effects, torn, tmp_path / "study")) == 0


def test_a_study_that_has_ended_does_nothing_when_it_is_begun_again(tmp_path):
    assert _forked(tmp_path, -1, False) > 0
    before = contents(tmp_path)
    assert _forked(tmp_path, -1, False) == 2  # what it refers to is written down again, and renamed
    assert contents(tmp_path) == before


REAL = copy.deepcopy(CONFIG) | {"sweep": {"model.hidden": [[8], [6, 6]]}}  # two scores, two programs of four trainings
REAL["training"] |= {"total_iterations": 600, "evaluate_every": 100, "save_every": 20}
REAL["fit"] = REAL["fit"] | {"iterations": 60}


def _planned(folder: Path) -> studying.Opened:
    folder.mkdir(exist_ok=True)
    table, _ = configs.load(written(folder, REAL), [], [])
    return studying.opened(table, [], folder, folder)


def _studied(here: studying.Opened, marks: Path) -> None:
    """The study; with a mark for every program that goes on from a checkpoint."""
    fine = journey.checkpoint.latest

    def latest(*arguments: Any, **named: Any) -> Any:
        found = fine(*arguments, **named)
        if found is not None:
            with open(marks, "a") as file:
                file.write(f"{int(found.run.iteration)}\n")
        return found

    journey.checkpoint.latest = latest
    _, outcome = studying.run(here, engines.inline(), fail_fast=False, fresh=False)
    assert not outcome.failed


@pytest.mark.long
def test_a_real_study_killed_at_thirty_moments_ends_as_the_one_that_was_not(tmp_path):
    straight, killed, marks = tmp_path / "straight", tmp_path / "killed", tmp_path / "marks"
    assert _ended(_child(_nothing)) == 0  # the process that forks the others is there
    here = _planned(straight)
    began = time.monotonic()
    assert _ended(_child(_studied, here, marks)) == 0
    lasts, chance, kills = time.monotonic() - began, random.Random(0), 0
    assert not marks.exists() and set(_ends(straight, "small").values()) == {1}
    made, results = _made(straight), (straight / "small/results.json").read_bytes()
    assert len(made) == 37
    at_once = 0
    while kills < 30:
        shutil.rmtree(killed, ignore_errors=True)
        here, code, before = _planned(killed), -signal.SIGKILL, kills
        while code:
            child = _child(_studied, here, marks)
            child.join(chance.uniform(0.2, 0.7) * lasts if kills < 30 else None)
            child.kill()
            code = _ended(child)
            assert code in (-signal.SIGKILL, 0)
            kills += code != 0
        at_once = max(at_once, kills - before)
        assert _made(killed) == made
        assert (killed / "small/results.json").read_bytes() == results
        assert set(_ends(killed, "small").values()) == {1}
        assert {record["event"] for record in journal.read(killed / "small").values()} == {"finished"}
    assert len(marks.read_text().split()) > 2  # went on from a checkpoint
    assert at_once > 2  # one study was killed several times


def _placed(folder: Path, study: str, schedule: Schedule) -> Place:
    (folder / study).mkdir(parents=True)
    (folder / "store").mkdir(exist_ok=True)
    place = Place(folder / study, folder / "store", ("steps",), Path(__file__).parent)
    conducting.announce(schedule, place)
    return place


def _conducted(schedule: Schedule, place: Place) -> conducting.Outcome:
    return conducting.conduct(schedule, place, engines.inline(), width=4, fail_fast=False, asked=lambda: 0)


def test_who_waits_for_a_command_that_another_performs_stops_when_asked_to(tmp_path):
    place, command = _placed(tmp_path, "study", _schedule()), _schedule().commands["a"]
    with signals.asked_to_stop(), artefacts.lock(place.store, command.key):
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(journey.Stopped) as stop:
            performing.perform([command], place)
    assert stop.value.signal == signal.SIGINT and artefacts.recorded(place.store) == set()
    assert performing.perform([command], place) == []


def _two(first: float, second: Any) -> Schedule:
    """Two numbers, and each of them scaled: the latter may be one program."""
    numbers = [
        Command(name, "steps:numbers", {"parameters": {"size": size}}, outputs=("value",))
        for name, size in (("a", 3), ("b", 4))
    ]
    scaled = [
        Command(name, "steps:scaled", {"parameters": {"factor": factor}}, {"of": (of,)}, ("value",), together="both")
        for name, of, factor in (("x", "a", first), ("y", "b", second))
    ]
    return scheduled([*numbers, *scaled], {})


def _begun(schedule: Schedule, place: Place, *names: str) -> Path:
    """A program of another study, begun and left."""
    job = [schedule.commands[name] for name in names]
    folder = performing.folder(job, place)
    folder.mkdir(parents=True)
    files.write(folder / performing.WORK, json.dumps([command._asdict() for command in job]))
    return folder


def _of(schedule: Schedule, *names: str) -> Schedule:
    return Schedule({name: schedule.commands[name] for name in names})


def _named(place: Place) -> dict[str, str]:
    """name -> the last event that the journal tells."""
    return {line["name"]: line["event"] for line in journal.read(place.study).values()}


def test_a_program_of_another_study_that_cannot_be_gone_on_with_is_left_and_ones_own_commands_are_performed(tmp_path):
    both = _two(2.0, 3.0)
    own = _of(both, "a", "x")
    place = _placed(tmp_path, "study", own)
    folder = _begun(both, place, "x", "y")  # and the `b` that y reads is not there
    outcome = _conducted(own, place)
    assert not outcome.failed and not outcome.blocked and outcome.done == {c.key for c in own.commands.values()}
    assert _named(place) == {"a": "finished", "x": "finished"} and folder.exists()
    other = _placed(tmp_path, "other", both)
    assert not _conducted(both, other).failed and set(_named(other).values()) == {"finished"}
    assert not folder.exists()  # gone on with by the one whose it was


def test_of_another_studys_commands_in_a_program_nothing_is_told_nor_counted(tmp_path):
    both = _two(2.0, "no factor")
    own = _of(both, "a", "x")
    first = _placed(tmp_path, "first", _of(both, "a", "b"))
    assert not _conducted(_of(both, "a", "b"), first).failed
    place = _placed(tmp_path, "study", own)
    folder = _begun(both, place, "x", "y")
    outcome = _conducted(own, place)
    assert outcome.failed == [] and outcome.done == {c.key for c in own.commands.values()} and not folder.exists()
    assert _named(place) == {"a": "finished", "x": "finished"} and not (place.study / performing.FAILURES).exists()
    (wrong,) = _conducted(both, _placed(tmp_path, "other", both)).failed
    assert wrong.name == "y"  # whose it is, it is told


def test_a_command_that_reads_what_nobody_makes_has_failed(tmp_path):
    part = _of(_schedule(), "b")
    place = _placed(tmp_path, "study", part)
    (wrong,) = _conducted(part, place).failed
    missing = _schedule().commands["a"].key
    assert (wrong.name, wrong.error) == ("b", f"it reads what is not there and nobody makes: {missing}")
    assert _named(place) == {"b": "failed"}


class Cut(BaseException):
    """As if the process had been killed."""


def test_a_program_that_was_cut_between_the_records_of_its_members_goes_on_as_the_same_program(tmp_path, monkeypatch):
    commands = [
        Command(name, "steps:numbers", {"parameters": {"size": size}}, outputs=("value",), together="both")
        for name, size in (("one", 3), ("two", 4), ("three", 5))
    ]
    schedule = scheduled(commands, {})
    place = Place(tmp_path / "study", tmp_path / "store", ("steps",), Path(__file__).parent)
    (tmp_path / "study").mkdir()
    performed: list[list[str]] = []
    own, commit = routines.own, artefacts.commit

    def noted(work, here):
        performed.append([one.command.name for one in work])
        return own(work, here)

    def cutting(store, record):
        commit(store, record)
        raise Cut

    monkeypatch.setattr(routines, "own", noted)
    conducting.announce(schedule, place)
    carried_out = partial(conducting.conduct, schedule, place, width=4, fail_fast=False, asked=lambda: 0)
    with monkeypatch.context() as patch:
        patch.setattr(artefacts, "commit", cutting)
        with pytest.raises(Cut):
            carried_out(engine=engines.inline())
    assert not carried_out(engine=engines.inline()).failed
    assert performed == [["one", "two", "three"]] * 2
    assert not any((tmp_path / "store" / artefacts.WORKING).iterdir())
    events = [json.loads(line) for line in (tmp_path / "study" / journal.JOURNAL).read_text().splitlines()]
    ends = [line["name"] for line in events if line["event"] == "finished" and not line["reused"]]
    assert sorted(ends) == ["three", "two"]  # the first has a record, and no line of its own
    assert {line["event"] for line in journal.read(tmp_path / "study").values()} == {"finished"}
