"""From tables to functions, in two sentences.

1. What is fixed is passed by name. A required name that a table lacks is the run's own entry of that name.
2. What flows is passed by position, later: if the function takes a positional argument the value is the function,
   waiting (a partial); if everything it takes was named, it is called, and the value is its result.

`resolve` checks a table against the signature it names and gives a Call; `build` turns a Call into its value.
"""

import importlib
import inspect
import traceback
from collections.abc import Callable, Collection, Mapping
from functools import cache, partial
from typing import Any, NamedTuple

from fcurr.errors import BadInput, Halt
from fcurr.study import units
from fcurr.study.near import near
from fcurr.study.roles import ROLES, names


class Call(NamedTuple):
    """A function and what is fixed of it; values may be Calls in turn."""

    where: str  # the key in the config
    name: str  # as written there
    function: Callable
    fixed: dict[str, Any]

    @property
    def waits(self) -> bool:
        return bool(flowing(self.function))


def resolve(written: Any, role: str, where: str, plugins: Collection[str] = ()) -> Call:
    """The component a table describes; a bare text is short for a table with that `fn`."""
    table = {"fn": written} if isinstance(written, str) else written
    if not isinstance(table, Mapping):
        raise BadInput(
            f"{units.written(written)} is not {units.article(role)} {role}: a name or a table with `fn`", where
        )
    if "fn" not in table:
        raise BadInput(f'needs fn = "...", one of {", ".join(names(role))}, or your own "module:function"', where)
    name = table["fn"]
    if not isinstance(name, str):
        raise BadInput(f"{units.written(name)} is not the name of {units.article(role)} {role}", f"{where}.fn")
    function = find(name, role, f"{where}.fn", plugins)
    rest = {key: value for key, value in table.items() if key != "fn"}
    call = Call(where, name, function, arguments(function, name, rest, where, plugins))
    if missing := [key for key in required(function) if key not in call.fixed and key not in ROLES[role].given]:
        key = missing[0]
        hint = units.hints(function).get(key, Any)
        kind = f"a component of the role {key}" if key in ROLES and not units.holds_value(hint) else units.meaning(hint)
        raise BadInput(f"{name} needs `{key}`, {kind}", where)
    return call


def arguments(
    function: Callable, name: str, table: Mapping[str, Any], where: str, plugins: Collection[str] = ()
) -> dict[str, Any]:
    """The table's entries, each checked against the type of the parameter it names."""
    taken = _named(function)
    hints = units.hints(function)
    fixed = {}
    for key, value in table.items():
        place = f"{where}.{key}" if where else key
        if key not in taken:
            raise BadInput(
                f"{name} takes no `{key}`{near(key, taken)}; it takes {', '.join(taken) or 'nothing'}", place
            )
        if key == "model":
            raise BadInput(f"the model of {name} is the run's: leave it out", place)
        component = key in ROLES and units.holds_component(hints.get(key, Any))
        if component and (isinstance(value, Mapping | str) or not units.holds_value(hints.get(key, Any))):
            fixed[key] = resolve(value, key, place, plugins)
        else:
            fixed[key] = units.checked(value, hints.get(key, Any), place)
    return fixed


def section(config: Mapping[str, Any], key: str, record: Any) -> Any:
    """A section of a config as a record: a NamedTuple whose fields are its keys."""
    table = config.get(key, {})
    if not isinstance(table, Mapping):
        raise BadInput(f"{units.written(table)} is not a table", key)
    fixed = arguments(record, f"[{key}]", table, key)
    missing = [name for name in record._fields if name not in fixed and name not in record._field_defaults]
    if missing:
        kind = units.meaning(record.__annotations__[missing[0]])
        raise BadInput(f"[{key}] needs `{missing[0]}`, {kind}", key)
    return record(**fixed)


def build(call: Call, entries: Mapping[str, Any]) -> Any:
    """The value of a call, given the run's own entries."""
    fixed = {key: build(value, entries) if isinstance(value, Call) else value for key, value in call.fixed.items()}
    own = {key: entries[key] for key in required(call.function) if key not in fixed and key in entries}
    waiting = partial(call.function, **fixed, **own)
    return waiting if call.waits else guarded(call, waiting)


