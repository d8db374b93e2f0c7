"""What `fcurr run`, `fcurr plan` and `fcurr status` do with a study."""

import contextlib
import json
import shlex
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import tomli_w
from filelock import Timeout

from fcurr.errors import BadInput
from fcurr.io import artefacts, conducting, facts, files, journal, performing, progress, runner, signals, store
from fcurr.io.conducting import Outcome
from fcurr.io.engines import Engine
from fcurr.io.performing import Place
from fcurr.study import outlook, planning, program, sections
from fcurr.study.bind import find
from fcurr.study.config import read
from fcurr.study.near import near
from fcurr.study.outlook import RUNS, Known, State
from fcurr.study.schedule import Command, Schedule, needed
from fcurr.study.sections import Study
from fcurr.study.trainings import Facts

TRIED = 4  # programs that are looked at before a study begins
SCHEDULE, RESULTS, CURVES = "schedule.json", "results.json", "metrics.jsonl"
COMPARISON = "comparison"
STORE = "store"  # beside the folders of studies


class Opened(NamedTuple):
    """A study, planned."""

    name: str
    config: dict[str, Any]
    study: Study
    facts: Facts
    whole: Schedule  # all that the config asks for
    schedule: Schedule  # what of it is to be done now
    place: Place


def opened(config: dict[str, Any], plugins: Sequence[str], out: Path, beside: Path, only: Sequence[str] = ()) -> Opened:
    """The plan of a config, of which only commands of these names, if any, and what they read."""
    study, folder = sections.read(config), out / config["name"]
    if (folder / store.IDENTITY).exists():
        raise BadInput(f"{folder} is the folder of a single run; name=... starts another beside it")
    if config["name"] == STORE or (out / STORE / store.IDENTITY).exists():
        raise BadInput(f"{out / STORE} is where studies keep what they made: no run and no study can have this name")
    if (out / STORE).exists() and not (out / STORE).is_dir():
        raise BadInput(f"{out / STORE} is a file, and studies keep what they make in a folder of this name")
    for name, own in study.commands.items():
        find(own.function, None, f"commands.{name}.function", plugins)
    for moment, functions in study.hooks.items():
        for function in functions:
            find(function, None, f"hooks.{moment}", plugins)
    found = facts.gathered(config, plugins)
    trials = {}
    if sections.searched(study):
        from fcurr.io import seeking  # Optuna, needed only now

        trials = seeking.known(folder, study, config, found)
    schedule = planning.plan(config, found, plugins, trials)
    part = needed(schedule, _named(only, schedule)) if only else schedule
    place = Place(folder, out / STORE, tuple(plugins), beside, study.leakage)
    return Opened(config["name"], config, study, found, schedule, part, place)


def _named(only: Sequence[str], schedule: Schedule) -> Iterator[str]:
    """The commands of these names; a name that there is not is a pattern."""
    for pattern in only:
        if pattern in schedule.commands:
            yield pattern
        elif names := [name for name in schedule.commands if fnmatchcase(name, pattern)]:
            yield from names
        else:
            hint = near(pattern, schedule.commands)
            raise BadInput(f"no command is called {pattern}{hint}; fcurr plan --all lists them")


def tried(here: Opened) -> None:
    """BadInput where a training that is due cannot begin: one of each program, of a few programs."""
    due = conducting.due(here.schedule, here.place)
    kinds: dict[str, Command] = {}
    for command in due.values():
        if command.function == "train":
            kinds.setdefault(command.together or command.key, command)
    for command in list(kinds.values())[:TRIED]:
        later = ("among", *(("start",) if "start" in command.inputs else ()))  # what is not there yet
        config = {key: value for key, value in command.config.items() if key not in later}
        experiment = read(config, here.place.plugins)
        program.plan(experiment, runner.load(experiment))


