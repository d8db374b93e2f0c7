"""The derivative of a minimum, against minima that are known in closed form."""

from functools import partial
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.func import grad, hessian, vmap
from worlds import assert_close, double, keys, looped, numbers, seeds

from fcurr import models, optim, tree
from fcurr.autodiff import hvp
from fcurr.bilevel.implicit import conjugate_gradient, largest_curvature, neumann, nystrom, solved
from fcurr.bilevel.problem import Descent, at_rest, descend
from fcurr.losses import cross_entropy
from fcurr.tracing import traced

HERE = at_rest([()])
METHODS = {
    "conjugate gradient": partial(conjugate_gradient, iterations=4, damping=0.1),
    "neumann": partial(neumann, iterations=4, step_size=0.3),
    "nystrom": partial(nystrom, rank=4, damping=0.1, key=3),
}
every_method = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS.keys())


def split(row: Tensor) -> dict[str, Tensor]:
    """A row as parameters of two shapes, whose names are not in order."""
    return {"b": row[:1], "a": row[1:].reshape(-1, 2)}


def joined(params: dict[str, Tensor]) -> Tensor:
    return torch.cat([params["b"], params["a"].flatten()])


class Quadratic(NamedTuple):
    """The inner loss <t, A t> / 2 - <t, B phi>, at its least at t = A^-1 B phi; an outer loss that reads phi too."""

    a: Tensor
    b: Tensor
    c: Tensor

    def inner(self, params, meta, batch) -> Tensor:
        t = joined(params)
        return t @ self.a @ t / 2 - t @ self.b @ meta["phi"]

    def outer(self, params, meta) -> Tensor:
        t = joined(params)
        return (self.c @ t).sin() + t @ t / 2 + (t.sum() * meta["phi"]).cos().sum()

    def minimum(self, meta):
        return split(torch.linalg.solve(self.a, self.b @ meta["phi"]))

    def derivative(self, meta, damping: float = 0.0) -> dict[str, Tensor]:
        """In closed form; with damping, of A + damping I in place of A where it is solved for x."""
        at, phi = joined(self.minimum(meta)), meta["phi"]
        bent = (at.sum() * phi).sin()
        v = self.c * (self.c @ at).cos() + at - (phi * bent).sum()
        eye = torch.eye(len(at), dtype=at.dtype)
        return {"phi": self.b.T @ torch.linalg.solve(self.a + damping * eye, v) - at.sum() * bent}


def quadratic(
    seed: int = 0, size: int = 7, few: int = 3, condition: float = 10.0
) -> tuple[Quadratic, dict[str, Tensor]]:
    """Eigenvalues of A from 1 / condition to 1, and meta parameters."""
    turn, _ = torch.linalg.qr(numbers(size, size, seed=seed))
    values = condition ** -torch.linspace(0, 1, size, dtype=torch.float64)
    b, c = numbers(size, few, seed=seed + 1, scale=0.3), numbers(size, seed=seed + 2, scale=0.3)
    return Quadratic(turn @ torch.diag(values) @ turn.T, b, c), {"phi": numbers(few, seed=seed + 3, scale=0.3)}


def off(found: Any, right: Any) -> float:
    """The relative error."""
    return float(tree.norm(tree.map(torch.sub, found, right)) / tree.norm(right))


worlds = st.builds(
    quadratic,
    seed=seeds.map(lambda seed: seed - 3 if seed > 3 else seed),
    size=st.sampled_from([1, 3, 5, 9]),
    few=st.integers(1, 4),
    condition=st.sampled_from([1.0, 3.0, 30.0, 1000.0]),
)
dampings = st.sampled_from([0.0, 1e-3, 0.5])


# Hessian products


