"""Commands, performed: their inputs read, their samples checked, their outputs written, their record last of all.

This is what a worker does, wherever it is. Killed at any moment and begun again, it does nothing twice that is
finished, and goes on from the checkpoints of what was not.
"""

import contextlib
import errno
import json
import shutil
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from filelock import Timeout
from torch import Tensor

from fcurr.errors import BadInput, Halt
from fcurr.io import artefacts, configs, environment, facts, files, journal, progress, routines, signals
from fcurr.io.artefacts import Record
from fcurr.io.journey import Stopped
from fcurr.io.routines import Here, Lost, Outputs, Prune, Pruned, Work
from fcurr.study import history, outlook, provenance
from fcurr.study.bind import find
from fcurr.study.provenance import Seen
from fcurr.study.schedule import Command, fingerprint

WORK, FAILURES = "work.json", "failures"
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)  # no command can be performed then
WRITERS = tuple(f"fcurr.io.{name}" for name in ("files", "journal", "checkpoint", "store", "loggers"))
WAITS = 0.2  # seconds for a command that another study performs, between two looks whether it should stop
READ_AGAIN = 2**24  # bytes of a file that is read again to see whether it has changed
TELL_EVERY = 2.0  # seconds between two lines of progress


class Place(NamedTuple):
    """Where a study is, and what it may use."""

    study: Path
    store: Path
    plugins: tuple[str, ...] = ()
    beside: Path = Path()  # where plugins are looked for
    leakage: str = "refuse"
    search: str = ""  # the file that says how trials of a search are pruned
    threads: int = 0  # of torch; 0 is its own choice
    others: tuple[str, ...] = ()  # keys in a program that are of another study: nothing is told of them


class Failed(NamedTuple):
    """A command that has no result."""

    key: str
    error: str
    pruned: bool = False  # because its trial was not worth going on with
    name: str = ""


def perform(commands: Sequence[Command], place: Place) -> list[Failed]:
    """Performs commands as one program, if several; gives those that failed. Raises Stopped if it was asked to stop."""
    if place.threads:
        torch.set_num_threads(place.threads)
    configs.beside(place.beside, place.plugins)
    with signals.asked_to_stop() as asked, contextlib.ExitStack() as held:
        for command in sorted(commands, key=lambda command: command.key):
            held.enter_context(_locked(place, command.key, asked))
        due = [command for command in commands if accepted(place, command.key) is None]
        there = [command for command in commands if command not in due]
        _note(place, there, "finished", seconds=0.0, reused=1)
        begun = (folder(commands, place) / WORK).exists()  # then it goes on as it was, with all its members
        return _begun(commands if begun else due, due, place) if due else []


def accepted(place: Place, key: str) -> Record | None:
    """The record of a finished command, unless it has leaks and this study refuses them."""
    found = artefacts.record(place.store, key)
    return None if found is not None and found.leaks and place.leakage == "refuse" else found


def under_way(store: Path) -> list[list[Command]]:
    """The programs that were begun and did not come to their end."""
    found = []
    for path in sorted((store / artefacts.WORKING).glob(f"*/{WORK}")):
        with contextlib.suppress(OSError, ValueError, TypeError, LookupError):
            found.append([command_of(table) for table in json.loads(path.read_bytes())])
    return found


def command_of(table: Mapping[str, Any]) -> Command:
    """A command, written as JSON and read again."""
    pairs = {key: {role: tuple(names) for role, names in table[key].items()} for key in ("inputs", "reads")}
    return Command(**{**table, **pairs, "outputs": tuple(table["outputs"])})


def _begun(commands: Sequence[Command], due: list[Command], place: Place) -> list[Failed]:
    """Performs commands, of which some may be finished but not yet due to be forgotten."""
    own = folder(commands, place)
    own.mkdir(parents=True, exist_ok=True)
    if not (own / WORK).exists():
        files.write(own / WORK, json.dumps([command._asdict() for command in commands], default=str))
    _note(place, due, "started", **environment.where())
    try:
        failed = _together(list(commands), place, own)
    except (Stopped, KeyboardInterrupt):
        _note(place, due, "stopped")
        raise
    forget(commands, place)
    return failed


