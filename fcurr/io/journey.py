"""The fold over a program, watched: it evaluates, saves, stops when it is asked to, and does not go on from, or save,
what is not finite."""

import math
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


Look = Callable[[Journey, Tensor], Journey]  # a journey at an evaluation, the members that are due -> the journey after
LOOK_EVERY = 32  # steps after which an accelerator is asked whether a loss is finite
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
        watching.tell(watch.observers, journey, journey, Event("begin", done))
        while int(journey.run.iteration) < fold.length(journey.run):
            journey, anchor = _leg(program, journey, anchor, watch, look, shelf, tick)
        watching.tell(watch.observers, journey, journey, Event("end", int(journey.run.iteration)))
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
    here, record = [journey.run], journey.record
    length, ends = fold.length(here[0]), set(here[0].last.tolist())
    longest = (here[0].last == length).nonzero().flatten().tolist()
    was, told = here[0].clock.tolist(), watch.observers.told
    look_every = 1 if here[0].iteration.is_cpu else LOOK_EVERY  # looking at a loss waits for an accelerator
    before = journey if told else None
    del journey  # a state that nobody holds gives its memory to the next
    for done in fold.steps(program, here, watch.fetch):
        changed, clock = False, here[0].clock.tolist()
        watch.steps.add(here[0].train.loss)
        tick(1)
        if before is not None:
            _tell_step(watch, before, Journey(here[0], record))
        if watch.on_nonfinite != "skip" and (done % look_every == 0 or done in ends) and not _fine(here[0].train.loss):
            here[0] = _setback("loss", here[0].train.loss, here[0], anchor, watch, shelf)
            changed = True
        if (
            any(
                now // watch.evaluate_every > then // watch.evaluate_every for now, then in zip(clock, was, strict=True)
            )
            or done in ends
        ):
            run, due = here[0], _due(here[0], clock, was, watch.evaluate_every)
            if before is not None:
                watching.tell(watch.observers, before, Journey(run, record), Event("evaluate", done))
            after, record = look(Journey(run, record), due)
            here[0], changed = after, changed or after is not run
            del run, after
        stop = watch.asked()
        slowest = [min(times[member] for member in longest) // watch.save_every for times in (clock, was)]
        if stop or done == length or slowest[0] > slowest[1]:
            if watch.on_nonfinite != "skip":
                for name, leaf in here[0].train.params.items():
                    if not _fine(leaf):
                        here[0] = _setback(f"parameter {name}", leaf, here[0], anchor, watch, shelf)
                        changed = True
            watch.settle()
            if watch.writes:
                shelf.write(Journey(here[0], record), done, stopped=bool(stop) and done < length)
            if before is not None:
                watching.tell(watch.observers, before, Journey(here[0], record), Event("save", done))
            if stop and done < length:
                shelf.settle()
                raise Stopped(stop, done, length)
            anchor = Journey(here[0], record) if watch.on_nonfinite == "rewind" else anchor
        was = clock
        before = Journey(here[0], record) if told else None
        if changed:
            break
    return Journey(here[0], record), anchor


def _anchor(start: Journey, watch: Watch) -> Journey:
    """What a run that rewinds goes back to: the last checkpoint that was due, or the start."""
    if watch.on_nonfinite != "rewind" or not watch.folder.exists():
        return start
    found = checkpoint.latest(watch.folder, start, progress.say, due=True)
    return start if found is None else found


def _due(run: Run, clock: list[int], was: list[int], every: int) -> Tensor:
    """[member] bool: whose clock has come to an evaluation with this step, or who has come to the end."""
    crossed = torch.tensor([now // every > then // every for now, then in zip(clock, was, strict=True)])
    active = run.iteration <= run.last
    return active & (crossed.to(active.device) | (run.iteration == run.last))


def _setback(what: str, values: Tensor, run: Run, anchor: Journey, watch: Watch, shelf: Shelf) -> Run:
    """Something is not finite: the end of the run, or, in a run that rewinds, the state of the anchor in the members
    that are hurt, with the data going on from here."""
    bad = ~values.reshape(len(values), -1).isfinite()
    hurt = bad.any(1)
    tired = watch.steps.nonfinite_in_a_row() >= TIRED
    if watch.on_nonfinite == "rewind" and not tired:
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
