"""The fold over a program, watched: it evaluates, saves, stops when it is asked to, and does not go on from, or save,
what is not finite."""

import math
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from fcurr import fold, tree
from fcurr.errors import Halt
from fcurr.fold import Program, Run
from fcurr.io import checkpoint, progress, watching
from fcurr.io.checkpoint import Shelf
from fcurr.io.steps import Steps
from fcurr.io.watching import Event, Observers
from fcurr.observe import Record
from fcurr.training import TrainState
from fcurr.types import Fetch


class Journey(NamedTuple):
    """What a checkpoint holds."""

    run: Run
    record: Record | tuple[()]  # () while scoring


class Stopped(Halt):
    """A signal came; the step was finished and the state is on the disk."""

    def __init__(self, signal: int, done: int, total: int) -> None:
        super().__init__(f"stopped after step {done} of {total}")
        self.signal = signal


class Diverged(Halt):
    """A loss is not a number any more."""


class Watch(NamedTuple):
    """How a program is watched."""

    label: str
    names: list[str]  # of the members, in messages
    folder: Path  # where its checkpoints are
    steps: Steps  # the losses of all steps
    evaluate_every: int  # of what the program's clock counts
    save_every: int
    on_nonfinite: str
    asked: Callable[[], int]  # the signal that has come, or 0
    begin: Callable[["Journey"], "Journey"]  # makes ready to go on from where a checkpoint stands
    settle: Callable[[], None]  # what has been written of steps and metrics is on the disk when it returns
    writes: bool  # whether this process is the one that writes
    fetch: Fetch
    observers: Observers = watching.NOBODY
    clock: Callable[[], float] = time.monotonic  # seconds


Look = Callable[[Journey, Tensor], Journey]  # a journey at an evaluation, the members that are due -> the journey after
LOOK_EVERY = 32  # steps after which an accelerator is asked whether a loss is finite
SAVED_AFTER = 1800.0  # seconds without a checkpoint after which one is written, whatever `save_every` says
TIRED = 100  # setbacks in a row after which a run that rewinds gives up


def travel(program: Program, here: list[Journey], watch: Watch, look: Look = lambda journey, due: journey) -> Journey:
    """From the newest checkpoint, or the start, to the end. `here` holds the start, and is emptied: a state that nobody
    holds gives its memory to the next."""
    start = here.pop()
    found = checkpoint.latest(watch.folder, start, progress.say) if watch.folder.exists() else None
    here.append(watch.begin(start if found is None else found))
    anchor = _anchor(start, watch) if watch.on_nonfinite == "rewind" else None
    del start, found
    done, length = int(here[0].run.iteration), fold.length(here[0].run)
    if done >= length:
        return here.pop()
    saved = [watch.clock()]
    bar = progress.bar(watch.label, length, done) if watch.writes else progress.nothing()
    with checkpoint.shelf(watch.folder) as shelf, bar as tick:
        watching.tell(watch.observers, here[0], here[0], Event("begin", done))
        while int(here[0].run.iteration) < fold.length(here[0].run):
            anchor = _leg(program, here, anchor, watch, look, shelf, tick, saved)
        watching.tell(watch.observers, here[0], here[0], Event("end", int(here[0].run.iteration)))
    return here.pop()


def _leg(
    program: Program,
    at: list[Journey],
    anchor: Journey | None,
    watch: Watch,
    look: Look,
    shelf: Shelf,
    tick: progress.Tick,
    saved: list[float],
) -> Journey | None:
    """From where the journey is `at` until an evaluation, a setback or the end changes something; and what to rewind to
    then. `saved` is when the last checkpoint was written."""
    here, record = [at[0].run], at[0].record
    length, ends = fold.length(here[0]), set(here[0].last.tolist())
    longest = (here[0].last == length).nonzero().flatten().tolist()
    was, told, rewinds = here[0].clock.tolist(), watch.observers.told, watch.on_nonfinite == "rewind"
    look_every = 1 if here[0].iteration.is_cpu else LOOK_EVERY  # looking at a loss waits for an accelerator
    before, odd = at[0] if told else None, _odd(here[0].train).keys()
    at.clear()
    for done in fold.steps(program, here, watch.fetch):
        changed, clock = False, here[0].clock.tolist()
        watch.steps.add(here[0].train.loss)
        tick(1)
        if before is not None:
            _tell_step(watch, before, Journey(here[0], record))
        if watch.on_nonfinite != "skip" and (done % look_every == 0 or done in ends):
            losses = _going(here[0], here[0].train.loss)
            if not _fine(losses):
                here[0] = _setback("loss", losses, here[0], anchor, watch, shelf)
                changed, length = True, fold.length(here[0])
        if done in ends or _crossed(clock, was, watch.evaluate_every):
            run, due = here[0], _due(here[0], clock, was, watch.evaluate_every)
            if before is not None:
                watching.tell(watch.observers, before, Journey(run, record), Event("evaluate", done))
            here[0], record = look(Journey(run, record), due)
            changed, length = changed or here[0] is not run, fold.length(here[0])
            del run
        stop = watch.asked()
        slow, slower = ([min(times[member] for member in longest)] for times in (clock, was))
        due_now = done == length or _crossed(slow, slower, watch.save_every)
        if watch.writes and not (stop or due_now) and watch.clock() - saved[0] >= SAVED_AFTER:
            saved[0] = watch.clock()
            if not _odd(here[0].train).keys() - odd:
                watch.settle()
                shelf.write(Journey(here[0], record), done, stopped=True)
        if stop or due_now:
            saved[0] = watch.clock()
            if watch.on_nonfinite != "skip":
                for name, leaf in _odd(here[0].train).items():
                    if name not in odd and not _fine(leaf := _going(here[0], leaf)):
                        here[0] = _setback(name, leaf, here[0], anchor, watch, shelf)
                        changed, length = True, fold.length(here[0])
            watch.settle()
            if watch.writes:
                shelf.write(Journey(here[0], record), done, stopped=not due_now)
            if before is not None:
                watching.tell(watch.observers, before, Journey(here[0], record), Event("save", done))
            if stop and done < length:
                shelf.settle()
                raise Stopped(stop, done, length)
            anchor = Journey(here[0], record) if rewinds else None
        was = clock
        before = Journey(here[0], record) if told else None
        if changed:
            break
    at.append(Journey(here[0], record))
    return anchor