def test_a_product_is_that_of_the_hessian_and_one_graph_gives_all():
    params = {"w": numbers(3, 2), "a": numbers(2, seed=1)}
    x = numbers(4, 3, seed=2)
    loss = lambda p: ((x @ p["w"]).tanh() @ p["a"]).exp().sum()  # noqa: E731
    blocks, product = hessian(loss)(params), hvp(loss, params)
    for seed in range(3):
        v = {"w": numbers(3, 2, seed=seed), "a": numbers(2, seed=seed + 9)}
        right = {
            n: sum(torch.tensordot(blocks[n][k], v[k], v[k].ndim) for k in params)  # pyright: ignore
            for n in params
        }
        assert_close(product(v), right)


# conjugate gradients


@given(world=worlds, damping=dampings)
def test_conjugate_gradients_are_the_closed_form_of_quadratics(world, damping):
    (problem, meta) = world
    at = problem.minimum(meta)
    find = partial(conjugate_gradient, iterations=4 * len(joined(at)), tolerance=1e-13, damping=damping)
    found = find(problem.outer, problem.inner, at, meta, HERE)
    assert_close(found, problem.derivative(meta, damping), rtol=1e-9, atol=1e-9)


@given(world=worlds, tolerance=st.sampled_from([0.5, 1e-2, 1e-6, 1e-10]), damping=dampings)
def test_conjugate_gradients_end_at_their_tolerance_and_then_nothing_changes(world, tolerance, damping):
    problem, meta = world
    at = problem.minimum(meta)
    count = 4 * len(joined(at))
    found, more = (
        solved(problem.outer, problem.inner, at, meta, HERE, iterations=n, tolerance=tolerance, damping=damping)
        for n in (count, count + 5)
    )
    assert found.residual <= tolerance * (1 + 1e-3) and not found.indefinite
    assert tree.equal(found, more)
    v = grad(problem.outer)(at, meta)
    missing = joined(v) - problem.a @ joined(found.x) - damping * joined(found.x)
    torch.testing.assert_close(found.residual, missing.norm() / tree.norm(v), rtol=1e-6, atol=1e-13)


def test_an_iteration_less_than_the_tolerance_wants_is_not_within_it():
    problem, meta = quadratic(condition=100.0)
    at = problem.minimum(meta)
    look = partial(solved, problem.outer, problem.inner, at, meta, HERE, tolerance=1e-6)
    residuals = [float(look(iterations=n).residual) for n in range(1, 9)]
    needed = next(n for n, residual in enumerate(residuals) if residual <= 1e-6)
    assert min(residuals[:needed]) > 1e-6 and set(residuals[needed:]) == {residuals[needed]} and needed > 2


def bowl(*values: float):
    """An inner loss with these curvatures, an outer one with the gradient (1, 1, ...)."""
    inner = lambda params, meta, batch: (torch.tensor(values) * params["t"] ** 2).sum() / 2 - (params["t"] * meta).sum()  # noqa: E731
    outer = lambda params, meta: params["t"].sum()  # noqa: E731
    size = len(values)
    return outer, inner, {"t": torch.zeros(size, dtype=torch.float64)}, torch.zeros(size, dtype=torch.float64)


def test_conjugate_gradients_stop_at_what_they_have_where_the_curvature_is_not_positive():
    first = solved(*bowl(-1.0, -1.0), HERE, iterations=5)
    assert first.indefinite and torch.equal(first.x["t"], torch.zeros(2, dtype=torch.float64)) and first.residual == 1
    flat = solved(*bowl(0.0, 0.0), HERE, iterations=5)
    assert flat.indefinite and flat.residual == 1
    later, once = (solved(*bowl(3.0, -1.0), HERE, iterations=n) for n in (5, 1))
    assert later.indefinite and not once.indefinite
    assert torch.equal(later.x["t"], torch.ones(2, dtype=torch.float64))  # <v, v> / <v, H v> = 2 / 2
    assert tree.equal(later.x, once.x)
    damped = solved(*bowl(3.0, -1.0), HERE, iterations=5, damping=2.0)
    assert not damped.indefinite
    torch.testing.assert_close(damped.x["t"], torch.tensor([0.2, 1.0], dtype=torch.float64))