def known(here: Opened) -> Known:
    """What is known of the commands of a study."""
    try:
        last = journal.read(here.place.study)
    except BadInput:
        last = {}
    before, code = _before(here.place.study)
    pending = conducting.due(here.schedule, here.place)
    begun = {command.key for job in conducting.resumed(pending, here.place) for command in job}
    there = {command.key for command in here.schedule.commands.values()} - pending.keys()
    return Known(there, last, begun, before, code, _seconds(here.place.store))


def forecast(here: Opened, *, everything: bool = False) -> tuple[list[str], dict[str, Any]]:
    """The plan in words, and as data."""
    past = known(here)
    states = outlook.states(here.schedule, past, here.facts.code)
    pending = conducting.due(here.schedule, here.place)
    jobs = conducting.programs(pending, conducting.resumed(pending, here.place), width=here.study.width)
    seconds, unknown = outlook.estimate(here.schedule, states, past)
    head = f"study {here.name}: {_counted(here.schedule, states)}{_lasting(seconds, unknown, len(pending))}"
    data = {
        "name": here.name,
        "seconds": round(seconds, 1),
        "without_estimate": unknown,
        "programs": [[command.key for command in job] for job in jobs],
        "commands": [
            {
                "name": command.name,
                "key": command.key,
                "function": command.function,
                "state": states[command.name].what,
                "why": states[command.name].why,
                "inputs": command.inputs,
                "outputs": command.outputs,
                "parameters": command.parameters,
                "label": command.label,
            }
            for command in here.schedule.commands.values()
        ],
    }
    told = [*_told(here)]
    return [head, *outlook.lines(here.schedule, states, jobs, everything=everything), *told], data


def run(here: Opened, engine: Engine, *, fail_fast: bool, fresh: bool) -> tuple[Opened, Outcome]:
    """Performs what is due, and gives the whole plan and how it ended. What is done anew because of a change is said
    before it is begun."""
    folder = here.place.study
    if sections.searched(here.study) and here.schedule is not here.whole:
        raise BadInput("a search finds its trainings one after another: --only is for studies that know theirs")
    strange = sorted(p.name for p in folder.iterdir() if p.name[0] != ".") if folder.exists() else []
    if strange and not (folder / journal.JOURNAL).exists():
        raise BadInput(f"{folder} is not a study's folder: it holds {strange[0]}; give another name with name=...")
    with store.held(folder), signals.asked_to_stop() as asked:
        (folder / journal.JOURNAL).touch()  # first of all: the folder is that of a study
        here.place.store.mkdir(parents=True, exist_ok=True)
        if fresh:
            _forget(here)
        for left in files.leftovers(folder):
            left.unlink()
        progress.say(f"study {here.name}: {folder}")
        for line in _begun(here):
            progress.say(line)
        files.write(folder / store.CONFIG, tomli_w.dumps(json.loads(json.dumps(here.config, default=str))))

        def perform(whole: Schedule, part: Schedule, place: Place) -> Outcome:
            _outdated(whole, folder)
            conducting.announce(whole, place)
            files.write(folder / SCHEDULE, json.dumps(_written(whole, here.facts), default=str))
            return conducting.conduct(part, place, engine, width=here.study.width, fail_fast=fail_fast, asked=asked)

        try:
            if sections.searched(here.study):
                here, outcome = _searched(here, perform, engine, fail_fast=fail_fast)
            else:
                outcome = perform(here.whole, here.schedule, here.place)
        finally:
            engine.close(False)
        _export(here, outcome)
    return here, outcome


def _searched(
    here: Opened, perform: Callable[[Schedule, Schedule, Place], Outcome], engine: Engine, *, fail_fast: bool
) -> tuple[Opened, Outcome]:
    """A study whose points are found one after another."""
    from fcurr.io import seeking

    sweep = here.study.sweep
    assert sweep is not None
    search = seeking.begun(here.place.study, here.config, here.study, here.place.plugins, here.facts)
    place = here.place._replace(search=str(here.place.study / seeking.FILE))
    planned = partial(planning.plan, here.config, here.facts, here.place.plugins)
    at_once = engine.slots * sweep.at_once
    schedule, outcome = seeking.seek(search, planned, perform, place, at_once=at_once, fail_fast=fail_fast)
    if (line := seeking.best(search)) is not None:
        progress.say(line)
    return here._replace(whole=schedule, schedule=schedule, place=place), outcome


