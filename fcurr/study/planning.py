"""From a config to its schedule: `plan(config, facts) -> Schedule`, a pure function.

A config with a sweep and folds is many; the arms and members of each are trainings; and each training is written as a
config of its own, which a person could run. What a result depends on is in the parameters of its command, and so in its
key; the config it is performed with travels beside them.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping
from fnmatch import fnmatchcase
from typing import Any

from fcurr.errors import BadInput
from fcurr.study import sections, sweeping, trainings
from fcurr.study.schedule import Command, Schedule, needed, scheduled
from fcurr.study.sections import Study
from fcurr.study.trainings import Facts, Point

_NONE: Mapping[int, dict[str, Any]] = {}


def plan(
    config: Mapping[str, Any], facts: Facts, plugins: Collection[str] = (), trials: Mapping[int, dict[str, Any]] = _NONE
) -> Schedule:
    """The commands of a study. BadInput for whatever is wrong with any of its points. A search has those points that
    are its trials so far."""
    study = sections.read(config)
    searched = sections.searched(study)
    listed = _trained(config, study, facts, plugins, trials if searched else None)
    commands = _numbered(_once(listed))
    functions = {*study.routines, *(("validate",) if searched else ())}
    wanted = [name for name, command in commands.items() if command.function in functions]
    judged = [command for command in commands.values() if command.outputs == ("evaluation",)]
    if "report" in study.routines and judged:
        commands["report"] = _report(config, judged)
        wanted.append("report")
    for command in _own(study, facts, commands):
        commands[command.name] = command
        wanted.append(command.name)
    return needed(scheduled(map(_seen, commands.values()), facts.code), wanted)


def _trained(
    config: Mapping[str, Any],
    study: Study,
    facts: Facts,
    plugins: Collection[str],
    trials: Mapping[int, dict[str, Any]] | None,
) -> Iterator[Command]:
    """The commands of every point, or trial, in every fold."""
    plain = {key: value for key, value in config.items() if key not in sections.SECTIONS}
    if study.inner_folds and study.sweep is None:
        words = "inner folds choose among the points of a sweep: add a section [sweep], or leave them out"
        raise BadInput(words, "cross_validation.inner_folds")
    if trials is not None:
        swept = list(trials.values())
    else:
        swept = [{}] if study.sweep is None else sweeping.points(study.sweep)
    numbers = [None] * len(swept) if trials is None else list(trials)
    for fold in sections.folds(study):
        here = [
            Point({**own, **fold}, sweeping.applied(plain, {**own, **fold}), number)
            for own, number in zip(swept, numbers, strict=True)
        ]
        if study.inner_folds:
            yield from trainings.nested(here, study, facts, plugins)
        else:
            for point in here:
                yield from trainings.of_point(point, study, facts, plugins)


def _once(listed: Iterable[Command]) -> dict[str, Command]:
    """Commands by name; BadInput where two that are not the same have one."""
    found: dict[str, Command] = {}
    for command in listed:
        same = found.setdefault(command.name, command)
        if (same.parameters, same.inputs) != (command.parameters, command.inputs):
            raise BadInput(f"two different commands would be called {command.name}: give arms and axes other names")
    return found


def _seen(command: Command) -> Command:
    """Somebody's own code sees the names of what it is given, and their order: then these are in the key as well."""
    if ":" not in command.function and "hooks" not in command.parameters:
        return command
    reads = [[role, list(names)] for role, names in command.inputs.items()]
    return command._replace(parameters={**command.parameters, "reads": reads})


def _numbered(commands: Mapping[str, Command]) -> dict[str, Command]:
    """The same commands; those of samples and scores are called by a number instead of a hash, so that a change leaves
    their names: prepare/digits, prepare/digits 2."""
    names: dict[str, str] = {}
    counts: dict[str, int] = {}
    for command in commands.values():
        if command.function in ("prepare", "score", "irreducible"):
            plain = command.name.rpartition("-")[0]
            counts[plain] = counts.get(plain, 0) + 1
            names[command.name] = plain if counts[plain] == 1 else f"{plain} {counts[plain]}"
    return {(new := _renamed(command, names)).name: new for command in commands.values()}


def _renamed(command: Command, names: Mapping[str, str]) -> Command:
    inputs = {role: tuple(names.get(name, name) for name in read) for role, read in command.inputs.items()}
    config = command.config
    if "among" in config:
        among = {key: {**own, "scores": names.get(own["scores"])} for key, own in config["among"].items()}
        config = {**config, "among": among}
    return command._replace(name=names.get(command.name, command.name), inputs=inputs, config=config)


def _own(study: Study, facts: Facts, commands: Mapping[str, Command]) -> Iterator[Command]:
    """Somebody's own commands, which may read each other."""
    known = [*commands, *study.commands]
    for name, own in study.commands.items():
        where = f"commands.{name}"
        if name in commands:
            raise BadInput(f"there is a command of this name already: {name}", where)
        inputs: dict[str, tuple[str, ...]] = {}
        for pattern in own.inputs:
            matching = tuple(other for other in known if other != name and fnmatchcase(other, pattern))
            found = (pattern,) if pattern in known else matching
            if not found and pattern != name:
                raise BadInput(f"no command is called {pattern}; there are {_few(known)}", f"{where}.inputs")
            inputs[pattern] = found or (name,)
        read = {name for several in inputs.values() for name in several}
        samples = {name for other in read & commands.keys() for name in _samples(commands[other])}
        if own.uses and len(samples) != 1:
            raise BadInput(f"uses are of the samples of one split, and it reads {len(samples)}", f"{where}.uses")
        told = trainings.told({"parameters": own.parameters}, ("parameters",), facts)
        yield Command(
            name=name,
            function=own.function,
            parameters={"parameters": own.parameters, **{key: value for key, value in told.items() if key != "config"}},
            inputs=inputs | ({"samples": tuple(samples)} if own.uses else {}),
            outputs=("value",),
            uses=own.uses,
        )


def _samples(command: Command) -> tuple[str, ...]:
    return (command.name,) if command.function == "prepare" else command.inputs.get("samples", ())


def _few(names: list[str]) -> str:
    return ", ".join(names[:6]) + (f", and {len(names) - 6} more" if len(names) > 6 else "")


def _report(config: Mapping[str, Any], judged: list[Command]) -> Command:
    """The table of all that was judged."""
    reads = {"evaluations": tuple(command.name for command in judged)}
    reads |= {"metrics": tuple(name for command in judged for name in command.inputs["model"])}
    labels = [command.label for command in judged]
    return Command("report", "report", {"labels": labels}, reads, ("results", "curves"), config=dict(config))
