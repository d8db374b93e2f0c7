"""The exact hypergradient of one step, by every route, against reverse mode by hand."""

# pyright: reportCallIssue=false

from functools import partial
from typing import Any, get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_unrolling import (
    NETS,
    OBJECTIVES,
    OPTIMIZERS,
    adam,
    by_hand,
    error,
    every_objective,
    every_optimizer,
    of_net,
    single,
    small,
    through,
    weight_net,
)
from torch import Tensor
from torch.autograd import gradcheck
from torch.func import vmap
from torch.nn.attention import SDPBackend, sdpa_kernel
from worlds import assert_close, double, looped, numbers

from fcurr import models, optim, tree
from fcurr.bilevel.checking import check_hypergradient, exact
from fcurr.bilevel.one_step import one_step
from fcurr.bilevel.problem import Descent, Weighted, descend
from fcurr.bilevel.unrolling import unrolled
from fcurr.errors import BadInput
from fcurr.losses import cross_entropy
from fcurr.precision import loss_scaled
from fcurr.routes import Route, chosen
from fcurr.tracing import traced

ROUTES = get_args(Route)
every_route = pytest.mark.parametrize("route", [*ROUTES, None])


def after_two(made: Any, optimizer: Any, batches: Any) -> tuple[Any, Descent]:
    """The problem after two steps, and a descent of the third."""
    start = Descent(optimizer, optimizer.init(made.params), batches[:2])
    params, memory = descend(*made[1:], start)
    return made._replace(params=params), Descent(optimizer, memory, batches[2:3])


@every_route
@every_optimizer
def test_it_is_reverse_mode_by_hand_through_every_optimizer(route, optimizer, rule):
    made, batches = small()
    now, descent = after_two(made, optimizer, batches)
    assert error(one_step(*now, descent, route=route), by_hand(*made, batches[:3], rule, early=2)) <= 1e-10
    first = Descent(optimizer, optimizer.init(made.params), batches[:1])
    amplified = "Adam" in type(first.memory).__name__  # tests/test_unrolling.py, first_steps
    right = by_hand(*made, batches[:1], rule)
    assert error(one_step(*made, first, route=route), right) <= (1e-8 if amplified else 1e-10)


@every_optimizer
def test_it_is_right_in_float32(optimizer, rule):
    made, batches = small()
    now, descent = after_two(made, optimizer, batches * 2)
    params, meta, memory = single((now.params, now.meta, descent.memory))
    wide = double((params, meta, memory))
    right = unrolled(*now[:2], *wide[:2], descent._replace(memory=wide[2]))
    for route in ROUTES:
        assert error(one_step(*now[:2], params, meta, descent._replace(memory=memory), route=route), right) <= 1e-5


@pytest.mark.parametrize("name", NETS)
def test_it_is_reverse_mode_by_hand_for_every_net_by_every_route_that_is_right(name):
    made, batches = of_net(name)
    losses = lambda params: (made.inner.losses(params, batches[0]), {})  # noqa: E731
    taken = chosen(losses, made.params).route
    for kind in ("momentum, decay", "clipped Adam"):
        optimizer, rule = OPTIMIZERS[kind]
        with sdpa_kernel(SDPBackend.MATH):
            right = by_hand(*made, batches, rule, early=2)
            now, descent = after_two(made, optimizer, batches)
        for route in {"ghost": ROUTES, "forward": ("forward", "reverse")}[taken]:
            if (name, route) != ("encoder", "reverse"):  # its fused kernel has no second derivative
                assert error(one_step(*now, descent, route=route), right) <= 1e-10
        assert tree.equal(one_step(*now, descent), one_step(*now, descent, route=taken))
        params, meta, memory = single((now.params, now.meta, descent.memory))
        found = one_step(*now[:2], params, meta, descent._replace(memory=memory))
        if kind == "momentum, decay":
            assert error(found, right) <= 1e-5


@every_objective
def test_a_weights_own_input_is_differentiated_or_not_as_the_objective_says(objective):
    made, batches = small(objective)
    optimizer, rule = OPTIMIZERS["Nesterov"]
    now, descent = after_two(made, optimizer, batches)
    right = by_hand(*made, batches[:3], rule, early=2)
    for route in ROUTES:
        assert error(one_step(*now, descent, route=route), right) <= 1e-10
    assert error(exact(*now, descent), right) <= 1e-10
    report = check_hypergradient(one_step, *now, descent)
    assert report.relative_error <= 1e-10 and report.cosine == pytest.approx(1)


def test_labels_are_corrected_by_what_they_do_to_outputs():
    made, batches = small()
    model = models.mlp(features=(6,), classes=3, hidden=(5,))

    def objective(meta: Tensor, outputs: Tensor, batch: Any) -> Tensor:
        return cross_entropy(outputs, torch.softmax(meta[batch.id % len(meta)], -1)).mean()

    inner = Weighted(lambda params, batch: model.apply(params, batch.x), objective)
    optimizer, rule = OPTIMIZERS["momentum"]
    world = (made.outer, inner, made.params, numbers(20, 3, seed=8))
    right = by_hand(*world, batches[:1], rule)
    descent = Descent(optimizer, optimizer.init(made.params), batches[:1])
    for route in ("forward", "reverse", None):
        assert error(one_step(*world, descent, route=route), right) <= 1e-10


