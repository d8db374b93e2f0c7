"""How far a run is: a bar on a terminal, plain lines elsewhere; always on stderr."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator

Tick = Callable[[int], None]  # steps done since the last call
EVERY = 5.0  # seconds between plain lines


def say(message: str) -> None:
    """One line on stderr."""
    print(message, file=sys.stderr, flush=True)


@contextlib.contextmanager
def bar(label: str, total: int, done: int = 0) -> Iterator[Tick]:
    """Shows `label`, how many of `total` steps are done, their rate and the time left."""
    with (_drawn if sys.stderr.isatty() else _printed)(label, total, done) as tick:
        yield tick


@contextlib.contextmanager
def nothing() -> Iterator[Tick]:
    """Shows nothing."""
    yield lambda steps: None


@contextlib.contextmanager
def _drawn(label: str, total: int, done: int) -> Iterator[Tick]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, TextColumn, TimeRemainingColumn
    from rich.text import Text

    class Rate(ProgressColumn):
        def render(self, task):
            return Text(f"{task.speed:,.0f} steps/s" if task.speed else "", style="progress.data.speed")

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), Rate(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(label, total=total, completed=done)
        yield lambda steps: progress.advance(task, steps)


@contextlib.contextmanager
def _printed(label: str, total: int, done: int) -> Iterator[Tick]:
    began = last = time.monotonic()
    first = done

    def line(now: float) -> None:
        rate = (done - first) / max(now - began, 1e-9)
        left = f", {(total - done) / rate:.0f} s left" if done < total and rate > 0 else ""
        say(f"{label}: {done}/{total} steps, {rate:,.0f} steps/s{left}")

    def tick(steps: int) -> None:
        nonlocal done, last
        done += steps
        now = time.monotonic()
        if now - last >= EVERY:
            last = now
            line(now)

    yield tick
    line(time.monotonic())
