"""What training makes small, side by side: `loss(outputs, y) -> [batch]`, unreduced.

Outputs are [batch, class or target], before any softmax or sigmoid. What `y` is: a class each, [batch] int64, or
shares of classes, [batch, class]; a set of classes each, [batch, class]; or numbers, [batch, target].
"""

from typing import Annotated

import torch
import torch.nn.functional as F
from annotated_types import Ge
from torch import Tensor

from fcurr.types import Part, Positive, Task, Unit

TASKS: dict[str, Task] = {
    "cross_entropy": "classification",
    "weighted_cross_entropy": "classification",
    "balanced_cross_entropy": "classification",
    "focal": "classification",
    "binary_cross_entropy": "multi-label",
    "weighted_binary_cross_entropy": "multi-label",
    "squared_error": "regression",
    "weighted_squared_error": "regression",
    "absolute_error": "regression",
    "huber": "regression",
}
Weight = Annotated[float, Ge(0), Unit("weight")]
Weights = Annotated[tuple[Weight, ...], Unit("list of weights, one a class or target")]


def likelihood(outputs: Tensor, y: Tensor, *, task: Task) -> Tensor:
    """-log p(y), up to constants, by the task: cross_entropy of classes, binary_cross_entropy of sets of classes,
    squared_error of numbers."""
    natural = {"classification": cross_entropy, "multi-label": binary_cross_entropy, "regression": squared_error}
    return natural[task](outputs, y)


def cross_entropy(outputs: Tensor, y: Tensor, *, smoothing: Part = 0.0) -> Tensor:
    """-log softmax(outputs)[y], in nats; with smoothing, the target is mixed with the uniform distribution.

    y [batch] int64, or [batch, class] shares that sum to 1. Szegedy et al. (2016), section 7, for smoothing.
    """
    logs = _logs(outputs)  # [class, batch]
    truth = _truth(logs, y)
    if not isinstance(smoothing, Tensor) and smoothing == 0:
        return truth
    return (1 - smoothing) * truth - smoothing * logs.mean(-2)


def weighted_cross_entropy(outputs: Tensor, y: Tensor, *, weights: Weights) -> Tensor:
    """-sum over c of weights[c] y_c log softmax(outputs)[c]. The weights are taken as they are."""
    return _truth(_logs(outputs) * _column(weights, outputs), y)


def balanced_cross_entropy(outputs: Tensor, y: Tensor, *, counts: Tensor) -> Tensor:
    """Cross-entropy weighted by classes: w_c = K (1 / counts_c) / sum over c of (1 / counts_c), K classes with samples.

    counts [class] int64: in a run, how many samples of each class are in play, so the weights follow the pace.
    """
    there = counts > 0
    inverse = there / counts.clamp(min=1).to(outputs.dtype)
    weights = there.sum() * inverse / inverse.sum()
    return _truth(_logs(outputs) * weights.unsqueeze(-1), y)


def focal(outputs: Tensor, y: Tensor, *, gamma: Weight = 2.0) -> Tensor:
    """-(1 - p)^gamma log p, p = softmax(outputs)[y]: what is right already counts less. Lin et al. (2017), eq. 4."""
    truth = _truth(_logs(outputs), y)
    certain = truth <= 0  # p = 1, where the power of 0 has no slope for gamma < 1
    missed = -torch.expm1(-torch.where(certain, 1.0, truth))
    return torch.where(certain, 0.0, missed**gamma * truth)


def binary_cross_entropy(outputs: Tensor, y: Tensor) -> Tensor:
    """The mean over classes of -log sigmoid(outputs) where y is true, and of -log(1 - sigmoid(outputs)) elsewhere."""
    return F.binary_cross_entropy_with_logits(outputs, y.to(outputs.dtype), reduction="none").mean(-1)


def weighted_binary_cross_entropy(outputs: Tensor, y: Tensor, *, weights: Weights) -> Tensor:
    """binary_cross_entropy, each class multiplied by its weight, taken as it is, before the mean."""
    each = F.binary_cross_entropy_with_logits(outputs, y.to(outputs.dtype), reduction="none")
    return (each * _column(weights, outputs)[:, 0]).mean(-1)


def squared_error(outputs: Tensor, y: Tensor) -> Tensor:
    """The mean over targets of (outputs - y)^2."""
    return (outputs - y).square().mean(-1)


def weighted_squared_error(outputs: Tensor, y: Tensor, *, weights: Weights) -> Tensor:
    """The mean over targets of weights (outputs - y)^2. The weights are taken as they are."""
    return (_column(weights, outputs)[:, 0] * (outputs - y).square()).mean(-1)


def absolute_error(outputs: Tensor, y: Tensor) -> Tensor:
    """The mean over targets of |outputs - y|."""
    return (outputs - y).abs().mean(-1)


def huber(outputs: Tensor, y: Tensor, *, delta: Positive = 1.0) -> Tensor:
    """The mean over targets of e^2 / 2 where |e| < delta, and delta (|e| - delta / 2) elsewhere, e = outputs - y.

    Huber (1964), Robust estimation of a location parameter.
    """
    error = (outputs - y).abs()
    return torch.where(error < delta, 0.5 * error.square(), delta * (error - 0.5 * delta)).mean(-1)


def _logs(outputs: Tensor) -> Tensor:
    """[class, batch]: over a short last axis log_softmax is slow."""
    return F.log_softmax(outputs.transpose(-1, -2), dim=-2)


def _truth(logs: Tensor, y: Tensor) -> Tensor:
    """[batch] of minus logs [class, batch], at the labels or averaged by the shares of classes."""
    if y.dtype.is_floating_point:
        return -(y.transpose(-1, -2) * logs).sum(-2)
    return -logs.gather(-2, y.unsqueeze(-2)).squeeze(-2)


def _column(weights: Weights, outputs: Tensor) -> Tensor:
    """[class, 1] of the kind of the outputs."""
    if len(weights) != outputs.shape[-1]:
        raise ValueError(f"{len(weights)} weights do not fit {outputs.shape[-1]} outputs: one each")
    return torch.as_tensor(weights, dtype=outputs.dtype, device=outputs.device).unsqueeze(-1)
