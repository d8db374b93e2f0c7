"""Where programs of commands are performed. An engine takes a program and says later how it ended.

`inline` performs in this process. `local` has processes of its own, which are begun anew if they are lost. Others are
in engine_submitit.py and engine_ray.py; all of them run `performing.perform`, and what they share is the store.
"""

import importlib
import multiprocessing
import os
import shutil
import signal
import tempfile
import threading
from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, NamedTuple

import torch

from fcurr.errors import BadInput, Halt
from fcurr.io import allocator, signals, toml
from fcurr.io.journey import Stopped
from fcurr.io.performing import Failed, Place, perform
from fcurr.study.near import near
from fcurr.study.schedule import Command

Job = tuple[Command, ...]


class Ended(NamedTuple):
    """How a program ended."""

    failed: list[Failed] = []  # commands that failed; the others are finished  # noqa: RUF012
    lost: str = ""  # the worker went away: why, as far as that is known
    stopped: int = 0  # the signal that stopped it


class Engine(NamedTuple):
    """Takes programs, `slots` at a time."""

    slots: int
    start: Callable[[Job, Place], Hashable]  # gives a ticket
    wait: Callable[[Collection[Any]], dict[Any, Ended]]  # of tickets, until one has ended or a moment is over
    close: Callable[[bool], None]  # whether to ask what goes on to stop, and wait on; or to end all and give it back


ENGINES = ("local", "inline", "submitit", "ray")
BELL = ".bell-"


def named(name: str, jobs: int, options: Mapping[str, Any] = {}) -> Engine:
    """The engine of a name, with so many workers. BadInput for a name or an option that there is not, and for what an
    engine needs and does not find."""
    if name not in ENGINES:
        raise BadInput(f"there is no engine `{name}`{near(name, ENGINES)}; there are {', '.join(ENGINES)}")
    if name in ("inline", "local"):
        if options:
            raise BadInput(f"--engine {name} takes no options, such as {next(iter(options))}")
        return inline() if name == "inline" else local(jobs)
    return importlib.import_module(f"fcurr.io.engine_{name}").engine(jobs, options)


def options(written: Sequence[str]) -> dict[str, Any]:
    """key=value as a table; values are those of TOML."""
    found = {}
    for one in written:
        key, equals, text = one.partition("=")
        if not equals or not key:
            raise BadInput(f"`{one}` is not an option: key=value, such as slurm_partition=long")
        found[key] = toml.value(text)
    return found


def inline() -> Engine:
    """In this process, one after another: for looking inside."""
    held: dict[int, tuple[Job, Place]] = {}

    def start(job: Job, place: Place) -> int:
        held[len(held)] = (job, place)
        return len(held) - 1

    def ended(tickets: Collection[int]) -> dict[int, Ended]:
        ticket = min(tickets)
        return {ticket: outcome(performed(*held[ticket]), True)}

    return Engine(1, start, ended, lambda stop: None)


def local(jobs: int) -> Engine:
    """In `jobs` processes of this machine, which live as long as the study."""
    context = multiprocessing.get_context("spawn")
    each = threads(jobs)
    pools: list[ProcessPoolExecutor | None] = [None] * jobs
    busy: dict[Future[Any], int] = {}
    stopping = False

    def submit(slot: int, job: Job, place: Place) -> Future[Any]:
        pool = pools[slot]
        if pool is None:
            pool = pools[slot] = ProcessPoolExecutor(1, mp_context=context, initializer=_begin)
        with signals.undisturbed():
            return pool.submit(_work, job, place._replace(threads=place.threads or each))

    def start(job: Job, place: Place) -> Future[Any]:
        slot = next(slot for slot in range(jobs) if slot not in busy.values())
        try:
            future = submit(slot, job, place)
        except BrokenProcessPool:  # killed while it had nothing to do
            pools[slot] = None
            future = submit(slot, job, place)
        busy[future] = slot
        return future

    def ended(tickets: Collection[Future[Any]]) -> dict[Future[Any], Ended]:
        done, _ = wait(tickets, timeout=0.2, return_when=FIRST_COMPLETED)
        found = {}
        for future in done:
            slot = busy.pop(future)
            try:
                found[future] = outcome(future.result(), stopping)
            except BrokenProcessPool:
                found[future] = Ended(lost="its process went away (out of memory, or killed)")
                _shut(pools[slot])
                pools[slot] = None
        return found

    def close(stop: bool) -> None:
        nonlocal stopping
        for slot in busy.values():
            for process in list((getattr(pools[slot], "_processes", None) or {}).values()):
                (process.kill if stopping else process.terminate)()  # asked a second time, they end at once
        stopping = True
        for pool in [] if stop else pools:
            _shut(pool)

    return Engine(jobs, start, ended, close)