def forget(commands: Sequence[Command], place: Place) -> None:
    """Throws a program's checkpoints away."""
    shutil.rmtree(folder(commands, place), ignore_errors=True)


def folder(commands: Sequence[Command], place: Place) -> Path:
    """Where a program's checkpoints are, until it has come to its end."""
    return place.store / artefacts.WORKING / fingerprint([command.key for command in commands])


def reached(commands: Sequence[Command], place: Place) -> str:
    """How far a program has come: its newest checkpoint."""
    found = folder(commands, place).rglob("*.safetensors")
    return max((f"{path.parent.name}/{path.stem.partition('-')[2]}" for path in found), default="")


def _together(due: list[Command], place: Place, folder: Path) -> list[Failed]:
    """Commands as one program; if it fails, those that have not ended one by one: one may be at fault and the others
    not."""
    failed: list[Failed] = []
    try:
        for one in _outcomes(due, place, folder):
            failed.append(one)
    except (Exception, SystemExit) as wrong:
        if isinstance(wrong, Stopped) or _full(wrong):
            raise
        if len(due) == 1:
            return [_fail(place, due[0], wrong)]
        progress.say(f"{len(due)} commands as one program: {_line(wrong)}; they are performed one by one")
        over = {*place.others, *(one.key for one in failed)}
        rest = [c for c in due if c.key not in over and accepted(place, c.key) is None]
        failed += [one for command in rest for one in _together([command], place, folder / command.key)]
    return failed


def _full(wrong: BaseException) -> bool:
    """Whether no command can be performed any more: the disk is full, or gone, and it was not somebody's own function
    that found out, perhaps of another disk."""
    if getattr(wrong, "errno", None) not in FULL:
        return False
    modules = [frame.f_globals.get("__name__", "") for frame, _ in traceback.walk_tb(wrong.__traceback__)]
    return next((name for name in reversed(modules) if name.startswith("fcurr.")), "") in WRITERS


def _outcomes(due: list[Command], place: Place, folder: Path) -> Iterator[Failed]:
    """Performs, and gives the failures."""
    held: dict[str, Any] = {}
    pairs = [_read(command, place, held) for command in due]
    folder.mkdir(exist_ok=True)
    began = time.monotonic()
    with signals.asked_to_stop() as asked:
        if asked():
            raise Stopped(asked(), 0, len(due))
        here = Here(folder, asked, place.plugins, _teller(place, due), _pruner(place, due))
        routine = routines.ROUTINES.get(due[0].function, routines.own)
        found = routine([_hooked(work, "before", work.inputs, here) for work, _, _ in pairs], here)
        for (work, seen, leaks), outputs in zip(pairs, found, strict=True):
            if isinstance(outputs, Pruned):
                _note(place, [work.command], "pruned", iteration=outputs.iteration)
                yield Failed(work.command.key, "", pruned=True)
            elif isinstance(outputs, Lost):
                yield _fail(place, work.command, BadInput(outputs.error))
            elif accepted(place, work.command.key) is None:
                last = _hooked(work, "after", outputs, here)
                if changed := _changed(work.command):
                    yield _fail(place, work.command, BadInput(changed))
                    continue
                _finish(place, work.command, last.inputs, seen, leaks, (time.monotonic() - began) / len(due))


def _changed(command: Command) -> str:
    """What is wrong where a file that the command's key names is not what it was; files that take long are not read."""
    for path, before in command.parameters.get("files", {}).items():
        file = Path(path)
        if file.is_file() and file.stat().st_size <= READ_AGAIN and facts.content(file) != before:
            return f"{path} has changed since the study was planned; run it again"
    return ""