def _told(here: Opened) -> Iterator[str]:
    """What a person should know before a study begins."""
    yield from here.study.sweep.told if here.study.sweep else ()
    for key in ("observers", "loggers"):
        if key in here.config:
            yield f"{key} are of single runs: in a study there are none"
    start = here.config.get("start")
    if isinstance(start, Mapping) and "config" not in start:
        yield "what it starts from was made elsewhere, by samples that are not known: no leak of these can be told"


def _begun(here: Opened) -> Iterator[str]:
    """What will be done, in a line, and what a changed config does anew."""
    past = known(here)
    states = outlook.states(here.schedule, past, here.facts.code)
    seconds, unknown = outlook.estimate(here.schedule, states, past)
    yield f"{_counted(here.schedule, states)}{_lasting(seconds, unknown, 0)}"
    yield from _told(here)
    anew: dict[str, list[str]] = {}
    for name, state in states.items():
        if state.why.startswith("changed: ") and state.what == RUNS:
            anew.setdefault(state.why, []).append(name)
    for why, names in list(anew.items())[:8]:
        yield f"{len(names)} anew, {why}: {names[0]}{', ...' if len(names) > 1 else ''}"


def _counted(schedule: Schedule, states: Mapping[str, State]) -> str:
    if not states:
        return "no trial yet"
    counts: dict[str, int] = {}
    for state in states.values():
        counts[state.what] = counts.get(state.what, 0) + 1
    said = ", ".join(f"{number:,} {what}" for what, number in counts.items())
    return f"{len(schedule.commands):,} commands: {said}" if said else "no commands yet"


def _lasting(seconds: float, unknown: int, pending: int) -> str:
    if not seconds:
        return ""
    minutes = f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
    about = f"{seconds:.0f} s" if seconds < 120 else minutes
    return f"; about {about} on one worker" + (f", and {unknown:,} of which nothing is known" if unknown else "")


def _written(schedule: Schedule, found: Facts) -> dict[str, Any]:
    kept = (c if c.function == "train" else c._replace(config={}) for c in schedule.commands.values())
    commands = [command._asdict() for command in kept]
    return {"code": found.code, "commands": commands}


def _before(folder: Path) -> tuple[dict[str, Command], dict[str, str]]:
    """The commands as they were planned last, and the hashes of their code."""
    try:
        table = json.loads((folder / SCHEDULE).read_bytes())
        return {own["name"]: performing.command_of(own) for own in table["commands"]}, table["code"]
    except (OSError, ValueError, KeyError, TypeError):
        return {}, {}


def _outdated(whole: Schedule, folder: Path) -> None:
    """Throws away what is in a study's folder of results that are not those of this schedule: of another config."""
    old, new = (commands.get("report") for commands in (_before(folder)[0], whole.commands))
    if (old and old.key) != (new and new.key):
        for name in (RESULTS, CURVES):
            (folder / name).unlink(missing_ok=True)
        shutil.rmtree(folder / COMPARISON, ignore_errors=True)


def _seconds(folder: Path) -> dict[str, list[float]]:
    """How long commands took that this store has results of, a step."""
    found: dict[str, list[float]] = {}
    for path in sorted((folder / artefacts.RECORDS).glob("*.json"))[:20_000]:
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            table = json.loads(path.read_bytes())
            found.setdefault(table["function"], []).append(table["seconds"] / table["steps"])
    return found


