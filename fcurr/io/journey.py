"""The fold over a program, watched: it evaluates, saves, stops when it is asked to, and does not go on from, or save,
what is not finite."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from fcurr import fold, tree
from fcurr.errors import Halt
from fcurr.fold import Program, Run
from fcurr.io import checkpoint, progress, watching
from fcurr.io.checkpoint import Shelf
from fcurr.io.steps import Steps
from fcurr.io.watching import Event, Observers
from fcurr.observe import Record
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

    phase: str  # "score" or "train"
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


Look = Callable[[Journey, Tensor], Journey]  # a journey at an evaluation, the members that are due -> the journey after
TIRED = 100  # setbacks in a row after which a run that rewinds gives up


def travel(program: Program, start: Journey, watch: Watch, look: Look = lambda journey, due: journey) -> Journey:
    """From the newest checkpoint, or the start, to the end."""
    found = checkpoint.latest(watch.folder, start, progress.say) if watch.folder.exists() else None
    journey = start if found is None else found
    journey, done = watch.begin(journey), int(journey.run.iteration)
    if done >= fold.length(journey.run):
        return journey
    bar = progress.bar(watch.label, fold.length(journey.run), done) if watch.writes else progress.nothing()
    with checkpoint.shelf(watch.folder) as shelf, bar as tick:
        anchor = _anchor(start, watch)
        watching.tell(watch.observers, journey, journey, Event("begin", watch.phase, done))
        while int(journey.run.iteration) < fold.length(journey.run):
            journey, anchor = _leg(program, journey, anchor, watch, look, shelf, tick)
        watching.tell(watch.observers, journey, journey, Event("end", watch.phase, int(journey.run.iteration)))
    return journey


def _leg(
    program: Program,
    journey: Journey,
    anchor: Journey,
    watch: Watch,
    look: Look,
    shelf: Shelf,
    tick: progress.Tick,
) -> tuple[Journey, Journey]:
    """From here until an evaluation, a setback or the end changes something; and what to rewind to."""
    began = journey.run
    length, ends = fold.length(began), set(began.last.tolist())
    look_every = 1 if began.iteration.is_cpu else fold.AHEAD  # looking at a loss waits for an accelerator
    for run in fold.proceed(program, began, watch.fetch):
        before, journey = journey, Journey(run, journey.record)
        done = watch.steps.add(run.train.loss)
        tick(1)
        if watch.observers.told:
            _tell_step(watch, before, journey)
        if watch.on_nonfinite != "skip" and (done % look_every == 0 or done in ends) and not _fine(run.train.loss):
            journey = _setback("loss", run.train.loss, journey, anchor, watch, shelf)
        due = _due(program, before.run, run, watch.evaluate_every, ends)
        if due is not None:
            watching.tell(watch.observers, before, journey, Event("evaluate", watch.phase, done))
            journey = look(journey, due)
        stop = watch.asked()
        if stop or done == length or _save_due(program, before.run, run, watch.save_every):
            if watch.on_nonfinite != "skip":
                for name, leaf in run.train.params.items():
                    if not _fine(leaf):
                        journey = _setback(f"parameter {name}", leaf, journey, anchor, watch, shelf)
            watch.settle()
            if watch.writes:
                shelf.write(journey, done, stopped=bool(stop) and done < length)
            watching.tell(watch.observers, before, journey, Event("save", watch.phase, done))
            if stop and done < length:
                shelf.settle()
                raise Stopped(stop, done, length)
            anchor = journey if watch.on_nonfinite == "rewind" else anchor
        if journey.run is not run:
            return journey, anchor
    return journey, anchor


def _anchor(start: Journey, watch: Watch) -> Journey:
    """What a run that rewinds goes back to: the last checkpoint that was due, or the start."""
    if watch.on_nonfinite != "rewind" or not watch.folder.exists():
        return start
    found = checkpoint.latest(watch.folder, start, progress.say, due=True)
    return start if found is None else found


def _due(program: Program, before: Run, after: Run, every: int, ends: set[int]) -> Tensor | None:
    """[member] bool: whose clock has come to an evaluation with this step, or who has come to the end; None if nobody
    has."""
    done = after.iteration
    if program.clock == "step" and int(done) % every and int(done) not in ends:
        return None
    active = before.iteration < after.last
    crossed = fold.reading(program, after) // every > fold.reading(program, before) // every
    due = active & (crossed | (done == after.last))
    return due if bool(due.any()) else None


def _save_due(program: Program, before: Run, after: Run, every: int) -> bool:
    """Whether the clock of the slowest member has come to a checkpoint."""
    if program.clock == "step":
        return int(after.iteration) % every == 0
    slowest = [fold.reading(program, run)[run.last == run.last.max()].min() // every for run in (before, after)]
    return bool(slowest[1] > slowest[0])


def _setback(what: str, values: Tensor, journey: Journey, anchor: Journey, watch: Watch, shelf: Shelf) -> Journey:
    """Something is not finite: the end of the run, or, in a run that rewinds, the state of the anchor in the members
    that are hurt, with the data going on from here."""
    run, bad = journey.run, ~values.reshape(len(values), -1).isfinite()
    hurt = bad.any(1)
    tired = watch.steps.nonfinite_in_a_row() >= TIRED
    if watch.on_nonfinite == "rewind" and not tired:
        watch.steps.note(rewound_to=int(anchor.run.iteration))
        back = tree.where(hurt, anchor.run.train, run.train)
        after = journey._replace(run=run._replace(train=back._replace(iteration=run.train.iteration)))
        watching.tell(watch.observers, journey, after, Event("setback", watch.phase, int(run.iteration)))
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
    watching.tell(watch.observers, before, after, Event("step", watch.phase, done))
    ended = after.run.cursor.epoch > before.run.cursor.epoch
    if bool((ended | (after.run.cursor.position == after.run.cursor.size)).any()):
        watching.tell(watch.observers, before, after, Event("pass", watch.phase, done))


def _fine(values: Tensor) -> bool:
    """Whether all are finite; their sum is, unless it overflows."""
    return math.isfinite(float(values.sum())) or bool(values.isfinite().all())
