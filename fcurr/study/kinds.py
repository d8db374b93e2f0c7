"""Components that are for labels of another kind than the data has: said before anything is computed."""

from collections.abc import Callable
from typing import Any

from fcurr import curriculum, joint, losses, metrics, weighting
from fcurr.bilevel import methods
from fcurr.data import augmentations, clean, splits
from fcurr.errors import BadInput
from fcurr.scoring import pointwise
from fcurr.study.bind import Call, required
from fcurr.study.config import Experiment
from fcurr.types import Dataset, Joint, Task

TASKS: dict[Callable[..., Any], Task | Joint] = {
    **{getattr(losses, name): task for name, task in losses.TASKS.items()},
    **{getattr(metrics, name): task for name, task in metrics.TASKS.items()},
    **{getattr(weighting, name): task for name, task in weighting.TASKS.items()},
    methods.class_aware_meta_weight_net: "classification",
    **dict.fromkeys((pointwise.margin, pointwise.confidence, pointwise.entropy), "classification"),
    joint.loss: "joint",
}
ANY = (  # of the components that flow labels, those that take labels of any kind
    splits.shuffled,
    splits.published,
    splits.k_fold,
    splits.grouped_k_fold,
    clean.drawn,
    clean.listed,
    curriculum.unbalanced,
)
OTHERS = {  # of those that do not, what to take instead
    "split": "shuffled",
    "clean": "drawn",
    "curriculum.sampling": "unbalanced",
    splits.stratified_k_fold: "k_fold",
    splits.stratified_grouped_k_fold: "grouped_k_fold",
}
LABELS = {
    "classification": "a class each",
    "multi-label": "sets of classes",
    "regression": "numbers",
    "joint": "those of several tasks",
}
MIXING = (augmentations.mixup, augmentations.cutmix, methods.label_correction)  # make new labels of given ones


def check(experiment: Experiment, data: Dataset) -> None:
    """BadInput for components that are for labels of another kind."""
    calls = [experiment.components[key] for key in ("loss", "score") if key in experiment.components]
    for member in experiment.members:
        calls += [call for call in (member.weighting, member.reweighting) if call is not None]
    for call in [*(member.loss for member in experiment.members), *calls, *experiment.lists["metrics"]]:
        if data.heads and call.where == "loss" and call.function is not joint.loss:
            raise BadInput("with several tasks every one has its own: tasks.NAME.loss", call.where)
        fits(call, data.task)
    own = [experiment.components[key] for key in ("noise", "imbalance", "clean") if key in experiment.components]
    for call in [*own, *(member.curriculum.sampling for member in experiment.members)]:
        _takes(call, data.task, "")
    split = experiment.components["split"]
    if not data.heads:
        _takes(split, data.task, "")
        return
    for head in data.heads:
        _takes(split, head.task, f" of `{head.name}`")
        task = experiment.tasks[head.name]
        for call in (task.loss, *task.metrics):
            fits(call, head.task)
        if "counts" in required(task.loss.function):
            words = f"{task.loss.name} follows the classes in play, which are not counted where there are several tasks"
            raise BadInput(words, task.loss.where)
    for call in [*experiment.lists["augment"], *calls]:
        if call.function in MIXING:
            raise BadInput(f"{call.name} makes new labels, and those of several tasks cannot be mixed", call.where)


def fits(call: Call, task: Task | Joint) -> None:
    """BadInput where a loss, a metric, a score or a weighting is for labels of another kind."""
    wanted = TASKS.get(call.function)
    if wanted is not None and wanted != task:
        raise BadInput(f"{call.name} is for labels that are {LABELS[wanted]}, and these are {LABELS[task]}", call.where)


def _takes(call: Call, task: Task | Joint, of: str) -> None:
    """BadInput where a component wants a class a sample, and there is none."""
    if task == "classification" or call.function in ANY or not call.function.__module__.startswith("fcurr."):
        return
    other = OTHERS.get(call.function, OTHERS.get(call.where))
    instead = f"; {other} does not" if other else ""
    raise BadInput(f"{call.name} wants a class a sample, and the labels{of} are {LABELS[task]}{instead}", call.where)
