"""Optuna searches the points of a sweep; what it knows is an SQLite file in the study's folder.

A trial that was under way when its process died is given out again under its own number, with its own point. Optuna's
way (fail it, enqueue a copy) would count it twice, and with ask and tell its heartbeat never beats, so who asks says
which trials are under way. A trial that failed stays under way for Optuna, which lets no trial that has ended be tried
again, and is marked. Everything random is a function of (seed, number of the trial).
"""

import contextlib
import copy
import importlib.util
import json
import math
import sqlite3
import warnings
from collections.abc import Collection, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from filelock import FileLock, Timeout

from fcurr import rng
from fcurr.errors import BadInput
from fcurr.io import files
from fcurr.study import spaces, sweeping
from fcurr.study.spaces import Range, Space, Values
from fcurr.study.sweeping import Sweep
from fcurr.types import Direction, Iterations

if TYPE_CHECKING:
    import optuna

WAIT = 120.0  # seconds for another worker that asks, or writes
STARTUP = 10  # trials before TPE has seen enough to propose; they are drawn, as those of a random search
SPACE = "searched"  # what a study remembers of its space
PRUNED, FAILED = "pruned_at", "failed"  # what a trial remembers

State = Literal["complete", "pruned", "failed"]


class Search(NamedTuple):
    path: Path
    sweep: Sweep
    study: "optuna.Study"
    storage: "optuna.storages.RDBStorage"
    lock: FileLock  # held by who asks or takes back
    space: "dict[str, optuna.distributions.BaseDistribution]"
    room: int | None = None  # trials at once, at most; there is none


class Trial(NamedTuple):
    number: int  # from 0
    point: dict[str, Any]  # dotted key -> value


class Finished(NamedTuple):
    number: int
    point: dict[str, Any]
    value: float | None  # of a pruned trial, what it reported last
    state: State


def opened(
    path: Path, sweep: Sweep, direction: Direction, name: str, *, every: Iterations = 1, total: Iterations
) -> Search:
    """The search of this name in a file, begun if there is none; BadInput where it is of another sweep. A file holds
    searches of several names. Any process may open it.

    `every`, `total`: the first iteration at which a trial can be pruned, and the one at which it ends; reports are made
    at iterations between.
    """
    if importlib.util.find_spec("optuna") is None:
        raise BadInput('a search needs optuna: pip install "fcurr[sweep]"', "sweep")
    import optuna

    optuna.logging.set_verbosity(optuna.logging.CRITICAL)
    space = {key: _distribution(one) for key, one in sweep.spaces.items()}
    lock = FileLock(f"{path}.lock", timeout=WAIT)
    connect = partial(sqlite3.connect, path.resolve(), timeout=WAIT, check_same_thread=False)
    with _working(path), lock:
        storage = optuna.storages.RDBStorage("sqlite:///search.db", engine_kwargs={"creator": connect})
        study = optuna.create_study(
            storage=storage,
            study_name=name,
            direction="maximize" if direction.higher else "minimize",
            sampler=_sampler(sweep),
            pruner=_pruner(sweep, every, total),
            load_if_exists=True,
        )
        _agree(study, sweep, direction)
    return Search(path, sweep, study, storage, lock, space)


def described(path: Path, sweep: Mapping[str, Any], higher: bool, name: str, every: int, total: int) -> None:
    """Writes down beside a search how it was opened, for workers to open it as well."""
    table = {"sweep": dict(sweep), "higher": higher, "name": name, "every": every, "total": total}
    files.write_json(path.with_suffix(".json"), table)


def description(path: Path) -> dict[str, Any] | None:
    """What `described` has written down last, if anything."""
    beside = path.with_suffix(".json")
    return json.loads(beside.read_bytes()) if beside.exists() else None


def reopened(path: Path) -> Search:
    """The search that `described` has described last."""
    table = description(path)
    if table is None:
        raise BadInput(f"{path}: there is no search")
    sweep, direction = sweeping.read(table["sweep"]), Direction(table["higher"])
    return opened(path, sweep, direction, table["name"], every=table["every"], total=table["total"])


