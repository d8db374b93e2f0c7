"""Arms and members: which trainings a run consists of, and in what they differ.

[arms] are what is compared: each is a set of changes to the config. [members] are axes: each key names a list, and
every arm is trained at every point of their product. All of them are trained as one mapped program, so they share the
data, the model and the kind of everything; what may differ is the seed, the curriculum, and numbers of optimizer and
loss.
"""

import itertools
from collections.abc import Collection, Mapping
from typing import Any, Literal, NamedTuple

from fcurr.curriculum import random
from fcurr.errors import BadInput
from fcurr.study import units
from fcurr.study.bind import Call, numbers, resolve, shape
from fcurr.study.near import near
from fcurr.types import Seed
from fcurr.weighting import uniform

CURRICULUM = {"order": "random", "sampling": "unbalanced", "pace": "none"}  # plain training
LOSS = "likelihood"  # of the task that the labels are
MAY_VARY = ("seed", "optimizer", "loss", "curriculum", "weighting", "reweighting", "samples")
RATES = ("learning_rate", "weight_decay", "warm_up", "power", "trust")  # of a reweighting, that are only numbers
KEPT = 0.9  # of a batch, where no label noise says how much
Source = Literal["train", "clean", "both"]


class Curriculum(NamedTuple):
    order: Call
    sampling: Call
    pace: Call


class Member(NamedTuple):
    """One training of a run."""

    arm: str  # what is compared: members of one arm differ in their axes only
    axes: dict[str, Any]  # dotted key -> value, from [members]
    seed: int
    optimizer: Call
    loss: Call
    curriculum: Curriculum
    weighting: Call | None  # in closed form; None where weights are learned, or all 1
    reweighting: Call | None
    samples: Source  # which are trained on


def expand(config: Mapping[str, Any], plugins: Collection[str] = ()) -> list[Member]:
    """Every arm at every point of the axes."""
    return [
        _member(config, arm, change, axes, plugins) for arm, change in _arms(config).items() for axes in _axes(config)
    ]


