"""Ctrl-C, SIGTERM and a scheduler's SIGUSR1 or SIGUSR2 as a question that a run asks after every step."""

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from pathlib import Path

Asked = Callable[[], int]  # the signal that has come, or 0
NAMES = ("SIGINT", "SIGTERM", "SIGUSR1", "SIGUSR2")  # some systems lack the last two
LOOK_EVERY = 1.0  # seconds between two looks at a folder

_ELSEWHERE: ContextVar[Asked] = ContextVar("_ELSEWHERE", default=lambda: 0)
_AROUND: ContextVar[Asked | None] = ContextVar("_AROUND", default=None)  # of whoever is asked to stop already


@contextlib.contextmanager
def asked_to_stop() -> Iterator[Asked]:
    """Gives a function: the signal that has come, or 0. A second signal acts at once, as it would without this. Within
    another, it is the other's: what one is told, both know."""
    came, elsewhere, around = 0, _ELSEWHERE.get(), _AROUND.get()

    def note(number: int, frame: object) -> None:
        nonlocal came
        came = number
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)

    def asked() -> int:
        return came or (around() if around is not None else 0) or elsewhere()

    if around is not None or threading.current_thread() is not threading.main_thread():
        yield asked
        return
    numbers = [getattr(signal, name) for name in NAMES if hasattr(signal, name)]
    old = {number: signal.signal(number, note) for number in numbers}
    token = _AROUND.set(asked)
    try:
        yield asked
    finally:
        _AROUND.reset(token)
        for number, handler in old.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def heeding(asked: Asked) -> Iterator[None]:
    """Within it, whoever is `asked_to_stop` asks this as well."""
    token = _ELSEWHERE.set(asked)
    try:
        yield
    finally:
        _ELSEWHERE.reset(token)


def told_in(folder: Path) -> Asked:
    """SIGTERM from when there is something in a folder, or no such folder any more: how somebody on another machine is
    asked. Listing a folder, unlike looking for a file, makes a network file system ask its server."""
    looked, found = -LOOK_EVERY, 0

    def asked() -> int:
        nonlocal looked, found
        if not found and time.monotonic() - looked >= LOOK_EVERY:
            looked = time.monotonic()
            with contextlib.suppress(OSError):  # of a server that is away for a moment
                found = int(signal.SIGTERM) if not folder.is_dir() or any(folder.iterdir()) else 0
        return found

    return asked


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """Processes begun within it do not get a terminal's Ctrl-C: it is for the one that began them. It waits until the
    end of this, and nothing of it is lost."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    old = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, old)
