"""How much each sample counts, against brute force, scipy and the papers' formulas, and what fcurr.testing says of a
weighting that is broken."""

import inspect
import math
from decimal import Decimal, localcontext
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar
from scipy.special import lambertw
from scipy.stats import halfnorm, kstest
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck
from torch.func import grad, jvp, vmap
from worlds import assert_close, looped, numbers, public, seeds

from fcurr import losses as losses_of
from fcurr import weighting
from fcurr.testing import assert_weighting_laws, hyperparameters
from fcurr.tracing import traced
from fcurr.types import Batch, Past
from fcurr.weighting import lambert_w, quantile, running_mean, scheduled

CLASSES = 4
ROLES = {"counts": torch.tensor([5, 0, 1, 30]), "irreducible": torch.arange(40.0).sin() + 1}


def names_of(function) -> list[str]:
    return list(inspect.signature(function).parameters)


WEIGHTINGS = [function for function in public(weighting) if names_of(function)[:3] == ["past", "losses", "batch"]]
FIXING = [weigh for weigh in WEIGHTINGS if names_of(weigh)[3:]]
SELF_PACED = [weigh for weigh in WEIGHTINGS if weigh.__name__.startswith("self_paced")]
SHARES = [weigh for weigh in WEIGHTINGS if "share" in names_of(weigh)]


def given_roles(weigh) -> Any:
    """The weighting with what a run gives it."""
    return partial(weigh, **{name: role for name, role in ROLES.items() if name in names_of(weigh)})


def growing(iteration: Tensor) -> Tensor:
    """A schedule of a share: half, and everything from the tenth iteration on."""
    return (0.5 + 0.05 * iteration.double()).clamp(max=1.0)


THRESHOLDS: dict[str, Any] = {
    "number": 1.5,
    "scheduled": partial(scheduled, schedule=lambda iteration: 0.25 * (iteration + 1).double()),
    "quantile": partial(quantile, share=0.6),
    "growing quantile": partial(quantile, share=growing),
    "running mean": running_mean,
}


def cases() -> dict[str, Any]:
    """Every weighting of the module, with every kind of threshold and share it may have."""
    found = {}
    for weigh in WEIGHTINGS:
        asked, bound = names_of(weigh), given_roles(weigh)
        if "threshold" in asked:
            found |= {f"{weigh.__name__}-{kind}": partial(bound, threshold=t) for kind, t in THRESHOLDS.items()}
        elif "share" in asked:
            shares: dict[str, Any] = {"number": 0.4, "growing": growing}
            found |= {f"{weigh.__name__}-{kind}": partial(bound, share=share) for kind, share in shares.items()}
        else:
            found[weigh.__name__] = bound
    return found


HARD = weighting.self_paced_hard
every_case = pytest.mark.parametrize("weigh", cases().values(), ids=cases())
every_self_paced = pytest.mark.parametrize("weigh", SELF_PACED, ids=lambda weigh: weigh.__name__)
positive = st.floats(0.01, 100)
inside = st.floats(0.01, 0.99)


def past(key: int = 3, iteration: int = 2, loss: float = 1.2) -> Past:
    return Past(key=torch.tensor(key), iteration=torch.tensor(iteration), loss=torch.tensor(loss))


def batch_of(samples: int, seed: int = 0) -> Batch:
    ids = torch.arange(samples) * 3 % 40
    return Batch(x=numbers(samples, 5, seed=seed), y=torch.arange(samples) * 3 % CLASSES, id=ids)


def drawn(samples: int, seed: int = 0) -> Tensor:
    """Losses, all different."""
    return numbers(samples, seed=seed).exp()


def weights_of(weigh: Any, losses: Tensor, **names: Any) -> Tensor:
    return weigh(past(), losses, batch_of(len(losses)), **names)


def one(weigh: Any, loss: float, **names: Any) -> float:
    """The weight of a sample of this loss."""
    return weights_of(weigh, torch.tensor([loss], dtype=torch.float64), **names).item()


# laws


