"""The points of a sweep: which values (fcurr.study.spaces) keys of a config take together.

Point n is a function of the section and of n alone: no point is made to count them, and more trials of a random search
keep the first.
"""

import hashlib
import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal, NamedTuple

from annotated_types import Ge, Lt

from fcurr import rng
from fcurr.errors import BadInput
from fcurr.study import spaces, units
from fcurr.study.members import override
from fcurr.study.near import near
from fcurr.study.spaces import Distribution, Space
from fcurr.study.spaces import canonical as canonical
from fcurr.types import Seed, Times, Unit

Way = Literal["grid", "random", "tpe"]
Pruner = Literal["none", "median", "hyperband"]
Runs = Annotated[int, Ge(1), Lt(2**31), Unit("number of runs")]
OWN = {"method": Way, "trials": Times, "seed": Seed, "pruner": Pruner, "at_most": Runs, "at_once": Times}


class Sweep(NamedTuple):
    method: Way
    trials: int  # of a search; 0 for a grid
    seed: int
    pruner: Pruner
    at_most: int  # more runs than that are asked about
    spaces: dict[str, Space]  # dotted key of the config -> its values, in written order
    told: tuple[str, ...]  # what a person should know of the section, a line each
    at_once: int = 1  # trials that a search proposes together: members of one program, if they agree in shape


def read(table: Any) -> Sweep:
    """The section [sweep], or BadInput with the key that is wrong."""
    if not isinstance(table, Mapping):
        raise BadInput(f"{units.written(table)} is not a table", "sweep")
    own = {key: value for key, value in table.items() if key in OWN and not isinstance(value, list | Mapping)}
    own = {key: units.checked(value, OWN[key], f"sweep.{key}") for key, value in _known(own).items()}
    rest = {key: value for key, value in table.items() if key not in own}
    found, told = {}, []
    for key, written in _flat(rest, ()):
        if not all(key.split(".")):
            raise BadInput("a part of this key is empty", f"sweep.{key}")
        if key in found:
            raise BadInput("is given twice, with a dot and as a table", f"sweep.{key}")
        found[key] = spaces.read(written, f"sweep.{key}", told, OWN)
    if not found:
        raise BadInput('nothing is swept: give a key of the config a list, "optimizer.learning_rate" = [0.1]', "sweep")
    for key in found:
        for other in found:
            if other.startswith(f"{key}."):
                raise BadInput(f"`{key}` is swept as a whole, and `{other}` within it: one of them", f"sweep.{other}")
    method, trials, pruner = own.get("method", "grid"), own.get("trials", 0), own.get("pruner", "none")
    if method == "grid":
        _gridded(own, found)
    elif not trials:
        raise BadInput(f"{method} needs `trials`, {units.meaning(Times)}", "sweep")
    return Sweep(
        method, trials, own.get("seed", 0), pruner, own.get("at_most", 1000), found, tuple(told), own.get("at_once", 1)
    )


def count(sweep: Sweep) -> int:
    """How many points there are; none is made."""
    return math.prod(map(spaces.size, sweep.spaces.values())) if sweep.method == "grid" else sweep.trials


def limited(sweep: Sweep, each: int = 1) -> None:
    """BadInput where there are more runs than are made without asking; `each` point comes to so many."""
    if (runs := each * count(sweep)) > sweep.at_most:
        words = f"this would make {runs:,} runs, more than {sweep.at_most:,}"
        raise BadInput(f"{words}: --yes makes them, and so does at_most = {runs}", "sweep")


def points(sweep: Sweep) -> list[dict[str, Any]]:
    """Every point, dotted key -> value: of a grid in written order, the last key fastest."""
    return [point(sweep, number) for number in range(count(sweep))]


def point(sweep: Sweep, number: int) -> dict[str, Any]:
    """The point of this number. Of a search by tpe it is where the search begins: its first trials are drawn."""
    places = _cell(sweep, number) if sweep.method == "grid" else drawn(sweep, number)
    return {key: spaces.value(sweep.spaces[key], place) for key, place in places.items()}


def drawn(sweep: Sweep, number: int) -> dict[str, float]:
    """Where in their spaces a random trial stands: numbers of (seed, number, key), so neither another key nor another
    trial changes them."""
    return {key: spaces.place(space, _uniform(sweep.seed, number, key)) for key, space in sweep.spaces.items()}


def applied(config: Mapping[str, Any], point: Mapping[str, Any]) -> dict[str, Any]:
    """The config of a point, without its section [sweep]."""
    changed = {key: value for key, value in config.items() if key != "sweep"}
    for key, value in point.items():
        changed = override(changed, key, value)
    return changed


def origin(where: str, point: Mapping[str, Any]) -> str:
    """The key under which a wrong value was written: in [sweep], if a point set it."""
    for key in point:
        if where == key or where.startswith(f"{key}.") or key.startswith(f"{where}."):
            return f"sweep.{key}"
    return where


def _known(own: dict[str, Any]) -> dict[str, Any]:
    """The section's own keys; a text that is near one of its choices is asked about."""
    for key, choices in (("method", Way.__args__), ("pruner", Pruner.__args__)):
        if isinstance(own.get(key), str) and own[key] not in choices:
            words = f"there is no {key} `{own[key]}`{near(own[key], choices)}; there are {', '.join(choices)}"
            raise BadInput(words, f"sweep.{key}")
    return own


def _gridded(own: Mapping[str, Any], given: Mapping[str, Space]) -> None:
    """BadInput for what only a search has."""
    for key, space in given.items():
        if isinstance(space, Distribution):
            words = "a grid needs a list or a range (from, to, steps); distributions are for random and tpe"
            raise BadInput(words, f"sweep.{key}")
    if "trials" in own:
        raise BadInput("a grid takes every point; `trials` is for random and tpe", "sweep.trials")
    if own.get("pruner", "none") != "none":
        raise BadInput("a grid takes every point to its end; a pruner is for random and tpe", "sweep.pruner")


def _flat(table: Mapping[str, Any], path: tuple[str, ...]) -> list[tuple[str, Any]]:
    """(dotted key, what is written there), in order; a table is a part of the path unless it is a space."""
    found = []
    for key, written in table.items():
        inner = isinstance(written, Mapping) and not spaces.marked(written) and written
        found += _flat(written, (*path, key)) if inner else [(".".join((*path, key)), written)]
    return found


def _cell(sweep: Sweep, number: int) -> dict[str, float]:
    """The number's digits, where each key has its own base."""
    places: dict[str, float] = {}
    for key, space in reversed(sweep.spaces.items()):
        number, places[key] = divmod(number, spaces.size(space))
    return {key: places[key] for key in sweep.spaces}


def _uniform(seed: int, number: int, key: str) -> float:
    """In [0, 1), 53 bits."""
    name = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big", signed=True)
    return ((int(rng.fold(seed, number, name)) >> 11) & (2**53 - 1)) * 2.0**-53
