"""A study whose points are found one after another: trials are asked for, performed, and told how they ended."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fcurr.errors import BadInput
from fcurr.io import artefacts, facts, performing, progress, runner, searching
from fcurr.io.conducting import Outcome
from fcurr.io.performing import Place
from fcurr.io.searching import Search
from fcurr.study import planning, sweeping, trainings
from fcurr.study.config import read
from fcurr.study.schedule import Command, Schedule, canonical, fingerprint, needed
from fcurr.study.sections import Study
from fcurr.study.trainings import Facts
from fcurr.types import Direction

FILE = "search.db"
JUDGED_BY = ("prepare", "score", "train")  # routines that the value of a trial depends on
Trials = dict[int, dict[str, Any]]


def known(folder: Path, study: Study, config: Mapping[str, Any] | None = None, found: Facts | None = None) -> Trials:
    """The trials of a search that have come to their end, from its file, if there is one: of the search that was begun
    last, or none if that was not of this config and these facts. BadInput for what no search is."""
    _checked(study)
    table = searching.description(folder / FILE)
    if table is None:
        return {}
    if config is not None and found is not None and table["name"] != _named(config, study, found):
        return {}
    search = searching.reopened(folder / FILE)
    return {one.number: one.point for one in searching.finished(search) if one.state == "complete"}


def begun(
    folder: Path, config: Mapping[str, Any], study: Study, plugins: tuple[str, ...], found: Facts | None = None
) -> Search:
    """The search of a study, in its folder. The first training is read for what its metric is. What the trials of
    another config, of other files or other code have come to stays in the file, and counts for nothing. `found`: the
    facts of the config, gathered if they are not given."""
    assert study.sweep is not None
    _checked(study)
    found = facts.gathered(config, plugins) if found is None else found
    schedule = planning.plan(config, found, plugins, {0: sweeping.point(study.sweep, 0)})
    own = [c for c in schedule.commands.values() if c.function == "train" and "trial" in c.label]
    room = None if study.sweep.pruner == "none" else _room(own, study)
    experiment = read({key: value for key, value in own[0].config.items() if key != "start"}, plugins)
    higher, training = runner.load(experiment).higher, experiment.training
    every, total = training.evaluate_every, training.total_iterations
    name, before = _named(config, study, found), searching.description(folder / FILE)
    search = searching.opened(folder / FILE, study.sweep, Direction(higher), name, every=every, total=total)
    if before is not None and before["name"] != name:
        progress.say("the trials that there were are of another config, other files or other code: the search is anew")
    searching.described(folder / FILE, config["sweep"], higher, name, every, total)
    return search._replace(room=room)


def _checked(study: Study) -> None:
    """BadInput for what does not go with a search."""
    if study.inner_folds:
        raise BadInput("a search chooses by itself: leave inner_folds out", "cross_validation.inner_folds")
    if study.folds and study.sweep is not None and study.sweep.pruner != "none":
        words = "a pruner judges a trial by one program, and cross-validation makes several: leave one of them out"
        raise BadInput(words, "sweep.pruner")


def _room(own: Sequence[Command], study: Study) -> int | None:
    """How many trials there may be at once for each to be in one program, None for any number; BadInput where a trial
    is several programs, of which none knows what it is worth. `own`: the trainings of one."""
    if len({command.together for command in own}) > 1:
        words = (
            "its trainings differ in more than numbers, seeds and curricula: leave the pruner out, or make them alike"
        )
        raise BadInput(f"a pruner judges a trial by one program, and {words}", "sweep.pruner")
    if len(own) > study.width:
        words = f"its {len(own)} trainings do not fit in {study.width} members: width = {len(own)} is the least"
        raise BadInput(f"a pruner judges a trial by one program, and {words}", "study.width")
    return study.width // len(own) if study.width % len(own) else None


def _named(config: Mapping[str, Any], study: Study, found: Facts) -> str:
    """What a search is called in its file: with a fingerprint of all that the values of its trials depend on but the
    sweep."""
    own = {key: config[key] for key in (*trainings.TRAIN, "score", "fit", "arms") if key in config}
    if isinstance(own.get("training"), Mapping):
        own["training"] = {key: value for key, value in own["training"].items() if key not in trainings.NO_NUMBER}
    hooks = {moment: names for moment, names in study.hooks.items() if moment.partition(".")[0] in JUDGED_BY}
    return f"{config['name']} {fingerprint([own, study.folds, hooks, found])}"


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
    at_once = at_once if search.room is None else min(at_once, search.room)
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
            record = performing.accepted(place, command.key)
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
