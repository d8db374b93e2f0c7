"""Loggers: what a tool shows in the end is what metrics.jsonl says, however the run got there."""

import importlib.util
import json
import os
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from fcurr.errors import BadInput
from fcurr.io import loggers
from fcurr.study.roles import names

Found = dict[str, list[tuple[int, dict[str, float]]]]  # member -> (iteration, numbers) in their order
TOOLS = ["tensorboard", "trackio", "wandb", "mlflow"]


@pytest.fixture(scope="module")
def _home(tmp_path_factory) -> Iterator[None]:
    """Trackio reads once where its database is."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRACKIO_DIR", str(tmp_path_factory.mktemp("trackio")))
        yield


@pytest.fixture(params=TOOLS)
def tool(request, _home, monkeypatch) -> str:
    pytest.importorskip(request.param)
    if request.param == "mlflow":
        pytest.importorskip("sqlalchemy")
    monkeypatch.setattr(socket.socket, "connect", _only_here(socket.socket.connect))
    return request.param


def _only_here(connect: Callable[..., Any]) -> Callable[..., Any]:
    """Connects to this machine, and to no other."""

    def guarded(self: socket.socket, address: Any) -> Any:
        assert self.family == socket.AF_UNIX or address[0] in ("127.0.0.1", "::1", "localhost"), address
        return connect(self, address)

    return guarded


def opened(tool: str, folder: Path, name: str = "digits") -> loggers.Logger:
    given = {"folder": str(folder)} if tool == "tensorboard" else {"folder": str(folder), "name": name}
    return getattr(loggers, tool)(**given)


def row(iteration: int, member: int, **numbers: float | None) -> dict[str, Any]:
    axes = {"arm": ("plain", "easy/first")[member], "seed": member}
    return {"iteration": iteration, "member": member, **axes, "size": 40 + iteration, "epoch": 1, **numbers}


def rows(until: int, shift: float = 0.0) -> list[dict[str, Any]]:
    """Two members that are evaluated at different iterations; a loss that is not finite at the first of them."""
    return [
        row(at + member, member, loss=None if at == 10 else at / 3 + member + shift, validation_accuracy=at / 100)
        for at in range(10, until + 1, 10)
        for member in (0, 1)
    ]


def meant(kept: list[dict[str, Any]]) -> Found:
    """What a tool has to show of rows."""
    found: Found = {}
    for line in kept:
        numbers = {k: v for k, v in line.items() if k not in ("iteration", "member", "arm", "seed") and v is not None}
        found.setdefault(f"{line['arm']}, seed = {line['seed']}", []).append((line["iteration"], numbers))
    return found


def _gathered(points: Iterator[tuple[str, int, str, float]]) -> Found:
    """(member, iteration, name, value) -> Found; a point that is there twice is an error."""
    found: dict[str, dict[int, dict[str, float]]] = {}
    for member, iteration, name, value in points:
        numbers = found.setdefault(member, {}).setdefault(iteration, {})
        assert name not in numbers, (member, iteration, name)
        numbers[name] = value
    return {member: sorted(steps.items()) for member, steps in found.items()}


def shown(tool: str, folder: Path, name: str = "digits") -> Found:
    """What the tool itself reads."""
    return _gathered(
        {"tensorboard": _tensorboard, "trackio": _trackio, "wandb": _wandb, "mlflow": _mlflow}[tool](folder, name)
    )


def _tensorboard(folder: Path, name: str) -> Iterator[tuple[str, int, str, float]]:
    from tensorboard.backend.event_processing.event_multiplexer import EventMultiplexer

    there = EventMultiplexer(size_guidance={"scalars": 0}).AddRunsFromDirectory(str(folder / "tensorboard")).Reload()
    for run, tags in there.Runs().items():
        for tag in tags["scalars"]:
            for event in there.Scalars(run, tag):
                yield run.replace("easy_first, seed = 1 1", "easy/first, seed = 1"), event.step, tag, event.value


def _trackio(folder: Path, name: str) -> Iterator[tuple[str, int, str, float]]:
    from trackio.sqlite_storage import SQLiteStorage

    for run in SQLiteStorage.get_run_records(name):
        if str(run["id"]).startswith(loggers._identity(str(folder))):
            for log in SQLiteStorage.get_logs(name, run["name"], run_id=run["id"]):
                for key in log.keys() - {"step", "timestamp"}:
                    yield run["name"], log["step"], key, log[key]


def _mlflow(folder: Path, name: str) -> Iterator[tuple[str, int, str, float]]:
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{folder / 'mlflow.db'}")
    for run in client.search_runs([client.get_experiment_by_name(name).experiment_id]):
        for key in run.data.metrics:
            for point in client.get_metric_history(run.info.run_id, key):
                yield run.info.run_name, point.step, key, point.value


def _wandb(folder: Path, name: str) -> Iterator[tuple[str, int, str, float]]:
    from wandb.proto.wandb_internal_pb2 import Record

    for path in (folder / "wandb").glob("offline-run-*/*.wandb"):
        member, records, until = None, [], time.monotonic() + 20
        while not (records and records[-1].HasField("exit")) and time.monotonic() < until:  # its other process writes
            records = [Record.FromString(text) for text in _leveldb(path.read_bytes())]
        for record in records:
            if record.HasField("run"):
                member = record.run.display_name
            if record.HasField("history"):
                items = {
                    ".".join(item.nested_key) or item.key: json.loads(item.value_json) for item in record.history.item
                }
                for key in [key for key in items if key[0] != "_"]:
                    yield str(member), items["_step"], key, items[key]


def _leveldb(log: bytes) -> Iterator[bytes]:
    """The records of a LevelDB log: blocks of 32 KiB, in them crc, length, kind (whole, first, middle, last), text."""
    at, text = 7, b""
    while at + 7 <= len(log):
        left = 2**15 - at % 2**15
        if left < 7:
            at += left
            continue
        length, kind = struct.unpack("<HB", log[at + 4 : at + 7])
        text += log[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):
            yield text
            text = b""


def same(found: Found, wanted: Found) -> None:
    assert found.keys() == wanted.keys()
    for member, steps in wanted.items():
        assert [at for at, _ in found[member]] == [at for at, _ in steps]
        for (_, is_there), (_, numbers) in zip(found[member], steps, strict=True):
            assert is_there.keys() == numbers.keys()
            np.testing.assert_allclose([is_there[key] for key in numbers], list(numbers.values()), rtol=1e-6)


def test_every_number_of_every_row_is_there_once_at_its_iteration(tool, tmp_path):
    logger = opened(tool, tmp_path)
    logger.begin([])
    for line in rows(50):
        logger.log([line])
    logger.close()
    same(shown(tool, tmp_path), meant(rows(50)))


def test_a_run_that_goes_on_shows_the_rows_that_hold_and_the_new_ones(tool, tmp_path):
    """Rows after the checkpoint come again, and need not be what they were."""
    first = opened(tool, tmp_path)
    first.begin([])
    first.log(rows(50))
    first.close()
    second = opened(tool, tmp_path)
    second.begin(rows(30))
    second.log(rows(70, shift=1.0)[len(rows(30)) :])
    second.close()
    same(shown(tool, tmp_path), meant(rows(30) + rows(70, shift=1.0)[len(rows(30)) :]))


def test_a_row_that_a_logger_never_heard_of_is_told_when_the_run_goes_on(tool, tmp_path):
    opened(tool, tmp_path).begin([])
    second = opened(tool, tmp_path)
    second.begin(rows(40))
    second.close()
    same(shown(tool, tmp_path), meant(rows(40)))


def test_a_kill_takes_nothing_along_that_the_next_process_does_not_bring_back(tool, tmp_path):
    program = (
        "import os, signal, sys; sys.path.insert(0, sys.argv[2]); from pathlib import Path; import test_loggers as t\n"
        "logger = t.opened(sys.argv[1], Path(sys.argv[3])); logger.begin([])\n"
        "for line in t.rows(50): logger.log([line])\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    alone = {key: value for key, value in os.environ.items() if key != "WANDB_SERVICE"}
    command = [sys.executable, "-c", program, tool, str(Path(__file__).parent), str(tmp_path)]
    child = subprocess.run(command, env=alone)
    assert child.returncode == -9
    if tool != "wandb":  # whose other process writes, in its own time
        same(shown(tool, tmp_path), meant(rows(50)))
    logger = opened(tool, tmp_path)
    logger.begin(rows(20))
    logger.close()
    same(shown(tool, tmp_path), meant(rows(20)))


def test_runs_of_one_name_in_two_folders_do_not_touch_each_other(tool, tmp_path):
    for folder, until in (("a", 20), ("b", 40), ("a", 30)):
        (tmp_path / folder).mkdir(exist_ok=True)
        logger = opened(tool, tmp_path / folder)
        logger.begin(rows(until))
        logger.close()
    same(shown(tool, tmp_path / "a"), meant(rows(30)))
    same(shown(tool, tmp_path / "b"), meant(rows(40)))


def test_nothing_is_written_before_the_run_begins_and_nothing_of_the_environment_is_changed(tool, tmp_path):
    before = dict(os.environ)
    logger = opened(tool, tmp_path)
    assert list(tmp_path.iterdir()) == []
    logger.begin(rows(10))
    logger.close()
    assert {key for key, value in os.environ.items() if before.get(key) != value} <= {"WANDB_SERVICE"}


def test_a_tensorboard_that_watches_forgets_what_holds_no_more(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    opened("tensorboard", tmp_path).begin(rows(50))
    watching = EventAccumulator(str(tmp_path / "tensorboard" / "plain, seed = 0")).Reload()
    assert [event.step for event in watching.Scalars("loss")] == [20, 30, 40, 50]
    opened("tensorboard", tmp_path).begin(rows(30))
    watching.Reload()
    assert [event.step for event in watching.Scalars("loss")] == [20, 30]


@pytest.mark.parametrize("missing", TOOLS)
def test_a_tool_that_is_not_there_is_named_with_the_extra_that_brings_it(missing, tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(BadInput) as said:
        opened(missing, tmp_path)
    assert str(said.value) == f'the logger {missing} needs {missing}: pip install "fcurr[{missing}]"'


def test_a_folder_of_a_tools_name_is_not_the_tool(tmp_path, monkeypatch):
    (tmp_path / "a_tool_nobody_has").mkdir()
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(BadInput, match="needs a_tool_nobody_has"):
        loggers._need("a_tool_nobody_has", "wandb")


def test_the_loggers_are_found_by_their_names():
    assert names("logger") == TOOLS


def test_a_row_is_told_by_its_member_and_its_numbers():
    line = {
        "iteration": 7,
        "member": 0,
        "arm": "a",
        "optimizer.learning_rate": 0.1,
        "size": 3,
        "epoch": 0,
        "loss": None,
    }
    assert loggers.told(line) == loggers.Told(
        "a, optimizer.learning_rate = 0.1", {"arm": "a", "optimizer.learning_rate": 0.1}, 7, {"size": 3, "epoch": 0}
    )


@given(st.text(min_size=1), st.text(min_size=1))
def test_every_member_has_a_folder_of_its_own(one, other):
    assume(one != other)
    paths = {loggers._file(name, member) for member, name in enumerate([one, other])}
    assert len(paths) == 2
    for path in paths:
        assert "/" not in path and "\0" not in path and path not in (".", "..") and len(path.encode()) <= 255