def ask(search: Search) -> Trial | None:
    """The next trial: first those that `resume` took back, then new ones; None when as many as the sweep wants have
    been given out. One worker asks at a time."""
    with _working(search.path), search.lock:
        trials = search.storage.get_all_trials(search.study._study_id, deepcopy=False)
        if len(trials) >= search.sweep.trials and not any(one.state.name == "WAITING" for one in trials):
            return None
        trial = search.study.ask(search.space)
        return Trial(trial.number, _point(search.sweep, trial.params))


def report(search: Search, number: int, iteration: int, value: float) -> bool:
    """Whether a trial whose metric is `value` at this iteration should be pruned. Said again after a restart, it counts
    once, and is judged by what was known of the trial at this iteration. Of a trial that has ended nothing is written,
    and without a pruner of none."""
    from optuna.exceptions import UpdateFinishedTrialError

    if search.sweep.pruner == "none":
        return False
    with _working(search.path), contextlib.suppress(UpdateFinishedTrialError):
        which = search.storage.get_trial_id_from_study_id_trial_number(search.study._study_id, number)
        trial = copy.deepcopy(search.storage.get_trial(which))
        if (said := trial.user_attrs.get(PRUNED)) is not None and iteration >= said:
            return True
        search.storage.set_trial_intermediate_value(which, iteration, value)
        trial.intermediate_values = {at: v for at, v in trial.intermediate_values.items() if at < iteration}
        trial.intermediate_values[iteration] = value
        prune = bool(search.study.pruner.prune(search.study, trial))
        if prune:
            search.storage.set_trial_user_attr(which, PRUNED, iteration)
        return prune
    return False


def tell(search: Search, number: int, value: float | Literal["pruned", "failed"]) -> None:
    """How a trial has ended; said again, it counts once. A value that is not finite is a failure."""
    from optuna.trial import TrialState

    with _working(search.path):
        which = search.storage.get_trial_id_from_study_id_trial_number(search.study._study_id, number)
        trial = search.storage.get_trial(which)
        if trial.state.is_finished() or trial.user_attrs.get(FAILED):
            return
        if value == "pruned":
            search.study.tell(number, state=TrialState.PRUNED, skip_if_finished=True)
        elif value == "failed" or not math.isfinite(value):
            search.storage.set_trial_user_attr(which, FAILED, True)
        else:
            search.study.tell(number, value, skip_if_finished=True)


def resume(search: Search, under_way: Collection[int] = ()) -> list[int]:
    """The numbers of trials that were under way when their process died, or that failed, which `ask` gives out again:
    what made them fail may have been mended. For the one process that gives out work, before it does; `under_way`: the
    trials that live workers have."""
    from optuna.trial import TrialState

    with _working(search.path), search.lock:
        running = search.storage.get_all_trials(search.study._study_id, deepcopy=False, states=(TrialState.RUNNING,))
        lost = [trial for trial in running if trial.number not in under_way]
        for trial in lost:
            if trial.user_attrs.get(FAILED):
                search.storage.set_trial_user_attr(trial._trial_id, FAILED, False)
            search.storage.set_trial_state_values(trial._trial_id, TrialState.WAITING)
        return [trial.number for trial in lost]


def finished(search: Search) -> list[Finished]:
    """Every trial that has ended, in order."""
    with _working(search.path):
        trials = search.storage.get_all_trials(search.study._study_id, deepcopy=False)
    return [
        Finished(trial.number, _point(search.sweep, trial.params), trial.value, state)
        for trial in trials
        if (state := _state(trial)) is not None
    ]


def _state(trial: "optuna.trial.FrozenTrial") -> State | None:
    names: dict[str, State] = {"COMPLETE": "complete", "PRUNED": "pruned"}
    return "failed" if trial.user_attrs.get(FAILED) else names.get(trial.state.name)


