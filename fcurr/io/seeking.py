"""A study whose points are found one after another: trials are asked for, performed, and told how they ended."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from fcurr.errors import BadInput
from fcurr.io import artefacts, progress, runner, searching
from fcurr.io.conducting import Outcome
from fcurr.io.performing import Place
from fcurr.io.searching import Search
from fcurr.study import sections, sweeping
from fcurr.study.config import read
from fcurr.study.schedule import Command, Schedule, canonical, needed
from fcurr.study.sections import Study
from fcurr.types import Direction

FILE = "search.db"
Trials = dict[int, dict[str, Any]]


def known(folder: Path, study: Study) -> Trials:
    """The trials of a search that have come to their end, from its file, if there is one."""
    if not (folder / FILE).with_suffix(".json").exists():
        return {}
    search = searching.reopened(folder / FILE)
    return {one.number: one.point for one in searching.finished(search) if one.state == "complete"}


def begun(folder: Path, config: Mapping[str, Any], study: Study, plugins: tuple[str, ...]) -> Search:
    """The search of a study, in its folder. The first point is read for what its metric is."""
    assert study.sweep is not None
    if study.folds and study.sweep.pruner != "none":
        words = "a pruner judges a trial by one program, and cross-validation makes several: leave one of them out"
        raise BadInput(words, "sweep.pruner")
    plain = {key: value for key, value in config.items() if key not in sections.SECTIONS}
    fold = sections.folds(study)[0]
    experiment = read(sweeping.applied(plain, {**sweeping.point(study.sweep, 0), **fold}), plugins)
    higher, training = runner.load(experiment).higher, experiment.training
    every, total = training.evaluate_every, training.total_iterations
    name = str(config["name"])
    search = searching.opened(folder / FILE, study.sweep, Direction(higher), name, every=every, total=total)
    searching.described(folder / FILE, config["sweep"], higher, name, every, total)
    return search


def seek(
    search: Search,
    planned: Callable[[Trials], Schedule],
    perform: Callable[[Schedule, Schedule, Place], Outcome],
    place: Place,
    *,
    at_once: int,
    fail_fast: bool,
) -> tuple[Schedule, Outcome]:
    """Every trial of a search, `at_once` together, and at last what the whole study comes to. `perform` is told that
    whole as far as it is known, and what of it is to be done now."""
    searching.resume(search)
    trials = {one.number: one.point for one in searching.finished(search) if one.state == "complete"}
    failed, pruned = [], set()
    while True:
        asked: Trials = {}
        while len(asked) < at_once and (trial := searching.ask(search)) is not None:
            asked[trial.number] = trial.point
            if (trial.number + 1) % at_once == 0:  # a batch that was cut is made whole, and no longer
                break
        schedule = planned({**trials, **asked})
        if asked:
            own = (c for c in schedule.commands.values() if c.label.get("trial") in asked)
            mine = needed(schedule, [c.name for c in own if c.function == "validate"])
            outcome = perform(schedule, mine, place)
        else:
            outcome = perform(schedule, schedule, place)
        failed, pruned = [*failed, *outcome.failed], pruned | outcome.pruned
        if outcome.signal or not asked:
            return schedule, outcome._replace(failed=failed, pruned=pruned)
        for number, point in asked.items():
            ended = _ended(number, schedule, outcome, place)
            searching.tell(search, number, ended)
            said = ended if isinstance(ended, str) else f"{ended:.4g}"
            progress.say(f"trial {number}: {said}")
            if not isinstance(ended, str):
                trials[number] = point
        if fail_fast and outcome.failed:
            return planned(trials), outcome._replace(failed=failed, pruned=pruned)


def _ended(number: int, schedule: Schedule, outcome: Outcome, place: Place) -> Any:
    """The mean validation of a trial's trainings, or "pruned", or "failed"."""
    own: list[Command] = [c for c in schedule.commands.values() if c.label.get("trial") == number]
    if any(command.key in outcome.pruned for command in own):
        return "pruned"
    values = []
    for command in own:
        if command.function == "validate":
            record = artefacts.record(place.store, command.key)
            if record is None:
                return "failed"
            values.append(artefacts.get(place.store, record.outputs["validation"])["value"])
    return "failed" if not values or None in values else sum(values) / len(values)


def best(search: Search) -> str | None:
    """The best trial, in a line."""
    complete = [one for one in searching.finished(search) if one.state == "complete" and one.value is not None]
    if not complete:
        return None
    sign = -1 if search.study.direction.name == "MAXIMIZE" else 1
    first = min(complete, key=lambda one: sign * (one.value or 0.0))
    said = ", ".join(f"{key} = {canonical(value)}" for key, value in first.point.items())
    return f"the best of {len(complete)} trials is {first.number}, {first.value:.4g} on validation: {said}"
