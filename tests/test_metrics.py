"""How good outputs are, against scikit-learn and numpy."""

import inspect
import math
import subprocess
import sys
import warnings
from functools import partial
from typing import Any

import numpy as np
import pytest
import sklearn.metrics
import torch
from hypothesis import given
from hypothesis import strategies as st
from worlds import numbers, public, seeds

from fcurr import metrics
from fcurr.study.units import direction, hints

CLASSES = 4
sizes = st.integers(1, 40)
averages = st.sampled_from(["micro", "macro", "weighted"])
several = st.integers(1, 3)  # targets
theirs: Any = sklearn.metrics
REGRESSION = [metrics.mean_squared_error, metrics.mean_absolute_error, metrics.r2, metrics.pearson, metrics.concordance]
LABELS = [metrics.exact_match, metrics.label_f1]


def classified(size: int, seed: int):
    """Outputs, and labels that they find more often than not; some classes may be absent."""
    y = torch.randint(CLASSES, (size,), generator=torch.Generator().manual_seed(seed))
    return numbers(size, CLASSES, seed=seed) + 1.5 * torch.eye(CLASSES, dtype=torch.float64)[y], y


def labelled(size: int, seed: int, scale: float = 1.0):
    return numbers(size, CLASSES, seed=seed, scale=scale), numbers(size, CLASSES, seed=seed + 1) > 0.3


def valued(size: int, targets: int, seed: int, scale: float = 1.0, place: float = 0.0):
    y = numbers(size, targets, seed=seed)
    return scale * (0.7 * y + 0.5 * numbers(size, targets, seed=seed + 1) + 0.3) + place, scale * y + place


def close(found: torch.Tensor, right: Any, rel: float = 1e-6) -> None:
    assert found.ndim == 0 and float(found) == pytest.approx(right, rel=rel, abs=1e-7, nan_ok=True)


@given(seed=seeds, size=sizes)
def test_accuracy_is_that_of_scikit_learn(seed, size):
    outputs, y = classified(size, seed)
    close(metrics.accuracy(outputs, y, classes=CLASSES), theirs.accuracy_score(y, outputs.argmax(1)))


@given(seed=seeds, size=sizes)
def test_balanced_accuracy_is_the_recall_of_scikit_learn_averaged_over_classes_seen_or_predicted(seed, size):
    outputs, y = classified(size, seed)
    found = metrics.balanced_accuracy(outputs, y, classes=CLASSES)
    predicted = outputs.argmax(1)
    close(found, theirs.recall_score(y, predicted, average="macro", zero_division=0))
    if len(set(y.tolist())) == CLASSES:
        close(found, theirs.balanced_accuracy_score(y, predicted))


