"""The exact hypergradient, how others are likened to it, and problems that cannot have one."""

import math
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.func import grad
from worlds import double, numbers, seeds

from fcurr import models, optim, tree
from fcurr.bilevel.approximate import finite_difference, reinforce
from fcurr.bilevel.checking import Likeness, check_hypergradient, check_problem, depends, exact
from fcurr.bilevel.implicit import conjugate_gradient
from fcurr.bilevel.problem import Descent, Weighted, at_rest, descend
from fcurr.errors import BadInput
from fcurr.losses import cross_entropy

PLACE = (torch.tensor(0), torch.tensor(0))


def quadratic(seed: int = 0, steps: int = 2):
    """Gradient descent on |t - B phi|^2 / 2 in float32; an outer loss whose derivative is known."""
    b, c = numbers(4, 3, seed=seed).float(), numbers(4, seed=seed + 1).float()
    inner = lambda params, meta, batch: (params["t"] - b @ meta["phi"]).square().sum() / 2  # noqa: E731
    outer = lambda params, meta: params["t"] @ c + meta["phi"].square().sum() / 2  # noqa: E731
    params, meta = {"t": numbers(4, seed=seed + 2).float()}, {"phi": numbers(3, seed=seed + 3).float()}
    optimizer = optim.sgd(learning_rate=0.25)
    return outer, inner, params, meta, Descent(optimizer, optimizer.init(params), [()] * steps), b, c