def _distribution(space: Space) -> "optuna.distributions.BaseDistribution":
    """A space as Optuna has it: values by their text, as it takes no tables; a range by its places, in their order."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if isinstance(space, Values):
        return CategoricalDistribution([spaces.canonical(one) for one in space.values])
    if isinstance(space, Range):
        return IntDistribution(0, space.steps - 1)
    if space.whole:
        return IntDistribution(int(space.low), int(space.high), log=space.log)
    return FloatDistribution(float(space.low), float(space.high), log=space.log)


def _point(sweep: Sweep, params: dict[str, Any]) -> dict[str, Any]:
    return {key: _decoded(space, params[key]) for key, space in sweep.spaces.items() if key in params}


def _decoded(space: Space, param: Any) -> Any:
    if isinstance(space, Values):
        return next(one for one in space.values if spaces.canonical(one) == param)
    return spaces.value(space, param)


def _encoded(space: Space, place: float) -> Any:
    return spaces.canonical(space.values[int(place)]) if isinstance(space, Values) else place


def _sampler(sweep: Sweep) -> Any:
    """What proposes points, as Optuna calls it. TPE is made anew for each trial, seeded by its number, so that a search
    that was cut off goes on as if it had not been. Bergstra et al. (2011), Algorithms for Hyper-Parameter Optimization;
    all keys together (multivariate), and away from trials under way (constant liar)."""
    from optuna.samplers import BaseSampler, TPESampler

    class Numbered(BaseSampler):
        def infer_relative_search_space(self, study: Any, trial: Any) -> dict[str, Any]:
            return {key: _distribution(space) for key, space in sweep.spaces.items()}

        def sample_relative(self, study: Any, trial: Any, search_space: dict[str, Any]) -> dict[str, Any]:
            places = sweeping.drawn(sweep, trial.number)
            drawn = {key: _encoded(sweep.spaces[key], place) for key, place in places.items()}
            if sweep.method == "random":
                return drawn
            seed = int(rng.fold(sweep.seed, trial.number)) & 0xFFFFFFFF
            options: dict[str, Any] = {"multivariate": True, "constant_liar": True, "n_startup_trials": STARTUP}
            open_ones = {key: one for key, one in search_space.items() if not one.single()}
            return drawn | TPESampler(seed=seed, **options).sample_relative(study, trial, open_ones)

        def sample_independent(self, study: Any, trial: Any, param_name: str, param_distribution: Any) -> Any:
            return self.sample_relative(study, trial, self.infer_relative_search_space(study, trial))[param_name]

    return Numbered()


def _pruner(sweep: Sweep, every: int, total: int) -> Any:
    """Li et al. (2018), Hyperband, between the first evaluation and the end; or whoever is worse than the median of
    those before at the same iteration, after five."""
    from optuna import pruners

    if sweep.pruner == "none":
        return pruners.NopPruner()
    if sweep.pruner == "median":
        return pruners.MedianPruner(n_startup_trials=5, n_warmup_steps=every)
    return pruners.HyperbandPruner(min_resource=every, max_resource=max(every, total))


def _agree(study: Any, sweep: Sweep, direction: Direction) -> None:
    """BadInput where the stored search is of something else; more trials are welcome."""
    own = {f"sweep.{key}": _written(space) for key, space in sweep.spaces.items()}
    own |= {"sweep.method": sweep.method, "sweep.seed": str(sweep.seed), "sweep.pruner": sweep.pruner}
    own["the metric"] = "higher is better" if direction.higher else "lower is better"
    known = study.user_attrs.get(SPACE)
    if known is None:
        study.set_user_attr(SPACE, own)
        return
    for key in dict.fromkeys((*known, *own)):
        if known.get(key) != own.get(key):
            was, now = (_short(one.get(key, "not there")) for one in (known, own))
            where = key if key.startswith("sweep.") else "sweep"
            words = f"{'' if where == key else f'{key}: '}was {was} when this search began, and is {now}"
            raise BadInput(f"{words}: another search needs another name or a folder of its own", where)


def _written(space: Space) -> str:
    return spaces.canonical(space.values) if isinstance(space, Values) else spaces.described(space)


def _short(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:57]}..."


@contextlib.contextmanager
def _working(path: Path) -> Iterator[None]:
    """Without Optuna's warnings of what is experimental; and BadInput where the file cannot be read or written."""
    from optuna.exceptions import OptunaError
    from sqlalchemy.exc import SQLAlchemyError

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except Timeout:
        raise BadInput(f"{path}: another process has held it for {WAIT:.0f} seconds") from None
    except (OptunaError, SQLAlchemyError, RuntimeError) as wrong:
        while isinstance(wrong.__cause__, Exception):  # Optuna's words wrap those of SQLAlchemy, which wrap SQLite's
            wrong = wrong.__cause__
        first = (str(wrong).splitlines() or [type(wrong).__name__])[0]
        raise BadInput(f"{path}, the file of a search, cannot be used: {first}") from wrong
