"""Where else metrics are written, beside the run's own file: `log(rows)` after an evaluation, `close()` at the end."""

from collections.abc import Callable
from typing import Any, NamedTuple


class Logger(NamedTuple):
    """Somebody who is told the lines of metrics.jsonl as they are written."""

    log: Callable[[list[dict[str, Any]]], None]
    close: Callable[[], None]
