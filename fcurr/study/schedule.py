"""A schedule: named commands in an order in which each comes after what it reads.

A command's key is the fingerprint of all that its result depends on: the function and the code it calls, its
parameters, and the keys of its inputs. Nothing else is in it (no path, host, time, number of workers), so a result is
found again wherever it was made.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from graphlib import CycleError, TopologicalSorter
from typing import Any, NamedTuple

from fcurr.errors import BadInput
from fcurr.study.near import near


class Command(NamedTuple):
    """One step of a study."""

    name: str  # "train/easy_first[seed=3]"; no other command of the schedule has it
    function: str  # the routine that performs it, or somebody's own "module:function"
    parameters: dict[str, Any]  # what the function is told; JSON
    inputs: dict[str, tuple[str, ...]] = {}  # role -> names of the commands whose outputs it reads  # noqa: RUF012
    outputs: tuple[str, ...] = ()  # what it makes
    uses: dict[str, str] = {}  # fit, select, calibrate, evaluate -> the part of the samples  # noqa: RUF012
    together: str = ""  # commands that say the same may be performed as one program
    label: dict[str, Any] = {}  # what it is called in tables: arm and axes; not in the key  # noqa: RUF012
    config: dict[str, Any] = {}  # that it is performed with: what matters of it is in the parameters  # noqa: RUF012
    key: str = ""  # 16 hexadecimal digits
    reads: dict[str, tuple[str, ...]] = {}  # role -> keys of the commands it reads  # noqa: RUF012


class Schedule(NamedTuple):
    commands: dict[str, Command]  # by name, inputs first

    @property
    def by_key(self) -> dict[str, Command]:
        return {command.key: command for command in self.commands.values()}


def canonical(value: Any) -> str:
    """One text for all values that are the same JSON: keys sorted, no blanks."""
    return _ENCODER.encode(value)


_ENCODER = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False, default=str)


def fingerprint(value: Any) -> str:
    """16 hexadecimal digits of a value's hash."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()[:16]


def scheduled(commands: Iterable[Command], code: Mapping[str, str]) -> Schedule:
    """The schedule of these commands. `code` gives the hash of the code of each function. BadInput for a name that is
    used twice, an input that there is not, and commands that wait for one another."""
    listed = list(commands)
    named = {command.name: command for command in listed}
    if len(named) < len(listed):
        twice = next(c.name for place, c in enumerate(listed) if any(c.name == other.name for other in listed[:place]))
        raise BadInput(f"two commands are called {twice}", f"commands.{twice}")
    graph: dict[str, list[str]] = {}
    for command in listed:
        graph[command.name] = [name for names in command.inputs.values() for name in names]
        for name in graph[command.name]:
            if name not in named:
                raise BadInput(f"there is no command `{name}`{near(name, named)}", f"commands.{command.name}.inputs")
    try:
        order = list(TopologicalSorter(graph).static_order())
    except CycleError as cycle:
        loop = list(reversed(cycle.args[1]))
        raise BadInput(f"commands wait for one another: {' reads '.join(loop)}", f"commands.{loop[0]}.inputs") from None
    keys: dict[str, str] = {}
    for name in order:
        keys[name] = key_of(named[name], code.get(named[name].function, ""), keys)
    place = {command.name: number for number, command in enumerate(listed)}
    depth: dict[str, int] = {}
    for name in order:
        depth[name] = 1 + max((depth[other] for other in graph[name]), default=-1)
    first = sorted(listed, key=lambda command: (depth[command.name], place[command.name]))
    return Schedule({command.name: _keyed(command, keys) for command in first})


def key_of(command: Command, code: str, keys: Mapping[str, str]) -> str:
    """The key of a command, given those of the commands it reads."""
    inputs = {role: [keys[name] for name in names] for role, names in command.inputs.items()}
    return fingerprint(
        [command.function, code, command.parameters, inputs, sorted(command.outputs), sorted(command.uses.items())]
    )


def _keyed(command: Command, keys: Mapping[str, str]) -> Command:
    reads = {role: tuple(keys[name] for name in names) for role, names in command.inputs.items()}
    return command._replace(key=keys[command.name], reads=reads)


def needed(schedule: Schedule, wanted: Iterable[str]) -> Schedule:
    """The commands of these names, and all that they read, directly or not."""
    found: set[str] = set()
    rest = list(wanted)
    while rest:
        name = rest.pop()
        if name not in found:
            found.add(name)
            rest += [other for names in schedule.commands[name].inputs.values() for other in names]
    return Schedule({name: command for name, command in schedule.commands.items() if name in found})


def readers(schedule: Schedule, names: Iterable[str]) -> set[str]:
    """The commands that read one of these, directly or not."""
    found = set(names)
    for name, command in schedule.commands.items():
        if any(other in found for own in command.inputs.values() for other in own):
            found.add(name)
    return found - set(names)
