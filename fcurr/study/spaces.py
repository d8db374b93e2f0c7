"""What a key of a sweep takes: a list (these values), a range (evenly spaced, or with log = true geometrically) or a
distribution (uniform, or with log = true log-uniform)."""

import json
import math
from collections.abc import Collection, Mapping
from fractions import Fraction
from typing import Annotated, Any, NamedTuple

from annotated_types import Ge, Lt

from fcurr.errors import BadInput
from fcurr.study import units
from fcurr.study.near import near
from fcurr.types import Many, Unit

Number = Annotated[float, Ge(-1e308), Lt(1e308), Unit("number")]
MARKS = ("from", "to", "low", "high")  # of a table that is a range or a distribution
DIGITS = 12  # of a geometric range that are kept, so that from 1e-4 to 1e-1 there is 0.001
CLOSE = 1e-9  # values of a range that lie closer, in parts of it, are no different values
WHOLE = 2**53  # whole numbers below are told apart by a draw


class Values(NamedTuple):
    """These, each once."""

    values: tuple[Any, ...]


class Range(NamedTuple):
    """`steps` values from the first to the last."""

    first: float
    last: float
    steps: int
    log: bool


class Distribution(NamedTuple):
    """Uniform, or log-uniform, between two ends; over the whole numbers from low to high, where both are whole."""

    low: float
    high: float
    log: bool

    @property
    def whole(self) -> bool:
        return isinstance(self.low, int) and isinstance(self.high, int)


Space = Values | Range | Distribution


def value(space: Space, place: float) -> Any:
    """What stands at a place: a list and a range count their values from 0; in a distribution it is the value."""
    if isinstance(space, Distribution):
        return place
    return space.values[int(place)] if isinstance(space, Values) else _step(space, int(place))


def size(space: Values | Range | Distribution) -> int:
    """How many values a list or a range has."""
    if isinstance(space, Distribution):
        raise ValueError("a distribution has no size")
    return len(space.values) if isinstance(space, Values) else space.steps


def canonical(value: Any) -> str:
    """A value as text that is the same however its tables are ordered."""
    return json.dumps(value, sort_keys=True, default=str)


def described(space: Space) -> str:
    """A space as it would be written."""
    if isinstance(space, Values):
        return units.written(list(space.values))
    log = ", log = true" if space.log else ""
    if isinstance(space, Range):
        return f"{{ from = {space.first}, to = {space.last}, steps = {space.steps}{log} }}"
    return f"{{ low = {space.low}, high = {space.high}{log} }}"


def marked(table: Mapping[str, Any]) -> bool:
    """Whether a table says where values begin and end; what has a list below such a name sweeps a key of that name."""
    return any(key in table and not isinstance(table[key], list | Mapping) for key in MARKS)


def read(written: Any, where: str, told: list[str], others: Collection[str] = ()) -> Space:
    """What is written under a key of [sweep], which `where` names, or BadInput; what a person should know is told, and
    `others` are words that may have been meant instead of the key."""
    if isinstance(written, list):
        return _values(written, where, told)
    if not isinstance(written, Mapping) or not marked(written):
        hint = near(where.partition(".")[2], others)
        what = "a list of values, a range (from, to, steps) or a distribution (low, high)"
        if where.endswith(".fn"):
            what += "; a component is swept as one of a list, [{ fn = ... }]"
        raise BadInput(f"{units.written(written)} is not {what}{hint}", where)
    ranged, spread = (any(mark in written for mark in marks) for marks in (MARKS[:2], MARKS[2:]))
    if ranged and spread:
        raise BadInput("has `from` or `to`, of a range, and `low` or `high`, of a distribution: one of the two", where)
    log = units.checked(written.get("log", False), bool, f"{where}.log")
    if ranged:
        first, last = _ends(written, ("from", "to", "steps", "log"), "a range", where)
        if "steps" not in written:
            raise BadInput("a range needs `steps`, how many values there are from `from` to `to`", where)
        return _ranged(Range(first, last, units.checked(written["steps"], Many, f"{where}.steps"), log), where)
    low, high = _ends(written, ("low", "high", "log"), "a distribution", where)
    if low >= high:
        raise BadInput(f"low = {low} is not less than high = {high}", where)
    if log and low <= 0:
        raise BadInput(f"low = {low} has no logarithm: with log = true it is greater than 0", where)
    if isinstance(low, int) and isinstance(high, int) and max(-low, high) >= WHOLE:
        raise BadInput(f"whole numbers of a distribution are less than {WHOLE}", where)
    return Distribution(low, high, log)