def test_all_weightings_are_found_by_looking():
    assert len(WEIGHTINGS) >= 12 and len(SELF_PACED) == 4 and len(SHARES) == 3


@pytest.mark.parametrize("weigh", WEIGHTINGS, ids=lambda weigh: weigh.__name__)
def test_a_weighting_keeps_the_laws_of_weightings_for_any_hyperparameters(weigh):
    assert_weighting_laws(weigh)


@every_case
def test_a_weighting_keeps_the_laws_of_weightings_for_any_threshold_and_share(weigh):
    own = {name: value for name, value in weigh.keywords.items() if name not in ROLES}
    assert_weighting_laws(partial(weigh.func, **own), max_examples=15)


@every_case
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_traced_weighting_is_the_same_bit_for_bit(weigh, dtype):
    given = (past(), drawn(9).to(dtype), batch_of(9))
    other = (past(8, 5, torch.nan), drawn(9, seed=1).to(dtype), batch_of(9))
    operations = traced(weigh, *given)
    for world in (given, other):
        assert torch.equal(operations(*world), weigh(*world)) and weigh(*world).dtype == dtype


@every_case
def test_a_weighting_mapped_over_members_equals_the_loop(weigh):
    pasts = Past(torch.tensor([1, 2, 3]), torch.tensor([0, 4, 90]), torch.tensor([torch.nan, 0.5, 2.0]))
    losses = torch.stack([drawn(8, seed) for seed in range(3)])
    batches = Batch(*(torch.stack(leaves) for leaves in zip(*(batch_of(8, s) for s in range(3)), strict=True)))
    assert_close(vmap(weigh)(pasts, losses, batches), looped(weigh, pasts, losses, batches))