@given(seed=seeds, size=sizes, k=st.integers(1, 9))
def test_top_accuracy_is_that_of_scikit_learn_and_1_if_k_is_not_below_the_number_of_classes(seed, size, k):
    outputs, y = classified(size, seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that k is not below the number of classes
        right = theirs.top_k_accuracy_score(y, outputs, k=k, labels=range(CLASSES))
    close(metrics.top_accuracy(outputs, y, classes=CLASSES, k=k), right)


@given(seed=seeds, size=sizes, average=averages)
def test_f1_is_that_of_scikit_learn(seed, size, average):
    outputs, y = classified(size, seed)
    right = theirs.f1_score(y, outputs.argmax(1), average=average, zero_division=0)
    close(metrics.f1(outputs, y, classes=CLASSES, average=average), right)


@given(seed=seeds, size=sizes, average=averages, scale=st.sampled_from([1e-2, 1.0, 30.0]), threshold=st.floats(0, 0.99))
def test_f1_and_exact_match_of_sets_of_classes_are_those_of_scikit_learn(seed, size, average, scale, threshold):
    outputs, y = labelled(size, seed, scale)
    there = (1 / (1 + np.exp(-outputs.numpy()))) > threshold
    names = {"classes": CLASSES, "threshold": threshold}
    right = theirs.f1_score(y, there, average=average, zero_division=0)
    close(metrics.label_f1(outputs, y, average=average, **names), right)
    close(metrics.exact_match(outputs, y, **names), theirs.accuracy_score(y, there))


@pytest.mark.parametrize("metric", LABELS)
def test_logits_that_all_lie_between_0_and_1_are_still_logits(metric):
    """All are above 0, so every class is there."""
    outputs = torch.tensor([[0.1, 0.3], [0.2, 0.9]])
    assert metric(outputs, torch.ones(2, 2, dtype=torch.bool), classes=2) == 1


@pytest.mark.parametrize("metric", LABELS)
def test_an_output_that_is_not_a_number_does_not_change_what_the_others_say(metric):
    outputs, y = torch.tensor([[-3.0, 3.0], [-3.0, torch.nan]]), torch.tensor([[False, True], [False, False]])
    assert metric(outputs, y, classes=2, **({"average": "micro"} if metric is metrics.label_f1 else {})) == 1


@given(seed=seeds, size=st.integers(2, 40), targets=several, scale=st.sampled_from([1e-4, 1.0, 1e4]))
def test_errors_and_r2_are_those_of_scikit_learn_for_one_target_and_for_several(seed, size, targets, scale):
    outputs, y = valued(size, targets, seed, scale)
    for found, right in (
        (metrics.mean_squared_error(outputs, y), theirs.mean_squared_error(y, outputs)),
        (metrics.mean_absolute_error(outputs, y), theirs.mean_absolute_error(y, outputs)),
        (metrics.r2(outputs, y), theirs.r2_score(y, outputs)),
    ):
        assert found.ndim == 0 and float(found) == pytest.approx(right, rel=1e-9)


@given(
    seed=seeds,
    size=st.integers(2, 40),
    targets=several,
    scale=st.sampled_from([1e-4, 1.0, 1e4]),
    place=st.sampled_from([0.0, 1e3]),
)
def test_pearson_and_concordance_are_their_formulas_in_numpy(seed, size, targets, scale, place):
    """Also where numbers are small, or far from 0 for their spread."""
    outputs, y = valued(size, targets, seed, scale, place)
    pairs = list(zip(outputs.numpy().T, y.numpy().T, strict=True))
    close(metrics.pearson(outputs, y), np.mean([np.corrcoef(a, b)[0, 1] for a, b in pairs]))
    lin = [2 * np.cov(a, b, ddof=0)[0, 1] / (a.var() + b.var() + (a.mean() - b.mean()) ** 2) for a, b in pairs]
    close(metrics.concordance(outputs, y), np.mean(lin))


def test_regression_loses_no_digits_of_outputs_in_float32():
    outputs, y = valued(40, 1, seed=0, place=1e3)
    for metric in REGRESSION:
        low = metric(outputs.float(), y.float())
        close(low, float(metric(outputs.float().double(), y.float().double())), rel=1e-12)


@pytest.mark.parametrize("metric", [metrics.r2, metrics.pearson, metrics.concordance])
@pytest.mark.parametrize("value", [0.0, 0.1, -1e6])
def test_of_constant_targets_r2_pearson_and_concordance_are_not_defined(metric, value):
    """0.1 is not the mean of seven times 0.1 in floating point."""
    outputs, y = valued(7, 2, seed=1)
    assert metric(outputs, torch.full_like(y, value)).isnan()
    assert metric(outputs, torch.stack([y[:, 0], torch.full((7,), value)], 1)).isnan()  # one of two targets
    assert not metric(outputs, y).isnan()


def test_outputs_that_are_constant_explain_nothing_and_do_not_correlate():
    y = valued(7, 1, seed=1)[1]
    constant = torch.full_like(y, 0.1)
    assert metrics.pearson(constant, y).isnan()
    close(metrics.concordance(constant, y), 0.0)
    close(metrics.r2(y.mean(0, keepdim=True).expand_as(y), y), 0.0)


@pytest.mark.parametrize("metric", [metrics.r2, metrics.pearson, metrics.concordance])
def test_of_one_sample_r2_pearson_and_concordance_are_not_defined(metric):
    assert metric(torch.tensor([[1.0]]), torch.tensor([[2.0]])).isnan()


def test_the_errors_of_one_sample_are_its_own():
    close(metrics.mean_squared_error(torch.tensor([[1.0]]), torch.tensor([[3.0]])), 4.0)
    close(metrics.mean_absolute_error(torch.tensor([[1.0]]), torch.tensor([[3.0]])), 2.0)


def test_the_directions_of_metrics_stand_in_their_types():
    lower = {"mean_squared_error", "mean_absolute_error"}
    for metric in public(metrics):
        points = direction(hints(metric)["return"])
        assert points is not None and points.higher == (metric.__name__ not in lower)


def asked(metric, targets: int = 1):
    """A metric with its names given, and what it is of."""
    classes = {"classes": CLASSES} if "classes" in inspect.signature(metric).parameters else {}
    find = lambda size: valued(size, targets, 0) if metric in REGRESSION else labelled(size, 0)  # noqa: E731
    return partial(metric, **classes), (find if metric in REGRESSION + LABELS else lambda size: classified(size, 0))


@pytest.mark.parametrize("metric", public(metrics), ids=lambda metric: metric.__name__)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_metric_is_one_number_better_for_right_outputs_than_for_wrong_ones(metric, dtype):
    bound, find = asked(metric)
    outputs, y = find(30)
    perfect = y if metric in REGRESSION else 9.0 * y - 4 if metric in LABELS else 9.0 * torch.eye(CLASSES)[y]
    best, some = bound(perfect.to(dtype), y), bound(outputs.to(dtype), y)
    points = direction(hints(metric)["return"])
    higher = points is not None and points.higher
    assert best.shape == some.shape == () and best.is_floating_point()
    if metric is not metrics.top_accuracy:  # 5 of 4 classes
        assert best > some if higher else best < some
    assert best == pytest.approx(1.0 if higher else 0.0, abs=1e-6)


@pytest.mark.parametrize("metric", public(metrics), ids=lambda metric: metric.__name__)
@pytest.mark.parametrize("size", [1, 2])
def test_a_metric_of_few_samples_is_a_number_or_nan_and_warns_of_nothing(metric, size):
    """Of one sample three of four classes are absent."""
    bound, find = asked(metric)
    outputs, y = find(size)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for labels in (y, torch.zeros_like(y), torch.ones_like(y)):
            found = bound(outputs, labels)
            assert found.ndim == 0 and not math.isinf(float(found))


@pytest.mark.parametrize("metric", public(metrics), ids=lambda metric: metric.__name__)
def test_a_metric_writes_to_none_of_its_arguments(metric):
    bound, find = asked(metric)
    outputs, y = find(9)
    before = outputs.clone(), y.clone()
    bound(outputs, y)
    assert torch.equal(before[0], outputs) and torch.equal(before[1], y)


@pytest.mark.parametrize("metric", public(metrics), ids=lambda metric: metric.__name__)
@given(seed=seeds)
def test_a_metric_does_not_depend_on_the_order_of_samples(metric, seed):
    bound, find = asked(metric, targets=2)
    outputs, y = find(12)
    turned = torch.randperm(12, generator=torch.Generator().manual_seed(seed))
    close(bound(outputs[turned], y[turned]), float(bound(outputs, y)))


def test_nothing_is_written_to_the_terminal_where_nothing_is_defined():
    program = """
import torch
from fcurr import metrics
one, y = torch.ones(1, 2), torch.ones(1, dtype=torch.int64)
for metric in (metrics.r2, metrics.pearson, metrics.concordance, metrics.mean_squared_error): metric(one, one)
for metric in (metrics.accuracy, metrics.balanced_accuracy, metrics.f1, metrics.top_accuracy): metric(one, y, classes=2)
for metric in (metrics.exact_match, metrics.label_f1): metric(one, one > 2, classes=2)
"""
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert found.stdout == found.stderr == ""
