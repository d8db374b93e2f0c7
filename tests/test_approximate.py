"""Differences and trials, against the exact derivative of the same step."""

from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.func import grad, jacrev, vmap
from worlds import assert_close, double, looped, numbers, seeds

from fcurr import models, optim, tree
from fcurr.bilevel.approximate import finite_difference, reinforce, sama
from fcurr.bilevel.problem import Descent, Weighted, at_rest, descend
from fcurr.losses import cross_entropy
from fcurr.tracing import traced

OPTIMIZERS = {
    "sgd": optim.sgd(learning_rate=0.3),
    "decay": optim.sgd(learning_rate=0.3, weight_decay=0.1),
    "momentum": optim.sgd(learning_rate=0.3, momentum=0.9),
    "nesterov": optim.sgd(learning_rate=0.3, momentum=0.9, nesterov=True),
    "adam": optim.adam(learning_rate=0.1),
    "adamw": optim.adamw(learning_rate=0.1, weight_decay=0.1),
    "clipped": optim.clipped(optimizer=optim.adam(learning_rate=0.1), max_norm=0.05),
}
every_optimizer = pytest.mark.parametrize("optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS.keys())


def through(outer, inner, params, meta, descent) -> Any:
    """The exact derivative, by reverse mode through all steps."""
    return grad(lambda meta: outer(descend(inner, params, meta, descent)[0], meta))(meta)


def off(found: Any, right: Any) -> float:
    """The relative error."""
    return float(tree.norm(tree.map(torch.sub, found, right)) / tree.norm(right))


def weigh(meta, losses: Tensor) -> Tensor:
    """A weight of a loss and of the sample: smooth, so that differences are as good as they can be."""
    return torch.sigmoid(meta["slope"] * losses + meta["own"])


DETACHED = lambda meta, losses, batch: (weigh(meta, losses.detach()) * losses).mean()  # noqa: E731
SEEN = lambda meta, losses, batch: (weigh(meta, losses) * losses).mean()  # noqa: E731


def smooth(params, x: Tensor) -> Tensor:
    return torch.tanh(x @ params["in"]) @ params["out"]


def world(objective=DETACHED, seed: int = 0):
    """A network without kinks whose samples are weighted by their losses; two batches of six, another of clean ones."""
    params = {"out": numbers(4, 3, seed=seed), "in": numbers(5, 4, seed=seed + 1)}
    meta = {"slope": torch.tensor(0.7, dtype=torch.float64), "own": numbers(6, seed=seed + 2)}
    x, y = numbers(3, 6, 5, seed=seed + 3), (torch.arange(18) % 3).reshape(3, 6)
    inner = Weighted(lambda params, batch: cross_entropy(smooth(params, batch[0]), batch[1]), objective)
    clean = lambda params: cross_entropy(smooth(params, x[2]), y[2]).mean()  # noqa: E731
    outer = lambda params, meta: clean(params) + 0.01 * meta["own"].square().sum()  # noqa: E731
    return outer, inner, params, meta, [(x[0], y[0]), (x[1], y[1])]


def descent_of(optimizer, params, batches) -> Descent:
    return Descent(optimizer=optimizer, memory=optimizer.init(params), batches=batches)


def after(inner, params, meta, descent: Descent):
    """The parameters before the last step, and the descent of that step."""
    *before, last = descent.batches
    params, memory = descend(inner, params, meta, descent._replace(batches=before))
    return params, descent._replace(memory=memory, batches=[last])


# finite differences


@every_optimizer
@pytest.mark.parametrize("objective", [DETACHED, SEEN], ids=["detached", "seen"])
def test_differences_of_losses_are_exact_but_for_the_square_of_their_radius(optimizer, objective):
    outer, inner, params, meta, batches = world(objective)
    params, last = after(inner, params, meta, descent_of(optimizer, params, batches * 2))
    right = through(outer, inner, params, meta, last)
    direct = grad(outer, argnums=1)(params, meta)
    errors = [
        off(finite_difference(outer, inner, params, meta, last, radius=radius), right) for radius in (0.1, 0.01, 0.001)
    ]
    assert errors[2] < 1e-6 and errors[2] < errors[1] / 80 and errors[1] < errors[0] / 80
    assert off(direct, right) > 1e-3  # what is differenced counts


@every_optimizer
def test_of_a_plain_function_differences_see_through_detach(optimizer):
    params, metas = world()[2], world()[3]
    answers = {}
    for name, objective in (("detached", DETACHED), ("seen", SEEN)):
        outer, inner, _, meta, batches = world(objective)
        at, last = after(inner, params, meta, descent_of(optimizer, params, batches))
        plain = lambda params, meta, batch, inner=inner: inner(params, meta, batch)  # noqa: E731
        found = finite_difference(outer, plain, at, metas, last, radius=1e-3)
        answers[name] = off(found, through(outer, inner, at, metas, last))
    assert answers["seen"] < 1e-6 < 1e-2 < answers["detached"]


@given(seed=seeds.map(lambda seed: seed // 2), radius=st.sampled_from([1e-2, 1.0, 30.0]), size=st.integers(1, 4))
def test_differences_of_quadratic_losses_are_exact_for_every_radius(seed, radius, size):
    x, y = numbers(7, size, seed=seed), numbers(7, seed=seed + 1)
    inner = Weighted(
        lambda params, batch: (batch[0] @ params["w"] - batch[1]).square(),
        lambda meta, losses, batch: (torch.sigmoid(meta) * losses).mean(),
    )
    outer = lambda params, meta: params["w"].cos().sum()  # noqa: E731
    params, meta = {"w": numbers(size, seed=seed + 2)}, numbers(7, seed=seed + 3)
    for optimizer in OPTIMIZERS.values():
        at, last = after(inner, params, meta, descent_of(optimizer, params, [(x, y)] * 3))
        right = through(outer, inner, at, meta, last)
        assert_close(finite_difference(outer, inner, at, meta, last, radius=radius), right, rtol=1e-6, atol=1e-10)


@pytest.mark.parametrize("method", [finite_difference, sama])
def test_the_last_step_is_differentiated_and_those_before_are_taken_for_given(method):
    outer, inner, params, meta, batches = world()
    descent = descent_of(OPTIMIZERS["adam"], params, batches * 2)
    at, last = after(inner, params, meta, descent)
    assert_close(method(outer, inner, params, meta, descent), method(outer, inner, at, meta, last))


@pytest.mark.parametrize("method", [finite_difference, sama])
def test_learning_rates_that_are_meta_parameters_have_their_derivative(method):
    outer, inner, params, meta, batches = world()
    meta = meta | {"rate": torch.tensor(0.2, dtype=torch.float64)}
    rated = lambda meta: optim.sgd(learning_rate=meta["rate"], momentum=0.9)  # noqa: E731
    last = Descent(optimizer=rated, memory=rated(meta).init(params), batches=batches[:1])
    right = through(outer, inner, params, meta, last)
    assert_close(method(outer, inner, params, meta, last)["rate"], right["rate"])


@pytest.mark.parametrize("method", [finite_difference, sama])
def test_where_nothing_moves_the_direct_gradient_is_left_and_can_be_differentiated(method):
    outer, inner, params, meta, batches = world()
    find = lambda meta: method(outer, inner, params, meta, at_rest(batches))  # noqa: E731
    assert_close(find(meta), grad(outer, argnums=1)(params, meta))
    assert all(leaf.isfinite().all() for leaf in tree.leaves(jacrev(find)(meta)))


def test_differences_in_float32_are_right_to_a_thousandth():
    outer, inner, params, meta, batches = world()
    descent = descent_of(OPTIMIZERS["momentum"], params, batches[:1])
    right = through(outer, inner, params, meta, descent)
    single = partial(tree.map, lambda leaf: leaf.float() if leaf.is_floating_point() else leaf)
    params, meta, batch = single((params, meta, batches[0]))
    outer = lambda params, meta: world()[0](double(params), double(meta)).float()  # noqa: E731
    found = finite_difference(outer, inner, params, meta, descent_of(OPTIMIZERS["momentum"], params, [batch]))
    assert found["own"].dtype == torch.float32 and off(double(found), right) < 1e-3


# SAMA


@every_optimizer
def test_sama_is_exact_where_the_mixed_derivative_is_constant(optimizer):
    a, b = numbers(4, 4), numbers(4, 3, seed=1)
    inner = lambda params, meta, batch: (a @ params["t"]).square().sum() / 2 - params["t"] @ b @ meta + meta.exp().sum()  # noqa: E731
    outer = lambda params, meta: params["t"].cos().sum() + meta.sin().sum()  # noqa: E731
    params, meta = {"t": numbers(4, seed=2)}, numbers(3, seed=3)
    params, last = after(inner, params, meta, descent_of(optimizer, params, [()] * 3))
    assert_close(sama(outer, inner, params, meta, last), through(outer, inner, params, meta, last))


def test_sama_takes_its_difference_after_the_step():
    inner = lambda params, meta, batch: (params["t"] ** 3 * meta).sum()  # noqa: E731
    outer = lambda params, meta: (params["t"] * torch.tensor([1.0, 2.0])).sum()  # noqa: E731
    params, meta = {"t": torch.tensor([1.0, -2.0]).double()}, torch.tensor([0.5, 0.25]).double()
    last = descent_of(optim.sgd(learning_rate=0.1), params, [()])
    step = params["t"] - 0.1 * 3 * params["t"] ** 2 * meta
    v = torch.tensor([1.0, 2.0]).double()
    for radius in (1e-3, 1.0):  # the central difference of t^3 along e q is 3 t^2 q + e^2 q^3
        size = radius / (0.1 * v).norm()
        right = -0.1 * v * (3 * step**2 + size**2 * (0.1 * v) ** 2)
        torch.testing.assert_close(sama(outer, inner, params, meta, last, radius=radius), right)


def test_the_preconditioner_of_adam_is_that_of_the_paper_times_its_bias_correction():
    g, v, start = numbers(5), numbers(5, seed=1), numbers(5, seed=2)
    inner = lambda params, meta, batch: params["t"] @ meta  # noqa: E731
    outer = lambda params, meta: params["t"] @ v  # noqa: E731
    optimizer = optim.adam(learning_rate=0.1)
    descent = descent_of(optimizer, {"t": start}, [()] * 51)
    meta = g
    before, memory = descend(inner, {"t": start}, meta, descent._replace(batches=[()] * 50))
    memory = memory._replace(first={"t": memory.first["t"] * 0.5}, second={"t": memory.second["t"] * 2})
    last = Descent(optimizer=optimizer, memory=memory, batches=[()])
    m, r = memory.first["t"], memory.second["t"]
    paper = 0.1 * (0.1 * 0.999 * r - 0.9 * 0.001 * g * m) / (0.999 * r + 0.001 * g**2).sqrt() ** 3
    scale = (1 - 0.999**51) ** 0.5 / (1 - 0.9**51)
    found = sama(outer, inner, before, meta, last)
    torch.testing.assert_close(found, -scale * paper * v, rtol=1e-5, atol=0)
    assert 1 / scale == pytest.approx(4.46, abs=0.02)


# REINFORCE


def bilinear(seed: int = 0):
    """A quadratic outer loss of a quadratic inner one; the value and its derivative by two steps."""
    b, c = numbers(4, 3, seed=seed), numbers(4, seed=seed + 1)
    inner = lambda params, meta, batch: params["t"].square().sum() / 2 - params["t"] @ b @ meta["phi"]  # noqa: E731
    outer = lambda params, meta: (params["t"] - c).square().sum() + meta["phi"].square().sum()  # noqa: E731
    params, meta = {"t": numbers(4, seed=seed + 2)}, {"phi": numbers(3, seed=seed + 3)}
    return outer, inner, params, meta, descent_of(optim.sgd(learning_rate=0.4), params, [(), ()])


@pytest.mark.parametrize("deviation", [0.1, 3.0])
@pytest.mark.parametrize("samples", [1, 4])
def test_reinforce_has_no_bias(samples, deviation):
    problem = bilinear()
    find = lambda key: reinforce(*problem, key=key, samples=samples, deviation=deviation)["phi"]  # noqa: E731
    found = vmap(find)(torch.arange(4000))
    right = through(*problem)["phi"]  # of a quadratic the smoothed derivative is the derivative
    error = found.std(0) / len(found) ** 0.5
    assert ((found.mean(0) - right).abs() < 4.5 * error).all() and (error < 0.1 * right.norm()).all()
    spread = (found - right).square().sum(1).mean().sqrt() / right.norm()
    assert float(spread) == pytest.approx((4 / samples) ** 0.5, rel=0.1)  # sqrt((3 + 1) / samples)


def test_reinforce_differentiates_what_has_no_derivative():
    """The share of positive meta parameters, smoothed: its derivative is the density of the normal distribution."""
    outer = lambda params, meta: (params["t"] > 0).float().mean()  # noqa: E731
    inner = lambda params, meta, batch: (params["t"] - meta).square().sum() / 2  # noqa: E731
    params, meta = {"t": torch.zeros(2)}, torch.tensor([0.3, -0.8])
    descent = descent_of(optim.sgd(learning_rate=1.0), params, [()])
    find = partial(reinforce, outer, inner, params, meta, descent, samples=40_000, deviation=0.5)
    right = torch.exp(-((meta / 0.5) ** 2) / 2) / (2 * torch.pi) ** 0.5 / 0.5 / 2
    torch.testing.assert_close(find(key=1), right, rtol=0, atol=0.02)
    assert find(key=1).dtype == torch.float32 and not torch.equal(find(key=1), find(key=2))


def test_leaves_and_samples_of_reinforce_have_noise_of_their_own():
    outer = lambda params, meta: meta["a"].sum() + meta["b"].sum()  # noqa: E731
    meta = {"a": torch.zeros(2, 2), "b": torch.zeros(2, 2)}
    found = reinforce(outer, lambda *_: torch.zeros(()), {}, meta, at_rest([]), key=0, samples=1, deviation=1.0)
    assert len(torch.cat([leaf.flatten() for leaf in found.values()]).unique()) == 8
    twice = reinforce(outer, lambda *_: torch.zeros(()), {}, meta, at_rest([]), key=0, samples=2, deviation=1.0)
    assert off(twice, found) > 0.01


# all of them


def network():
    """Three small networks with ReLU, and three sets of sample weights."""
    model = models.mlp(features=(3,), classes=2, hidden=(4,))
    x, y = numbers(8, 3), torch.arange(8) % 2
    inner = Weighted(
        lambda params, batch: cross_entropy(model.apply(params, batch[0]), batch[1]),
        lambda meta, losses, batch: (weigh(meta, losses.detach()) * losses).mean(),
    )
    outer = lambda params, meta: cross_entropy(model.apply(params, x.flip(0)), y).mean()  # noqa: E731
    params = double(tree.stack([model.init(seed)[0] for seed in range(3)]))
    metas = {"own": numbers(3, 8, seed=1), "slope": numbers(3, seed=2)}
    descent = descent_of(OPTIMIZERS["momentum"], tree.member(params, 0), [(x, y)] * 2)
    return outer, inner, params, metas, descent


METHODS = {
    "difference": finite_difference,
    "sama": sama,
    "reinforce": partial(reinforce, key=3, samples=3, deviation=0.1),
}
every_method = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS.keys())


@every_method
@pytest.mark.parametrize("known", [True, False], ids=["weighted", "plain"])
def test_every_method_mapped_over_parameters_and_metas_is_itself_in_turn_and_traced_itself(method, known):
    outer, weighted, params, metas, descent = network()
    inner = weighted if known else lambda params, meta, batch: weighted(params, meta, batch)
    find = lambda params, meta: method(outer, inner, params, meta, descent)  # noqa: E731
    right = looped(find, params, metas)
    assert_close(vmap(find)(params, metas), right, rtol=1e-7, atol=1e-10)
    assert_close(traced(vmap(find), params, metas)(params, metas), right, rtol=1e-7, atol=1e-10)


def test_reinforce_maps_over_keys():
    outer, inner, params, metas, descent = network()
    problem = (outer, inner, *tree.member((params, metas), 0), descent)
    find = lambda key: reinforce(*problem, key=key, samples=3, deviation=0.1)  # noqa: E731
    keys = torch.tensor([0, 5, -7])
    assert_close(vmap(find)(keys), looped(find, keys))


def test_reinforce_goes_through_its_samples_in_turn_where_an_operation_does_not_map():
    outer, inner, params, meta, descent = bilinear()
    stubborn = lambda params, meta: torch.tensor(float(outer(params, meta)), dtype=torch.float64)  # noqa: E731
    found, right = (
        reinforce(loss, inner, params, meta, descent, key=0, samples=3, deviation=0.1) for loss in (stubborn, outer)
    )
    assert_close(found, right)


@every_method
@pytest.mark.parametrize("known", [True, False], ids=["weighted", "plain"])
def test_every_method_can_be_differentiated_by_parameters_and_by_meta(method, known):
    outer, weighted, params, meta, batches = world(SEEN)
    inner = weighted if known else lambda params, meta, batch: weighted(params, meta, batch)
    params, last = after(weighted, params, meta, descent_of(OPTIMIZERS["adam"], params, batches))

    def find(into: Tensor, slope: Tensor) -> tuple[Tensor, ...]:
        found = method(outer, inner, params | {"in": into}, meta | {"slope": slope}, last)
        return found["slope"], found["own"]

    at = params["in"].clone().requires_grad_(), meta["slope"].clone().requires_grad_()
    assert torch.autograd.gradcheck(find, at, atol=1e-6)
