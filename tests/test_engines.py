"""Wherever a study is performed, and whatever happens to its workers, it makes the same; and it can be stopped."""

import collections
import copy
import json
import os
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from small import CONFIG, contents, fcurr, process, written

from fcurr.errors import BadInput
from fcurr.io import artefacts, conducting, engines, journal, performing, signals, studying
from fcurr.io.engines import Ended, Engine
from fcurr.io.performing import Place
from fcurr.study.schedule import Command, scheduled

AWAY = ["local", "submitit", "ray"]
KILLING = '''"""A command that takes its process with it."""

import os
import signal


def dies(inputs):
    os.kill(os.getpid(), signal.SIGKILL)


def lives(inputs, *, size):
    return {"size": size}
'''


def _config(steps: int = 40, **changes: Any) -> dict[str, Any]:
    """A study of eight trainings in two programs."""
    config = copy.deepcopy(CONFIG)
    config["training"] |= {"total_iterations": steps, "evaluate_every": 10 if steps < 1000 else 500}
    config["training"]["save_every"] = 15 if steps < 1000 else 100
    config["score"]["repeats"] = 1
    config["sweep"] = {"optimizer.momentum": [0.5, 0.9]}
    config["study"] = {"width": 4, "routines": ["prepare", "score", "train", "evaluate"]}
    return config | changes


LONG = _config(3000, arms={"easy_first": {}}, members={"seed": [0, 1]}, sweep={"optimizer.momentum": [0.9]})


def _run(folder: Path, config: dict[str, Any], engine: Engine) -> conducting.Outcome:
    here = studying.opened(config, [], folder, folder)
    _, outcome = studying.run(here, engine, fail_fast=False, fresh=False)
    return outcome


def _made(folder: Path) -> dict[str, bytes]:
    """What commands made, without what differs from day to day."""
    kept = {artefacts.RECORDS, artefacts.LOCKS, artefacts.REFERENCES}
    found = contents(folder / "store")
    assert not [name for name in found if name.startswith(artefacts.WORKING)]
    return {name: data for name, data in found.items() if name.split("/")[0] not in kept and "/." not in name}


def _lines(folder: Path) -> list[dict[str, Any]]:
    path = folder / "small" / journal.JOURNAL
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def _ends(folder: Path) -> dict[str, int]:
    """How often each command came to its end."""
    found = (line for line in _lines(folder) if line["event"] == "finished" and not line["reused"])
    return dict(collections.Counter(line["name"] for line in found))


def _ended_as(folder: Path, straight: Path) -> None:
    assert _made(folder) == _made(straight)
    assert _ends(folder) == _ends(straight) and set(_ends(folder).values()) == {1}


def _until(true: Callable[[], Any], seconds: float = 60.0) -> Any:
    last = time.monotonic() + seconds
    while not (found := true()):
        assert time.monotonic() < last, "it does not come to this"
        time.sleep(0.02)
    return found


def _training(folder: Path) -> int:
    """The process that trains, once its training has saved for the second time; or 0."""
    saved = {path.name for path in folder.glob("store/working/*/checkpoints/*.safetensors")}
    trained = [own for own in _lines(folder) if own["event"] == "started" and own["name"].startswith("train/")]
    return int(trained[-1]["process"]) if trained and len(saved) >= 2 else 0


@pytest.fixture(scope="module")
def straight(tmp_path_factory) -> Path:
    """A study performed here, one command after another."""
    folder = tmp_path_factory.mktemp("straight")
    outcome = _run(folder, _config(), engines.inline())
    assert not outcome.failed and len(_ends(folder)) == 1 + 2 + 8 + 8
    return folder


@pytest.fixture(scope="module")
def long(tmp_path_factory) -> Path:
    """A study whose one training takes some seconds."""
    folder = tmp_path_factory.mktemp("long")
    assert not _run(folder, LONG, engines.inline()).failed
    return folder


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """Ray, with two workers."""
    pytest.importorskip("ray")
    from fcurr.io import engine_ray

    engine_ray._init(address="local", num_cpus=2)
    yield
    import ray

    ray.shutdown()


@pytest.fixture
def engine(request) -> Engine:
    name = request.param
    if name == "ray":
        request.getfixturevalue("cluster")
    elif name == "submitit":
        pytest.importorskip("submitit")
    return engines.named(name, 2)


@pytest.mark.long
@pytest.mark.parametrize("engine", AWAY, indirect=True)
def test_a_study_makes_the_same_on_every_engine(engine, straight, tmp_path):
    outcome = _run(tmp_path, _config(), engine)
    assert not outcome.failed and not outcome.signal
    _ended_as(tmp_path, straight)
    assert {path.name for path in (tmp_path / "small").iterdir() if path.is_dir()} <= {"comparison"}


