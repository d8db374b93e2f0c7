"""The sections that make a config a study: [study], [sweep], [cross_validation], [commands], [hooks], [notify]."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, NamedTuple

from annotated_types import Ge, Lt, MinLen

from fcurr.errors import BadInput
from fcurr.study import sweeping, units
from fcurr.study.bind import section
from fcurr.study.near import near
from fcurr.study.sweeping import Sweep
from fcurr.types import Many, Unit

SECTIONS = ("study", "sweep", "cross_validation", "commands", "hooks", "notify")
ROUTINES = ("prepare", "score", "train", "evaluate", "predict", "report")
USES = ("fit", "select", "calibrate", "evaluate")
PARTS = ("train", "validation", "test", "clean")

Routine = Literal["prepare", "score", "train", "evaluate", "predict", "report"]
Width = Annotated[int, Ge(1), Lt(2**31), Unit("number of members")]
Address = Annotated[str, MinLen(1), Unit("address")]
Inner = Annotated[int, Ge(0), Lt(2**31), Unit("number of parts")]


class Routines(NamedTuple):
    """[study]: what is done, and how."""

    routines: tuple[Routine, ...] = ROUTINES
    width: Width = 64
    leakage: Literal["refuse", "record"] = "refuse"


class CrossValidation(NamedTuple):
    """[cross_validation]: every fold of the split is the test set once; with `inner_folds`, a sweep chooses inside."""

    folds: Many
    inner_folds: Inner = 0


class Notify(NamedTuple):
    """[notify]: who is told when a study ends or fails."""

    webhook: str = ""
    desktop: bool = False


class Own(NamedTuple):
    """[commands.NAME]: somebody's own command."""

    function: str
    inputs: tuple[str, ...] = ()  # patterns of the names of commands
    parameters: dict[str, Any] = {}  # noqa: RUF012
    uses: dict[str, str] = {}  # noqa: RUF012


class Study(NamedTuple):
    routines: tuple[str, ...] = ROUTINES
    width: int = 64  # members of one program, at most
    leakage: str = "refuse"
    sweep: Sweep | None = None
    folds: int = 0
    inner_folds: int = 0
    commands: dict[str, Own] = {}  # noqa: RUF012
    hooks: dict[str, tuple[str, ...]] = {}  # "train.before" -> functions, in their order  # noqa: RUF012
    notify: Notify = Notify()


def holds(config: Mapping[str, Any]) -> bool:
    """Whether a config is that of a study: it has such a section, or starts from a config that is trained first."""
    start = config.get("start")
    return any(key in config for key in SECTIONS) or (isinstance(start, Mapping) and "config" in start)


def read(config: Mapping[str, Any]) -> Study:
    """The study that a config describes, without its points."""
    how = section(config, "study", Routines)
    cross = section(config, "cross_validation", CrossValidation) if "cross_validation" in config else None
    if cross is not None and cross.inner_folds == 1:
        raise BadInput("1 is not a number of parts: at least 2, or 0 for none", "cross_validation.inner_folds")
    return Study(
        routines=how.routines,
        width=how.width,
        leakage=how.leakage,
        sweep=sweeping.read(config["sweep"]) if "sweep" in config else None,
        folds=cross.folds if cross else 0,
        inner_folds=cross.inner_folds if cross else 0,
        commands=_commands(config.get("commands", {})),
        hooks=_hooks(config.get("hooks", {})),
        notify=section(config, "notify", Notify),
    )


def searched(study: Study) -> bool:
    """Whether the points of a study are found one after another, by Optuna."""
    return study.sweep is not None and (study.sweep.method == "tpe" or study.sweep.pruner != "none")


def folds(study: Study) -> list[dict[str, int]]:
    """The folds of a study as axes of the split; one without any, if it is not cross-validated."""
    if not study.folds:
        return [{}]
    return [{"split.folds": study.folds, "split.fold": fold} for fold in range(study.folds)]


def inner_folds(study: Study) -> list[dict[str, int]]:
    """The inner folds of one outer fold."""
    return [{"split.inner_folds": study.inner_folds, "split.inner_fold": fold} for fold in range(study.inner_folds)]


def _commands(table: Any) -> dict[str, Own]:
    if not isinstance(table, Mapping):
        raise BadInput(f"{units.written(table)} is not a table of commands", "commands")
    return {name: _own(written, f"commands.{name}") for name, written in table.items()}


def _own(table: Any, where: str) -> Own:
    if not isinstance(table, Mapping):
        raise BadInput(f"{units.written(table)} is not a table with `function`", where)
    for key in table:
        if key not in Own._fields:
            raise BadInput(
                f"a command takes no `{key}`{near(key, Own._fields)}; it takes {', '.join(Own._fields)}", where
            )
    function = table.get("function")
    if not isinstance(function, str) or ":" not in function:
        raise BadInput('a command needs function = "module:function"', where)
    inputs = table.get("inputs", [])
    inputs = [inputs] if isinstance(inputs, str) else inputs
    if not isinstance(inputs, list) or not all(isinstance(one, str) for one in inputs):
        raise BadInput(f"{units.written(inputs)} is not a list of names of commands", f"{where}.inputs")
    parameters, uses = table.get("parameters", {}), table.get("uses", {})
    if not isinstance(parameters, Mapping):
        raise BadInput(f"{units.written(parameters)} is not a table", f"{where}.parameters")
    if not isinstance(uses, Mapping) or any(key not in USES or part not in PARTS for key, part in uses.items()):
        said = f"one of {', '.join(USES)}, and a part of the samples: {', '.join(PARTS)}"
        raise BadInput(f"{units.written(uses)} is not {said}", f"{where}.uses")
    return Own(function, tuple(inputs), dict(parameters), dict(uses))


def _hooks(table: Any) -> dict[str, tuple[str, ...]]:
    """[hooks.train] before = "module:function", or a list of these."""
    if not isinstance(table, Mapping):
        raise BadInput(f"{units.written(table)} is not a table of hooks", "hooks")
    found: dict[str, tuple[str, ...]] = {}
    for routine, both in table.items():
        if routine not in ROUTINES:
            raise BadInput(
                f"there is no routine `{routine}`{near(routine, ROUTINES)}; there are {', '.join(ROUTINES)}",
                f"hooks.{routine}",
            )
        if not isinstance(both, Mapping):
            raise BadInput(f"{units.written(both)} is not a table with `before` and `after`", f"hooks.{routine}")
        for moment, written in both.items():
            where, names = f"hooks.{routine}.{moment}", [written] if isinstance(written, str) else written
            if moment not in ("before", "after"):
                raise BadInput(f"a hook is before or after, not `{moment}`", where)
            if not isinstance(names, list) or not all(isinstance(one, str) and ":" in one for one in names):
                raise BadInput(f'{units.written(written)} is not "module:function", or a list of these', where)
            found[f"{routine}.{moment}"] = tuple(names)
    return found
