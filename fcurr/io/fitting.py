"""Models that are trained on the way to a run: those that score, and what a model of clean samples loses."""

import hashlib
import itertools
import shutil
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from fcurr import evaluating, fold, training, tree
from fcurr.io import loading, store
from fcurr.io.journey import Journey, Watch, travel
from fcurr.io.loggers import Logger
from fcurr.io.steps import Steps
from fcurr.study.bind import required
from fcurr.study.config import Experiment
from fcurr.study.drawing import together
from fcurr.study.members import weightings
from fcurr.study.prepare import Prepared, difficulty
from fcurr.study.program import chosen, fit_program, placed
from fcurr.training import ALONE, Team
from fcurr.types import Batch, Dataset, Fetch, Params


class Setting(NamedTuple):
    """Where a run takes place."""

    folder: Path
    asked: Callable[[], int]  # the signal that has come, or 0
    team: Team
    loggers: Sequence[Logger]  # who else is told the lines of metrics

    @property
    def writes(self) -> bool:
        return self.team.rank == 0


def fingerprint(prepared: Prepared) -> str:
    """A hash of all samples and labels that are trained on, chosen by and judged by; of samples that are not in memory,
    of what they are called."""
    digest = hashlib.sha256()
    clean = () if prepared.clean is None else (prepared.clean,)
    for part in (prepared.train, prepared.validation, prepared.test, *clean):
        for leaf in (part.x, part.y):
            digest.update(tree.raw(leaf) if isinstance(leaf, Tensor) else leaf.identity.encode())
    for ids in prepared.id.values():
        digest.update(tree.raw(ids))
    return digest.hexdigest()


def scored(experiment: Experiment, prepared: Prepared, setting: Setting) -> Tensor:
    """The difficulty of the training samples, from the folder if it is there already."""
    from fcurr.io import tables  # pyarrow

    path = setting.folder / store.SCORES
    if path.exists():
        return tables.read_scores(path, prepared.id["train"])

    scores = scored_anew(experiment, prepared, setting)
    recipe = experiment.config["score"]
    recipe = recipe if isinstance(recipe, dict) else {"fn": recipe}
    if setting.writes:
        tables.write_scores(path, prepared, scores, recipe=recipe, data=fingerprint(prepared))
        shutil.rmtree(setting.folder / store.SCORING, ignore_errors=True)
    return scores


def scored_anew(experiment: Experiment, prepared: Prepared, setting: Setting) -> Tensor:
    """[train] float64: the difficulty of the training samples, larger is harder."""
    return difficulty(experiment, prepared, _fitting(experiment, prepared, setting, "score"))


def _fitting(
    experiment: Experiment, prepared: Prepared, setting: Setting, name: str
) -> Callable[[Dataset, Tensor], Params]:
    """What trains models that are not members: on data, a model for each row of the samples it sees."""
    settings = experiment.training
    fits = itertools.count()

    def fit(data: Dataset, seen: Tensor) -> Params:
        program, run = fit_program(experiment, prepared, data, seen, setting.team)
        here, device = [Journey(run, ())], run.iteration.device
        del run
        watch = Watch(
            label=f"scoring ({len(seen)} models)",
            names=[f"model {member} of the score" for member in range(len(seen))],
            folder=setting.folder / store.SCORING / f"{name}{next(fits)}",
            steps=Steps(None),
            evaluate_every=experiment.fit.iterations,
            save_every=settings.save_every if settings.clock == "step" else experiment.fit.iterations,
            on_nonfinite="stop",
            asked=setting.asked,
            begin=lambda journey: journey,
            settle=lambda: None,
            writes=setting.writes,
            fetch=fetching(data, device, setting.team),
        )
        return training.variables(travel(program, here, watch).run.train)

    return fit


def _irreducible(experiment: Experiment, prepared: Prepared, setting: Setting) -> Tensor:
    """[train and clean] what a model of the clean samples loses, from the folder if it is there."""
    from fcurr.io import tables  # pyarrow

    assert prepared.clean is not None
    path = setting.folder / store.IRREDUCIBLE
    ids = torch.cat([prepared.id["train"], prepared.id["clean"]])
    if path.exists():
        return tables.read_losses(path, ids)
    found = irreducible_anew(experiment, prepared, setting)
    if setting.writes:
        tables.write_losses(path, ids, found)
        shutil.rmtree(setting.folder / store.SCORING, ignore_errors=True)
    return found


def irreducible_anew(experiment: Experiment, prepared: Prepared, setting: Setting) -> Tensor:
    """[train and clean] what a model of the clean samples loses."""
    assert prepared.clean is not None
    whole, fit = together(prepared), _fitting(experiment, prepared, setting, "clean")
    variables = fit(prepared.clean, torch.ones(1, len(prepared.clean.y), dtype=torch.bool))
    device = next(iter(variables.values())).device
    chunk, fetch = experiment.training.inference_batch_size, fetching(whole, device)
    answer = partial(evaluating.answers, model=prepared.model, loss=prepared.entries["loss"], chunk=chunk, fetch=fetch)
    return answer(variables, placed(whole, device)).losses[0].cpu()


def informed(experiment: Experiment, prepared: Prepared, setting: Setting) -> Prepared:
    """What is prepared, with what weightings ask for besides: `irreducible`, if one does."""
    if not any("irreducible" in required(call.function) for call in weightings(experiment.members)):
        return prepared
    return told(experiment, prepared, _irreducible(experiment, prepared, setting))


def told(experiment: Experiment, prepared: Prepared, irreducible: Tensor) -> Prepared:
    """What is prepared, with what a model of clean samples loses [train and clean]."""
    there = irreducible.to(chosen(experiment.training.device))
    return prepared._replace(entries=prepared.entries | {"irreducible": there})


def fetching(data: Dataset, device: torch.device, team: Team = ALONE) -> Fetch:
    """How batches are taken: this process's part of them; ahead, if the samples are not in memory."""

    def part(ids: Tensor) -> Tensor:
        size = ids.shape[-1] // team.world
        return ids[..., team.rank * size : (team.rank + 1) * size]

    def there(take: Callable[[Tensor], Batch], ids: Tensor) -> Batch:
        return tree.map(lambda leaf: leaf.to(device), take(part(ids).cpu()))

    if not isinstance(data.x, Tensor):
        return lambda take, ids: loading.ahead(partial(there, take), ids)
    if team.world > 1:
        return lambda take, ids: fold.in_blocks(take, map(part, ids))
    return fold.in_blocks
