"""How good outputs are, side by side: `metric(outputs, y) -> number`, of all samples at once, by torchmetrics; but r2,
pearson and concordance by their formulas, in float64: there, torchmetrics 1.9 calls little variance none.

Outputs are [sample, class or target], before any softmax or sigmoid. The direction stands in the return type: Higher or
Lower is better. Several targets count equally. A metric that is not defined is nan, which is worse than anything.
"""

import functools
import warnings
from collections.abc import Callable
from typing import Annotated, Any, Literal

import torch
from annotated_types import Ge, Lt
from torch import Tensor

from fcurr.types import Classes, Higher, Lower, Task, Times, Unit

Average = Literal["micro", "macro", "weighted"]
Threshold = Annotated[float, Ge(0), Lt(1), Unit("threshold of a probability")]
TASKS: dict[str, Task] = {
    **dict.fromkeys(("accuracy", "balanced_accuracy", "top_accuracy", "f1"), "classification"),
    **dict.fromkeys(("exact_match", "label_f1"), "multi-label"),
    **dict.fromkeys(("mean_squared_error", "mean_absolute_error", "r2", "pearson", "concordance"), "regression"),
}
DEFAULT: dict[Task, tuple[str, ...]] = {
    "classification": ("accuracy",),
    "multi-label": ("label_f1", "exact_match"),
    "regression": ("mean_squared_error", "mean_absolute_error"),
}


def accuracy(outputs: Tensor, y: Tensor, *, classes: Classes) -> Higher:
    """The share of samples whose largest output is their class."""
    return _of("classification.multiclass_accuracy", outputs, y, num_classes=classes, average="micro")


def balanced_accuracy(outputs: Tensor, y: Tensor, *, classes: Classes) -> Higher:
    """The mean over classes of the share of their samples that are found: unweighted average recall. Classes of which
    there is neither a sample nor a prediction do not count."""
    return _of("classification.multiclass_recall", outputs, y, num_classes=classes, average="macro")


def top_accuracy(outputs: Tensor, y: Tensor, *, classes: Classes, k: Times = 5) -> Higher:
    """The share of samples whose class is among the k largest outputs."""
    return _of(
        "classification.multiclass_accuracy", outputs, y, num_classes=classes, average="micro", top_k=min(k, classes)
    )


def f1(outputs: Tensor, y: Tensor, *, classes: Classes, average: Average = "macro") -> Higher:
    """The harmonic mean of precision and recall, averaged over classes, over samples, or over classes by their size."""
    return _of("classification.multiclass_f1_score", outputs, y, num_classes=classes, average=average)


def exact_match(outputs: Tensor, y: Tensor, *, classes: Classes, threshold: Threshold = 0.5) -> Higher:
    """The share of samples whose whole set of classes is found, a class being there if sigmoid(output) > threshold."""
    return _of("classification.multilabel_exact_match", _there(outputs, threshold), y, num_labels=classes)


def label_f1(
    outputs: Tensor, y: Tensor, *, classes: Classes, average: Average = "macro", threshold: Threshold = 0.5
) -> Higher:
    """f1 of sets of classes, a class being there if sigmoid(output) > threshold."""
    there = _there(outputs, threshold)
    return _of("classification.multilabel_f1_score", there, y, num_labels=classes, average=average)


def mean_squared_error(outputs: Tensor, y: Tensor) -> Lower:
    """The mean of (outputs - y)^2."""
    return _of("mean_squared_error", outputs.double(), y.double())


def mean_absolute_error(outputs: Tensor, y: Tensor) -> Lower:
    """The mean of |outputs - y|."""
    return _of("mean_absolute_error", outputs.double(), y.double())


def r2(outputs: Tensor, y: Tensor) -> Higher:
    """The share of the variance that is explained: 1 - sum (outputs - y)^2 / sum (y - mean y)^2, averaged over
    targets. Not defined if a target is constant."""
    outputs, y = outputs.double(), y.double()
    explained = 1 - (outputs - y).square().sum(0) / (y - y.mean(0)).square().sum(0)
    return torch.where(_constant(y), torch.nan, explained).mean()


def pearson(outputs: Tensor, y: Tensor) -> Higher:
    """Pearson's correlation of outputs and y, averaged over targets. Not defined if a target, or its output, is
    constant."""
    a, b = (part.double() - part.double().mean(0) for part in (outputs, y))
    correlation = (a * b).sum(0) / (a.square().sum(0).sqrt() * b.square().sum(0).sqrt())
    return torch.where(_constant(outputs) | _constant(y), torch.nan, correlation.clamp(-1, 1)).mean()


def concordance(outputs: Tensor, y: Tensor) -> Higher:
    """Lin's (1989) concordance correlation coefficient, averaged over targets: correlation, less what the outputs are
    off in place and scale. 2 cov / (var + var + (mean - mean)^2), all divided by the number of samples, as there. Not
    defined if a target is constant."""
    outputs, y = outputs.double(), y.double()
    a, b = outputs - outputs.mean(0), y - y.mean(0)
    apart = a.square().mean(0) + b.square().mean(0) + (outputs.mean(0) - y.mean(0)).square()
    return torch.where(_constant(y), torch.nan, 2 * (a * b).mean(0) / apart).mean()


def _there(outputs: Tensor, threshold: Threshold) -> Tensor:
    """[sample, class] int64, 1 for a class that is there. torchmetrics is not left to guess what outputs are: it takes
    them for probabilities if all lie in [0, 1]."""
    return (outputs.sigmoid() > threshold).long()


def _constant(values: Tensor) -> Tensor:
    """[target] bool: whether it is the same number in all samples; a mean of equal numbers may differ from them."""
    return (values == values[:1]).all(0)


def _of(name: str, outputs: Tensor, y: Tensor, **fixed: Any) -> Tensor:
    """A function of torchmetrics, which is slow to import; it is given the same samples by any caller."""
    function = _function(name)
    if name.startswith("classification"):
        fixed["validate_args"] = False
        y = y.long()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of classes without samples, say
        return function(outputs, y, **fixed)


@functools.cache
def _function(name: str) -> Callable[..., Tensor]:
    from importlib import import_module

    folder, _, function = f"functional.{name}".rpartition(".")
    return getattr(import_module(f"torchmetrics.{folder}"), function)
