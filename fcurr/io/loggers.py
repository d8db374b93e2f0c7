"""Where else metrics are written, beside the run's own file, which stays the truth. A tool is imported only by the run
that asks for it; each comes with an extra of its own name. Whatever is watched lies on this machine: nothing is sent
anywhere unless a config names a server.

Every member is a run of its own there, named after its arm and axes, and each number of a row stands at its iteration.
A run that goes on begins every logger with the rows that still hold, so no row is shown twice, missing, or in conflict
with metrics.jsonl, however the run was ended before.
"""

import contextlib
import hashlib
import importlib.util
import os
import pathlib
import re
import shutil
import time
from collections.abc import Callable, Iterator
from typing import Annotated, Any, NamedTuple

from annotated_types import MinLen

from fcurr.errors import BadInput
from fcurr.types import Path, Unit

Row = dict[str, Any]  # a line of metrics.jsonl: iteration, member, arm, axes, size, epoch, and numbers or None
Project = Annotated[str, MinLen(1), Unit("project")]
Server = Annotated[str, Unit("address of a tracking server")]


class Logger(NamedTuple):
    """Somebody who is told the lines of metrics.jsonl as they are written."""

    log: Callable[[list[Row]], None]
    close: Callable[[], None]  # at the end of the process, however it comes, except by a kill
    begin: Callable[[list[Row]], None] = lambda rows: None  # first: the rows that hold; all others are to be forgotten


class Told(NamedTuple):
    """What a row says."""

    name: str  # of the member: its arm and axes
    axes: dict[str, Any]  # arm, and axes
    iteration: int
    numbers: dict[str, float]  # name -> value; without those that are not finite


def told(row: Row) -> Told:
    """What stands before `size` says which member it is, the rest are its numbers."""
    keys = list(row)
    axes = {key: row[key] for key in keys[keys.index("arm") : keys.index("size")]}
    name = ", ".join([str(row["arm"]), *(f"{key} = {value}" for key, value in axes.items() if key != "arm")])
    numbers = {key: row[key] for key in keys[keys.index("size") :] if row[key] is not None}
    return Told(name, axes, row["iteration"], numbers)


def tensorboard(*, folder: Path) -> Logger:
    """Event files in `tensorboard` in the run's folder, a sub-run a member: `tensorboard --logdir runs` shows them.
    Values are float32 there."""
    _need("tensorboard", "tensorboard")
    from tensorboard.compat.proto.event_pb2 import Event, SessionLog  # pyright: ignore
    from tensorboard.compat.proto.summary_pb2 import Summary  # pyright: ignore
    from tensorboard.summary.writer.record_writer import RecordWriter  # pyright: ignore[reportMissingImports]

    home = pathlib.Path(folder) / "tensorboard"

    def append(path: pathlib.Path, events: list[Any]) -> None:
        with open(path, "ab") as file:  # nothing is left in a buffer that a kill would take along
            for event in events:
                RecordWriter(file).write(event.SerializeToString())

    def clear() -> None:
        for path in home.glob("*/events.out.tfevents.*.fcurr"):
            os.truncate(path, 0)  # who watches a file stumbles if it is gone

    def start(name: str, row: Row) -> pathlib.Path:
        path = home / _file(name, row["member"]) / f"events.out.tfevents.{time.time_ns()}.fcurr"
        path.parent.mkdir(parents=True, exist_ok=True)
        anew = SessionLog(status=SessionLog.START)  # who has read an older file forgets it
        now = time.time()
        events = [Event(wall_time=now, file_version="brain.Event:2"), Event(wall_time=now, step=0, session_log=anew)]
        append(path, events)
        return path

    def write(path: pathlib.Path, rows: list[Told]) -> None:
        events = []
        for row in rows:
            values = [Summary.Value(tag=tag, simple_value=number) for tag, number in row.numbers.items()]
            events.append(Event(wall_time=time.time(), step=row.iteration, summary=Summary(value=values)))
        append(path, events)

    return _logger(clear, start, write)


def trackio(*, folder: Path, name: Project) -> Logger:
    """Trackio's local database, where `trackio show` looks: the project is the run's name, a run a member.
    The environment's TRACKIO_DIR says where that is."""
    _need("trackio", "trackio")
    from trackio.sqlite_storage import SQLiteStorage  # pyright: ignore[reportMissingImports]

    ours = _identity(folder)

    def clear() -> None:
        for found in SQLiteStorage.get_run_records(name):
            if str(found["id"]).startswith(f"{ours}-"):
                SQLiteStorage.delete_run(name, str(found["name"]), found["id"])

    def write(run: tuple[str, int], rows: list[Told]) -> None:
        numbers, steps = [row.numbers for row in rows], [row.iteration for row in rows]
        of, member = run
        SQLiteStorage.bulk_log(name, of, numbers, steps=steps, config=rows[0].axes, run_id=f"{ours}-{member}")

    return _logger(clear, lambda run, row: (run, row["member"]), write)