def trainings(config: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Every member as a config of its own, with no other arm and no axis but its seed: in the order of `expand`."""
    return [_alone(config, change, axes) for change in _arms(config).values() for axes in _axes(config)]


def _alone(config: Mapping[str, Any], change: Mapping[str, Any], axes: dict[str, Any]) -> dict[str, Any]:
    own = merge(config, change)
    for key, value in axes.items():
        own = override(own, key, value)
    alone = {key: value for key, value in own.items() if key not in ("arms", "members", "controls")}
    if "weighting" in alone:  # it takes the place of what is learned
        alone.pop("reweighting", None)
    if "reweighting" in alone:
        alone["controls"] = False
    alone["seed"] = config.get("seed", 0)
    alone["members"] = {"seed": [own.get("seed", 0)]}
    return alone


def override(config: Mapping[str, Any], key: str, value: Any) -> dict[str, Any]:
    """The config with the value at a dotted key set."""
    changed = dict(config)
    *path, last = key.split(".")
    table: dict[str, Any] = changed
    for part in path:
        inner: Any = table.get(part, {})
        if isinstance(inner, str):  # a component written by its bare name
            inner = {"fn": inner}
        if not isinstance(inner, Mapping):
            raise BadInput(f"`{part}` is {units.written(inner)}, which has no keys", key)
        table[part] = dict(inner)
        table = table[part]
    table[last] = value
    return changed


def merge(config: Mapping[str, Any], change: Mapping[str, Any]) -> dict[str, Any]:
    """The config with tables merged into it, key by key; a table that names a `fn` starts anew."""
    merged = dict(config)
    for key, value in change.items():
        old = merged.get(key)
        if isinstance(old, str) and isinstance(value, Mapping):  # a component written by its bare name
            old = {"fn": old}
        both = isinstance(value, Mapping) and isinstance(old, Mapping) and "fn" not in value
        merged[key] = merge(old, value) if both else value  # type: ignore[arg-type]
    return merged


def controls(config: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """What learned weights are compared with, in every run: weights of 1, random ones, a batch without its largest
    losses (as many as labels are wrong), the clean samples alone, and all samples without a difference."""
    wanted = config.get("controls", True)
    if not isinstance(wanted, bool):
        raise BadInput(f"{units.written(wanted)} is neither true nor false", "controls")
    if "reweighting" not in config or not wanted:
        return {}
    noise = config.get("noise", {})
    wrong = noise.get("share") if isinstance(noise, Mapping) else None
    share = 1 - wrong if isinstance(wrong, int | float) and 0 < wrong < 1 else KEPT
    return {
        "plain": {"weighting": "uniform"},
        "random_weights": {"weighting": "random_weights"},
        "trimmed": {"weighting": {"fn": "trimmed", "share": share}},
        "clean_only": {"weighting": "uniform", "samples": "clean"},
        "clean_too": {"weighting": "uniform", "samples": "both"},
    }


def _arms(config: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    arms = config.get("arms", {"": {}})
    if not isinstance(arms, Mapping) or not arms:
        raise BadInput(f"{units.written(arms)} is not a table of arms, each a table of changes", "arms")
    for name, change in arms.items():
        if not name and "arms" in config:
            raise BadInput('an arm needs a name, not ""', "arms")
        if not isinstance(change, Mapping):
            raise BadInput(f"{units.written(change)} is not a table of changes", f"arms.{name}")
        for key in change:
            _may_vary(key, f"arms.{name}.{key}")
    return {**arms, **{name: change for name, change in controls(config).items() if name not in arms}}


def _axes(config: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The product of all lists of [members]."""
    table = config.get("members", {})
    lists = _flat(table)
    for key in lists:
        if key.split(".")[0] in ("weighting", "samples") and controls(config):
            words = "controls have their own: make arms of these, or leave the controls out (controls = false)"
            raise BadInput(words, f"members.{key}")
    for key in table:
        _may_vary(key, f"members.{key}")
    for key, values in lists.items():
        _may_vary(key, f"members.{key}")
        if not isinstance(values, list) or not values:
            raise BadInput(f"{units.written(values)} is not a list of values, one a member", f"members.{key}")
    return [dict(zip(lists, point, strict=True)) for point in itertools.product(*lists.values())]


def _flat(table: Any, path: str = "") -> dict[str, Any]:
    if not isinstance(table, Mapping):
        raise BadInput(f"{units.written(table)} is not a table of lists", "members")
    found: dict[str, Any] = {}
    for key, value in table.items():
        found |= _flat(value, f"{path}{key}.") if isinstance(value, Mapping) else {f"{path}{key}": value}
    return found


def _may_vary(key: str, where: str) -> None:
    section = key.split(".")[0]
    if section not in MAY_VARY:
        raise BadInput(f"members of one run share `{section}`; they may differ in {', '.join(MAY_VARY)}", where)


def weightings(members: list[Member]) -> list[Call]:
    """The closed forms among them, each once."""
    found: list[Call] = []
    for member in members:
        if member.weighting is not None and member.weighting not in found:
            found.append(member.weighting)
    return found


def _member(
    config: Mapping[str, Any], arm: str, change: Mapping[str, Any], axes: dict[str, Any], plugins: Collection[str]
) -> Member:
    """One member's own parts; a key that is wrong is named where it was written."""
    own = merge(config, change)
    for key, value in axes.items():
        own = override(own, key, value)
    try:
        table = own.get("curriculum", {})
        if not isinstance(table, Mapping):
            raise BadInput(f"{units.written(table)} is not a table", "curriculum")
        for key in table:
            if key not in CURRICULUM:
                keys = ", ".join(CURRICULUM)
                raise BadInput(
                    f"[curriculum] takes no `{key}`{near(key, CURRICULUM)}; it takes {keys}", f"curriculum.{key}"
                )
        parts = {
            key: resolve(table.get(key, default), key, f"curriculum.{key}", plugins)
            for key, default in CURRICULUM.items()
        }
        if parts["order"].function is not random and "score" not in config:
            raise BadInput(f"{parts['order'].name} ranks by a score: add a section [score]", "curriculum.order")
        weighting, reweighting = (
            resolve(own[key], key, key, plugins) if key in own else None for key in ("weighting", "reweighting")
        )
        ways = [reweighting if weighting is None else weighting, parts["order"]]
        return Member(
            arm=arm or next(way.name for way in ways if way is not None and way.function is not uniform),
            axes=axes,
            seed=units.checked(own.get("seed", 0), Seed, "seed"),
            optimizer=resolve(own["optimizer"], "optimizer", "optimizer", plugins),
            loss=resolve(own.get("loss", LOSS), "loss", "loss", plugins),
            curriculum=Curriculum(**parts),
            weighting=weighting,
            reweighting=reweighting,
            samples=_source(own),
        )
    except BadInput as wrong:
        raise BadInput(str(wrong), _origin(wrong.where, arm, change, axes)) from None


def _source(own: Mapping[str, Any]) -> Source:
    value = own.get("samples", "train")
    if value not in ("train", "clean", "both"):
        raise BadInput(f'{units.written(value)} is not "train", "clean" or "both"', "samples")
    if value != "train" and "clean" not in own:
        raise BadInput("there are no clean samples: add a section [clean]", "samples")
    return value


def _origin(where: str, arm: str, change: Mapping[str, Any], axes: dict[str, Any]) -> str:
    """The key that a wrong value was written under: in [members], in an arm, or where it is."""
    for key in axes:
        if where == key or where.startswith(f"{key}."):
            return f"members.{key}"
    table, parts = change, where.split(".")
    for place, part in enumerate(parts):
        if isinstance(table, str) and part == "fn":  # a component written by its bare name
            return f"arms.{arm}.{'.'.join(parts[:place])}"
        if not isinstance(table, Mapping) or part not in table:
            return where
        table = table[part]
    return f"arms.{arm}.{where}"


def differing(members: list[Member]) -> dict[str, list[float]]:
    """The numbers of optimizer and loss in which members differ; anything else they must share."""
    varying: dict[str, list[float]] = {}
    for role in ("optimizer", "loss", "reweighting"):
        calls: list[Call] = [call for member in members if (call := getattr(member, role)) is not None]
        if len(calls) not in (0, len(members)):
            raise BadInput(f"members of one run share their {role}", role)
        if not calls:
            continue
        found = [numbers(call) for call in calls]
        for call, own in zip(calls, found, strict=True):
            if own.keys() != found[0].keys() or shape(call) != shape(calls[0]):
                raise BadInput(f"members of one run may differ in numbers of their {role}, not in its kind", role)
        for path in found[0]:
            values = [own[path] for own in found]
            if role == "reweighting" and len(set(values)) > 1 and path not in RATES:
                raise BadInput(f"members may differ in {', '.join(RATES)}, not in {path}", f"{role}.{path}")
            if len(set(values)) > 1:
                varying[f"{role}.{path}"] = values
    return varying