@pytest.mark.long
@pytest.mark.parametrize("engine", AWAY, indirect=True)
def test_a_worker_that_is_killed_in_its_training_is_replaced_and_the_training_goes_on(engine, long, tmp_path, capfd):
    killed = []

    def kill() -> None:
        killed.append(_until(lambda: _training(tmp_path)))
        os.kill(killed[0], signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    outcome = _run(tmp_path, LONG, engine)
    killer.join()
    assert not outcome.failed
    _ended_as(tmp_path, long)
    begun = [line for line in _lines(tmp_path) if line["event"] == "started" and line["name"].startswith("train/")]
    workers = [int(line["process"]) for line in begun]
    assert workers[: len(workers) // 2] == [killed[0]] * 2 and killed[0] not in workers[len(workers) // 2 :]
    said = capfd.readouterr()
    assert "it is begun again from its checkpoint" in said.err and "Traceback" not in said.err
    assert "raylet" not in said.err + said.out


@pytest.mark.parametrize("engine", ["local", pytest.param("ray", marks=pytest.mark.long)], indirect=True)
def test_a_command_that_takes_its_worker_with_it_fails_after_three_times_and_the_others_do_not(engine, tmp_path):
    (tmp_path / "killing.py").write_text(KILLING)
    dies = Command("dies", "killing:dies", {"parameters": {}}, outputs=("value",))
    after = Command("after", "killing:dies", {"parameters": {}}, {"before": ("dies",)}, ("value",))
    live = [Command(f"lives {n}", "killing:lives", {"parameters": {"size": n}}, outputs=("value",)) for n in range(4)]
    schedule = scheduled([dies, after, *live], {})
    place = Place(tmp_path / "small", tmp_path / "store", ("killing",), tmp_path)
    place.study.mkdir()
    place.store.mkdir()
    conducting.announce(schedule, place)
    try:
        outcome = conducting.conduct(schedule, place, engine, width=4, fail_fast=False, asked=lambda: 0)
    finally:
        engine.close(False)
    assert [wrong.key for wrong in outcome.failed] == [schedule.commands["dies"].key]
    assert "went away (out of memory, or killed" in outcome.failed[0].error and outcome.blocked == ["after"]
    counts = collections.Counter((line["name"], line["event"]) for line in _lines(tmp_path))
    assert counts["dies", "started"] == conducting.TRIES and counts["dies", "failed"] == 1
    assert not counts["after", "started"] and all(counts[f"lives {n}", "finished"] == 1 for n in range(4))


def test_a_worker_that_is_killed_while_it_has_nothing_to_do_is_replaced(tmp_path):
    (tmp_path / "killing.py").write_text(KILLING)
    engine = engines.local(1)
    place = Place(tmp_path / "small", tmp_path / "store", ("killing",), tmp_path)
    place.study.mkdir()
    schedule = scheduled(
        [Command(f"{n}", "killing:lives", {"parameters": {"size": n}}, outputs=("value",)) for n in (1, 2)], {}
    )
    try:
        for command in schedule.commands.values():
            ticket = engine.start((command,), place)
            assert _until(lambda ticket=ticket: engine.wait([ticket])) == {ticket: Ended()}
            worker = int(next(line["process"] for line in _lines(tmp_path) if line["event"] == "started"))
            if command.name == "1":
                os.kill(worker, signal.SIGKILL)
                _until(lambda worker=worker: not _there(worker))
                time.sleep(0.2)  # the pool hears of it
    finally:
        engine.close(False)
    assert _ends(tmp_path) == {"1": 1, "2": 1}


def _there(number: int) -> bool:
    """Whether a process is there, and is more than a name."""
    try:
        return Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.long
@pytest.mark.parametrize("name", ["inline", *AWAY])
def test_ctrl_c_stops_a_study_on_every_engine_and_nothing_is_lost(name, long, tmp_path):
    if name in ("submitit", "ray"):
        pytest.importorskip(name)
    config = written(tmp_path, LONG)
    running = process("run", config, "--out", tmp_path, "--engine", name, "--jobs", "2", start_new_session=True)
    worker = _until(lambda: _training(tmp_path))
    os.killpg(running.pid, signal.SIGINT)  # as a terminal does: to all of them
    out, err = running.communicate(timeout=60)
    assert running.returncode == 130, err
    assert re.search(r"stopped.*; nothing is lost; to go on: fcurr run", err) and "Traceback" not in out + err
    _until(lambda: not _there(worker))
    assert {line["event"] for line in _lines(tmp_path)[-2:]} == {"stopped"}
    steps = {int(path.stem) for path in tmp_path.glob("store/working/*/checkpoints/*.safetensors")}
    assert not _run(tmp_path, LONG, engines.inline()).failed
    _ended_as(tmp_path, long)
    assert max(steps) >= 200


@pytest.mark.long
def test_workers_of_a_conductor_that_is_killed_save_and_go(long, tmp_path):
    config = written(tmp_path, LONG)
    running = process("run", config, "--out", tmp_path, "--jobs", "2")
    worker = _until(lambda: _training(tmp_path))
    running.kill()
    _until(lambda: not _there(worker), 20)
    running.communicate()
    assert {line["event"] for line in _lines(tmp_path)[-2:]} == {"stopped"}
    assert not _run(tmp_path, LONG, engines.inline()).failed
    _ended_as(tmp_path, long)


@pytest.mark.long
def test_a_job_that_comes_to_its_time_limit_is_queued_again_until_it_is_done(tmp_path):
    pytest.importorskip("submitit")
    config = LONG | {"training": LONG["training"] | {"total_iterations": 12_000}}
    straight, queued = tmp_path / "straight", tmp_path / "queued"
    assert not _run(straight, config, engines.inline()).failed
    limits = {"cluster": "local", "timeout_min": 0.4, "signal_delay_s": 12}  # the signal comes after 12 of 24 seconds
    assert not _run(queued, config, engines.named("submitit", 1, limits)).failed
    _ended_as(queued, straight)
    events = [line["event"] for line in _lines(queued) if line["name"].startswith("train/")]
    assert events.count("stopped") >= 2 and events.count("failed") == 0
    assert events.count("started") == events.count("stopped") + 2  # of both members


def test_ray_that_is_not_there_is_said_in_a_line_before_anything_is_begun(tmp_path, monkeypatch):
    pytest.importorskip("ray")
    from fcurr.io import engine_ray

    with socket.create_server(("127.0.0.1", 0)) as server:
        free = f"127.0.0.1:{server.getsockname()[1]}"
    monkeypatch.setenv("RAY_ADDRESS", free)
    began = time.monotonic()
    result = fcurr("run", written(tmp_path, _config()), "--out", tmp_path / "runs", "--engine", "ray")
    assert result.exit_code == 2 and time.monotonic() - began < 20
    assert f"there is no Ray cluster at {free}: Connection refused" in result.stderr
    assert len(result.stderr.splitlines()) == 1 and not (tmp_path / "runs").exists()
    monkeypatch.setattr(engine_ray, "PROBE", 3.0)
    with socket.create_server(("127.0.0.1", 0)) as server:
        mute = f"127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(BadInput, match=f"there is no Ray cluster at {mute}: what is there does not answer as one"):
            engines.named("ray", 1, {"address": mute})
    with pytest.raises(BadInput, match="there is no Ray cluster at nowhere:x"):
        engines.named("ray", 1, {"address": "nowhere:x"})


WRONG = [
    ("lokal", {}, "there is no engine `lokal` (did you mean `local`?); there are local, inline, submitit, ray"),
    ("local", {"timeout_min": 3}, "--engine local takes no options, such as timeout_min"),
    ("submitit", {"cluster": "debug"}, "--engine submitit: cluster is slurm or local, not debug"),
    ("submitit", {"timeout_min": 1}, "signal_delay_s = 90 seconds before the limit are not within timeout_min = 1"),
    ("submitit", {"cluster": "slurm"}, '--engine submitit: Could not detect "srun"'),
    ("ray", {"cpus": 1}, "--engine ray takes no option `cpus`; it takes address, num_cpus, num_gpus"),
]


@pytest.mark.parametrize(("name", "options", "said"), WRONG, ids=[f"{name} {options}" for name, options, _ in WRONG])
def test_what_an_engine_cannot_be_given_is_said_at_once(name, options, said, monkeypatch):
    if name in ("submitit", "ray"):
        pytest.importorskip(name)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(BadInput, match=re.escape(said)):
        engines.named(name, 2, options)


@pytest.mark.parametrize("name", ["submitit", "ray"])
def test_an_engine_that_is_not_installed_says_how_to_install_it(name, monkeypatch):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(BadInput, match=re.escape(f'--engine {name} needs {name}: pip install "fcurr[{name}]"')):
        engines.named(name, 2)


def test_a_bell_is_heard_when_it_is_rung_and_when_it_is_taken_down_and_a_new_one_silences_the_old(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(signals, "LOOK_EVERY", 0.0)
    old = engines.hung(tmp_path)
    asked = signals.told_in(old)
    assert asked() == 0
    new = engines.hung(tmp_path)
    assert asked() == signal.SIGTERM and signals.told_in(new)() == 0
    engines.ring(new)
    with signals.heeding(signals.told_in(new)), signals.asked_to_stop() as stop:
        assert stop() == signal.SIGTERM
    with signals.asked_to_stop() as stop:
        assert stop() == 0
    engines.take_down(new)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", signals.NAMES)
def test_each_of_the_signals_is_noted_once_and_who_was_there_before_has_it_again_after(name):
    number, came = getattr(signal, name), []
    old = signal.signal(number, lambda *_: came.append(number))
    try:
        with signals.asked_to_stop() as stop:
            signal.raise_signal(number)
            assert stop() == number and came == []
        signal.raise_signal(number)
        assert came == [number]
    finally:
        signal.signal(number, old)


def test_a_worker_that_is_told_to_end_by_somebody_else_is_lost_and_a_full_disk_is_raised():
    stopped = Ended(stopped=signal.SIGTERM)
    assert engines.outcome(stopped, True) == stopped
    assert engines.outcome(stopped, False) == Ended(lost="its worker was told to end (SIGTERM)")
    with pytest.raises(OSError, match="full"):
        engines.outcome(OSError(28, "the disk is full"), False)
    assert performing.perform is engines.perform