def test_an_outer_gradient_of_zero_has_a_solution_of_zero_that_can_be_differentiated():
    _, inner, params, meta = bowl(1.0, 2.0)
    outer = lambda params, meta: (params["t"] ** 2).sum() + meta.sum()  # noqa: E731
    for method in METHODS.values():
        find = lambda meta, method=method: method(outer, inner, params, meta, HERE)  # noqa: E731
        assert torch.equal(find(meta), torch.ones_like(meta))
        assert torch.func.jacrev(find)(meta).isfinite().all()
    found = solved(outer, inner, params, meta, HERE, iterations=3)
    assert found.residual == 0 and not found.indefinite


def test_conjugate_gradients_in_float32_are_right_to_rounding():
    problem, meta = quadratic(condition=30.0, size=9)
    single = Quadratic(*(leaf.float() for leaf in problem))
    at = tree.map(Tensor.float, problem.minimum(meta))
    find = partial(conjugate_gradient, iterations=20, tolerance=1e-7)
    found = find(single.outer, single.inner, at, tree.map(Tensor.float, meta), HERE)
    assert found["phi"].dtype == torch.float32 and off(double(found), problem.derivative(meta)) < 1e-5


# the Neumann series


def test_partial_sums_of_the_neumann_series_are_what_they_should_be():
    problem = bowl(0.5)
    sums = [neumann(*problem, HERE, iterations=n, step_size=1.0).item() for n in range(5)]
    assert sums == [1, 1.5, 1.75, 1.875, 1.9375]
    assert neumann(*problem, HERE, iterations=2, step_size=2.0).item() == 2  # a H = 1: at once
    assert neumann(*bowl(-1.0), HERE, iterations=2, step_size=1.0).item() == 7  # 1 + 2 + 4


@given(world=worlds, iterations=st.integers(0, 6), step_size=st.sampled_from([0.1, 0.9, 1.9]))
def test_the_neumann_series_is_the_derivative_of_gradient_descent_from_the_minimum(world, iterations, step_size):
    problem, meta = world
    at = problem.minimum(meta)
    optimizer = optim.sgd(learning_rate=step_size)
    descent = Descent(optimizer=optimizer, memory=optimizer.init(at), batches=[()] * (iterations + 1))
    right = grad(lambda meta: problem.outer(descend(problem.inner, at, meta, descent)[0], meta))(meta)
    find = partial(neumann, iterations=iterations, step_size=step_size)
    assert_close(find(problem.outer, problem.inner, at, meta, HERE), right, rtol=1e-8, atol=1e-10)


def test_the_neumann_series_converges_below_twice_the_inverse_of_the_largest_curvature_and_not_above():
    problem, meta = quadratic(condition=10.0)
    at = problem.minimum(meta)
    largest = float(largest_curvature(problem.inner, at, meta, HERE, iterations=300))
    assert largest == pytest.approx(1.0, rel=1e-9)
    find = partial(neumann, problem.outer, problem.inner, at, meta, HERE, iterations=300)
    right = problem.derivative(meta)
    assert off(find(step_size=1 / largest), right) < 1e-10
    assert off(find(step_size=1.9 / largest), right) < 1e-10
    assert off(find(step_size=2.1 / largest), right) > 1e6


@given(seed=st.integers(0, 1000), key=keys, top=st.sampled_from([3.0, -3.0]))
def test_the_largest_curvature_is_the_eigenvalue_of_the_largest_magnitude_with_its_sign(seed, key, top):
    turn, _ = torch.linalg.qr(numbers(5, 5, seed=seed))
    a = turn @ torch.diag(torch.tensor([top, 1.0, 0.5, -1.0, 0.0], dtype=torch.float64)) @ turn.T
    problem = Quadratic(a, torch.zeros(5, 1, dtype=torch.float64), numbers(5))
    at, meta = split(numbers(5, seed=1)), {"phi": numbers(1)}
    find = partial(largest_curvature, problem.inner, at, meta, HERE, key=key)
    assert float(find(iterations=60)) == pytest.approx(top, rel=1e-6)
    assert abs(float(find(iterations=1))) <= 3 * (1 + 1e-12)