def _going(run: Run, values: Tensor) -> Tensor:
    """The values [member, ...], with nought for members that have ended before this step."""
    ended = run.iteration > run.last
    return values if not bool(ended.any()) else tree.where(ended, torch.zeros_like(values), values)


def _odd(states: TrainState) -> dict[str, Tensor]:
    """Parameters, buffers and what the optimizer remembers, where something is not finite, by name."""
    found = {}
    for kind, leaves in {"parameter": states.params, "buffer": states.buffers, "optimizer's": states.optimizer}.items():
        for name, leaf in tree.named(leaves, "").items():
            if leaf.is_floating_point() and not _fine(leaf):
                found[f"{kind} {re.sub(r'[^0-9A-Za-z_.]+', ' ', name).strip(' .')}"] = leaf
    return found


def _crossed(clock: list[int], was: list[int], every: int) -> bool:
    """Whether the clock of any member has come to a multiple."""
    return any(now // every > then // every for now, then in zip(clock, was, strict=True))


def _anchor(start: Journey, watch: Watch) -> Journey:
    """What a run that rewinds goes back to: the last checkpoint that was due, or the start."""
    found = checkpoint.latest(watch.folder, start, progress.say, due=True) if watch.folder.exists() else None
    return start if found is None else found


def _due(run: Run, clock: list[int], was: list[int], every: int) -> Tensor:
    """[member] bool: whose clock has come to an evaluation with this step, or who has come to the end."""
    crossed = torch.tensor([now // every > then // every for now, then in zip(clock, was, strict=True)])
    active = run.iteration <= run.last
    return active & (crossed.to(active.device) | (run.iteration == run.last))


def _setback(what: str, values: Tensor, run: Run, anchor: Journey | None, watch: Watch, shelf: Shelf) -> Run:
    """Something is not finite: the end of the run; or of the members that are hurt, if the others go on; or, in a run
    that rewinds, the state of the anchor in the members that are hurt, with the data going on from here."""
    bad = ~values.reshape(len(values), -1).isfinite()
    hurt = bad.any(1)
    if watch.on_nonfinite == "leave":
        return run._replace(last=torch.where(hurt, torch.minimum(run.iteration, run.last), run.last))
    tired = watch.steps.setback() >= TIRED
    if anchor is not None and not tired:
        watch.steps.note(rewound_to=int(anchor.run.iteration))
        back = tree.where(hurt, anchor.run.train, run.train)
        after = run._replace(train=back._replace(iteration=run.train.iteration))
        if watch.observers.told:
            was, now = (Journey(one, ()) for one in (run, after))
            watching.tell(watch.observers, was, now, Event("setback", int(run.iteration)))
        return after
    wrong = hurt.nonzero().flatten().tolist()
    value = float(values.reshape(len(values), -1)[wrong[0]][bad[wrong[0]]][0])
    which = "; ".join(watch.names[member] for member in wrong[:3])
    which += f"; and {len(wrong) - 3} more" if len(wrong) > 3 else ""
    shelf.settle()
    there = checkpoint.listed(watch.folder)
    kept = f"the last good checkpoint is {there[-1]}" if there else "no checkpoint had been written yet"
    said = f"the {what} became {value} at step {int(run.iteration)} in {which}"
    said += f", after {TIRED} steps in a row that were rewound" if tired else ""
    watch.settle()
    raise Diverged(f"{said}; {kept}; a smaller learning rate or clipping may help")


def _tell_step(watch: Watch, before: Journey, after: Journey) -> None:
    done = int(after.run.iteration)
    watching.tell(watch.observers, before, after, Event("step", done))
    ended = after.run.cursor.epoch > before.run.cursor.epoch
    if bool((ended | (after.run.cursor.position == after.run.cursor.size)).any()):
        watching.tell(watch.observers, before, after, Event("pass", done))


def _fine(values: Tensor) -> bool:
    """Whether all are finite; their sum is, unless it overflows."""
    return math.isfinite(float(values.sum())) or bool(values.isfinite().all())
