"""What training makes small, against torch.nn and scikit-learn."""

import inspect
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from sklearn.utils.class_weight import compute_class_weight
from torch import Tensor, nn
from torch.func import grad, hessian, vmap
from worlds import numbers, public, seeds

from fcurr import losses
from fcurr.testing import hyperparameters
from fcurr.types import Loss, Task

CLASSES = 4
batches = st.integers(1, 9)
scales = st.floats(0, 300)
gammas = st.floats(0, 5)
weight_lists = st.lists(st.floats(0, 10), min_size=CLASSES, max_size=CLASSES).map(tuple)
exactly = partial(torch.testing.assert_close, rtol=1e-12, atol=1e-12)


def labelled(batch: int) -> Tensor:
    return torch.arange(batch) % CLASSES


def shared(batch: int, seed: int = 0) -> Tensor:
    """Shares of classes, as mixing samples gives them."""
    return numbers(batch, CLASSES, seed=seed + 1).softmax(-1)


def sets(batch: int, seed: int = 0) -> Tensor:
    return numbers(batch, CLASSES, seed=seed + 1) > 0


def targets(batch: int, seed: int = 0) -> Tensor:
    return numbers(batch, CLASSES, seed=seed + 1)


def mean(loss: Tensor) -> Tensor:
    """Over the targets of a sample, of torch's unreduced losses."""
    return loss.mean(-1)


class Case(NamedTuple):
    loss: Loss
    y: Tensor  # [6, ...]


KINDS = {  # what a loss is of, by a word of its name
    "binary": [sets(6)],
    "cross_entropy": [labelled(6), shared(6)],
    "focal": [labelled(6), shared(6)],
    "error": [targets(6)],
    "huber": [targets(6)],
}
ROLES = {"weights": (0.5, 2.0, 0.0, 1.0), "counts": torch.tensor([5, 0, 1, 30])}
TASKS: dict[Task, Tensor] = {"classification": labelled(6), "multi-label": sets(6), "regression": targets(6)}


def cases() -> dict[str, Case]:
    """Every loss of the module with every kind of label that it takes."""
    found = {}
    for loss in public(losses):
        asked = inspect.signature(loss).parameters
        if "task" in asked:
            found |= {f"{loss.__name__}-{task}": Case(partial(loss, task=task), y) for task, y in TASKS.items()}
            continue
        kinds = next(kinds for word, kinds in KINDS.items() if word in loss.__name__)  # StopIteration: of what is it?
        bound = partial(loss, **{name: ROLES[name] for name in asked if name in ROLES})
        found |= {f"{loss.__name__}-{y.dtype}"[:60]: Case(bound, y) for y in kinds}
    return found


every_case = pytest.mark.parametrize("case", cases().values(), ids=cases())


@given(
    seed=seeds, batch=st.integers(1, 9), classes=st.integers(1, 7), scale=st.floats(0, 300), smooth=st.floats(0, 0.99)
)
def test_cross_entropy_is_that_of_torch_for_any_smoothing(seed, batch, classes, scale, smooth):
    outputs, y = numbers(batch, classes, seed=seed, scale=scale), torch.arange(batch) % classes
    right = F.cross_entropy(outputs, y, reduction="none", label_smoothing=smooth)
    mapped_over: Any = torch.tensor(smooth, dtype=torch.float64)
    exactly(losses.cross_entropy(outputs, y, smoothing=smooth), right)
    exactly(losses.cross_entropy(outputs, y, smoothing=mapped_over), right)


@given(seed=seeds, batch=batches, scale=scales, smooth=st.floats(0, 0.99))
def test_cross_entropy_of_shares_of_classes_is_that_of_torch_for_any_smoothing(seed, batch, scale, smooth):
    outputs, y = numbers(batch, CLASSES, seed=seed, scale=scale), shared(batch, seed)
    right = nn.CrossEntropyLoss(reduction="none", label_smoothing=smooth)(outputs, y)
    exactly(losses.cross_entropy(outputs, y, smoothing=smooth), right)


@given(seed=seeds)
def test_the_gradient_of_cross_entropy_is_that_of_torch(seed):
    outputs, y = numbers(5, 4, seed=seed), torch.arange(5) % 4
    ours = grad(lambda z: losses.cross_entropy(z, y, smoothing=0.1).sum())(outputs)
    right = grad(lambda z: F.cross_entropy(z, y, reduction="sum", label_smoothing=0.1))(outputs)
    exactly(ours, right)


def test_cross_entropy_of_confident_mistakes_is_finite_in_float32():
    outputs = torch.tensor([[1e4, -1e4], [-1e4, 1e4]])
    assert losses.cross_entropy(outputs, torch.tensor([1, 1])).tolist() == [2e4, 0.0]