def test_the_largest_curvature_of_a_flat_loss_is_zero():
    _, inner, params, meta = bowl(0.0, 0.0)
    assert largest_curvature(inner, params, meta, HERE, iterations=3) == 0


# Nystrom


@given(world=worlds, damping=st.sampled_from([1e-6, 1e-2, 1.0]), more=st.integers(0, 3), key=keys)
def test_nystrom_of_full_rank_is_the_closed_form(world, damping, more, key):
    problem, meta = world
    at = problem.minimum(meta)
    find = partial(nystrom, rank=len(joined(at)) + more, damping=damping, key=key)
    right = problem.derivative(meta, damping)
    assert_close(find(problem.outer, problem.inner, at, meta, HERE), right, rtol=1e-8, atol=1e-8)


@given(seed=st.integers(0, 1000), low=st.integers(1, 4), key=keys)
def test_nystrom_of_the_hessians_own_rank_is_the_closed_form(seed, low, key):
    half = numbers(9, low, seed=seed)
    problem = Quadratic(half @ half.T, numbers(9, 2, seed=seed + 1), numbers(9, seed=seed + 2))
    at, meta = split(numbers(9, seed=seed + 3)), {"phi": numbers(2, seed=seed + 4)}
    v, direct = grad(problem.outer, argnums=(0, 1))(at, meta)
    x = torch.linalg.solve(problem.a + 0.1 * torch.eye(9, dtype=torch.float64), joined(v))
    find = partial(nystrom, problem.outer, problem.inner, at, meta, HERE, damping=0.1, key=key)
    right = {"phi": direct["phi"] + problem.b.T @ x}
    assert_close(find(rank=low), right, rtol=1e-7, atol=1e-9)
    assert_close(find(rank=min(low + 3, 9)), right, rtol=1e-7, atol=1e-9)


def test_nystrom_of_a_hessian_of_lower_rank_is_safe_in_float32():
    half = numbers(9, 2).float()
    problem = Quadratic(half @ half.T, numbers(9, 2, seed=1).float(), numbers(9, seed=2).float())
    at, meta = split(numbers(9, seed=3).float()), {"phi": numbers(2, seed=4).float()}
    v, direct = grad(problem.outer, argnums=(0, 1))(at, meta)
    a = (half.double() @ half.double().T) + 1e-3 * torch.eye(9, dtype=torch.float64)
    right = direct["phi"].double() + problem.b.double().T @ torch.linalg.solve(a, joined(v).double())
    for key in range(20):
        found = nystrom(problem.outer, problem.inner, at, meta, HERE, rank=8, damping=1e-3, key=key)
        assert found["phi"].dtype == torch.float32
        torch.testing.assert_close(found["phi"].double(), right, rtol=1e-3, atol=1e-3 * float(right.abs().max()))


@given(key=keys, rank=st.integers(1, 6))
def test_what_nystrom_inverts_is_never_larger_than_the_inverse_of_its_damping(key, rank):
    outer, inner, params, meta = bowl(3.0, -1.0, 0.0, -0.01, 1e-9, -3.0)
    found = nystrom(outer, inner, params, meta, HERE, rank=rank, damping=0.01, key=key)  # x itself
    assert found.norm() <= 6**0.5 / 0.01 * (1 + 1e-9) and found @ torch.ones(6, dtype=torch.float64) > 0


@given(key=keys)
def test_curvature_that_is_not_positive_is_left_out_by_nystrom(key):
    outer, inner, params, meta = bowl(3.0, -1.0, 0.0, -0.01, 1e-9, -3.0)
    found = nystrom(outer, inner, params, meta, HERE, rank=6, damping=0.01, key=key)
    right = 1 / (torch.tensor([3.0, 0, 0, 0, 1e-9, 0], dtype=torch.float64) + 0.01)
    torch.testing.assert_close(found, right, rtol=1e-9, atol=0)


