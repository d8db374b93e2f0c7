"""A schedule, carried out: programs of commands go to an engine as soon as what they read is there."""

import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import NamedTuple

from fcurr.errors import BadInput
from fcurr.io import artefacts, journal, performing, progress
from fcurr.io.engines import Engine, Job
from fcurr.io.performing import Failed, Place
from fcurr.study import history
from fcurr.study.schedule import Command, Schedule, readers

TRIES = 3  # times that a program is begun whose worker is lost, and that comes no further


class Outcome(NamedTuple):
    """How a study ended."""

    done: set[str]  # keys
    failed: list[Failed]
    blocked: list[str]  # names of commands that read what failed
    signal: int  # that stopped it, or 0
    pruned: set[str] = set()  # keys of trainings that were not worth going on with  # noqa: RUF012


def due(schedule: Schedule, place: Place) -> dict[str, Command]:
    """key -> the first command of this key that is not finished."""
    there = artefacts.recorded(place.store)
    found: dict[str, Command] = {}
    for command in schedule.commands.values():
        if command.key not in there or performing.accepted(place, command.key) is None:
            found.setdefault(command.key, command)
    return found


def resumed(pending: Mapping[str, Command], place: Place) -> list[Job]:
    """The programs that were begun and can be gone on with: all that members read which are not due, as those of
    another study, is there."""
    return [
        tuple(job)
        for job in performing.under_way(place.store)
        if all(
            command.key in pending or all(artefacts.record(place.store, key) is not None for key in _reads(command))
            for command in job
        )
    ]


def programs(pending: dict[str, Command], begun: Sequence[Sequence[Command]], *, width: int) -> list[Job]:
    """Commands as programs: those that were begun as they were, the others by what they share, `width` at most."""
    jobs: list[Job] = []
    rest = dict(pending)
    for commands in begun:
        if any(command.key in rest for command in commands):
            jobs.append(tuple(commands))
            rest = {key: command for key, command in rest.items() if key not in {c.key for c in commands}}
    groups: dict[tuple[str, str], list[Command]] = {}
    for command in rest.values():
        groups.setdefault((command.function, command.together or command.key), []).append(command)
    for several in groups.values():
        jobs += [tuple(several[first : first + width]) for first in range(0, len(several), width)]
    return jobs


def announce(schedule: Schedule, place: Place) -> None:
    """Writes into the journal what is planned, and what is not any more."""
    try:
        known = journal.read(place.study)
    except BadInput:
        known = {}
    now, names = round(time.time(), 3), {command.key: command.name for command in schedule.commands.values()}
    lines = [history.line(key, "planned", name=name, time=now) for key, name in names.items() if key not in known]
    lines += [history.line(k, "retired", name=r["name"], time=now) for k, r in known.items() if k not in names]
    journal.append(place.study, lines)
    with artefacts.referring(place.store):
        artefacts.refer(place.store, place.study, list(names))