@given(seed=seeds, batch=batches, scale=scales, weights=weight_lists)
def test_weighted_cross_entropy_is_that_of_torch(seed, batch, scale, weights):
    outputs = numbers(batch, CLASSES, seed=seed, scale=scale)
    theirs = nn.CrossEntropyLoss(torch.tensor(weights, dtype=torch.float64), reduction="none")
    for y in (labelled(batch), shared(batch, seed)):
        exactly(losses.weighted_cross_entropy(outputs, y, weights=weights), theirs(outputs, y))


@given(seed=seeds, y=st.lists(st.integers(0, CLASSES - 1), min_size=1, max_size=40))
def test_balanced_cross_entropy_has_the_balanced_weights_of_scikit_learn_scaled_to_a_mean_of_1(seed, y):
    """scikit-learn's are samples / (K counts): the same up to a factor."""
    there = np.unique(y)
    theirs = torch.zeros(CLASSES, dtype=torch.float64)
    theirs[torch.tensor(there)] = torch.tensor(compute_class_weight("balanced", classes=there, y=np.array(y)))
    weights = theirs / theirs.sum() * len(there)
    outputs, y = numbers(len(y), CLASSES, seed=seed), torch.tensor(y)
    counts = torch.bincount(y, minlength=CLASSES)
    right = nn.CrossEntropyLoss(weights, reduction="none")(outputs, y)
    exactly(losses.balanced_cross_entropy(outputs, y, counts=counts), right)


def test_balanced_cross_entropy_of_equal_classes_is_cross_entropy():
    outputs, y = numbers(6, CLASSES), labelled(6)
    equal = losses.balanced_cross_entropy(outputs, y, counts=torch.full((CLASSES,), 7))
    exactly(equal, losses.cross_entropy(outputs, y))


@given(seed=seeds, batch=batches, scale=scales, gamma=gammas)
def test_focal_is_its_formula(seed, batch, scale, gamma):
    outputs, y = numbers(batch, CLASSES, seed=seed, scale=scale), labelled(batch)
    log_p = F.log_softmax(outputs, -1).gather(-1, y[:, None])[:, 0]
    others = outputs.scatter(-1, y[:, None], -torch.inf)  # 1 - p without taking p from 1
    log_missed = outputs.new_tensor([o.logsumexp(0) - z.logsumexp(0) for o, z in zip(others, outputs, strict=True)])
    right = -(log_missed * gamma).exp() * log_p
    torch.testing.assert_close(losses.focal(outputs, y, gamma=gamma), right, rtol=1e-9, atol=1e-9)


@given(seed=seeds, batch=batches, scale=scales)
def test_focal_with_gamma_0_is_cross_entropy(seed, batch, scale):
    outputs = numbers(batch, CLASSES, seed=seed, scale=scale)
    for y in (labelled(batch), shared(batch, seed)):
        exactly(losses.focal(outputs, y, gamma=0.0), losses.cross_entropy(outputs, y))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("gamma", [0.0, 0.1, 0.5, 1.0, 2.0, 5.0])
def test_focal_has_a_finite_gradient_and_curvature_however_sure_the_outputs_are(gamma, dtype):
    for margin in (0.0, 1.0, 10.0, 17.0, 40.0, 90.0, 1e4):
        for sign in (1, -1):
            outputs = torch.tensor([[sign * margin, 0.0, 0.0]], dtype=dtype)
            focal = lambda z: losses.focal(z, torch.tensor([0]), gamma=gamma).sum()  # noqa: E731
            assert all(found.isfinite().all() for found in (focal(outputs), grad(focal)(outputs)))
            assert hessian(focal)(outputs).isfinite().all()


def test_focal_of_outputs_that_are_not_numbers_is_not_a_number():
    assert losses.focal(torch.full((1, 3), torch.nan), torch.tensor([0])).isnan().all()


@given(seed=seeds, gamma=st.floats(0.1, 5))
def test_the_gradient_of_focal_is_that_of_its_formula(seed, gamma):
    outputs, y = numbers(5, CLASSES, seed=seed), labelled(5)

    def formula(z: Tensor) -> Tensor:
        p = z.softmax(-1).gather(-1, y[:, None])
        return (-((1 - p) ** gamma) * p.log()).sum()

    ours = grad(lambda z: losses.focal(z, y, gamma=gamma).sum())(outputs)
    torch.testing.assert_close(ours, grad(formula)(outputs), rtol=1e-9, atol=1e-9)


@given(seed=seeds, batch=batches, scale=scales, weights=weight_lists)
def test_binary_cross_entropy_is_the_mean_over_classes_of_that_of_torch(seed, batch, scale, weights):
    outputs, y = numbers(batch, CLASSES, seed=seed, scale=scale), sets(batch, seed)
    exactly(losses.binary_cross_entropy(outputs, y), mean(nn.BCEWithLogitsLoss(reduction="none")(outputs, y.double())))
    theirs = nn.BCEWithLogitsLoss(torch.tensor(weights, dtype=torch.float64), reduction="none")
    exactly(losses.weighted_binary_cross_entropy(outputs, y, weights=weights), mean(theirs(outputs, y.double())))


