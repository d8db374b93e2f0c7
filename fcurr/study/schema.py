"""The JSON Schema of configs, made from the signatures that read them."""

import importlib
import inspect
from collections.abc import Callable, Collection, Mapping, Sequence
from types import MappingProxyType
from typing import Any, get_args

from pydantic import TypeAdapter

from fcurr.study import study_schema, sweeping, units
from fcurr.study.bind import flowing, required
from fcurr.study.config import KEYS, LISTS, NEEDED, RECORDS, ROLE_KEYS, Name, Weight
from fcurr.study.members import CURRICULUM, Source
from fcurr.study.roles import ROLES, components
from fcurr.study.sections import SECTIONS, CrossValidation, Notify, Routines
from fcurr.types import Seed

WHOLE, PART = "", "part-of-"  # of a definition: with everything it needs, or with what a sweep does not give


def schema() -> dict[str, Any]:
    """A schema that knows every component, every key, every bound. Of a study, whose [sweep] and [cross_validation] may
    give what a section lacks, it does not ask that a section has everything."""
    properties: dict[str, Any] = {"name": _value(Name), "seed": _value(Seed), **_sections(PART)}
    properties["members"] = {"type": "object", "description": "axes: dotted key -> a list of values, one a member"}
    properties["arms"] = {
        "type": "object",
        "description": "what is compared: each arm is a table of changes to the config",
        "additionalProperties": {"type": "object"},
    }
    properties["controls"] = {
        "type": "boolean",
        "description": "what learned weights are compared with",
        "default": True,
    }
    properties["samples"] = {"enum": list(get_args(Source)), "description": "which are trained on", "default": "train"}
    properties["study"] = _table(Routines)
    properties["sweep"] = study_schema.sweep({key: _value(kind) for key, kind in sweeping.OWN.items()}, KEYS)
    properties["cross_validation"] = _table(CrossValidation)
    properties["commands"] = study_schema.commands()
    properties["hooks"] = study_schema.hooks()
    properties["notify"] = _table(Notify)
    whole = {
        "required": [key for key in NEEDED if key != "data"],
        "anyOf": [{"required": ["data"]}, {"required": ["tasks"]}],
        "properties": _sections(WHOLE),
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "fcurr config",
        "type": "object",
        "additionalProperties": False,
        "properties": {key: properties[key] for key in (*KEYS, *SECTIONS)},
        "if": {"anyOf": [{"required": ["sweep"]}, {"required": ["cross_validation"]}]},
        "else": whole,
        "$defs": {f"{of}{role}": _role(role, of) for role in ROLES for of in (WHOLE, PART)}
        | study_schema.definitions(),
    }


def _sections(of: str) -> dict[str, Any]:
    """The sections that name components or are records, whole or in part."""
    sections: dict[str, Any] = {key: _component(key, of) for key in ROLE_KEYS}
    sections |= {key: _several(role, of) for key, role in LISTS.items()}
    sections |= {key: _table(record, {}, of) for key, record in RECORDS.items()}
    if of == WHOLE:
        sections["start"]["oneOf"] = [{"required": [key]} for key in ("weights", "run", "config")]
    sections["curriculum"] = _object({key: _component(key, of) for key in CURRICULUM})
    task = {
        "data": _component("data", of),
        "weight": {**_value(Weight), "default": 1.0},
        "loss": _component("loss", of),
        "metrics": _several("metric", of),
    }
    sections["tasks"] = {
        "type": "object",
        "description": "several tasks trained jointly, by name, in the place of `data`",
        "additionalProperties": _object(task, ["data"] if of == WHOLE else []),
    }
    return sections


def _component(role: str, of: str) -> dict[str, Any]:
    return {"$ref": f"#/$defs/{of}{role}"}


def _several(role: str, of: str) -> dict[str, Any]:
    one = _component(role, of)
    return {"anyOf": [one, {"type": "array", "items": one}]}


def _object(properties: dict[str, Any], required: Sequence[str] = ()) -> dict[str, Any]:
    return {"type": "object", "additionalProperties": False, "required": list(required), "properties": properties}


def _role(role: str, of: str) -> dict[str, Any]:
    """A component's name, or a table with its `fn`; a module:function may take anything."""
    functions = {c.name: (getattr(importlib.import_module(c.module), c.name), c.summary) for c in components(role)}
    given = ROLES[role].given
    alone = {"enum": [name for name, (f, _) in functions.items() if of == PART or given.issuperset(required(f))]}
    own = study_schema.FUNCTION
    tables = [_table(f, {"fn": {"const": name}}, of, summary, given) for name, (f, summary) in functions.items()]
    anything = {"type": "object", "required": ["fn"], "properties": {"fn": own}}
    return {"description": ROLES[role].answers, "anyOf": [alone, own, *tables, anything]}


def _table(
    function: Callable,
    more: Mapping[str, Any] = MappingProxyType({}),
    of: str = WHOLE,
    summary: str = "",
    given: Collection[str] = (),
) -> dict[str, Any]:
    """What a function takes by name; of a part of it, nothing is needed but its name."""
    parameters, flows, hints = inspect.signature(function).parameters, flowing(function), units.hints(function)
    properties, needed = dict(more), list(more)
    for key in (key for key in parameters if key not in flows and key != "model"):  # the model is the run's
        reference = _component(key, of) if key in ROLES and units.holds_component(hints[key]) else None
        own = None if reference and not units.holds_value(hints[key]) else _value(hints[key])
        properties[key] = {"anyOf": [reference, own]} if reference and own else reference or own
        if parameters[key].default is not inspect.Parameter.empty and own is not None:
            properties[key] = {**properties[key], "default": parameters[key].default}
        elif parameters[key].default is inspect.Parameter.empty and key not in given and of == WHOLE:
            needed.append(key)
    table = _object(properties, needed)
    return {**table, "description": summary} if summary else table


def _value(annotation: Any) -> dict[str, Any]:
    try:
        found = TypeAdapter(units.plain(annotation)).json_schema()
    except Exception:  # a type no config can write, such as a function
        return {"description": "not to be written in a config"}
    return {**found, "description": units.meaning(annotation)}