def test_a_damping_far_below_the_curvature_keeps_its_digits_in_float32():
    problem, meta = quadratic(size=13, condition=30.0)
    single = Quadratic(*(leaf.float() for leaf in problem))
    at = tree.map(Tensor.float, problem.minimum(meta))
    right = problem.derivative(meta, 1e-4)
    for key in range(5):
        found = nystrom(
            single.outer, single.inner, at, tree.map(Tensor.float, meta), HERE, rank=13, damping=1e-4, key=key
        )
        assert off(double(found), right) < 1e-5


def test_nystrom_is_a_function_of_its_key_and_better_for_a_higher_rank():
    problem, meta = quadratic(size=21, condition=1e4)
    at, right = problem.minimum(meta), problem.derivative(meta, 0.01)
    find = partial(nystrom, problem.outer, problem.inner, at, meta, HERE, damping=0.01)
    assert tree.equal(find(rank=3, key=1), find(rank=3, key=1))
    assert off(find(rank=3, key=1), find(rank=3, key=2)) > 1e-6
    errors = [sorted(off(find(rank=rank, key=key), right) for key in range(9))[4] for rank in (2, 8, 14, 21)]
    assert errors == sorted(errors, reverse=True) and errors[-1] < 1e-9


# all of them


class Ridge(NamedTuple):
    """Ridge regression in two halves, its penalty exp(meta) a feature; the mean over halves is that over samples."""

    x: Tensor
    y: Tensor

    def inner(self, params, meta, batch) -> Tensor:
        errors = batch[0] @ params["w"] - batch[1]
        return (errors.square().mean() + (meta.exp() * params["w"].square()).sum()) / 2

    def minimum(self, meta) -> dict[str, Tensor]:
        a = self.x.T @ self.x / len(self.x) + torch.diag(meta.exp())
        return {"w": torch.linalg.solve(a, self.x.T @ self.y / len(self.x))}


@pytest.mark.parametrize(
    "method",
    [
        partial(conjugate_gradient, iterations=12, tolerance=1e-12),
        partial(neumann, iterations=4000, step_size=0.2),
        partial(nystrom, rank=4, damping=1e-9, key=0),
    ],
    ids=["conjugate gradient", "neumann", "nystrom"],
)
def test_penalties_of_ridge_regression_have_the_derivative_of_its_validation_loss(method):
    x, y, held, wanted = numbers(12, 4), numbers(12, seed=1), numbers(5, 4, seed=2), numbers(5, seed=3)
    meta, problem = numbers(4, seed=4, scale=0.5), Ridge(x, y)
    outer = lambda params, _: (held @ params["w"] - wanted).square().mean()  # noqa: E731
    through = grad(lambda meta: outer(problem.minimum(meta), ()))(meta)  # torch's derivative of the solution itself
    step = 1e-5 * torch.eye(4, dtype=torch.float64)
    slopes = [(outer(problem.minimum(meta + e), ()) - outer(problem.minimum(meta - e), ())) / 2e-5 for e in step]
    halves = at_rest([(x[:6], y[:6]), (x[6:], y[6:])])
    found = method(outer, problem.inner, problem.minimum(meta), meta, halves)
    torch.testing.assert_close(found, through, rtol=1e-7, atol=1e-8)
    torch.testing.assert_close(found, torch.stack(slopes), rtol=1e-6, atol=1e-8)


@every_method
def test_the_descent_comes_first_and_the_optimizer_does_not_move_the_minimum(method):
    problem, meta = quadratic()
    start = split(numbers(7, seed=9))
    meta = meta | {"rate": torch.tensor(0.5, dtype=torch.float64)}
    descent = Descent(
        optimizer=lambda meta: optim.sgd(learning_rate=meta["rate"], momentum=0.5),
        memory=optim.sgd(learning_rate=0.0, momentum=0.5).init(start),
        batches=[()] * 3,
    )
    end, _ = descend(problem.inner, start, meta, descent)
    found = method(problem.outer, problem.inner, start, meta, descent)
    assert_close(found, method(problem.outer, problem.inner, end, meta, HERE))
    assert found["rate"] == 0
    far = Descent(descent.optimizer, descent.memory, [()] * 400)
    assert_close(
        method(problem.outer, problem.inner, start, meta, far),
        method(problem.outer, problem.inner, problem.minimum(meta), meta, HERE),
    )