@given(seed=seeds, batch=batches, scale=scales, delta=st.floats(0.01, 100), weights=weight_lists)
def test_losses_of_numbers_are_the_means_over_targets_of_those_of_torch(seed, batch, scale, delta, weights):
    outputs, y = numbers(batch, CLASSES, seed=seed, scale=scale), targets(batch, seed)
    squares = nn.MSELoss(reduction="none")(outputs, y)
    exactly(losses.squared_error(outputs, y), mean(squares))
    exactly(losses.absolute_error(outputs, y), mean(nn.L1Loss(reduction="none")(outputs, y)))
    exactly(losses.huber(outputs, y, delta=delta), mean(nn.HuberLoss(reduction="none", delta=delta)(outputs, y)))
    own = torch.tensor(weights, dtype=torch.float64)
    exactly(losses.weighted_squared_error(outputs, y, weights=weights), mean(own * squares))


def test_the_likelihood_is_the_natural_loss_of_a_task():
    outputs = numbers(6, CLASSES)
    natural: dict[Task, Loss] = {
        "classification": losses.cross_entropy,
        "multi-label": losses.binary_cross_entropy,
        "regression": losses.squared_error,
    }
    for task, y in TASKS.items():
        assert torch.equal(losses.likelihood(outputs, y, task=task), natural[task](outputs, y))


@every_case
@given(seed=seeds)
def test_a_loss_is_one_number_a_sample_and_mapped_over_members_equals_the_loop(case, seed):
    outputs = numbers(3, 6, CLASSES, seed=seed)
    mapped = vmap(case.loss, in_dims=(0, None))(outputs, case.y)
    assert mapped.shape == (3, 6)
    exactly(mapped, torch.stack([case.loss(one, case.y) for one in outputs]))


@every_case
def test_a_loss_of_a_sample_does_not_depend_on_the_batch_it_is_in(case):
    outputs = numbers(6, CLASSES)
    alone = torch.cat([case.loss(outputs[i : i + 1], case.y[i : i + 1]) for i in range(6)])
    exactly(case.loss(outputs, case.y), alone)


@every_case
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_loss_has_the_dtype_of_the_outputs(case, dtype):
    y = case.y.to(dtype) if case.y.is_floating_point() else case.y
    assert case.loss(numbers(6, CLASSES).to(dtype), y).dtype == dtype


@every_case
def test_a_loss_is_differentiable_twice(case):
    assert torch.autograd.gradcheck(case.loss, (numbers(6, CLASSES).requires_grad_(), case.y))
    assert torch.autograd.gradgradcheck(case.loss, (numbers(6, CLASSES).requires_grad_(), case.y))


HYPERPARAMETERS = {"smoothing": (0.0, 0.2, 0.5), "gamma": (0.5, 1.0, 3.0), "delta": (0.1, 1.0, 2.0)}
HYPERPARAMETERS |= {"weights": ((1.0, 0.0, 2.0, 3.0), (0.1, 1.0, 1.0, 7.0), (1.0, 1.0, 1.0, 1.0))}
HYPERPARAMETERS |= {"counts": ((1, 2, 3, 4), (9, 0, 0, 1), (5, 5, 5, 5))}


@every_case
def test_a_loss_mapped_over_its_hyperparameters_equals_the_loop(case):
    """Members of one program may differ in any of them."""
    outputs = numbers(6, CLASSES)
    asked = [name for name in inspect.signature(case.loss).parameters if name in HYPERPARAMETERS]
    for name in asked:
        values = torch.tensor(HYPERPARAMETERS[name])
        if values.is_floating_point():
            values = values.double()
        mapped = vmap(lambda value, name=name: case.loss(outputs, case.y, **{name: value}))(values)
        each = [value if name == "counts" else tuple(value) if name == "weights" else value for value in values]
        exactly(mapped, torch.stack([case.loss(outputs, case.y, **{name: value}) for value in each]))
    fixed = {"y", "outputs", "task", *asked}
    assert set(inspect.signature(case.loss).parameters) <= fixed, "a hyperparameter that this test does not know"


@pytest.mark.parametrize("loss", [f for f in public(losses) if "weights" in inspect.signature(f).parameters])
@pytest.mark.parametrize("weights", [(1.0,), (1.0,) * 5, torch.ones(3)])
def test_weights_that_are_too_few_or_too_many_are_refused_in_words(loss, weights):
    y = labelled(6) if "cross_entropy" in loss.__name__ and "binary" not in loss.__name__ else sets(6)
    with pytest.raises(ValueError) as raised:
        loss(numbers(6, CLASSES), y, weights=weights)
    assert str(raised.value) == f"{len(weights)} weights do not fit 4 outputs: one each"


@given(seed=seeds, names=hyperparameters(losses.huber))
def test_huber_is_finite_for_any_delta(seed, names):
    assert losses.huber(numbers(3, CLASSES, seed=seed), targets(3, seed), **names).isfinite().all()
