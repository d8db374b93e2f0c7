"""Wherever a study is performed, and whatever happens to its workers, it makes the same; and it can be stopped."""

import collections
import copy
import importlib.util
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
    """A study of four trainings in two programs."""
    config = copy.deepcopy(CONFIG)
    config["training"] |= {"total_iterations": steps, "evaluate_every": 10 if steps < 1000 else 500}
    config["training"]["save_every"] = 15 if steps < 1000 else 100
    config["members"] = {"seed": [0]}
    config["sweep"] = {"curriculum.pace.initial_size": [0.1, 0.2]}
    config["arms"] = {"easy_first": {}, "hard_first": {"curriculum": {"order": "hard_first"}}}
    config["study"] = {"width": 2, "routines": ["prepare", "score", "train", "evaluate"]}
    return config | changes


SLURM = {  # as little of it as a job needs that has the whole machine for itself
    "sbatch": """number=$(ls $QUEUE | wc -l); cp $1 $QUEUE/$number; echo "Submitted batch job $number"
SLURM_JOB_ID=$number SLURM_PROCID=0 SLURM_NTASKS=1 setsid bash -c "
    while [ ! -e $QUEUE.over.$number ]; do touch $QUEUE.over.$number; bash $QUEUE/$number; done" > /dev/null 2>&1 &""",
    "srun": """while [[ $1 == -* ]]; do [[ $1 == *=* || $1 == --unbuffered ]] || shift; shift; done; "$@" """,
    "sacct": """echo "JobID|State|NodeList"; for n in $(ls $QUEUE); do echo "$n|RUNNING|here"; done""",
    "scontrol": """rm $QUEUE.over.$2""",
    "scancel": "true",
}
PLAIN = {"order": "random", "pace": "none"}
LONG = _config(
    3000,
    arms={"plain": {"curriculum": PLAIN}},
    members={"seed": [0, 1]},
    sweep={"optimizer.momentum": [0.9]},
    observers=["slow:slow"],
)
SLOW = '''"""An observer that makes a run last, if a file says so."""

import time
from pathlib import Path

SECONDS = Path(__file__).with_name("seconds")


def slow(before, after, event):
    if SECONDS.exists():
        time.sleep(float(SECONDS.read_text()))
'''


def _needs(name: str) -> None:
    """Leaves a test out if a package is missing, without importing it: how that is done is the engine's."""
    if name in ("submitit", "ray") and importlib.util.find_spec(name) is None:
        pytest.skip(f"{name} is not installed")


def _run(folder: Path, config: dict[str, Any], engine: Engine) -> conducting.Outcome:
    here = studying.opened(config, ["slow"] if "observers" in config else [], folder, folder)
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


def _meanwhile(what: Callable[[], object]) -> None:
    threading.Thread(target=what, daemon=True).start()


@pytest.fixture(scope="module")
def straight(tmp_path_factory) -> Path:
    """A study performed here, one command after another."""
    folder = tmp_path_factory.mktemp("straight")
    outcome = _run(folder, _config(), engines.inline())
    assert not outcome.failed and len(_ends(folder)) == 1 + 1 + 4 + 4
    return folder


@pytest.fixture(scope="module")
def long(tmp_path_factory) -> Iterator[Path]:
    """A study with one program that trains, which in this process is quick."""
    folder = tmp_path_factory.mktemp("long")
    (folder / "slow.py").write_text(SLOW)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        assert not _run(folder, LONG, engines.inline()).failed
        yield folder


@pytest.fixture
def again(tmp_path, long) -> Path:
    """A folder for the same study, which in other processes takes some seconds."""
    (tmp_path / "slow.py").write_text(SLOW)
    (tmp_path / "seconds").write_text("0.001")
    return tmp_path


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """Ray, with two workers."""
    _needs("ray")
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
    _needs(name)
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
def test_a_worker_that_is_killed_in_its_training_is_replaced_and_the_training_goes_on(engine, long, again, capfd):
    killed = []

    def kill() -> None:
        killed.append(_until(lambda: _training(again)))
        os.kill(killed[0], signal.SIGKILL)

    _meanwhile(kill)
    assert not _run(again, LONG, engine).failed
    _ended_as(again, long)
    begun = [line for line in _lines(again) if line["event"] == "started" and line["name"].startswith("train/")]
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
def test_ctrl_c_stops_a_study_on_every_engine_and_nothing_is_lost(name, long, again):
    _needs(name)
    arguments = (written(again, LONG), "--plugin", "slow", "--out", again, "--engine", name, "--jobs", "2")
    running = process("run", *arguments, start_new_session=True)
    worker = _until(lambda: _training(again))
    os.killpg(running.pid, signal.SIGINT)  # as a terminal does: to all of them
    out, err = running.communicate(timeout=60)
    assert running.returncode == 130, err
    assert re.search(r"stopped.*; nothing is lost; to go on: fcurr run", err) and "Traceback" not in out + err
    _until(lambda: not _there(worker))
    _goes_on(again, long)