@given(seed=seeds.map(lambda seed: seed // 2), steps=st.integers(1, 5))
def test_the_exact_one_is_the_closed_form_in_float64_whatever_it_is_given(seed, steps):
    *problem, b, c = quadratic(seed, steps)
    found = exact(*problem)
    right = (1 - 0.75**steps) * b.double().T @ c.double() + problem[3]["phi"].double()
    assert found["phi"].dtype == torch.float64
    torch.testing.assert_close(found["phi"], right, rtol=1e-13, atol=1e-14)


def test_the_exact_one_is_what_plain_autograd_finds_through_momentum_and_adam_by_hand():
    x, y = numbers(6, 3), numbers(6, seed=1)
    inner = lambda params, meta, batch: (torch.sigmoid(meta) * ((batch @ params["w"]).tanh() - y).square()).mean()  # noqa: E731
    outer = lambda params, meta: (x.flip(0) @ params["w"]).cos().sum() + meta.exp().sum()  # noqa: E731
    params, meta = {"w": numbers(3, seed=2)}, numbers(6, seed=3)

    def by_hand(update) -> Tensor:
        m = meta.clone().requires_grad_()
        w, memory = params["w"].clone().requires_grad_(), (torch.zeros(3).double(), torch.zeros(3).double())
        for number, batch in enumerate([x, x + 1, x - 1], 1):
            (g,) = torch.autograd.grad(inner({"w": w}, m, batch), w, create_graph=True)
            w, memory = update(w, g, memory, number)
        return torch.autograd.grad(outer({"w": w}, m), m)[0]

    def momentum(w, g, memory, number):
        speed = 0.9 * memory[0] + g
        return w - 0.1 * speed, (speed, memory[1])

    def adam(w, g, memory, number):
        first, second = 0.9 * memory[0] + 0.1 * g, 0.999 * memory[1] + 0.001 * g * g
        size = (second / (1 - 0.999**number)).sqrt() + 1e-8
        return w - 0.1 * first / (1 - 0.9**number) / size, (first, second)

    for update, optimizer in (
        (momentum, optim.sgd(learning_rate=0.1, momentum=0.9)),
        (adam, optim.adam(learning_rate=0.1)),
    ):
        descent = Descent(optimizer, optimizer.init(params), [x, x + 1, x - 1])
        torch.testing.assert_close(exact(outer, inner, params, meta, descent), by_hand(update), rtol=1e-9, atol=1e-13)


class Normed(nn.Module):
    """Layers with buffers, a tensor it has made itself, and writing to it."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 2))

    def forward(self, x: Tensor) -> Tensor:
        factor = torch.ones(2)
        factor[1] = torch.tensor(0.5).double()
        factor += torch.ones(2).double()
        return self.layers(x * torch.ones(3)) * factor


def network():
    """A network with BatchNorm; what its losses have closed over is float32."""
    model = models.from_module(build=Normed)
    params, buffers = model.init(0)
    x, y = numbers(2, 8, 3).float(), torch.arange(8) % 2
    losses = lambda params, batch: cross_entropy(model.train(params, buffers, batch, PLACE)[0], y)  # noqa: E731
    inner = Weighted(losses, lambda meta, losses, batch: (torch.sigmoid(meta * losses.detach()) * losses).mean())
    outer = lambda params, meta: losses(params, x[1]).mean()  # noqa: E731
    optimizer = optim.sgd(learning_rate=0.1, momentum=0.9)
    params = {name: leaf.detach() for name, leaf in params.items()}
    return outer, inner, params, numbers(8, seed=2).float(), Descent(optimizer, optimizer.init(params), [x[0]])


def test_what_the_losses_have_closed_over_is_widened_as_well_and_nothing_is_changed():
    outer, inner, params, meta, descent = network()
    before = tree.map(torch.clone, (params, meta, descent.memory))
    found = exact(outer, inner, params, meta, descent)
    assert tree.equal(before, (params, meta, descent.memory))
    widened = models.from_module(build=lambda: Normed().double())
    buffers = double(widened.init(0)[1])
    x, y = numbers(2, 8, 3).float().double(), torch.arange(8) % 2
    losses = lambda params, batch: cross_entropy(widened.train(params, buffers, batch, PLACE)[0], y)  # noqa: E731
    inner = inner._replace(losses=losses)
    outer = lambda params, meta: losses(params, x[1]).mean()  # noqa: E731
    params, meta, memory = double((params, meta, descent.memory))
    descent = descent._replace(memory=memory, batches=[x[0]])
    right = grad(lambda meta: outer(descend(inner, params, meta, descent)[0], meta))(meta)
    torch.testing.assert_close(found, right, rtol=1e-12, atol=0)
    assert right.norm() > 1e-4


# likeness


def test_a_report_says_cosine_error_and_scale_in_all_and_of_each_leaf():
    x, y = numbers(3), numbers(3, seed=1)
    inner = lambda params, meta, batch: (params["t"] - meta["a"] * x - meta["b"] * y).square().sum() / 2  # noqa: E731
    outer = lambda params, meta: params["t"] @ (3 * x / x.square().sum()) + 0 * meta["a"]  # noqa: E731
    params, meta = {"t": torch.zeros(3).double()}, {"b": torch.zeros(()).double(), "a": torch.zeros(()).double()}
    optimizer = optim.sgd(learning_rate=1.0)
    descent = Descent(optimizer, optimizer.init(params), [()])
    right = exact(outer, inner, params, meta, descent)
    assert float(right["a"]) == pytest.approx(3)

    def wrong(outer, inner, params, meta, descent):
        return {"a": right["a"] / 2, "b": -right["b"]}

    report = check_hypergradient(wrong, outer, inner, params, meta, descent)
    assert report.leaves["meta['a']"] == pytest.approx((1, 0.5, 2))
    assert report.leaves["meta['b']"] == pytest.approx((-1, 2, -1))
    a, b = 3.0, float(right["b"])
    length, along = math.hypot(a, b), a * a / 2 - b * b
    assert report.cosine == pytest.approx(along / length / math.hypot(a / 2, b))
    assert report.relative_error == pytest.approx(math.hypot(a / 2, 2 * b) / length)
    assert report.scale == pytest.approx(along / (a * a / 4 + b * b))


def test_a_report_reads_as_lines():
    *problem, _, _ = quadratic()
    half = lambda *given: tree.map(lambda leaf: leaf / 2, exact(*given))  # noqa: E731
    assert str(check_hypergradient(half, *problem)) == "in all  cosine 1.000000, relative error 0.5, best scale 2"
    outer, inner, params, meta, descent = problem
    both = {"phi": meta["phi"], "psi": torch.ones(2)}
    second = lambda params, meta: outer(params, meta) + meta["psi"].sum()  # noqa: E731
    assert str(check_hypergradient(half, second, inner, params, both, descent)).splitlines() == [
        "in all       cosine 1.000000, relative error 0.5, best scale 2",
        "meta['phi']  cosine 1.000000, relative error 0.5, best scale 2",
        "meta['psi']  cosine 1.000000, relative error 0.5, best scale 2",
    ]


def test_zeros_have_no_direction():
    outer, inner, params, meta, descent, *_ = quadratic()
    none = lambda *given: {"phi": torch.zeros(3)}  # noqa: E731
    report = check_hypergradient(none, outer, inner, params, meta, descent)
    assert math.isnan(report.cosine) and report.relative_error == 1 and math.isnan(report.scale)
    still = lambda params, meta: (params["t"] * 0).sum()  # noqa: E731
    report = check_hypergradient(none, still, inner, params, meta, descent)
    assert report.relative_error == 0 and math.isnan(report.cosine)
    report = check_hypergradient(lambda *given: {"phi": torch.ones(3)}, still, inner, params, meta, descent)
    assert report.relative_error == math.inf


def test_a_method_is_judged_in_the_numbers_it_is_given():
    problem = network()
    single = lambda outer, inner, params, meta, descent: grad(  # noqa: E731
        lambda meta: outer(
            descent.optimizer.update(grad(inner)(params, meta, descent.batches[0]), descent.memory, params)[0], meta
        )
    )(meta)
    report = check_hypergradient(single, *problem)
    assert 1e-9 < report.relative_error < 1e-5 and report.cosine > 1 - 1e-9
    assert set(report.leaves) == {"meta"}


def test_a_difference_that_sees_through_detach_is_found_out():
    outer, inner, params, meta, descent = network()
    plain = lambda params, meta, batch: inner(params, meta, batch)  # noqa: E731
    fine, blind = (
        check_hypergradient(finite_difference, outer, loss, params, meta, descent) for loss in (inner, plain)
    )
    assert fine.relative_error < 1e-2 and fine.scale == pytest.approx(1, abs=1e-2)
    assert blind.relative_error > 0.1


def test_an_implicit_method_is_like_a_long_descent_and_reinforce_like_many_samples():
    outer, inner, params, meta, descent, *_ = quadratic(steps=60)
    implicit = partial(conjugate_gradient, iterations=3)
    assert check_hypergradient(implicit, outer, inner, params, meta, descent).relative_error < 1e-5
    tried = partial(reinforce, key=0, samples=20_000, deviation=0.1)
    assert check_hypergradient(tried, outer, inner, params, meta, descent).relative_error < 0.05


# problems without a hypergradient


def test_whether_an_outer_loss_depends_on_the_parameters_is_a_matter_of_how_it_is_built():
    params, meta = {"a": torch.ones(2), "b": torch.ones(())}, torch.ones(2)
    assert depends(lambda params, meta: params["b"] * 0, params, meta)
    assert depends(lambda params, meta: (params["a"] - 1).square().sum(), params, meta)  # a derivative of 0, here
    assert not depends(lambda params, meta: meta.sum(), params, meta)
    assert not depends(lambda params, meta: (params["a"].detach() * meta).sum(), params, meta)
    assert not depends(lambda params, meta: (params["a"] > 0).float().mean(), params, meta)
    assert not depends(lambda params, meta: torch.ones((), requires_grad=True) * 2, params, meta)
    assert not params["a"].requires_grad


def worlds(**changed):
    """The arguments of a problem that is all right, but for what is changed."""
    params = {"a": torch.ones(2), "b": torch.ones(2)}
    optimizer = optim.sgd(learning_rate=0.1)
    right = {
        "outer": lambda params, meta: params["a"].sum(),
        "inner": lambda params, meta, batch: (params["a"] * meta).square().sum(),
        "params": params,
        "meta": torch.ones(2),
        "descent": Descent(optimizer, optimizer.init(params), [()]),
    }
    return {**right, **changed}


WORDS = {
    "the descent has no batches: it wants one a step, or at_rest(batches) for parameters at a minimum": {
        "descent": at_rest([])
    },
    "the outer loss does not depend on the inner parameters: no gradient reaches them, so nothing is learned through "
    "them. Compute it from the params it is given, without detach; for what has no derivative, like an accuracy, there "
    "is reinforce": {"outer": lambda params, meta: (params["a"] > 0).float().mean() + meta.sum()},
    "the inner loss does not depend on the inner parameters: no step moves them": {
        "inner": lambda params, meta, batch: meta.sum()
    },
    "the outer loss depends on params['b'] only, the inner loss on params['a'] only: what the one moves the other does "
    "not see": {"outer": lambda params, meta: params["b"].sum()},
    "the gradient of the inner loss does not depend on the meta parameters, and neither does the optimizer: they do "
    "not change where the descent ends": {"inner": lambda params, meta, batch: params["a"].square().sum() + meta.sum()},
}


@pytest.mark.parametrize("words, changed", WORDS.items(), ids=range(len(WORDS)))
def test_a_problem_whose_hypergradient_is_zero_for_how_it_is_built_is_refused(words, changed):
    for door in (check_problem, partial(check_hypergradient, finite_difference)):
        with pytest.raises(BadInput) as wrong:
            door(**worlds(**changed))
        assert str(wrong.value) == words


def test_a_problem_that_is_all_right_passes_and_so_do_meta_parameters_of_the_optimizer():
    check_problem(**worlds())
    rated = worlds(
        inner=lambda params, meta, batch: params["a"].square().sum(),
        descent=worlds()["descent"]._replace(optimizer=lambda meta: optim.sgd(learning_rate=meta.sum())),
    )
    check_problem(**rated)
    check_problem(**worlds(descent=at_rest([()])))
    with pytest.raises(ValueError, match="no batches"):
        check_problem(**worlds(descent=at_rest(())))


def test_likeness_reads_as_a_line():
    assert str(Likeness(0.91, 0.72, 0.5)) == "cosine 0.910000, relative error 0.72, best scale 0.5"
    assert str(Likeness(1.0, 1.23e-12, 1.0)) == "cosine 1.000000, relative error 1.2e-12, best scale 1"
