"""Observers: functions that are told what happens in a run, and cannot change it."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from fcurr import tree
from fcurr.errors import BadInput
from fcurr.study.bind import Call, flowing, guarded


class Event(NamedTuple):
    """Something that happened between two states of a run."""

    name: str  # "begin", "step", "pass", "evaluate", "save", "setback", "end"; see docs/observers.md
    iteration: int  # steps taken


class Observers(NamedTuple):
    told: Sequence[tuple[Call, Callable[[Any, Any, Event], object]]]  # of everything
    views: Sequence[tuple[str, Call, Callable[[Any], Any]]]  # name, and what to ask at an evaluation


NOBODY = Observers((), ())


def observers(calls: Sequence[Call], built: Sequence[Callable[..., Any]]) -> Observers:
    """Sorted by what they take: (before, after, event), or a state."""
    pairs = list(zip(calls, built, strict=True))
    return Observers(
        told=[pair for pair in pairs if len(flowing(pair[0].function)) == 3],
        views=[(call.name.rpartition(":")[2], call, view) for call, view in pairs if len(flowing(call.function)) == 1],
    )


def tell(watched: Observers, before: Any, after: Any, event: Event) -> None:
    """Every observer is given copies: what it does to them is lost."""
    for call, function in watched.told:
        guarded(call, function, tree.map(_copy, before), tree.map(_copy, after), event)


def view(watched: Observers, states: Any) -> dict[str, list[float | None]]:
    """name -> a number a member, of what the views see; states [member, ...]."""
    found: dict[str, list[float | None]] = {}
    for name, call, function in watched.views:
        members = [guarded(call, _numbers, name, function, tree.map(_copy, state)) for state in tree.apart(states)]
        for member in members:
            if member.keys() != members[0].keys():
                raise BadInput(f"{call.name} gives other names to other members: {', '.join(member)}", call.where)
        found |= {key: [member[key] for member in members] for key in members[0]}
    return found


def _numbers(name: str, view: Callable[[Any], Any], state: Any) -> dict[str, float | None]:
    """What a view says, under its own name, or, of a dict, under its name and theirs."""
    value = view(state)
    parts = {f"{name}_{key}": part for key, part in value.items()} if isinstance(value, dict) else {name: value}
    return {key: finite(float(part)) for key, part in parts.items()}


def finite(number: float) -> float | None:
    """The number, or None where JSON has no word for it."""
    return number if number - number == 0 else None


def _copy(leaf: Any) -> Any:
    return leaf.detach().clone()