@pytest.mark.long
def test_workers_of_a_conductor_that_is_killed_save_and_go(long, again):
    running = process("run", written(again, LONG), "--plugin", "slow", "--out", again, "--jobs", "2")
    worker = _until(lambda: _training(again))
    running.kill()
    _until(lambda: not _there(worker), 20)
    running.communicate()
    _goes_on(again, long)


def _goes_on(folder: Path, straight: Path) -> None:
    """A study whose training was asked to stop has saved, and ends as the one that was not."""
    assert [line["event"] for line in _lines(folder)[-2:]] == ["stopped"] * 2
    saved = [int(path.stem.rpartition("-")[2]) for path in folder.glob("store/working/*/checkpoints/*.safetensors")]
    assert 200 <= max(saved) < 3000
    assert not _run(folder, LONG, engines.inline()).failed
    _ended_as(folder, straight)


@pytest.mark.long
def test_a_job_that_comes_to_its_time_limit_is_queued_again_until_it_is_done(long, again):
    _needs("submitit")
    (again / "seconds").write_text("0.003")
    limits = {"cluster": "local", "timeout_min": 0.4, "signal_delay_s": 12}  # the signal comes after 12 of 24 seconds
    assert not _run(again, LONG, engines.named("submitit", 1, limits)).failed
    _ended_as(again, long)
    events = [line["event"] for line in _lines(again) if line["name"].startswith("train/")]
    assert events.count("stopped") >= 2 and events.count("failed") == 0
    assert events.count("started") == events.count("stopped") + 2  # of both members


@pytest.mark.long
def test_slurm_is_told_what_a_job_needs_and_puts_it_into_the_queue_again_after_its_signal(long, again, monkeypatch):
    _needs("submitit")
    queue, programs = again / "queue", again / "bin"
    queue.mkdir()
    programs.mkdir()
    for name, text in SLURM.items():
        (programs / name).write_text(f"#!/usr/bin/env bash\nset -e\n{text}\n")
        (programs / name).chmod(0o755)
    monkeypatch.setenv("QUEUE", str(queue))
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    own = {"slurm_partition": "small", "timeout_min": 30, "cpus_per_task": 1, "mem_gb": 3, "slurm_qos": "low"}
    _meanwhile(lambda: os.kill(_until(lambda: _training(again)), signal.SIGUSR2))
    assert not _run(again, LONG, engines.named("submitit", 2, own)).failed
    _ended_as(again, long)
    events = [line["event"] for line in _lines(again) if line["name"].startswith("train/")]
    assert (events.count("started"), events.count("stopped"), events.count("failed")) == (4, 2, 0)
    told = (queue / "0").read_text()
    for line in ("partition=small", "time=30", "cpus-per-task=1", "mem=3GB", "qos=low", "signal=USR2@90"):
        assert f"#SBATCH --{line}\n" in told, told
    assert not (again / "small" / "jobs").exists()


def test_ray_that_is_not_there_is_said_in_a_line_before_anything_is_begun(tmp_path, monkeypatch):
    _needs("ray")
    from fcurr.io import engine_ray

    with socket.create_server(("127.0.0.1", 0)) as server:
        free = f"127.0.0.1:{server.getsockname()[1]}"
    monkeypatch.setenv("RAY_ADDRESS", free)
    monkeypatch.setattr("ray.is_initialized", lambda: False)
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
    _needs(name)
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


def test_a_signal_is_known_to_all_who_ask_one_within_another_and_a_second_acts_at_once():
    with signals.asked_to_stop() as outer:
        with signals.asked_to_stop() as inner:
            assert outer() == inner() == 0
            signal.raise_signal(signal.SIGINT)
            assert outer() == inner() == signal.SIGINT
        with signals.asked_to_stop() as later:
            assert outer() == later() == signal.SIGINT
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)
    with signals.asked_to_stop() as another:
        assert another() == 0


def test_a_worker_that_is_told_to_end_by_somebody_else_is_lost_and_a_full_disk_is_raised():
    stopped = Ended(stopped=signal.SIGTERM)
    assert engines.outcome(stopped, True) == stopped
    assert engines.outcome(stopped, False) == Ended(lost="its worker was told to end (SIGTERM)")
    with pytest.raises(OSError, match="full"):
        engines.outcome(OSError(28, "the disk is full"), False)
    assert performing.perform is engines.perform