def test_solutions_and_curvatures_are_of_the_end_of_the_descent():
    outer, inner, params, metas, descent = network()
    params, meta = tree.member((params, metas), 0)
    end, _ = descend(inner, params, meta, descent)
    there = at_rest(descent.batches)
    bent = partial(largest_curvature, inner, iterations=3)
    assert bent(params, meta, descent) == bent(end, meta, there) != bent(params, meta, there)
    look = partial(solved, outer, inner, iterations=3, damping=0.1)
    assert tree.equal(look(params, meta, descent), look(end, meta, there))


@every_method
@pytest.mark.parametrize("size", [3, 7])
def test_every_method_can_be_differentiated_by_parameters_and_by_meta(method, size):
    problem, meta = quadratic(size=size, condition=3.0)

    def find(row: Tensor, phi: Tensor) -> Tensor:
        return method(problem.outer, problem.inner, split(row), {"phi": phi}, HERE)["phi"]

    at = joined(problem.minimum(meta)) + 0.1
    assert torch.autograd.gradcheck(find, (at.requires_grad_(), meta["phi"].clone().requires_grad_()))


def network():
    """A small network whose penalty and sample weights are meta parameters; batches of eight."""
    model = models.mlp(features=(3,), classes=2, hidden=(4,))
    x, y = numbers(8, 3), torch.arange(8) % 2

    def inner(params, meta, batch) -> Tensor:
        losses = cross_entropy(model.apply(params, batch[0]), batch[1])
        return (torch.sigmoid(meta["weight"]) * losses).mean() + meta["penalty"].exp() * tree.dot(params, params)

    def outer(params, meta) -> Tensor:
        return cross_entropy(model.apply(params, x.flip(0)), y).mean()

    params = double(tree.stack([model.init(seed)[0] for seed in range(3)]))
    metas = {"weight": numbers(3, 8, seed=1), "penalty": numbers(3, seed=2)}
    optimizer = optim.sgd(learning_rate=0.1)
    descent = Descent(optimizer, optimizer.init(tree.member(params, 0)), [(x, y)] * 2)
    return outer, inner, params, metas, descent


@every_method
def test_every_method_mapped_over_parameters_and_metas_is_itself_in_turn_and_traced_itself(method):
    outer, inner, params, metas, descent = network()
    find = lambda params, meta: method(outer, inner, params, meta, descent)  # noqa: E731
    right = looped(find, params, metas)
    assert_close(vmap(find)(params, metas), right)
    assert_close(traced(vmap(find), params, metas)(params, metas), right)


def test_nystrom_and_the_largest_curvature_map_over_keys():
    outer, inner, params, metas, descent = network()
    params, meta = tree.member((params, metas), 0)
    keys = torch.tensor([0, 5, -7])
    find = lambda key: nystrom(outer, inner, params, meta, descent, rank=3, damping=0.1, key=key)  # noqa: E731
    assert_close(vmap(find)(keys), looped(find, keys))
    assert_close(traced(vmap(find), keys)(keys), looped(find, keys))
    bent = lambda key: largest_curvature(inner, params, meta, descent, iterations=4, key=key)  # noqa: E731
    assert_close(vmap(bent)(keys), looped(bent, keys))


def test_solutions_map_over_problems_that_end_at_different_iterations():
    outer, inner, params, _ = bowl(1.0, 2.0, 4.0)
    metas = torch.tensor([[0.0, 0, 0], [1, 0, 0]], dtype=torch.float64)
    bent = lambda meta: lambda params, _, batch: inner(params, meta, batch) + meta[0] * params["t"] @ params["t"]  # noqa: E731
    look = lambda meta: solved(outer, bent(meta), params, meta, HERE, iterations=5, tolerance=0.2)  # noqa: E731
    assert_close(vmap(look)(metas), looped(look, metas))
