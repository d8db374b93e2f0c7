"""The JSON Schema of configs, made from the signatures that read them."""

import importlib
import inspect
from collections.abc import Callable, Collection
from typing import Any, get_args

from pydantic import TypeAdapter

from fcurr.study import study_schema, sweeping, units
from fcurr.study.bind import flowing, required
from fcurr.study.config import KEYS, LISTS, NEEDED, RECORDS, ROLE_KEYS, Name, Weight
from fcurr.study.members import CURRICULUM, Source
from fcurr.study.roles import ROLES, components
from fcurr.study.sections import SECTIONS, CrossValidation, Notify, Routines
from fcurr.types import Seed


def schema() -> dict[str, Any]:
    """A schema that knows every component, every key, every bound."""
    properties: dict[str, Any] = {"name": _value(Name), "seed": _value(Seed)}
    properties |= {key: {"$ref": f"#/$defs/{key}"} for key in ROLE_KEYS}
    for key, role in LISTS.items():
        one = {"$ref": f"#/$defs/{role}"}
        properties[key] = {"anyOf": [one, {"type": "array", "items": one}]}
    properties |= {key: _table(record, {}) for key, record in RECORDS.items()}
    properties["curriculum"] = {
        "type": "object",
        "additionalProperties": False,
        "properties": {key: {"$ref": f"#/$defs/{key}"} for key in CURRICULUM},
    }
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
    properties["tasks"] = {
        "type": "object",
        "description": "several tasks trained jointly, by name, in the place of `data`",
        "additionalProperties": _joint(),
    }
    properties["start"]["oneOf"] = [{"required": [key]} for key in ("weights", "run", "config")]
    properties["study"] = _table(Routines, {})
    properties["sweep"] = study_schema.sweep({key: _value(kind) for key, kind in sweeping.OWN.items()}, KEYS)
    properties["cross_validation"] = _table(CrossValidation, {})
    properties["commands"] = study_schema.commands()
    properties["hooks"] = study_schema.hooks()
    properties["notify"] = _table(Notify, {})
    properties["samples"] = {"enum": list(get_args(Source)), "description": "which are trained on", "default": "train"}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "fcurr config",
        "type": "object",
        "additionalProperties": False,
        "required": [key for key in NEEDED if key != "data"],
        "anyOf": [{"required": ["data"]}, {"required": ["tasks"]}],
        "properties": {key: properties[key] for key in (*KEYS, *SECTIONS)},
        "$defs": {role: _role(role) for role in ROLES} | study_schema.definitions(),
    }


def _joint() -> dict[str, Any]:
    """A task among several."""
    metric = {"$ref": "#/$defs/metric"}
    return {
        "type": "object",
        "additionalProperties": False,
        "required": ["data"],
        "properties": {
            "data": {"$ref": "#/$defs/data"},
            "weight": {**_value(Weight), "default": 1.0},
            "loss": {"$ref": "#/$defs/loss"},
            "metrics": {"anyOf": [metric, {"type": "array", "items": metric}]},
        },
    }


def _role(role: str) -> dict[str, Any]:
    """A component's name, or a table with its `fn`; a module:function may take anything."""
    functions = {c.name: (getattr(importlib.import_module(c.module), c.name), c.summary) for c in components(role)}
    given = ROLES[role].given
    alone = {"enum": [name for name, (function, _) in functions.items() if given.issuperset(required(function))]}
    own = {"type": "string", "pattern": "^[^:]+:[^:]+$", "description": "your own module:function"}
    tables = [_table(f, {"fn": {"const": name}}, summary, given) for name, (f, summary) in functions.items()]
    anything = {"type": "object", "required": ["fn"], "properties": {"fn": own}}
    return {"description": ROLES[role].answers, "anyOf": [alone, own, *tables, anything]}


def _table(function: Callable, more: dict[str, Any], summary: str = "", given: Collection[str] = ()) -> dict[str, Any]:
    parameters, flows, hints = inspect.signature(function).parameters, flowing(function), units.hints(function)
    properties, needed = dict(more), list(more)
    for key in (key for key in parameters if key not in flows and key != "model"):  # the model is the run's
        reference = {"$ref": f"#/$defs/{key}"} if key in ROLES and units.holds_component(hints[key]) else None
        own = None if reference and not units.holds_value(hints[key]) else _value(hints[key])
        properties[key] = {"anyOf": [reference, own]} if reference and own else reference or own
        if parameters[key].default is not inspect.Parameter.empty and own is not None:
            properties[key] = {**properties[key], "default": parameters[key].default}
        elif parameters[key].default is inspect.Parameter.empty and key not in given:
            needed.append(key)
    table = {"type": "object", "additionalProperties": False, "required": needed, "properties": properties}
    return {**table, "description": summary} if summary else table


def _value(annotation: Any) -> dict[str, Any]:
    try:
        found = TypeAdapter(units.plain(annotation)).json_schema()
    except Exception:  # a type no config can write, such as a function
        return {"description": "not to be written in a config"}
    return {**found, "description": units.meaning(annotation)}
