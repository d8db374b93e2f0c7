"""From tables to functions, in two sentences.

1. What is fixed is passed by name. A required name that a table lacks is the run's own entry of that name.
2. What flows is passed by position, later: if the function takes a positional argument the value is the function,
   waiting (a partial); if everything it takes was named, it is called, and the value is its result.

`resolve` checks a table against the signature it names and gives a Call; `build` turns a Call into its value.
"""

import importlib
import inspect
from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import Any, NamedTuple, get_type_hints

from fcurr.errors import BadInput
from fcurr.study import units
from fcurr.study.near import near
from fcurr.study.roles import ROLES, names

PROVIDED = frozenset(
    {"seed", "data", "features", "classes", "model", "loss", "optimizer", "fit", "total_iterations", "dataset_size"}
)  # what a run gives to whoever asks for it by name


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
        raise BadInput(f"{units.written(written)} is not a {role}: a name or a table with `fn`", where)
    if "fn" not in table:
        raise BadInput(f'needs fn = "...", one of {", ".join(names(role))}, or your own "module:function"', where)
    name = table["fn"]
    if not isinstance(name, str):
        raise BadInput(f"{units.written(name)} is not the name of a {role}", f"{where}.fn")
    function = find(name, role, f"{where}.fn", plugins)
    rest = {key: value for key, value in table.items() if key != "fn"}
    call = Call(where, name, function, arguments(function, name, rest, where, plugins))
    if missing := [key for key in _required(function) if key not in call.fixed and key not in PROVIDED - {role}]:
        kind = units.meaning(get_type_hints(_inner(function), include_extras=True)[missing[0]])
        raise BadInput(f"{name} needs `{missing[0]}`, {kind}", where)
    return call


def arguments(
    function: Callable, name: str, table: Mapping[str, Any], where: str, plugins: Collection[str] = ()
) -> dict[str, Any]:
    """The table's entries, each checked against the type of the parameter it names."""
    taken = _named(function)
    hints = get_type_hints(_inner(function), include_extras=True)
    fixed = {}
    for key, value in table.items():
        place = f"{where}.{key}" if where else key
        if key not in taken:
            raise BadInput(
                f"{name} takes no `{key}`{near(key, taken)}; it takes {', '.join(taken) or 'nothing'}", place
            )
        if key in ROLES and (isinstance(value, Mapping | str)):
            fixed[key] = resolve(value, key, place, plugins)
        else:
            fixed[key] = units.checked(value, hints.get(key, Any), place)
    return fixed


def build(call: Call, entries: Mapping[str, Any]) -> Any:
    """The value of a call, given the run's own entries. ValueErrors become BadInput at the call's key."""
    fixed = {key: build(value, entries) if isinstance(value, Call) else value for key, value in call.fixed.items()}
    own = {key: entries[key] for key in _required(call.function) if key not in fixed and key in entries}
    waiting = partial(call.function, **fixed, **own)
    if call.waits:
        return waiting
    try:
        return waiting()
    except BadInput as wrong:
        raise BadInput(str(wrong), f"{call.where}.{wrong.where}" if wrong.where else call.where) from None
    except ValueError as wrong:
        raise BadInput(str(wrong), call.where) from wrong


def replaced(call: Call, path: str, value: Any) -> Call:
    """The call with one of its fixed values, at a dotted path, set to another."""
    first, _, rest = path.partition(".")
    inner = replaced(call.fixed[first], rest, value) if rest else value
    return call._replace(fixed=call.fixed | {first: inner})


def numbers(call: Call, path: str = "") -> dict[str, int | float]:
    """All fixed numbers of a call and of the calls in it, by dotted path."""
    found: dict[str, int | float] = {}
    for key, value in call.fixed.items():
        if isinstance(value, Call):
            found |= numbers(value, f"{path}{key}.")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            found[f"{path}{key}"] = value
    return found


def flowing(function: Callable) -> list[str]:
    """The names of the positional parameters."""
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    if inspect.isclass(function):
        return []
    return [name for name, parameter in inspect.signature(function).parameters.items() if parameter.kind in kinds]


def _named(function: Callable) -> list[str]:
    flows = flowing(function)
    return [name for name in inspect.signature(function).parameters if name not in flows]


def _required(function: Callable) -> list[str]:
    parameters = inspect.signature(function).parameters
    return [name for name in _named(function) if parameters[name].default is inspect.Parameter.empty]


def _inner(function: Callable) -> Callable:
    return function.func if isinstance(function, partial) else function


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
    if not callable(getattr(found, attribute, None)):
        public = [key for key, value in vars(found).items() if callable(value) and not key.startswith("_")]
        raise BadInput(f"{module} has no function `{attribute}`{near(attribute, public)}", place)
    function = getattr(found, attribute)
    wanted = ROLES[role].flows if role is not None else ()
    if (
        role is not None
        and not inspect.isclass(function)
        and len(flowing(function)) not in {len(flow) for flow in wanted}
    ):
        signature = " or ".join(f"({', '.join(flow)})" for flow in wanted)
        given = ", ".join(flowing(function))
        raise BadInput(f"a {role} takes {signature} by position, `{attribute}` takes ({given})", place)
    return function