def conduct(
    schedule: Schedule, place: Place, engine: Engine, *, width: int, fail_fast: bool, asked: Callable[[], int]
) -> Outcome:
    """Performs what is due. A command that fails stops those that read it, or, if `fail_fast`, all others."""
    pending = due(schedule, place)
    everything = {command.key for command in schedule.commands.values()}
    there = artefacts.recorded(place.store)
    _note(place, [c for c in schedule.by_key.values() if c.key not in pending], journaled=journal.read(place.study))
    for job in performing.under_way(place.store):
        if not any(command.key in pending or command.key not in there for command in job):
            performing.forget(job, place)  # it was ended a moment before the end came
    waiting = programs(pending, resumed(pending, place), width=width)
    done = (everything | there) - pending.keys()
    failed: dict[str, Failed] = {}
    running: dict[Hashable, Job] = {}
    tries: dict[str, list[str]] = {}  # of a program, by its first command: how far it had come each time
    stopped, stopping, told, known = 0, False, time.monotonic(), 0
    while waiting or running:
        if len(failed) > known:
            blocked, known = {schedule.commands[name].key for name in _blocked(schedule, failed)}, len(failed)
            waiting = [job for job in (_without(job, blocked, pending) for job in waiting) if job]
        stopping = stopped or asked() or (fail_fast and any(not one.pruned for one in failed.values()))
        while waiting and len(running) < engine.slots and not stopping:
            ready = next((n for n, job in enumerate(waiting) if all(_reads(c) <= done for c in job)), None)
            if ready is None:
                break
            job = waiting.pop(ready)
            tries.setdefault(job[0].key, []).append(performing.reached(job, place))
            others = tuple(command.key for command in job if command.key not in everything)
            running[engine.start(job, place._replace(others=others))] = job
        if not running:
            stopped = stopped or asked()
            break
        if asked() and not stopped:
            stopped = asked()
            engine.close(True)
        for ticket, ended in engine.wait(list(running)).items():
            job = running.pop(ticket)
            stopped = stopped or ended.stopped
            if ended.lost and not stopped and not _stuck(tries[job[0].key]):
                progress.say(f"{job[0].name}: {ended.lost}; it is begun again from its checkpoint")
                waiting.insert(0, job)
                continue
            own = [command for command in job if command.key in everything]
            lost = [] if not ended.lost or stopped else performing.give_up(own, place, ended.lost)
            wrong = {one.key: one for one in (*ended.failed, *lost)}
            failed |= {key: one for key, one in wrong.items() if key in everything}
            if not ended.stopped and not (ended.lost and stopped):
                done |= {command.key for command in job if command.key not in wrong}
            if time.monotonic() - told >= progress.EVERY:
                told = time.monotonic()
                progress.say(f"{len(done & everything):,} of {len(everything):,} commands are done")
    if waiting and not stopped and not stopping:
        own = [tuple(command for command in job if command.key in pending) for job in waiting]
        failed |= {one.key: one for job in own for one in _stranded(job, done, place)}
    wrong, pruned = ([one for one in failed.values() if one.pruned is kind] for kind in (False, True))
    late = _blocked(schedule, {one.key: one for one in wrong})
    return Outcome(done & everything, wrong, sorted(late), stopped, {one.key for one in pruned})


def _stuck(tries: list[str]) -> bool:
    """Whether a program has been begun several times at the same checkpoint."""
    return len(tries) >= TRIES and len(set(tries[-TRIES:])) == 1


def _reads(command: Command) -> set[str]:
    return {key for keys in command.reads.values() for key in keys}


def _stranded(job: Job, done: set[str], place: Place) -> list[Failed]:
    """Commands that read what nobody makes: they have failed."""
    missing = sorted({key for command in job for key in _reads(command)} - done)
    return performing.give_up(job, place, f"it reads what is not there and nobody makes: {', '.join(missing)}")


def _blocked(schedule: Schedule, failed: dict[str, Failed]) -> set[str]:
    """Names of the commands that read what failed, directly or not."""
    return readers(schedule, [name for name, command in schedule.commands.items() if command.key in failed])


def _without(job: Job, blocked: set[str], pending: Mapping[str, Command]) -> Job:
    """The program without what is blocked; nothing of it, if all that is left is of another study."""
    left = tuple(command for command in job if command.key not in blocked)
    return left if any(command.key in pending for command in left) else ()


def _note(place: Place, there: list[Command], journaled: dict[str, dict[str, object]]) -> None:
    """Says of what another study has finished, or what was finished a moment before the end came, that it is."""
    now = round(time.time(), 3)
    fresh = {c.key: c for c in there if journaled.get(c.key, {}).get("event") != "finished"}
    lines = [history.line(k, "finished", name=c.name, time=now, seconds=0.0, reused=1) for k, c in fresh.items()]
    journal.append(place.study, lines)
