"""What an annotated type says, in words, and whether a value of a config fits it."""

import json
from collections.abc import Callable
from functools import cache, partial
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from annotated_types import Ge, Gt, Le, Lt

from fcurr.errors import BadInput
from fcurr.types import Direction, Sense, Unit

_BOUNDS = {Gt: ("gt", "greater than"), Ge: ("ge", "at least"), Lt: ("lt", "less than"), Le: ("le", "at most")}
_MACHINE = 2**31
_KINDS = {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}


def plain(annotation: Any) -> Any:
    """The part of an annotation that a value in a config can have: of `Rate | Schedule`, the Rate."""
    if get_origin(annotation) in (Union, UnionType):
        written = [part for part in get_args(annotation) if get_origin(part) is Annotated or part in _KINDS]
        return written[0] if written else annotation
    return annotation


def holds_value(annotation: Any) -> bool:
    """Whether a config can write a value of this type, such as a number; a Model it can only name."""
    annotation = plain(annotation)
    return get_origin(annotation) is Annotated or annotation in _KINDS or get_origin(annotation) in (Literal, tuple)


def holds_component(annotation: Any) -> bool:
    """Whether a component can stand here, beside a value (`Rate | Schedule`) or alone."""
    return plain(annotation) is not annotation or not holds_value(annotation)


def hints(function: Callable) -> dict[str, Any]:
    """The types of a function's parameters and result, whether written as types or as text."""
    inner = function.func if isinstance(function, partial) else function
    try:
        return _hints(inner)
    except Exception as wrong:  # a name that there is not, say
        raise BadInput(f"the types of {inner.__name__} cannot be read: {wrong}") from wrong


def meaning(annotation: Any, value: Any = None) -> str:
    """What a value of this type is: "a share of the data: a number, greater than 0, at most 1". That a number has to
    fit into a machine is said only of a value that does not."""
    annotation = plain(annotation)
    units = [note.meaning for note in _notes(annotation) if isinstance(note, Unit)]
    limits = ", ".join(part for part in (_kind(annotation), *_limits(annotation, value)) if part)
    return f"{article(units[0])} {units[0]}: {limits}" if units else limits


def sense(annotation: Any) -> Sense | None:
    """The sense of a score, read from its return type."""
    return next((note for note in _notes(annotation) if isinstance(note, Sense)), None)


def direction(annotation: Any) -> Direction | None:
    """The direction of a metric, read from its return type."""
    return next((note for note in _notes(annotation) if isinstance(note, Direction)), None)


def checked(value: Any, annotation: Any, where: str) -> Any:
    """The value as the type has it (a list becomes a tuple), or BadInput in words."""
    from pydantic import ValidationError  # costs 0.2 s, and only configs need it

    annotation = plain(annotation)
    try:
        return _adapter(annotation).validate_json(json.dumps(value, default=lambda date: {"": str(date)}))
    except ValidationError:
        raise BadInput(f"{written(value)} is not {meaning(annotation, value)}", where) from None


@cache
def _hints(function: Callable) -> dict[str, Any]:
    return get_type_hints(function, include_extras=True)


@cache
def _adapter(annotation: Any) -> Any:
    """What checks values of a type."""
    from pydantic import ConfigDict, TypeAdapter

    return TypeAdapter(annotation, config=ConfigDict(strict=True, allow_inf_nan=False))


def written(value: Any) -> str:
    """A value as TOML writes it, shortened."""
    text = json.dumps(value, default=str)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _notes(annotation: Any) -> tuple[Any, ...]:
    return get_args(annotation)[1:] if get_origin(annotation) is Annotated else ()


def _kind(annotation: Any) -> str:
    bare = get_args(annotation)[0] if get_origin(annotation) is Annotated else annotation
    if get_origin(bare) in (Union, UnionType):
        return " or ".join(_kind(part) for part in get_args(bare))
    if get_origin(bare) is tuple:
        return f"a list, each {meaning(get_args(bare)[0])}"
    if get_origin(bare) is Literal:
        return "one of " + ", ".join(json.dumps(choice) for choice in get_args(bare))
    if get_origin(bare) is Callable:
        return "a function, which a config cannot hold: write your own module:function that gives the whole"
    if bare is Any:
        return "a value"
    return _KINDS.get(bare, getattr(bare, "__name__", str(bare)))


def _limits(annotation: Any, value: Any) -> list[str]:
    large = isinstance(value, int | float) and value >= _MACHINE
    notes = [(_BOUNDS[type(note)], note) for note in _notes(annotation) if type(note) in _BOUNDS]
    found = [(words, getattr(note, field)) for (field, words), note in notes]
    return [f"{words} {bound}" for words, bound in found if large or bound < _MACHINE]


def article(noun: str) -> str:
    return "an" if noun[0] in "aeiou" else "a"