def _finish(
    place: Place, command: Command, outputs: Outputs, seen: Seen, leaks: tuple[str, ...], seconds: float
) -> None:
    for name in command.outputs:
        if name not in outputs:
            raise BadInput(f"there is no output `{name}` after the hooks", f"hooks.{command.function}.after")
    written = {name: artefacts.put(place.store, name, command.key, outputs[name]) for name in command.outputs}
    record = Record(
        key=command.key,
        name=command.name,
        function=command.function,
        outputs=written,
        seen=seen,
        leaks=leaks,
        seconds=round(seconds, 4),
        steps=outlook.steps(command),
        environment=environment.where(),
    )
    artefacts.commit(place.store, record)
    _note(place, [command], "finished", seconds=record.seconds, reused=0)


def _hooked(work: Work, moment: str, values: dict[str, Any], here: Here) -> Work:
    """A command with the values that its hooks make of them, in their order."""
    for name in work.command.parameters.get("hooks", {}).get(moment, ()):
        where = f"hooks.{work.command.function}.{moment}"
        values = find(name, None, where, here.plugins)(values)
        if not isinstance(values, dict):
            raise BadInput(f"{name} gives a {type(values).__name__}, not a dict of values", where)
    return work._replace(inputs=values)


def _read(command: Command, place: Place, held: dict[str, Any]) -> tuple[Work, Seen, tuple[str, ...]]:
    """A command with what it reads, what its result will have seen, and what of that ought not to be. `held` keeps what
    several read."""
    inputs: dict[str, dict[str, Any]] = {}
    before: list[Seen] = []
    for role, names in command.inputs.items():
        wanted = routines.READS.get(role, role)
        for name, key in zip(names, command.reads[role], strict=True):
            if key not in held:
                held[key] = artefacts.record(place.store, key)
            record = held[key]
            if record is None:
                raise BadInput(f"{command.name} reads {name}, which is not there")
            before.append(record.seen)
            several = [wanted] if wanted in record.outputs else list(record.outputs)
            values = {output: _value(place.store, record.outputs[output], held) for output in several}
            inputs.setdefault(role, {})[name] = values if len(several) > 1 else values[several[0]]
    own: Seen = {}
    for use, said in command.uses.items():
        own[use] = tuple((command.reads["samples"][0], part) for part in said.split(" and "))
    seen = provenance.union(before)
    there, now = (
        {use: provenance.merged(_part(place.store, *part, held) for part in parts) for use, parts in uses.items()}
        for uses in (seen if own else {}, own)
    )
    leaks = provenance.overlaps(there, now)
    if place.leakage == "refuse":
        provenance.refuse(command.name, leaks)
    after = provenance.union([seen, own])
    if command.function == "select":  # what is chosen is no model: all that was seen has chosen it
        after = {"select": tuple(sorted({part for parts in after.values() for part in parts}))}
    return Work(command, inputs), after, tuple(map(provenance.told, leaks))


def _value(store: Path, entry: Mapping[str, str], held: dict[str, Any]) -> Any:
    if entry["file"] not in held:
        held[entry["file"]] = artefacts.get(store, entry)
    return held[entry["file"]]


def _part(store: Path, key: str, part: str, held: dict[str, Any]) -> dict[str, Tensor]:
    """The samples of a part of a split: data set -> positions."""
    if key not in held:
        held[key] = artefacts.record(store, key)
    if held[key] is None:
        raise BadInput(f"which samples were seen is not known any more: the store has no samples/{key}")
    found = _value(store, held[key].outputs["samples"], held)
    ids = found.get(f"id of {part}", torch.zeros(0, dtype=torch.int64))
    sets = zip(found["data"].tolist(), found["first"], found["first"][1:], strict=False)
    return provenance.merged({bytes(data).hex(): ids[(ids >= a) & (ids < b)] - a} for data, a, b in sets)