def test_meta_parameters_of_the_optimizer_and_of_the_outer_loss_are_differentiated_as_well():
    made, batches = small()
    meta = made.meta | {"rate": torch.tensor(-3.0).double()}
    outer = lambda params, meta: made.outer(params, meta) * (1 + meta["a"].square().sum())  # noqa: E731
    rule = lambda p, g, memory, number, meta: adam(p, g, memory, number, meta, rate=meta["rate"].exp())  # noqa: E731
    optimizer = lambda meta: optim.adam(learning_rate=meta["rate"].exp())  # noqa: E731
    first = optim.adam(learning_rate=meta["rate"].exp())
    params, memory = descend(made.inner, made.params, meta, Descent(first, first.init(made.params), batches[:2]))
    right = by_hand(outer, made.inner, made.params, meta, batches[:3], rule, early=2)
    for route in ROUTES:
        found = one_step(outer, made.inner, params, meta, Descent(optimizer, memory, batches[2:3]), route=route)
        assert error(found, right) <= 1e-10
        assert error(found["rate"], right["rate"]) <= 1e-10


@every_optimizer
def test_a_scale_of_the_loss_changes_nothing(optimizer, rule):
    made, batches = small()
    scaled = loss_scaled(optimizer)
    now, descent = after_two(made, scaled, batches)
    right = by_hand(*made, batches[:3], rule, early=2)
    for route in ROUTES:
        assert error(one_step(*now, descent, route=route), right) <= 1e-10


@settings(max_examples=12)
@given(
    seed=st.integers(0, 2**20),
    size=st.integers(2, 5),  # of one sample, normalised weights are 1
    rate=st.floats(1e-3, 1),
    momentum=st.floats(0, 0.99),
    decay=st.floats(0, 1),
    most=st.floats(1e-3, 10),
    objective=st.sampled_from([*OBJECTIVES.values()]),
    name=st.sampled_from(["mlp", "cnn", "transformer", "group norm", "embedding"]),
)
def test_all_routes_agree_on_any_step(seed, size, rate, momentum, decay, most, objective, name):
    made, batches = of_net(name, objective, size)
    made = made._replace(meta=weight_net(seed))
    inside = optim.sgd(learning_rate=rate, momentum=momentum, weight_decay=decay)
    now, descent = after_two(made, optim.clipped(optimizer=inside, max_norm=most), batches)
    right = unrolled(*now, descent)
    size_of = max(float(leaf.abs().max()) for leaf in tree.leaves(right))
    for route in ROUTES:
        assert_close(one_step(*now, descent, route=route), right, rtol=1e-9, atol=1e-10 * size_of + 1e-14)


@pytest.mark.parametrize("route", ROUTES)
def test_it_can_be_differentiated_again(route):
    made, batches = small(through)
    optimizer, _ = OPTIMIZERS["momentum, decay"]
    now, descent = after_two(made, optimizer, batches)
    leaves, build = tree.flatten((now.params, now.meta))

    def found(*leaves: Tensor) -> tuple[Tensor, ...]:
        params, meta = build([*leaves])
        return tuple(tree.leaves(one_step(*now[:2], params, meta, descent, route=route)))

    fresh = tuple(leaf.detach().requires_grad_() for leaf in leaves)
    assert gradcheck(found, fresh, fast_mode=True, atol=1e-6)


@pytest.mark.parametrize("route", ROUTES)
def test_members_are_mapped_as_in_a_loop_and_a_traced_call_is_an_eager_one(route):
    made, batches = small()
    optimizer, _ = OPTIMIZERS["clipped Adam"]
    memory = optimizer.init(made.params)
    one = lambda params, meta: one_step(*made[:2], params, meta, Descent(optimizer, memory, batches[:1]), route=route)  # noqa: E731
    members = tree.stack([(small(seed=k)[0].params, weight_net(seed=9 * k)) for k in range(3)])
    before = tree.map(torch.clone, (members, memory, batches))
    assert_close(vmap(one)(*members), looped(one, *members), rtol=1e-6)
    alone = tree.member(members, 1)
    graph = traced(one, *alone)
    assert_close(graph(*alone), one(*alone), rtol=1e-6)
    mapped = traced(vmap(one), *members)
    assert tree.equal(mapped(*members), vmap(one)(*members))
    assert tree.equal(before, (members, memory, batches))


def test_what_is_wrong_is_said():
    made, batches = small()
    optimizer, _ = OPTIMIZERS["sgd"]
    descent = Descent(optimizer, optimizer.init(made.params), batches[:1])
    with pytest.raises(BadInput) as wrong:
        one_step(*made, descent._replace(batches=batches[:3]))
    assert str(wrong.value) == "one_step is for a descent of one batch, not 3: adjoint takes any number"
    unnamed = partial(one_step, *made[:2], made.params, descent=descent)
    with pytest.raises(ValueError) as wrong:
        vmap(lambda meta: unnamed(meta=meta))(tree.stack([made.meta, made.meta]))
    assert str(wrong.value) == "under a transform nothing can be tried: name the route, chosen(...) says which"
