"""What a plan would do: which commands are done, which would run and why, and how long that takes."""

from collections.abc import Collection, Iterator, Mapping
from statistics import median
from typing import Any, NamedTuple

from fcurr.study.schedule import Command, Schedule
from fcurr.study.trainings import short

DONE, REUSED, CONTINUES, RUNS = "done", "to reuse", "to continue", "to run"


class Known(NamedTuple):
    """What is known of earlier days."""

    there: Collection[str] = ()  # keys of commands whose results are in the store
    journal: Mapping[str, Mapping[str, Any]] = {}  # key -> the last record
    begun: Collection[str] = ()  # keys of commands that have a checkpoint
    before: Mapping[str, Command] = {}  # name -> the command as it was planned last
    code: Mapping[str, str] = {}  # function -> hash of its code then
    seconds: Mapping[str, list[float]] = {}  # function -> how long its commands took, a step


class State(NamedTuple):
    what: str  # done, to reuse, to continue, to run
    why: str


def states(schedule: Schedule, known: Known, code: Mapping[str, str]) -> dict[str, State]:
    """name -> what would be done with each command, and why."""
    return {name: _state(command, known, code) for name, command in schedule.commands.items()}


def _state(command: Command, known: Known, code: Mapping[str, str]) -> State:
    last = known.journal.get(command.key, {})
    if command.key in known.there:
        return State(DONE, "") if last.get("event") == "finished" else State(REUSED, "the store has it")
    if command.key in known.begun:
        return State(CONTINUES, "goes on from its checkpoint")
    event = last.get("event")
    if event == "failed":
        return State(RUNS, f"failed before: {last.get('error', '')}")
    if event in ("started", "progress", "stopped"):
        return State(RUNS, "was interrupted")
    old = known.before.get(command.name)
    if old is None:
        return State(RUNS, "new")
    if event == "finished" and old.key == command.key:
        return State(RUNS, "its result is not in the store any more")
    reasons = [*changes(old.parameters, command.parameters)]
    if known.code.get(command.function, "") != code.get(command.function, ""):
        reasons.append(f"the code of {command.function}")
    if not reasons and old.reads != command.reads:
        reasons.append("what it reads")
    return State(RUNS, f"changed: {_few(reasons)}" if reasons else "was not run yet")


def changes(old: Any, new: Any, path: str = "") -> Iterator[str]:
    """Where two values differ: "optimizer.learning_rate 0.1 -> 0.2"."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for key in [*old, *(key for key in new if key not in old)]:
            inner = path if key == "config" and not path else f"{path}.{key}" if path else str(key)
            if key not in old:
                yield f"{inner} is {_cut(new[key])} now"
            elif key not in new:
                yield f"{inner} was {_cut(old[key])}"
            else:
                yield from changes(old[key], new[key], inner)
    elif old != new:
        yield f"{path} {_cut(old)} -> {_cut(new)}"


def steps(command: Command) -> int:
    """What of its config says how long a command takes: the steps, or passes, of training."""
    section, key, default = {"train": ("training", "total_iterations", 1), "score": ("fit", "iterations", 300)}.get(
        command.function, ("", "", 1)
    )
    return command.config.get(section, {}).get(key, default)


def _cut(value: Any) -> str:
    text = short(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def estimate(schedule: Schedule, found: Mapping[str, State], known: Known) -> tuple[float, int]:
    """(seconds that what would run takes on one worker, commands of a kind that has never run): medians of the past."""
    total, unknown = 0.0, 0
    keys: set[str] = set()
    for name, command in schedule.commands.items():
        if found[name].what in (RUNS, CONTINUES) and command.key not in keys:
            keys.add(command.key)
            past = known.seconds.get(command.function, [])
            total, unknown = total + (steps(command) * median(past) if past else 0.0), unknown + (not past)
    return total, unknown


def lines(
    schedule: Schedule, found: Mapping[str, State], programs: list[tuple[Command, ...]], *, everything: bool
) -> list[str]:
    """A tree of groups of commands that share a program or a kind; every command of them, if asked."""
    sizes = {command.key: (place, len(job)) for place, job in enumerate(programs) for command in job}
    groups: dict[tuple[str, str], list[Command]] = {}
    for command in schedule.commands.values():
        groups.setdefault((command.function, command.together or command.name), []).append(command)
    of = {command.name: group for group, several in groups.items() for command in several}
    place = {name: number for number, name in enumerate(schedule.commands)}
    children: dict[tuple[str, str] | None, list[tuple[str, str]]] = {}
    for group, several in groups.items():
        reads = [name for command in several for names in command.inputs.values() for name in names]
        parent = of[max(reads, key=lambda name: place[name])] if reads else None
        children.setdefault(parent, []).append(group)
    said: list[str] = []

    def walk(group: tuple[str, str], depth: int) -> None:
        several = groups[group]
        said.append("  " * depth + _line(several, found, sizes))
        if everything and len(several) > 1:
            said.extend("  " * (depth + 2) + f"{command.name}  {_told(found[command.name])}" for command in several)
        for child in children.get(group, []):
            walk(child, depth + 1)

    for group in children.get(None, []):
        walk(group, 0)
    return said


def _line(several: list[Command], found: Mapping[str, State], sizes: Mapping[str, tuple[int, int]]) -> str:
    one = several[0]
    if len(several) == 1:
        return f"{one.name}  {_told(found[one.name])}"
    jobs = {sizes[command.key] for command in several if command.key in sizes}
    counts: dict[str, int] = {}
    for command in several:
        counts[_told(found[command.name])] = counts.get(_told(found[command.name]), 0) + 1
    states = "; ".join(told if len(counts) == 1 else f"{number:,} {told}" for told, number in list(counts.items())[:4])
    more = f"; and {len(counts) - 4} more kinds" if len(counts) > 4 else ""
    wide = sorted((size for _, size in jobs), reverse=True)
    together = f", {len(wide)} program{'s' * (len(wide) > 1)} of {_few([str(size) for size in wide])}" if wide else ""
    return f"{one.function}: {len(several):,} commands{together}  {states}{more}"


def _told(state: State) -> str:
    return f"{state.what} ({state.why})" if state.why else state.what


def _few(words: list[str]) -> str:
    return ", ".join(words[:3]) + (f", and {len(words) - 3} more" if len(words) > 3 else "")