def _forget(here: Opened) -> None:
    """Throws away the results of this study's commands, whoever made them, but not what somebody performs just now."""
    planned, place = here.schedule.by_key, here.place
    made: dict[str, list[Path]] = {}
    for path in sorted(place.store.glob("*/*")):
        key = path.name.split(".")[0]
        if key in planned and path.parent.name not in (artefacts.LOCKS, artefacts.REFERENCES, artefacts.WORKING):
            made.setdefault(key, []).append(path)
    busy: set[str] = set()
    for key, paths in made.items():
        with _free([key], place) as free:
            for path in paths if free else ():
                path.unlink(missing_ok=True)
        busy |= set() if free else {key}
    for job in performing.under_way(place.store):
        own = {command.key for command in job} & planned.keys()
        with _free(sorted(command.key for command in job), place) as free:
            if own and free:
                performing.forget(job, place)
        busy |= set() if free else own
    if busy:
        names = sorted(planned[key].name for key in busy)
        told = f"{names[0]}{', ...' if len(names) > 1 else ''}"
        progress.say(f"{len(names)} commands are performed by another study and are not thrown away: {told}")
    for left in place.study.glob("search.*"):
        left.unlink()


@contextlib.contextmanager
def _free(keys: Sequence[str], place: Place) -> Iterator[bool]:
    """Whether nobody performs these commands; then nobody does until the end."""
    with contextlib.ExitStack() as locks:
        try:
            for key in keys:
                locks.enter_context(artefacts.lock(place.store, key).acquire(timeout=0))
        except Timeout:
            locks.close()
            yield False
            return
        yield True


def _export(here: Opened, outcome: Outcome) -> None:
    """The report's tables, as files of the study's folder; of what came to its end, if not all did."""
    report = here.schedule.commands.get("report")
    if report is None or outcome.signal:
        return
    record = artefacts.record(here.place.store, report.key) if report.key in outcome.done else None
    if record is not None:
        found = {name: artefacts.get(here.place.store, entry) for name, entry in record.outputs.items()}
    else:
        found = performing.partly(report, here.place)
    for name, key in ((RESULTS, "results"), (CURVES, "curves")):
        (here.place.study / name).unlink(missing_ok=True)  # of another config, perhaps
        if found is not None:
            content = found[key] if isinstance(found[key], str) else json.dumps(found[key], indent=1) + "\n"
            files.write(here.place.study / name, content)


def ended(outcome: Outcome) -> str:
    """How a study ended, in a line."""
    if not outcome.failed:
        return f"finished, {len(outcome.done):,} commands"
    blocked = f", {len(outcome.blocked):,} wait for these" if outcome.blocked else ""
    return f"{len(outcome.failed):,} of {len(outcome.failed) + len(outcome.done):,} commands failed{blocked}"


def fails(here: Opened, outcome: Outcome) -> bool:
    """Whether a study has failed: a search has not that found something, whatever became of some trials."""
    found = any(
        command.function == "validate" and command.key in outcome.done for command in here.schedule.by_key.values()
    )
    return bool(outcome.failed) and not (sections.searched(here.study) and found)


def failures(here: Opened, outcome: Outcome, again: str) -> Iterator[str]:
    """Every command that failed: why, where all of it is told, and how to try it again."""
    planned = here.schedule.by_key
    for one in outcome.failed:
        yield f"failed: {one.name}: {one.error}"
        yield f"  in full: {here.place.study / performing.FAILURES / one.key}.txt"
        if one.key in planned:  # a trial of a search that has failed is tried again with the whole search
            yield f"  again: {again} --only {shlex.quote(planned[one.key].name)}"


def summary(here: Opened, outcome: Outcome) -> list[str]:
    """What a study found: the comparison of its trainings, with the files that tell more."""
    folder = here.place.study
    report = here.schedule.commands.get("report")
    if report is None or not (folder / RESULTS).exists():
        return [f"{ended(outcome)}; the store is {here.place.store}"]
    from fcurr.io import comparison  # slow to import

    lines = comparison.compare([folder], to=folder / COMPARISON)
    if report.key in outcome.done:
        return lines
    count, all_of_them = len(store.read_json(folder / RESULTS)["members"]), len(report.inputs["evaluations"])
    return [*lines, f"of {count} of {all_of_them} trainings: the others did not come to their end"]
