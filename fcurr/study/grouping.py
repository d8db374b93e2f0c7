"""Members of runs by their keys: which are kept, and which make a group."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from fcurr.errors import BadInput
from fcurr.study.near import near
from fcurr.study.words import BARE, head, listed, shown

REPEATS = ("seed", "split.fold", "split.inner_fold")
Which = Literal["last", "best"]  # parameters after the last step, or at the evaluation that validation chose


class Result(NamedTuple):
    """What one member reached."""

    place: tuple[int, int]  # of its run, and of the member in it
    keys: dict[str, Any]  # "run", "arm", dotted axes; members need not have the same ones
    numbers: Mapping[Which, Mapping[str, float | None]]  # of the test samples, by metric


class Grouping(NamedTuple):
    """Which keys do what. Each key that varies is in one of the three."""

    by: tuple[str, ...]
    over: tuple[str, ...]
    repeats: tuple[str, ...]


def in_order(results: Iterable[Result]) -> list[Result]:
    """As the runs have them, however they come."""
    return sorted(results, key=lambda result: result.place)


def names(results: Sequence[Result]) -> list[str]:
    """The keys there are: the run, the arm, then the axes."""
    found = dict.fromkeys(key for result in in_order(results) for key in result.keys)
    return [key for key in BARE if key in found] + [key for key in found if key not in BARE]


def levels(results: Sequence[Result], key: str) -> dict[str, Any]:
    """In words -> value, of a key; numbers by size, else as they come. A member without the key counts as None."""
    found = {shown(value): value for value in (result.keys.get(key) for result in in_order(results))}
    there = [value for value in found.values() if value is not None]
    if all(isinstance(value, int | float) and not isinstance(value, bool) for value in there):
        return dict(sorted(found.items(), key=lambda pair: (pair[1] is not None, pair[1] or 0)))
    return found


def same(text: str, value: Any) -> bool:
    """Whether a value is what somebody wrote."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        try:
            return float(text) == value
        except ValueError:
            return False
    return value is not None and text == shown(value)


def kept(results: Sequence[Result], where: Sequence[str]) -> list[Result]:
    """The members that fit `key=value`: any of the values of a key, for all keys."""
    wanted: dict[str, list[str]] = {}
    for condition in where:
        key, equals, text = condition.partition("=")
        if not equals:
            raise BadInput(f"`{condition}` is not KEY=VALUE, such as arm=plain")
        _known(results, key, "to choose members by")
        there = [word for word, value in levels(results, key).items() if value is not None]
        if not any(same(text, result.keys.get(key)) for result in results):
            raise BadInput(f"no member has {key}={text}{near(text, there)}; {key} is {listed(there, 'or')}")
        wanted.setdefault(key, []).append(text)
    found = [r for r in results if all(any(same(t, r.keys.get(k)) for t in texts) for k, texts in wanted.items())]
    if not found:
        raise BadInput(f"no member has {' and '.join(where)}")
    return found


def grouping(
    results: Sequence[Result],
    *,
    by: Sequence[str] = (),
    over: Sequence[str] = (),
    repeats: Sequence[str] = REPEATS,
) -> Grouping:
    """What each key does. If `by` does not say, groups are made by all keys that vary, but for `over` and repeats; and
    for the arm, where it is only named after what another key says."""
    for keys, purpose in ((by, "group by"), (over, "aggregate over")):
        for key in keys:
            _known(results, key, f"to {purpose}")
    if both := [key for key in by if key in over]:
        raise BadInput(f"`{both[0]}` is to be grouped by and aggregated over: it can be one of them")
    if tuple(repeats) != REPEATS:
        for key in repeats:
            _known(results, key, "that repeats a group")
    varying = [key for key in names(results) if len(levels(results, key)) > 1]
    if "arm" not in (*by, *over) and any(_named_after(results, key) for key in varying if key not in BARE):
        varying.remove("arm")
    again = tuple(key for key in names(results) if key in repeats and key not in (*by, *over))
    free = [key for key in varying if key not in over and key not in again]
    groups = tuple(dict.fromkeys(by)) or tuple(free) or ("arm",)
    return Grouping(groups, tuple(key for key in varying if key not in groups and key not in again), again)


def groups(results: Sequence[Result], by: Sequence[str]) -> list[tuple[dict[str, Any], list[Result]]]:
    """Keys and members of each group, in the order of the keys' values."""
    order = [{word: at for at, word in enumerate(levels(results, key))} for key in by]
    found: dict[tuple[int, ...], list[Result]] = {}
    for result in in_order(results):
        place = tuple(at[shown(result.keys.get(key))] for key, at in zip(by, order, strict=True))
        found.setdefault(place, []).append(result)
    return [({key: found[place][0].keys.get(key) for key in by}, found[place]) for place in sorted(found)]


def _named_after(results: Sequence[Result], key: str) -> bool:
    """Whether every arm has the name of the value that a key has in it: an order that is swept names the arms."""
    return all(result.keys.get("arm") == head(result.keys.get(key)) for result in results)


def _known(results: Sequence[Result], key: str, purpose: str) -> None:
    there = names(results)
    if key not in there:
        raise BadInput(f"there is no key `{key}` {purpose}{near(key, there)}; there are {', '.join(there)}")
