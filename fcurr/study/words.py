"""Values, groups and lists as people read them."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

SHARES = ("accuracy", "balanced_accuracy", "top_accuracy", "exact_match")  # metrics that are shown in %
REFERENCES = ("plain", "random")  # arms without an order of difficulty: what the others have to beat
BARE = ("run", "arm")  # keys whose values say what they are
LISTED = 12  # the most names in a message


def shown(value: Any) -> str:
    """A value of a key, in words: root(power=2). Values that read alike are the same."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        return str(int(value))
    if isinstance(value, Mapping):
        fixed = ", ".join(f"{key}={shown(value[key])}" for key in sorted(value) if key != "fn")
        return f"{value.get('fn', '')}({fixed})" if fixed or "fn" not in value else str(value["fn"])
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(shown, value))}]"
    return str(value)


def label(keys: Mapping[str, Any]) -> str:
    """A group's name: "plain, optimizer.learning_rate = 0.1"."""
    there = {key: shown(value) for key, value in keys.items() if value not in (None, "")}
    return ", ".join(text if key in BARE else f"{key} = {text}" for key, text in there.items()) or "all"


def short(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Names of groups for a figure, no longer than tells them apart: "root, easy_first, learning_rate = 0.1". Of a
    component its name, if no other component of the key has it; the arm, where nothing else is known or needed."""
    forms = {key: {shown(row[key]): row[key] for row in rows} for key in rows[0]}
    bare = {key: [head(value) for value in forms[key].values()] for key in forms}
    parts = []
    for row in rows:
        own = {}
        for key, value in row.items():
            if value not in (None, ""):
                text = name if bare[key].count(name := head(value)) == 1 else shown(value)
                word = key in BARE or isinstance(value, str | Mapping)
                own[key] = text if word else f"{key.rpartition('.')[2]} = {text}"
        parts.append(own)
    spare = [", ".join(own[key] for key in own if key != "arm") or ", ".join(own.values()) for own in parts]
    named = [", ".join(own.values()) for own in parts]
    for found in (spare, named):
        if len(set(found)) == len(found) and all(found):
            return found
    return [label(row) for row in rows]


def head(value: Any) -> str:
    """A component's name; anything else as it is shown."""
    return str(value["fn"]) if isinstance(value, Mapping) and "fn" in value else shown(value)


def words(repeats: Sequence[str]) -> str:
    """What a repeat is called: "seed and fold"."""
    return " and ".join(key.rpartition(".")[2].replace("_", " ") for key in repeats) or "repeat"


def listed(items: Iterable[str], last: str = "") -> str:
    """a, b and c; of many, the first. Semicolons part what has commas."""
    given = list(items)
    comma = "; " if any(", " in item for item in given) else ", "
    if len(given) > LISTED:
        return f"{comma.join(given[:LISTED])} and {len(given) - LISTED} more"
    if last and len(given) > 1:
        return f"{comma.join(given[:-1])} {last} {given[-1]}"
    return comma.join(given)