@every_case
@given(seed=seeds)
def test_float32_is_float64_to_rounding(weigh, seed):
    losses = (drawn(8, seed) * 64).round() / 64 + torch.arange(8) / 16  # the same numbers in both
    exact = weigh(past(loss=1.25), losses, batch_of(8))
    torch.testing.assert_close(weigh(past(loss=1.25), losses.float(), batch_of(8)), exact.float(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("weigh", FIXING, ids=lambda weigh: weigh.__name__)
@given(data=st.data())
def test_a_weighting_mapped_over_its_hyperparameters_equals_the_loop(weigh, data):
    bound, losses, batch = given_roles(weigh), drawn(7), batch_of(7)
    several = data.draw(st.lists(hyperparameters(bound), min_size=2, max_size=3))
    columns = {name: torch.tensor([names[name] for names in several], dtype=torch.float64) for name in several[0]}
    mapped = vmap(lambda names: bound(past(), losses, batch, **names))(columns)
    assert_close(mapped, torch.stack([bound(past(), losses, batch, **names) for names in several]), atol=1e-9)


@pytest.mark.parametrize("name", sorted({w.__name__ for w in WEIGHTINGS} - set(weighting.TASKS)))
def test_a_weighting_of_any_task_does_not_look_at_labels(name):
    losses, batch = drawn(6), batch_of(6)
    numbers_of_it = batch._replace(y=numbers(6, 2))
    for case in (case for key, case in cases().items() if key.split("-")[0] == name):
        assert torch.equal(case(past(), losses, batch), case(past(), losses, numbers_of_it))


def test_tasks_are_told_of_weightings_there_are():
    assert set(weighting.TASKS) <= {weigh.__name__ for weigh in WEIGHTINGS}


# self-paced


def regularised(name: str, v: np.ndarray, loss: float, t: float, fixed: float) -> np.ndarray:
    """v loss + f(v), the regularisers f as they are printed."""
    if name == "self_paced_hard":
        return v * loss - t * v
    if name == "self_paced_linear":
        return v * loss + 0.5 * t * (v**2 - 2 * v)
    if (
        name == "self_paced_logarithmic"
    ):  # zeta v - zeta^v / ln zeta, for losses in units that make the threshold 1 - zeta
        return v * loss + t / (1 - fixed) * (fixed * v - fixed**v / math.log(fixed))
    zeta = t * fixed * t / (t - fixed * t)  # of lambda_1 = t and lambda_2 = fixed t
    return v * loss - zeta * np.log(v + zeta / t)


GRID = np.linspace(0, 1, 20001)
FIXED = {"self_paced_logarithmic": "zeta", "self_paced_mixture": "certain"}


@every_self_paced
@given(loss=st.floats(0, 200), threshold=positive, fixed=inside)
def test_self_paced_weights_minimise_the_weighted_loss_and_its_regulariser(weigh, loss, threshold, fixed):
    name = weigh.__name__
    names = {FIXED[name]: fixed} if name in FIXED else {}
    v = one(weigh, loss, threshold=threshold, **names)
    found = regularised(name, np.array(v), loss, threshold, fixed)
    assert 0 <= v <= 1
    assert found <= regularised(name, GRID, loss, threshold, fixed).min() + 1e-12 * (1 + loss + threshold)


@every_self_paced
@given(seed=seeds, threshold=positive, factor=st.floats(1.01, 10))
def test_self_paced_weights_fall_with_the_loss_and_grow_with_the_threshold(weigh, seed, threshold, factor):
    losses = drawn(20, seed).sort().values
    weights = weights_of(weigh, losses, threshold=threshold)
    assert (weights.diff() <= 0).all()
    assert (weights_of(weigh, losses, threshold=factor * threshold) >= weights).all()
    assert (weights[losses >= threshold] == 0).all()


@every_self_paced
@given(seed=seeds, power=st.integers(-20, 20))
def test_self_paced_weights_do_not_know_the_unit_of_the_loss(weigh, seed, power):
    losses = drawn(20, seed)
    same = weights_of(weigh, losses * 2.0**power, threshold=1.5 * 2.0**power)
    assert torch.equal(same, weights_of(weigh, losses, threshold=1.5))


@every_self_paced
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_self_paced_weights_are_finite_for_the_smallest_and_largest_thresholds_and_losses(weigh, dtype):
    losses = torch.tensor([0.0, torch.finfo(dtype).smallest_normal / 2, 1.0, 1e38]).to(dtype)
    for threshold in (5e-324, 1e-38, 1.0, 1e38):
        weights = weights_of(weigh, losses, threshold=threshold)
        assert weights.isfinite().all() and (weights[0] == 1 or threshold == 5e-324)


@given(seed=seeds, threshold=st.floats(0.01, 0.99))
def test_the_logarithmic_form_is_that_of_the_paper_for_thresholds_below_1(seed, threshold):
    losses, zeta = drawn(20, seed), 1 - threshold
    right = torch.where(losses < threshold, torch.log(losses + zeta) / math.log(zeta), 0.0)
    found = weights_of(weighting.self_paced_logarithmic, losses, threshold=threshold, zeta=zeta)
    torch.testing.assert_close(found, right, rtol=1e-9, atol=1e-12)


def test_the_logarithmic_form_becomes_the_linear_one():
    losses = torch.linspace(0, 3, 50).double()
    nearly = weights_of(weighting.self_paced_logarithmic, losses, threshold=2.0, zeta=1 - 1e-6)
    assert_close(nearly, weights_of(weighting.self_paced_linear, losses, threshold=2.0), atol=1e-6)


@given(seed=seeds, outer=positive, part=inside)
def test_the_mixture_is_that_of_jiang_and_of_the_roots_that_of_zhao(seed, outer, part):
    losses, inner = drawn(20, seed), part * outer
    zeta = outer * inner / (outer - inner)
    jiang = torch.where(losses <= inner, 1.0, torch.where(losses >= outer, 0.0, zeta / losses - zeta / outer))
    mixture = partial(weights_of, weighting.self_paced_mixture, certain=part)
    torch.testing.assert_close(mixture(losses, threshold=outer), jiang, rtol=1e-9, atol=1e-9)
    gamma = inner * outer / (outer - inner)  # so that inner = outer gamma / (outer + gamma)
    root = losses.sqrt()
    zhao = torch.where(root <= inner, 1.0, torch.where(root >= outer, 0.0, gamma * (1 / root - 1 / outer)))
    torch.testing.assert_close(mixture(root, threshold=outer), zhao, rtol=1e-9, atol=1e-9)


# thresholds


@given(seed=seeds, samples=st.integers(1, 30), percent=st.integers(1, 100))
def test_a_quantile_has_the_share_of_the_batch_below_it(seed, samples, percent):
    losses = drawn(samples, seed)
    threshold = quantile(past(), losses, share=percent / 100)
    count = max(1, percent * samples // 100)
    assert (losses < threshold).sum() == count
    assert threshold == (losses.sort().values[count] if count < samples else torch.inf)


@every_self_paced
@given(seed=seeds)
def test_self_paced_weights_by_a_share_of_1_are_plain_training(weigh, seed):
    losses = drawn(9, seed)
    assert torch.equal(weights_of(weigh, losses, threshold=partial(quantile, share=1.0)), torch.ones(9).double())


def test_losses_that_equal_the_last_one_in_are_in_as_well():
    losses = torch.tensor([2.0, 1.0, 2.0, 3.0, 2.0])
    in_by = partial(weights_of, HARD, losses)
    assert in_by(threshold=partial(quantile, share=0.2)).tolist() == [0, 1, 0, 0, 0]
    assert in_by(threshold=partial(quantile, share=0.4)).tolist() == [1, 1, 1, 0, 1]
    assert in_by(threshold=partial(quantile, share=0.99)).tolist() == [1, 1, 1, 0, 1]
    assert weights_of(HARD, torch.zeros(4), threshold=partial(quantile, share=0.5)).sum() == 4


def test_a_schedule_is_given_the_iteration():
    losses = torch.arange(10.0) + 1
    for iteration, samples in ((0, 5), (3, 6), (4, 7), (10, 10), (10**9, 10)):
        world = (past(iteration=iteration), losses, batch_of(10))
        assert HARD(*world, threshold=partial(quantile, share=growing)).sum() == samples
        assert (weighting.trimmed(*world, share=growing) > 0).sum() == samples
        assert HARD(*world, threshold=partial(scheduled, schedule=lambda t: (t + 0.5).double())).sum() == min(
            10, iteration
        )


def test_a_share_written_in_decimals_is_the_share_meant():
    assert (weights_of(weighting.trimmed, drawn(90), share=0.7) > 0).sum() == 63  # 0.7 * 90 is 62.99999999999999
    for percent in range(1, 101):
        assert (weights_of(weighting.trimmed, drawn(100), share=percent / 100) > 0).sum() == percent


def test_the_running_mean_is_that_of_the_batch_at_first():
    losses = torch.tensor([1.0, 5.0])
    assert running_mean(past(loss=torch.nan), losses) == 3 and running_mean(past(loss=2.0), losses) == 2
    assert HARD(past(loss=5.5), losses, batch_of(2), threshold=running_mean).tolist() == [1, 1]
    assert (
        weighting.superloss(past(loss=torch.nan), torch.full((4,), 0.7), batch_of(4), threshold=running_mean)
        .eq(1)
        .all()
    )


# SuperLoss


def exact_lambert_w(z: float, digits: int = 60) -> Decimal:
    """By Newton's steps in many digits."""
    with localcontext() as context:
        context.prec = digits
        target, e = Decimal(z), Decimal(1).exp()
        w = Decimal(float(lambertw(max(z, -0.367)).real)) if z > -0.36 else (2 * (e * target + 1)).sqrt() - 1
        for _ in range(100):
            step = (w * w.exp() - target) / (w.exp() * (w + 1))
            w -= step
            if abs(step) < Decimal(10) ** -40 * (1 + abs(w)):
                break
        return w


BRANCH = -math.exp(-1)  # the float nearest to -1 / e, and above it
ABOVE = [BRANCH + 10.0**power for power in range(-15, 0)]
ORDINARY = [-0.3, -0.1, -1e-8, -1e-300, 1e-300, 1e-5, 0.1, 1.0, math.e, 10.0, 1e3, 1e10, 1e100, 1e307]


@pytest.mark.parametrize("z", ABOVE + ORDINARY)
def test_lambert_w_is_exact_to_rounding_from_the_branch_point_to_the_largest_numbers(z):
    right = float(exact_lambert_w(z))
    assert abs(lambert_w(torch.tensor(z, dtype=torch.float64)).item() - right) <= 4e-15 * max(1, abs(right))


@given(z=st.floats(-0.367, 1e300))
def test_lambert_w_is_that_of_scipy(z):
    found, right = lambert_w(torch.tensor([z], dtype=torch.float64)).item(), lambertw(z).real
    assert found == pytest.approx(right, rel=1e-12, abs=1e-12)


def test_lambert_w_has_no_nan_at_its_ends():
    z = torch.tensor([BRANCH, -0.5, -torch.inf, 0.0, 1e308, torch.inf], dtype=torch.float64)
    w = lambert_w(z)
    assert_close(w[:4], torch.tensor([-1.0, -1.0, -1.0, 0.0]).double(), atol=1e-7)
    assert w[4] == w[5] == lambert_w(torch.tensor(1e307, dtype=torch.float64))
    assert lambert_w(torch.tensor([torch.nan])).isnan().all() and lambert_w(torch.zeros(2)).dtype == torch.float32


def test_lambert_w_has_its_derivatives():
    z = torch.tensor([-0.36, -0.2, -1e-3, 0.0, 0.5, 3.0, 50.0], dtype=torch.float64, requires_grad=True)
    assert gradcheck(lambert_w, z) and gradgradcheck(lambert_w, z)
    points = torch.tensor([*ABOVE, *ORDINARY[:-1]], dtype=torch.float64)
    exact = [exact_lambert_w(point) for point in points.tolist()]
    right = torch.tensor([float((-w).exp() / (1 + w)) for w in exact], dtype=torch.float64)
    assert_close(vmap(grad(lambert_w))(points), right, rtol=1e-12, atol=0)
    assert_close(jvp(lambert_w, (points,), (torch.ones_like(points),))[1], right, rtol=1e-12, atol=0)
    ends = torch.tensor([BRANCH, -1.0, 1e308], dtype=torch.float64)
    assert vmap(grad(lambert_w))(ends).isfinite().all() and vmap(grad(lambert_w))(ends)[1] == 0


@pytest.mark.long
def test_compiled_superloss_is_the_same_also_where_its_form_ends():
    weigh = partial(weighting.superloss, threshold=4.0)
    losses = torch.cat([drawn(50) * 3, 4 - 2 / math.e + 10.0 ** torch.arange(-15.0, 0)])
    assert_close(
        torch.compile(weigh, fullgraph=True)(past(), losses, batch_of(65)), weigh(past(), losses, batch_of(65))
    )


@given(loss=st.floats(0, 50), threshold=st.floats(0, 20), penalty=st.floats(0.05, 20))
def test_the_weight_of_superloss_minimises_its_objective(loss, threshold, penalty):
    objective = lambda sigma: (loss - threshold) * sigma + penalty * np.log(sigma) ** 2  # noqa: E731
    found = one(weighting.superloss, loss, threshold=threshold, penalty=penalty)
    best: Any = minimize_scalar(
        lambda log: objective(np.exp(log)), bounds=(-12, 1), method="bounded", options={"xatol": 1e-12}
    )
    assert 0 < found <= math.e + 1e-12
    assert objective(found) <= best.fun + 1e-10 * (1 + abs(best.fun))


@given(loss=st.floats(0, 1e4), threshold=st.floats(0, 1e3), penalty=st.floats(1e-3, 1e3))
def test_the_weight_of_superloss_is_the_published_form(loss, threshold, penalty):
    beta = (loss - threshold) / penalty
    right = np.exp(-lambertw(0.5 * max(-2 / math.e + 1e-9, beta)).real)
    found = one(weighting.superloss, loss, threshold=threshold, penalty=penalty)
    assert found == pytest.approx(right, rel=1e-4 if beta < -2 / math.e + 1e-5 else 1e-9)


@given(loss=st.floats(0, 10), threshold=st.floats(0, 10), penalty=st.floats(0.1, 10))
def test_the_weight_of_superloss_is_its_derivative_by_the_loss(loss, threshold, penalty):
    """The envelope theorem, through the derivative of the weight itself."""

    def value(loss: Tensor) -> Tensor:
        sigma = weighting.superloss(past(), loss[None], batch_of(1), threshold=threshold, penalty=penalty)[0]
        return (loss - threshold) * sigma + penalty * sigma.log() ** 2

    at = torch.tensor(loss, dtype=torch.float64)
    sigma = one(weighting.superloss, loss, threshold=threshold, penalty=penalty)
    assert grad(value)(at).item() == pytest.approx(sigma, rel=1e-6)
    higher, lower = value(at + 1e-4).item(), value(at - 1e-4).item()
    assert (higher - lower) / 2e-4 == pytest.approx(sigma, rel=1e-3, abs=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_weight_of_superloss_is_1_at_its_threshold_and_e_where_its_form_ends(dtype):
    branch = 4.0 - 2 * 1.5 / math.e
    losses = torch.tensor([4.0, branch, branch - 1e-6, 0.0, 1e38], dtype=dtype)
    weights = weights_of(weighting.superloss, losses, threshold=4.0, penalty=1.5)
    torch.testing.assert_close(weights[:4], torch.tensor([1, math.e, math.e, math.e], dtype=dtype), rtol=1e-2, atol=0)
    assert weights[2:4].tolist() == pytest.approx([math.e, math.e], rel=1e-6) and 0 <= weights[4] < 1e-30
    assert weights_of(weighting.superloss, torch.zeros(3, dtype=dtype), threshold=0.0).eq(1).all()


# by the label


@given(seed=seeds, gamma=st.floats(0, 5))
def test_focal_weights_times_cross_entropy_are_the_focal_loss(seed, gamma):
    outputs, batch = numbers(9, CLASSES, seed=seed, scale=3.0), batch_of(9)
    losses = losses_of.cross_entropy(outputs, batch.y)
    weights = weighting.focal(past(), losses, batch, gamma=gamma)
    assert_close(weights * losses, losses_of.focal(outputs, batch.y, gamma=gamma), rtol=1e-9, atol=1e-9)
    assert torch.equal(weighting.focal(past(), losses, batch, gamma=0.0), torch.ones_like(losses))


class_counts = st.lists(st.integers(0, 2000), min_size=CLASSES, max_size=CLASSES).filter(any)


@given(counts=class_counts, beta=st.floats(0, 0.9999))
def test_class_balanced_weights_are_one_over_the_effective_number_and_sum_to_the_number_of_classes(counts, beta):
    effective = [sum(beta**power for power in range(count)) for count in counts]  # (1 - beta^n) / (1 - beta)
    inverse = [1 / number if number else 0.0 for number in effective]
    there = sum(count > 0 for count in counts)
    right = [there * weight / sum(inverse) for weight in inverse]
    batch = Batch(x=torch.zeros(CLASSES, 1), y=torch.arange(CLASSES), id=torch.arange(CLASSES))
    found = weighting.class_balanced(past(), drawn(CLASSES), batch, counts=torch.tensor(counts), beta=beta)
    np.testing.assert_allclose(found, right, rtol=1e-8)


def test_class_balanced_weights_go_from_plain_to_balanced_cross_entropy():
    outputs, batch, counts = numbers(9, CLASSES), batch_of(9), torch.tensor([5, 10, 1, 30])
    losses = losses_of.cross_entropy(outputs, batch.y)
    weigh = partial(weighting.class_balanced, past(), losses, batch, counts=counts)
    assert_close(weigh(beta=0.0), torch.ones_like(losses))
    right = losses_of.balanced_cross_entropy(outputs, batch.y, counts=counts)
    assert_close(weigh(beta=1 - 1e-12) * losses, right, rtol=1e-9)
    assert weigh(beta=1 - 2.0**-53).isfinite().all()


def test_class_balanced_weights_of_shares_of_classes_are_their_mean():
    batch, counts = batch_of(8), torch.tensor([5, 10, 1, 30])
    weigh = partial(weighting.class_balanced, past(), drawn(8), counts=counts)
    sure = F.one_hot(batch.y, CLASSES)
    for dtype in (torch.float32, torch.float64):
        assert_close(weigh(batch._replace(y=sure.to(dtype))), weigh(batch))
    other = batch._replace(y=batch.y.roll(1))
    mixed = 0.25 * sure.double() + 0.75 * sure.roll(1, 0).double()
    assert_close(weigh(batch._replace(y=mixed)), 0.25 * weigh(batch) + 0.75 * weigh(other))


# selections


def chosen(values: Tensor, share: float) -> list[int]:
    """The places of the smallest values."""
    return np.argsort(values.numpy(), kind="stable")[: max(1, math.floor(share * len(values) + 1e-9))].tolist()


@pytest.mark.parametrize("weigh", SHARES, ids=lambda weigh: weigh.__name__)
@given(seed=seeds, samples=st.integers(1, 30), percent=st.integers(1, 100))
def test_a_selection_makes_the_weighted_mean_the_mean_over_those_chosen(weigh, seed, samples, percent):
    losses, batch, share = drawn(samples, seed), batch_of(samples), percent / 100
    names, by = {"share": share}, losses
    if weigh is weighting.hardest:
        by = -losses
    if weigh is weighting.rho_loss:
        names |= ROLES
        names.pop("counts")
        by = ROLES["irreducible"][batch.id] - losses
    right = torch.zeros(samples, dtype=torch.float64)
    right[chosen(by, share)] = samples / len(chosen(by, share))
    weights = weigh(past(), losses, batch, **names)
    assert_close(weights, right)
    mean = torch.stack([losses[place] for place in chosen(by, share)]).mean()
    assert_close((weights * losses).mean(), mean)


@pytest.mark.parametrize("weigh", SHARES, ids=lambda weigh: weigh.__name__)
@given(levels=st.lists(st.integers(0, 3), min_size=1, max_size=12), share=st.floats(0.01, 1))
def test_equal_samples_at_the_edge_of_a_selection_share_what_is_left(weigh, levels, share):
    losses = torch.tensor(levels).double()
    names = {"irreducible": torch.zeros(40)} if weigh is weighting.rho_loss else {}
    weights = weights_of(weigh, losses, share=share, **names)
    kept = max(1, math.floor(share * len(levels) * (1 + 1e-12)))
    assert weights.sum().item() == pytest.approx(len(levels))
    assert (weights <= len(levels) / kept * (1 + 1e-12)).all()
    for level in set(levels):
        assert weights[losses == level].unique().numel() == 1
    between = (weights > 0) & (weights < len(levels) / kept * (1 - 1e-12))
    assert losses[between].unique().numel() <= 1


def test_irreducible_losses_are_those_of_the_samples_ids():
    irreducible = torch.tensor([0.0, 0.0, 5.0, 0.0, 0.0, 0.5])
    batch = Batch(x=torch.zeros(3, 1), y=torch.zeros(3).long(), id=torch.tensor([5, 2, 1]))
    weights = weighting.rho_loss(past(), torch.tensor([1.0, 5.1, 0.4]), batch, irreducible=irreducible, share=0.4)
    assert weights.tolist() == [3.0, 0.0, 0.0]


@given(seed=seeds, samples=st.integers(1, 20), share=st.floats(0.01, 1))
def test_trimming_is_hard_self_paced_by_a_quantile_scaled_to_a_mean_of_1(seed, samples, share):
    losses = drawn(samples, seed)
    hard = weights_of(HARD, losses, threshold=partial(quantile, share=share))
    assert_close(weights_of(weighting.trimmed, losses, share=share), hard / hard.mean())


# random


def random_of(key: int, iteration: int, ids: Tensor) -> Tensor:
    batch = Batch(x=torch.zeros(len(ids), 1), y=torch.zeros(len(ids)).long(), id=ids)
    return weighting.random_weights(past(key, iteration), torch.zeros(len(ids), dtype=torch.float64), batch)


def test_random_weights_are_rectified_gaussians_with_a_mean_of_1():
    weights = random_of(1, 2, torch.arange(20000))
    assert weights.mean().item() == pytest.approx(1)
    there = weights[weights > 0]
    assert 0.48 < len(there) / len(weights) < 0.52
    assert kstest((there / there.square().mean().sqrt()).numpy(), halfnorm.cdf).pvalue > 1e-3


def test_random_weights_are_a_function_of_key_iteration_and_id():
    ids = torch.arange(64)
    weights = random_of(1, 2, ids)
    assert torch.equal(random_of(1, 2, ids), weights)
    part = random_of(1, 2, ids[::2].flip(0)).flip(0)
    assert_close(part, weights[::2] / weights[::2].mean())  # whatever the neighbours, up to the scale
    for other in (random_of(2, 2, ids), random_of(1, 3, ids), random_of(1, 2, ids + 64)):
        assert abs(np.corrcoef(other, weights)[0, 1]) < 0.4 and not torch.equal(other, weights)


def test_random_weights_of_a_batch_without_any_are_0_and_not_nan():
    alone = torch.cat([random_of(1, iteration, torch.tensor([7])) for iteration in range(200)])
    assert set(alone.tolist()) == {0.0, 1.0} and 60 < alone.sum() < 140


# weightings that are broken


def negative(past, losses, batch):
    return 1 - losses


def infinite(past, losses, batch):
    return 1 / losses


def placed(past, losses, batch):
    return torch.linspace(0, 1, len(losses), dtype=losses.dtype)


def shaped(past, losses, batch):
    return losses.mean()


def single(past, losses, batch):
    return torch.ones(len(losses))


def branching(past, losses, batch):
    return torch.ones_like(losses) if losses.sum() > 1 else losses


def changing(past, losses, batch):
    return losses.mul_(2)


def unsteady(past, losses, batch, calls=[0]):  # noqa: B006
    calls[0] += 1
    return torch.full_like(losses, calls[0] % 2)


def ranked(past, losses, batch):
    return losses.argsort(stable=True).argsort().double()


@pytest.mark.parametrize(
    "weigh, message",
    [
        (
            negative,
            "negative: a weight is a finite number, never negative: of sample 0 it is -0.125 (with eighths=[9], ",
        ),
        (infinite, "infinite: a weight is a finite number, never negative: of sample 0 it is inf (with eighths=[0], "),
        (placed, "placed: permuted samples have permuted weights: of sample 0 it is 0, then 1 (with eighths=[0], "),
        (ranked, "ranked: permuted samples have permuted weights: of sample 0 it is 0, then 1 (with eighths=[0], "),
        (
            shaped,
            "shaped: there is one number a sample, of its loss's dtype: right is torch.float64 [2], it is "
            "torch.float64 [] (with eighths=[0], first step=False, random batch=0)",
        ),
        (
            single,
            "single: there is one number a sample, of its loss's dtype: right is torch.float64 [2], it is "
            "torch.float32 [2] (with eighths=[0], first step=False, random batch=0)",
        ),
        (branching, "branching: mapped over members, a weighting is the same: it is RuntimeError: "),
        (changing, "changing: a weighting leaves its arguments as they are: past, losses or batch have changed (with "),
        (unsteady, "unsteady: asked again, a weighting gives the same weights: of sample 0 it is "),
    ],
)
def test_a_broken_weighting_is_reported_with_its_law(weigh, message):
    with pytest.raises(AssertionError) as raised:
        assert_weighting_laws(weigh)
    assert str(raised.value).startswith(message)


def test_a_weighting_of_ones_own_with_a_threshold_of_ones_own_keeps_the_laws():
    def soft(past, losses, batch, *, sharpness: weighting.Exponent = 2.0, threshold):
        return torch.sigmoid(-min(sharpness, 100) * (losses - threshold(past, losses)))

    assert_weighting_laws(partial(soft, threshold=lambda past, losses: losses.amax(-1) / 2))
