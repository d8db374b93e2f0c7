"""All that `fcurr run`, `fcurr resume` and `fcurr check` do, between reading a config and printing."""

import contextlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from fcurr.errors import BadInput
from fcurr.io import allocator, files, parallel, progress, runner, store
from fcurr.io.loggers import Logger
from fcurr.io.needing import need
from fcurr.study.bind import build, guarded
from fcurr.study.config import Experiment
from fcurr.study.prepare import beginning
from fcurr.study.program import plan
from fcurr.training import Team


def execute(experiment: Experiment, folder: Path, plugins: dict[str, str], *, fresh: bool = False) -> bool:
    """The run in its folder, from where it stands to its report, and whether it is this process that speaks of it.
    Everything that can be known to be wrong is said before anything is written."""
    need("report.html", matplotlib="report", jinja2="report")
    need("metrics.parquet", pyarrow="data")
    allocator.keep()
    if folder.name == "store":
        raise BadInput(f"{folder} is where studies keep what they made: no run can have this name", "name")
    prepared = runner.load(experiment)
    plan(experiment, prepared)
    _loggers(experiment, folder)
    if not fresh and runner.holds(folder, experiment, prepared, plugins) and store.finished(folder, experiment.config):
        if parallel.speaks():
            progress.say(f"{folder} is finished already; --fresh runs it anew")
        return parallel.speaks()
    with parallel.team() as team, _held(folder, team), _open(_loggers(experiment, folder), team) as loggers:
        if team.rank == 0:
            for left in files.leftovers(folder):
                left.unlink()
            if fresh:
                store.clear(folder)
            progress.say(f"run {experiment.name}: {folder}")
        outcome = runner.start_or_continue(experiment, prepared, folder, plugins, team=team, loggers=loggers)
        if team.rank == 0:
            from fcurr.io import summary  # matplotlib, needed only now

            summary.write(outcome, folder)
            files.write_json(folder / store.STATUS, {"status": "finished"})
        return team.rank == 0


def preview(experiment: Experiment, folder: Path, plugins: dict[str, str]) -> list[str]:
    """What `execute` would do, a line each."""
    prepared = runner.load(experiment)
    lines = [*(f"{_WOULD[name]} {words}" for name, words in beginning(prepared)), *plan(experiment, prepared)]
    _loggers(experiment, folder)
    try:
        there = runner.holds(folder, experiment, prepared, plugins)
    except BadInput as other:
        return [*lines, f"not begin: {other}"]
    done = there and store.finished(folder, experiment.config)
    return [*lines, f"{('show' if done else 'continue') if there else 'write'} {folder}"]


_WOULD = {"started from": "start from", "by seed": "draw by seed", "not used": "leave unused", "frozen": "freeze"}


def _held(folder: Path, team: Team) -> contextlib.AbstractContextManager[None]:
    """The folder, held by the first process for all of them."""
    return store.held(folder) if team.rank == 0 else contextlib.nullcontext()


def _loggers(experiment: Experiment, folder: Path) -> list[Logger]:
    """The loggers of the run, which have not begun; BadInput where one cannot."""
    entries, loggers = {"seed": experiment.seed, "folder": str(folder), "name": experiment.name}, []
    for call in experiment.lists["loggers"]:
        plain = build(call, entries)
        if not isinstance(plain, Logger):
            raise BadInput(f"{call.name} gives a {type(plain).__name__}, not a Logger", call.where)
        loggers.append(Logger(*(partial(guarded, call, function) for function in plain)))
    return loggers


@contextlib.contextmanager
def _open(loggers: list[Logger], team: Team) -> Iterator[list[Logger]]:
    """Those of the first process, closed at the end however it comes."""
    with contextlib.ExitStack() as closing:
        for logger in loggers if team.rank == 0 else []:
            closing.callback(logger.close)
        yield loggers if team.rank == 0 else []