def threads(jobs: int) -> int:
    """How many threads each of so many workers of this machine has, so that together they have as many as torch."""
    return max(1, torch.get_num_threads() // jobs)


def _shut(pool: ProcessPoolExecutor | None) -> None:
    if pool is not None:
        pool.shutdown(wait=True, cancel_futures=True)


def _begin() -> None:
    """A worker goes when the process is gone that began it."""
    allocator.keep()
    threading.Thread(target=_orphaned, daemon=True).start()


def _orphaned() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os.kill(os.getpid(), signal.SIGTERM)


def _work(job: Job, place: Place) -> "Ended | Exception":
    try:
        return performed(job, place)
    finally:
        parent = multiprocessing.parent_process()
        if parent is None or not parent.is_alive():  # nobody waits for this
            os._exit(0)


def performed(job: Job, place: Place) -> Ended | Exception:
    """How a program ended that is performed here; what nobody can go on from, as a full disk, is given, not raised: it
    travels."""
    try:
        return Ended(perform(job, place))
    except Stopped as stop:
        return Ended(stopped=stop.signal)
    except (OSError, Halt, BadInput) as wrong:
        return wrong


def outcome(found: Ended | Exception, stopping: bool) -> Ended:
    """How a program ended, where that is known; raises what was given. A worker that stops and was not asked to by the
    study is lost."""
    if isinstance(found, Exception):
        raise found
    if found.stopped and not stopping:
        return Ended(lost=f"its worker was told to end ({signal.Signals(found.stopped).name})")
    return found


class Away(NamedTuple):
    """What a worker that is elsewhere needs to know, beside its program and place."""

    here: Path  # where the study was begun: relative paths of a config are from there
    bell: Path  # a folder: it is asked to stop when something is in it


def away(place: Place, bell: Path) -> tuple[Place, Away]:
    """The same place, for somebody elsewhere who shares its folders."""
    whole = {name: getattr(place, name).resolve() for name in ("study", "store", "beside")}
    search = str(Path(place.search).resolve()) if place.search else ""
    return place._replace(**whole, search=search), Away(Path.cwd(), bell.resolve())


def performed_away(job: Job, place: Place, begun: Away) -> Ended | Exception:
    """What `performed` gives, of a worker that is elsewhere."""
    if begun.here.is_dir():
        os.chdir(begun.here)
    with signals.heeding(signals.told_in(begun.bell)):
        return performed(job, place)


def hung(study: Path) -> Path:
    """A bell for workers elsewhere, in the study's folder. Those of a conductor that is gone lose theirs, and stop."""
    for left in study.glob(f"{BELL}*"):
        shutil.rmtree(left, ignore_errors=True)
    return Path(tempfile.mkdtemp(prefix=BELL, dir=study))


def ring(bell: Path) -> None:
    """Asks all to stop that hear this bell."""
    (bell / "stop").touch()


def take_down(bell: Path) -> None:
    """Whoever still listens stops as well."""
    shutil.rmtree(bell, ignore_errors=True)
