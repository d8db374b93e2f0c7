"""What a journal says: a fold over its lines, of which the last one of each command counts.

A line is a flat JSON object that begins with the key of its command, so that the last lines of a million are found
without parsing the others. Lines that were cut short are nothing.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

EVENTS = ("planned", "retired", "started", "progress", "finished", "failed", "pruned", "stopped")
_OPENS = '{"command":"'
_KEY = slice(len(_OPENS), len(_OPENS) + 16)

Last = dict[bytes, bytes]  # key of a command -> its last line


def line(key: str, event: str, **facts: Any) -> str:
    """A record as a line; facts are numbers and texts."""
    assert event in EVENTS and len(key) == 16
    return json.dumps({"command": key, "event": event, **facts}, separators=(",", ":"), allow_nan=False) + "\n"


def latest(lines: Sequence[bytes], before: Mapping[bytes, bytes] | None = None) -> Last:
    """The last line of every command; `before` is what earlier ones said: latest(a + b) is latest(b, latest(a))."""
    last = {one[_KEY]: one for one in lines}  # a million lines in a third of a second
    if not all(map(_whole, last.values())):
        last = {one[_KEY]: one for one in lines if _whole(one)}
    return {**(before or {}), **last}


def _whole(one: bytes) -> bool:
    return one[:1] == b"{" and one[-1:] == b"}" and len(one) > _KEY.stop


def standing(last: Mapping[bytes, bytes]) -> dict[str, dict[str, Any]]:
    """key -> the last record of every command that has not been retired, in the order in which they were planned."""
    records = (json.loads(one) for one in last.values())
    return {record["command"]: record for record in records if record["event"] != "retired"}
