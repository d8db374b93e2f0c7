"""Ctrl-C and SIGTERM as a question that a run asks after every step."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def asked_to_stop() -> Iterator[Callable[[], int]]:
    """Gives a function: the signal that has come, or 0. A second signal acts at once, as it would without this."""
    came = 0

    def note(number: int, frame: object) -> None:
        nonlocal came
        came = number
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)

    if threading.current_thread() is not threading.main_thread():
        yield lambda: came
        return
    old = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: came
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