def partly(command: Command, place: Place) -> Outputs | None:
    """What a report says of those trainings that came to their end, where others did not; None if none did."""
    there = [n for n, key in enumerate(command.reads["evaluations"]) if accepted(place, key) is not None]
    if not there:
        return None
    inputs, reads = (
        {role: tuple(names[n] for n in there) for role, names in pairs.items()}
        for pairs in (command.inputs, command.reads)
    )
    labels = {"labels": [command.parameters["labels"][n] for n in there]}
    few = command._replace(parameters=command.parameters | labels, inputs=inputs, reads=reads)
    here = Here(place.study, lambda: 0, place.plugins, lambda iteration: None)
    work, _, _ = _read(few, place, {})
    (outputs,) = routines.report([_hooked(work, "before", work.inputs, here)], here)
    return _hooked(work, "after", outputs, here).inputs


def give_up(commands: Sequence[Command], place: Place, reason: str) -> list[Failed]:
    """Notes that commands failed whose worker is lost, time and again; those that are finished are."""
    left = [command for command in commands if accepted(place, command.key) is None]
    return [_fail(place, command, BadInput(reason)) for command in left]


def _fail(place: Place, command: Command, wrong: BaseException) -> Failed:
    """Notes why a command failed, in a line, and in full in a file."""
    line = _line(wrong)
    if command.key in place.others:
        return Failed(command.key, line, name=command.name)
    (place.study / FAILURES).mkdir(exist_ok=True)
    files.write(place.study / FAILURES / f"{command.key}.txt", "".join(traceback.format_exception(wrong)))
    _note(place, [command], "failed", error=line)
    return Failed(command.key, line, name=command.name)


def _line(wrong: BaseException) -> str:
    """What went wrong, in a line."""
    line = str(wrong) if isinstance(wrong, BadInput | Halt) else f"{type(wrong).__name__}: {str(wrong).strip()}"
    line = next((part.strip() for part in line.splitlines() if part.strip(" :")), type(wrong).__name__)
    if isinstance(wrong, BadInput) and wrong.where and wrong.where not in line:
        line = f"{wrong.where}: {line}"
    return line


def _note(place: Place, commands: Sequence[Command], event: str, **facts: Any) -> None:
    now, own = round(time.time(), 3), [command for command in commands if command.key not in place.others]
    journal.append(place.study, [history.line(c.key, event, name=c.name, time=now, **facts) for c in own])


def _teller(place: Place, commands: Sequence[Command]) -> Callable[[int], None]:
    """Tells the journal how far a program is, now and then."""
    last, own = time.monotonic(), [command for command in commands if command.key not in place.others]

    def tell(iteration: int) -> None:
        nonlocal last
        if time.monotonic() - last >= TELL_EVERY:
            last, now = time.monotonic(), round(time.time(), 3)
            lines = [history.line(c.key, "progress", name=c.name, time=now, iteration=iteration) for c in own]
            journal.append(place.study, lines, sync=False)

    return tell


def _pruner(place: Place, commands: Sequence[Command]) -> Prune:
    """Asks the search which of its trials are worth going on with."""
    trials: list[int] = [command.label["trial"] for command in commands if "trial" in command.label]
    if not place.search or commands[0].function != "train" or len(trials) < len(commands):
        return routines.keep
    from fcurr.io import searching

    search = searching.reopened(Path(place.search))

    def prune(iteration: int, values: Sequence[float]) -> list[bool]:
        means: dict[int, list[float]] = {}
        for trial, value in zip(trials, values, strict=True):
            means.setdefault(trial, []).append(value)
        ended = {n: searching.report(search, n, iteration, sum(own) / len(own)) for n, own in means.items()}
        return [ended[trial] for trial in trials]

    return prune


@contextlib.contextmanager
def _locked(place: Place, key: str, asked: Callable[[], int]) -> Iterator[None]:
    """The command, nobody else's until the end; whoever shares the store waits. Raises Stopped if it is asked to stop
    while it waits."""
    lock = artefacts.lock(place.store, key)
    while not lock.is_locked:
        try:
            lock.acquire(timeout=WAITS)
        except Timeout:
            if asked():
                raise Stopped(asked(), 0, 1) from None
    try:
        yield
    finally:
        lock.release()
