"""A component in words: what flows, what is fixed and in what units, and its docstring."""

import importlib
import inspect
from collections.abc import Callable, Collection
from typing import Any

from fcurr.errors import BadInput
from fcurr.study import units
from fcurr.study.bind import find, flowing
from fcurr.study.near import near
from fcurr.study.roles import ROLES, components


def explain(name: str, plugins: Collection[str] = ()) -> list[str]:
    """A text for every component of this name: `root`, `pace.root`, or "module:function"."""
    if ":" in name:
        module, _, attribute = name.rpartition(":")
        anything = frozenset[str]().union(*(role.given for role in ROLES.values()))
        return [_text(attribute, module, find(name, None, "", plugins), anything)]
    role, _, short = name.rpartition(".")
    if role and role not in ROLES:
        raise BadInput(f"there is no role `{role}`{near(role, ROLES)}; there are {', '.join(ROLES)}")
    listed = [component for key in ([role] if role else ROLES) for component in components(key)]
    found = [component for component in listed if component.name == short]
    if not found:
        known = [component.name for component in listed]
        raise BadInput(f"there is no component `{short}`{near(short, known)}; `fcurr ls` lists them")
    return [
        _text(f"{c.role}.{c.name}", c.module, getattr(importlib.import_module(c.module), c.name), ROLES[c.role].given)
        for c in found
    ]


def _text(name: str, module: str, function: Callable, given: Collection[str]) -> str:
    flows = flowing(function)
    parameters = inspect.signature(function).parameters
    hints = units.hints(function)
    lines = [f"{name}({', '.join(flows)})    in {module}" if flows else f"{name}    in {module}", ""]
    lines += [f"  {line}".rstrip() for line in inspect.cleandoc(function.__doc__ or "no description").splitlines()]
    fixed = [key for key in parameters if key not in flows]
    if fixed:
        lines += ["", "  takes by name"]
    for key in fixed:
        default = parameters[key].default
        if default is not inspect.Parameter.empty:
            note = f" (default {units.written(default)})"
        else:
            note = " (given by the run, if left out)" if key in given else ""
        hint = hints.get(key, Any)
        kind = f"a component of the role {key}" if key in ROLES and not units.holds_value(hint) else units.meaning(hint)
        lines.append(f"    {key:18} {kind}{note}")
    if (sense := units.sense(hints.get("return"))) is not None:
        lines += ["", f"  sense: larger is {'harder' if sense.harder else 'easier'}"]
    if module.startswith("fcurr.") and (words := inspect.getdoc(importlib.import_module(module))):
        lines += ["", f"  {module} says", "", *(f"    {line}".rstrip() for line in words.splitlines())]
    return "\n".join(lines)