def wandb(*, folder: Path, name: Project, project: Project = "fcurr") -> Logger:
    """Weights & Biases, offline: files in `wandb` in the run's folder, a run a member, grouped by the run's name.
    Nothing is sent; `wandb sync` sends a finished run, if you want that."""
    _need("wandb", "wandb")
    home, ours = pathlib.Path(folder) / "wandb", _identity(folder)

    def clear() -> None:
        for path in home.glob(f"offline-run-*-{ours}-*"):
            shutil.rmtree(path)

    def start(of: str, row: Row) -> Any:
        import wandb  # pyright: ignore[reportMissingImports]

        off = ("disable_git", "disable_code", "x_disable_meta", "x_disable_stats", "x_disable_machine_info")
        home.mkdir(parents=True, exist_ok=True)
        return wandb.init(
            dir=folder,
            project=project,
            group=name,
            name=of,
            id=f"{ours}-{row['member']}",
            config=told(row).axes,
            mode="offline",
            reinit="create_new",
            settings=wandb.Settings(silent=True, console="off", x_save_requirements=False, **dict.fromkeys(off, True)),
        )

    def write(run: Any, rows: list[Told]) -> None:
        for row in rows:
            run.log(row.numbers, step=row.iteration)

    return _logger(clear, start, write, lambda run: run.finish(), {"WANDB_ERROR_REPORTING": "false"})


def mlflow(*, folder: Path, name: Project, server: Server = "") -> Logger:
    """MLflow, on SQLite in `mlflow.db` in the run's folder: the experiment is the run's name, a run a member.
    A `server` takes its place: then metrics are sent there."""
    _need("mlflow", "mlflow")
    _need("sqlalchemy", "mlflow")
    private = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_CONFIGURE_LOGGING": "false"}
    with _environment(private):
        from mlflow import MlflowClient  # pyright: ignore[reportMissingImports]
        from mlflow.entities import Metric, Param  # pyright: ignore[reportMissingImports]

    home, ours, there = pathlib.Path(folder).resolve(), _identity(folder), {}

    def clear() -> None:
        client = there["client"] = MlflowClient(tracking_uri=server or f"sqlite:///{home / 'mlflow.db'}")
        found = client.get_experiment_by_name(name)
        where = None if server else (home / "mlflow").as_uri()
        there["experiment"] = found.experiment_id if found else client.create_experiment(name, artifact_location=where)
        while runs := client.search_runs([there["experiment"]], f"tags.fcurr = '{ours}'"):
            for run in runs:
                client.delete_run(run.info.run_id)

    def start(of: str, row: Row) -> str:
        run = there["client"].create_run(there["experiment"], run_name=of, tags={"fcurr": ours}).info.run_id
        there["client"].log_batch(run, params=[Param(key, str(value)) for key, value in told(row).axes.items()])
        return run

    def write(run: str, rows: list[Told]) -> None:
        now = time.time_ns() // 1_000_000
        metrics = [Metric(key, value, now, row.iteration) for row in rows for key, value in row.numbers.items()]
        for first in range(0, len(metrics), 1000):  # the most that a server takes
            there["client"].log_batch(run, metrics=metrics[first : first + 1000])

    return _logger(clear, start, write, lambda run: there["client"].set_terminated(run), private)


def _logger(
    clear: Callable[[], None],
    start: Callable[[str, Row], Any],
    write: Callable[[Any, list[Told]], None],
    end: Callable[[Any], object] = lambda run: None,
    environment: dict[str, str] | None = None,
) -> Logger:
    """A logger that starts a run for each member with its first row, under the variables that keep a tool silent."""
    runs: dict[str, Any] = {}

    def log(rows: list[Row]) -> None:
        with _environment(environment or {}):
            _log(rows)

    def _log(rows: list[Row]) -> None:
        for first, own in _members(rows):
            if own[0].name not in runs:
                runs[own[0].name] = start(own[0].name, first)
            write(runs[own[0].name], own)

    def close() -> None:
        with _environment(environment or {}):
            while runs:
                end(runs.popitem()[1])

    def begin(rows: list[Row]) -> None:
        close()
        with _environment(environment or {}):
            clear()
            _log(rows)

    return Logger(log, close, begin)


def _members(rows: list[Row]) -> Iterator[tuple[Row, list[Told]]]:
    """The rows of each member, and the first of them as it is."""
    found: dict[int, list[Row]] = {}
    for row in rows:
        found.setdefault(row["member"], []).append(row)
    for own in found.values():
        yield own[0], [told(row) for row in own]


def _need(module: str, extra: str) -> None:
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:  # a folder of that name, such as tools leave behind, is no module
        raise BadInput(f'the logger {extra} needs {module}: pip install "fcurr[{extra}]"')


def _identity(folder: str) -> str:
    """Tells this run's entries from those of others, in one place."""
    return hashlib.sha256(str(pathlib.Path(folder).resolve()).encode()).hexdigest()[:12]


def _file(name: str, member: int) -> str:
    """A name for a folder: the member's own, if it can be one."""
    safe = re.sub(r"[^\w ,=.+-]|^\.", "_", name)
    return safe if safe == name and len(name.encode()) <= 120 else f"{safe[:60]} {member}"


@contextlib.contextmanager
def _environment(variables: dict[str, str]) -> Iterator[None]:
    """The variables, and afterwards those that were there before."""
    before = {key: os.environ.get(key) for key in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for key, value in before.items():
            if value is None:
                os.environ.pop(key, None)
            else:
                os.environ[key] = value