def guarded(call: Call, function: Callable, *flowing: Any) -> Any:
    """What a call's function answers; whatever it raises, a stranger's or ours, is BadInput at the call's key."""
    try:
        return function(*flowing)
    except BadInput as wrong:
        raise BadInput(str(wrong), f"{call.where}.{wrong.where}" if wrong.where else call.where) from wrong
    except (Halt, OSError):
        raise
    except Exception as wrong:
        if call.function.__module__.startswith("fcurr.") and isinstance(wrong, ValueError):
            raise BadInput(str(wrong), call.where) from wrong
        first = (str(wrong).strip().splitlines() or [""])[0]
        raise BadInput(f"{call.name} fails{_line(call, wrong)}: {type(wrong).__name__}: {first}", call.where) from wrong


def _line(call: Call, wrong: Exception) -> str:
    """ " in line 12 of my_module", the last line of the function's own file that was reached."""
    file = inspect.getfile(call.function)
    lines = [frame.lineno for frame in traceback.extract_tb(wrong.__traceback__) if frame.filename == file]
    return f" in line {lines[-1]} of {call.function.__module__}" if lines else ""


def replaced(call: Call, path: str, value: Any) -> Call:
    """The call with one of its fixed values, at a dotted path, set to another."""
    first, _, rest = path.partition(".")
    inner = replaced(call.fixed[first], rest, value) if rest else value
    return call._replace(fixed=call.fixed | {first: inner})


def numbers(call: Call, path: str = "") -> dict[str, int | float]:
    """All fixed numbers of a call and of the calls in it, defaults included, by dotted path."""
    found: dict[str, int | float] = {}
    for key, value in spelled(call).items():
        if isinstance(value, Call):
            found |= numbers(value, f"{path}{key}.")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            found[f"{path}{key}"] = value
    return found


def shape(call: Call) -> Any:
    """A call without its numbers: what members of one program share."""
    keep = {key: shape(v) if isinstance(v, Call) else v for key, v in spelled(call).items()}
    drop = {key: None if isinstance(v, int | float) and not isinstance(v, bool) else v for key, v in keep.items()}
    return call.name, tuple(sorted(drop.items(), key=lambda item: item[0]))


def spelled(call: Call) -> dict[str, Any]:
    """What is fixed of a call, with the defaults of what is not."""
    parameters = _parameters(call.function).values()
    return {p.name: p.default for p in parameters if p.default is not p.empty} | call.fixed


def flowing(function: Callable) -> list[str]:
    """The names of the positional parameters."""
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    if inspect.isclass(function):
        return []
    return [name for name, parameter in _parameters(function).items() if parameter.kind in kinds]


@cache
def _parameters(function: Callable) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(function).parameters


def required(function: Callable) -> list[str]:
    """The names without which it cannot be called."""
    parameters = _parameters(function)
    return [name for name in _named(function) if parameters[name].default is inspect.Parameter.empty]


def _named(function: Callable) -> list[str]:
    flows, stars = flowing(function), (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    parameters = _parameters(function)
    return [name for name, parameter in parameters.items() if name not in flows and parameter.kind not in stars]


def find(name: str, role: str | None, place: str, plugins: Collection[str]) -> Callable:
    """The function of a short name in a role, or of "module:function"; nothing outside fcurr is imported unless it is
    one of the plugins."""
    if role is not None and ":" not in name:
        known = names(role)
        if name not in known:
            raise BadInput(f"there is no {role} `{name}`{near(name, known)}; there are {', '.join(known)}", place)
        return getattr(importlib.import_module(ROLES[role].module), name)
    module, _, attribute = name.partition(":")
    if not module.startswith("fcurr.") and module not in plugins:
        raise BadInput(f"`{name}` is code from outside fcurr; to allow it, add --plugin {module}", place)
    try:
        found = importlib.import_module(module)
    except Exception as wrong:  # whatever a stranger's module raises is theirs to read
        raise BadInput(f"module {module} does not import: {type(wrong).__name__}: {wrong}", place) from wrong
    function = getattr(found, attribute, None)
    ours = module.startswith("fcurr.")
    if not inspect.isfunction(function) or (ours and (attribute[0] == "_" or function.__module__ != module)):
        public = [key for key, value in vars(found).items() if inspect.isfunction(value) and not key.startswith("_")]
        raise BadInput(f"{module} has no function `{attribute}`{near(attribute, public)}", place)
    wanted = ROLES[role].flows if role is not None else ()
    if role is not None and len(flowing(function)) not in {len(flow) for flow in wanted}:
        signature = " or ".join(f"({', '.join(flow)})" for flow in wanted)
        given = ", ".join(flowing(function))
        raise BadInput(f"a {role} takes {signature} by position, `{attribute}` takes ({given})", place)
    return function
