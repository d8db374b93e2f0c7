"""The part of the JSON Schema that is about studies: what [sweep], [commands] and [hooks] may hold."""

from collections.abc import Iterable, Mapping
from typing import Any

from fcurr.study.sections import PARTS, ROUTINES, USES

FUNCTION = {"type": "string", "pattern": "^[^:]+:[^:]+$", "description": "your own module:function"}


def sweep(own: Mapping[str, dict[str, Any]], keys: Iterable[str]) -> dict[str, Any]:
    """[sweep]: what is its `own`, and `keys` of the config, dotted or as tables. A grid has neither distributions nor
    trials, and a search has trials."""
    dotted = rf"^({'|'.join(key for key in keys if key != 'seed')})(\.[^.]+)*$"
    ways = {"method": {"enum": ["random", "tpe"]}}
    return {
        "type": "object",
        "description": "dotted keys of the config, each with the values it takes",
        "additionalProperties": False,
        "properties": {**own, "seed": {"anyOf": [own["seed"], {"$ref": "#/$defs/swept"}]}},
        "patternProperties": {dotted: {"$ref": "#/$defs/swept"}},
        "anyOf": [
            {"not": {"propertyNames": {"enum": list(own)}}},
            {"required": ["seed"], "properties": {"seed": {"type": ["array", "object"]}}},
        ],  # something is swept
        "if": {"required": ["method"], "properties": ways},
        "then": {"required": ["trials"]},
        "else": {
            "properties": {"trials": False, "pruner": {"const": "none"}},
            "patternProperties": {dotted: {"$ref": "#/$defs/gridded"}},
        },
    }


def definitions() -> dict[str, Any]:
    """What a key of a sweep takes; of a grid, what can be counted."""
    ends, log = {"type": "number"}, {"type": "boolean", "default": False, "description": "evenly in the logarithm"}
    steps = {"type": "integer", "minimum": 2, "description": "how many values there are, both ends among them"}
    values = {"type": "array", "minItems": 1, "description": "these values"}
    between = _table(
        {"from": ends, "to": ends, "steps": steps, "log": log}, ["from", "to", "steps"], "a range: evenly spaced values"
    )
    drawn = _table({"low": ends, "high": ends, "log": log}, ["low", "high"], "a distribution: any number between")
    return {
        name: {
            "anyOf": [
                *kinds,
                {
                    "type": "object",
                    "minProperties": 1,
                    "description": "a part of a dotted key",
                    "additionalProperties": {"$ref": f"#/$defs/{name}"},
                },
            ]
        }
        for name, kinds in {"swept": [values, between, drawn], "gridded": [values, between]}.items()
    }


def commands() -> dict[str, Any]:
    """[commands.NAME]."""
    names = {"type": "string", "description": "the name of a command, or a pattern of names"}
    uses = {
        "type": "object",
        "description": "what samples are used for, and which",
        "additionalProperties": False,
        "properties": {use: {"enum": list(PARTS)} for use in USES},
    }
    one = {
        "function": FUNCTION,
        "inputs": {"anyOf": [names, {"type": "array", "items": names}]},
        "parameters": {"type": "object", "description": "what the function takes by name"},
        "uses": uses,
    }
    summary = "commands of your own, by name"
    return {"type": "object", "description": summary, "additionalProperties": _table(one, ["function"], "a command")}


def hooks() -> dict[str, Any]:
    """[hooks.ROUTINE]."""
    several = {"anyOf": [FUNCTION, {"type": "array", "items": FUNCTION}]}
    both = {"before": several, "after": several}
    said = "functions of what a routine reads (before) or makes (after)"
    return _table({routine: _table(both, [], said) for routine in ROUTINES}, [], "functions before and after routines")


def _table(properties: dict[str, Any], required: list[str], description: str) -> dict[str, Any]:
    return {
        "type": "object",
        "description": description,
        "additionalProperties": False,
        "required": required,
        "properties": properties,
    }
