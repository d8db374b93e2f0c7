"""All that `fcurr run` and `fcurr check` do, between reading a config and printing."""

import importlib.util
from pathlib import Path

from fcurr.errors import BadInput
from fcurr.io import allocator, files, progress, runner, store
from fcurr.study.config import Experiment
from fcurr.study.program import plan


def execute(experiment: Experiment, folder: Path, plugins: dict[str, str], *, fresh: bool = False) -> None:
    """The run in its folder, from where it stands to its report. Everything that can be known to be wrong is said
    before anything is written."""
    _need("report.html", matplotlib="report", jinja2="report")
    _need("metrics.parquet", pyarrow="data")
    allocator.keep()
    prepared = runner.load(experiment)
    plan(experiment, prepared)
    if not fresh and runner.holds(folder, experiment, prepared, plugins) and store.finished(folder):
        progress.say(f"{folder} is finished already; --fresh runs it anew")
        return
    with store.held(folder):
        if fresh:
            store.clear(folder)
        progress.say(f"run {experiment.name}: {folder}")
        outcome = runner.start_or_continue(experiment, prepared, folder, plugins)
        from fcurr.io import summary  # matplotlib, needed only now

        summary.write(outcome, folder)
        files.write_json(folder / store.STATUS, {"status": "finished"})


def preview(experiment: Experiment, folder: Path, plugins: dict[str, str]) -> list[str]:
    """What `execute` would do, a line each."""
    prepared = runner.load(experiment)
    lines = plan(experiment, prepared)
    try:
        there = runner.holds(folder, experiment, prepared, plugins)
    except BadInput as other:
        return [*lines, f"not begin: {other}"]
    return [*lines, f"{('show' if store.finished(folder) else 'continue') if there else 'write'} {folder}"]


def _need(purpose: str, **modules: str) -> None:
    """BadInput if a module that `purpose` needs is not installed; each is given with the extra that brings it."""
    for module, extra in modules.items():
        if importlib.util.find_spec(module) is None:
            raise BadInput(f'{purpose} needs {module}: pip install "fcurr[{extra}]"')