def _values(written: list[Any], where: str, told: list[str]) -> Values:
    if not written:
        raise BadInput("an empty list has no value to take", where)
    kept: dict[str, Any] = {}
    for one in written:
        if (text := canonical(one)) in kept:
            told.append(f"{where}: {units.written(one)} stands there more than once; it is taken once")
        kept.setdefault(text, one)
    return Values(tuple(kept.values()))


def _ends(table: Mapping[str, Any], keys: tuple[str, ...], what: str, where: str) -> tuple[float, float]:
    """The two ends, whole numbers as such."""
    for key in table:
        if key not in keys:
            raise BadInput(f"{what} takes no `{key}`{near(key, keys)}; it takes {', '.join(keys)}", f"{where}.{key}")
    for key in keys[:2]:
        if key not in table:
            raise BadInput(f"{what} needs `{key}`, {units.meaning(Number)}", where)
        units.checked(table[key], Number, f"{where}.{key}")
    return table[keys[0]], table[keys[1]]


def _ranged(space: Range, where: str) -> Range:
    first, last, steps, log = space
    if log and min(first, last) <= 0:
        raise BadInput(f"{min(first, last)} has no logarithm: with log = true both ends are greater than 0", where)
    whole = isinstance(first, int) and isinstance(last, int)
    if whole and first != last and not _lands(space):
        words = f"{steps} steps from {first} to {last} do not fall on whole numbers"
        raise BadInput(f"{words}: for fractions write {float(first)} and {float(last)}", where)
    spread = abs(math.log(last) - math.log(first)) if log else abs(last - first) / max(abs(first), abs(last), 5e-324)
    if first == last or (not whole and spread / (steps - 1) < CLOSE):
        raise BadInput(f"{steps} steps from {first} to {last} are not different values", where)
    return space


def _lands(space: Range) -> bool:
    """Whether a range between whole numbers has no others."""
    first, last, parts, log = int(space.first), int(space.last), space.steps - 1, space.log
    if not log:
        return (last - first) % parts == 0
    if parts > max(first, last).bit_length():  # a power of a fraction has a denominator that no end can have
        return False
    second = round(first * (last / first) ** (1 / parts))
    return second**parts == last * first ** (parts - 1) and all(
        second**n % first ** (n - 1) == 0 for n in range(2, parts)
    )


def _step(space: Range, place: int) -> float:
    """Evenly: the nearest number to what exact arithmetic on the decimals as written gives."""
    first, last, steps, log = space
    if place in (0, steps - 1):
        return last if place else first
    whole, part = isinstance(first, int) and isinstance(last, int), place / (steps - 1)
    if not log:
        ends = [Fraction(str(end)) for end in (first, last)]
        exact = ends[0] + (ends[1] - ends[0]) * place / (steps - 1)
        return int(exact) if whole else float(exact)
    found = math.exp((1 - part) * math.log(first) + part * math.log(last))
    return round(found) if whole else float(f"{found:.{DIGITS}g}")


def place(space: Space, part: float) -> float:
    """The place that a part in [0, 1) of a space's probability comes before."""
    if not isinstance(space, Distribution):
        return int(part * size(space))
    low, high, log = space
    if space.whole and not log:
        return int(low) + int(part * (high - low + 1))
    half = 0.5 if space.whole else 0.0  # each whole number has the interval of what is rounded to it
    ends = math.log(low - half) if log else low, math.log(high + half) if log else high
    found = (1 - part) * ends[0] + part * ends[1]
    found = math.exp(found) if log else found
    return min(max(round(found) if space.whole else found, low), high)
