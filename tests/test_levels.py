"""Programs of many levels, against products of matrices, nested minima, and autograd through everything."""

import re
from functools import partial
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.func import hessian, vmap
from worlds import assert_close, looped, numbers, seeds

from fcurr import observe, optim, tree
from fcurr.bilevel.graph import Dependencies
from fcurr.bilevel.implicit import conjugate_gradient
from fcurr.bilevel.levels import Level, LevelState, first_order, parameters
from fcurr.bilevel.problem import descend
from fcurr.bilevel.programs import Multilevel, program
from fcurr.bilevel.unrolling import adjoint, unrolled
from fcurr.errors import BadInput
from fcurr.precision import loss_scaled
from fcurr.tracing import traced
from fcurr.types import Optimizer

SIZE, NAMES = 2, ("a", "b", "c", "d")  # numbers a level has; levels from the lowest up


def begin(seed: int, *, place: int) -> dict[str, Tensor]:
    return {"w": numbers(SIZE, seed=seed + place)}


def steady(place) -> Tensor:
    return torch.zeros(())


def ladder(depth: int) -> Dependencies:
    """Each level is above the one before, and all below read it."""
    names = NAMES[:depth]
    return Dependencies(
        low_to_up={low: [up] for low, up in pairwise(names)},
        up_to_low={name: names[:place] for place, name in enumerate(names) if place},
    )


def read_on(depth: int, place: int) -> list[int]:
    """The places of the levels that a level of the ladder reads, and its own."""
    return [other for other in range(depth) if other >= place - 1]


# Quadratic losses: every step is a matrix, of (all numbers, 1).


def bowl(depth: int, place: int, seed: int) -> Tensor:
    """[all + 1, all + 1] symmetric, of a loss z^T Q z / 2 of what the level reads; steep in its own numbers."""
    chosen = torch.zeros(depth * SIZE + 1, dtype=torch.float64)
    for other in read_on(depth, place):
        chosen[other * SIZE : (other + 1) * SIZE] = 1
    chosen[-1] = 1
    drawn = numbers(len(chosen), len(chosen), seed=seed + 100 * place, scale=0.5) * chosen * chosen[:, None]
    drawn = drawn + drawn.T
    own = slice(place * SIZE, (place + 1) * SIZE)
    drawn[own, own] += 4 * torch.eye(SIZE, dtype=torch.float64)
    return drawn


def in_bowl(held, batch, *, matrix: Tensor) -> Tensor:
    parts = [held[name]["w"] if name in held else torch.zeros(SIZE) for name in NAMES[: len(matrix) // SIZE]]
    z = torch.cat([*parts, torch.ones(1, dtype=torch.float64)])
    return z @ matrix @ z / 2


def bowls(depth: int, unroll: list[int], back: list[bool], seed: int, optimizers: list[Any]) -> Multilevel:
    levels = {
        name: Level(
            loss=partial(in_bowl, matrix=bowl(depth, place, seed)),
            init=partial(begin, place=place),
            optimizer=optimizers[place],
            batches=steady,
            **({"unroll": unroll[place], "roll_back": back[place]} if place < depth - 1 else {}),
        )
        for place, name in enumerate(NAMES[:depth])
    }
    return program(levels, ladder(depth))


def flat(state: dict[str, LevelState]) -> Tensor:
    """[all + 1]"""
    return torch.cat([*(one.params["w"] for one in state.values()), torch.ones(1, dtype=torch.float64)])


def as_matrix(depth: int, place: int, unroll: list[int], back: list[bool], seed: int, rate: float) -> Tensor:
    """One step of a level, with all below: with W what happens below, z -> W z - rate E E^T W^T Q W z, because a
    derivative by its numbers E^T z goes through W."""
    size = depth * SIZE + 1
    eye = torch.eye(size, dtype=torch.float64)
    own, lower = torch.zeros(size, dtype=torch.float64), torch.zeros(size, dtype=torch.float64)
    own[place * SIZE : (place + 1) * SIZE], lower[: place * SIZE] = 1, 1
    inside = as_matrix(depth, place - 1, unroll, back, seed, rate) if place else eye
    before = torch.linalg.matrix_power(inside, unroll[place - 1]) if place else eye
    step = before - rate * own[:, None] * (before.T @ bowl(depth, place, seed) @ before)
    if place and back[place - 1]:
        return before @ (lower[:, None] * eye + (1 - lower)[:, None] * step)
    return step


@pytest.mark.parametrize("depth", [2, 3, 4])
@settings(max_examples=8)
@given(data=st.data(), seed=seeds)
def test_a_step_on_quadratics_is_a_product_of_matrices(depth, data, seed):
    unroll = data.draw(st.lists(st.integers(1, 2 if depth == 4 else 3), min_size=depth, max_size=depth))
    back = data.draw(st.lists(st.booleans(), min_size=depth, max_size=depth))
    optimizer = optim.sgd(learning_rate=0.1)
    made = bowls(depth, unroll, back, seed, depth * [optimizer])
    state = made.init(seed)
    right = as_matrix(depth, depth - 1, unroll, back, seed, 0.1) @ flat(state)
    torch.testing.assert_close(flat(made.step(state)), right, rtol=1e-10, atol=1e-11)


def newton(matrix: Tensor) -> Optimizer:
    """Steps that end at the minimum of a quadratic with these second derivatives, if the gradient is right."""

    def update(grads, state, params):
        return {"w": params["w"] - torch.linalg.solve(matrix, grads["w"])}, state

    return Optimizer(init=lambda params: (), update=update)


def nested(depth: int, seed: int) -> tuple[list[Tensor], Tensor]:
    """The second derivatives that each level sees, and the point where each is at its minimum given those above: levels
    are put in for those above one by one, from the lowest."""
    lift = torch.eye(depth * SIZE + 1, dtype=torch.float64)  # all numbers, of those not yet put in
    curvatures = []
    for place in range(depth):
        seen = lift.T @ bowl(depth, place, seed) @ lift
        own = seen[:SIZE, :SIZE]
        curvatures.append(own)
        lift = lift @ torch.cat([-torch.linalg.solve(own, seen[:SIZE, SIZE:]), torch.eye(len(seen) - SIZE)])
    return curvatures, lift[:, 0]


@pytest.mark.parametrize("depth", [2, 3, 4])
@given(seed=seeds)
@settings(max_examples=8)
def test_scales_are_right_at_every_level_one_newton_step_each_ends_at_the_nested_minimum(depth, seed):
    curvatures, point = nested(depth, seed)
    made = bowls(depth, depth * [1], depth * [True], seed, [newton(matrix) for matrix in curvatures])
    found = flat(made.step(made.init(seed)))
    torch.testing.assert_close(found, point, rtol=1e-7, atol=1e-7 * float(point.abs().max()))


# Curved losses, any graph: the oracle takes the steps by plain autograd, and differentiates through everything.


TURNS = numbers(4, 4, SIZE, SIZE, scale=0.5)


def curved(held, batch, *, name: str, among: tuple[str, ...]) -> Tensor:
    own = held[name]["w"]
    loss = (own - batch).square().sum() / 2 + 0.1 * own.pow(4).sum()
    for other in held:
        if other != name:
            turn, theirs = TURNS[among.index(name)][among.index(other)], held[other]["w"]
            loss = loss + torch.sin(1.3 * own + turn @ theirs).sum() + (0.2 * theirs.square() * (own + 0.5)).sum()
    return loss


def moving_target(place) -> Tensor:
    return torch.cos(place[1].double() + torch.arange(SIZE))


def through_all(state, script, levels, dependencies) -> dict[str, Any]:
    """A step by hand: `script` is a nest of (names, what comes before their step, which of it is redone)."""

    def reads(name: str) -> set[str]:
        ups, downs = dependencies
        below = {low for low, above in ups.items() if name in above}
        return below | {up for up, lowers in downs.items() if name in lowers} | {name}

    def stepped(at, names, before, redone):
        started = {name: at[name]._replace(params={"w": _own(at[name].params["w"])}) for name in names}
        found = {}
        for name in names:
            end = run({**at, **started}, before)
            held = {other: end[other].params for other in levels if other in reads(name)}
            one, level = end[name], levels[name]
            loss = level.loss(held, level.batches((one.key, one.iteration)))
            (slope,) = torch.autograd.grad(loss, started[name].params["w"], create_graph=True)
            params, memory = level.optimizer.update({"w": slope}, one.memory, one.params)
            found[name] = one._replace(params=params, memory=memory, iteration=one.iteration + 1, loss=loss)
        after = {**run({**at, **started}, before), **found}
        if redone:
            after = run({**after, **{name: at[name] for name in levels_of(redone)}}, redone)
        return after

    def run(at, steps):
        for step in steps:
            at = stepped(at, *step)
        return at

    def levels_of(steps) -> set[str]:
        return {name for names, before, _ in steps for name in {*names} | levels_of(before)}

    return run(state, script)


def _own(leaf: Tensor) -> Tensor:
    """The same number, to be differentiated by on its own."""
    return leaf + 0 if leaf.requires_grad else leaf.clone().requires_grad_()


def leaf(name: str) -> tuple:
    return ((name,), [], [])


CHAIN = [(("b",), 2 * [leaf("a")], [])]
GRAPHS: dict[str, tuple[Dependencies, dict[str, dict[str, Any]], list]] = {
    "two": (ladder(2), {"a": {"unroll": 3}}, [(("b",), 3 * [leaf("a")], [])]),
    "two, redone": (
        ladder(2),
        {"a": {"unroll": 3, "roll_back": True}},
        [(("b",), 3 * [leaf("a")], 3 * [leaf("a")])],
    ),
    "three": (ladder(3), {"a": {"unroll": 2}, "b": {"unroll": 2}}, [(("c",), 2 * CHAIN, [])]),
    "three, redone at both": (
        ladder(3),
        {"a": {"unroll": 2, "roll_back": True}, "b": {"unroll": 2, "roll_back": True}},
        [(("c",), *2 * [2 * [(("b",), 2 * [leaf("a")], 2 * [leaf("a")])]])],
    ),
    "four": (
        ladder(4),
        {"a": {"unroll": 2}, "b": {"unroll": 1}, "c": {"unroll": 2}},
        [(("d",), 2 * [(("c",), [(("b",), 2 * [leaf("a")], [])], [])], [])],
    ),
    "weights of what is trained before it is tuned": (  # c weighs a, whose end is where b begins to be regularised
        Dependencies(low_to_up={"a": ["b"], "b": ["c"]}, up_to_low={"c": ["a"]}),
        {"a": {"unroll": 2}, "b": {"unroll": 3}},
        [(("c",), 3 * [leaf("a"), leaf("a"), leaf("b")], [])],
    ),
    "a level read by two above it": (
        Dependencies(low_to_up={"a": ["b", "c"], "b": ["c"]}, up_to_low={"b": ["a"], "c": ["a", "b"]}),
        {"a": {"unroll": 2}},
        [(("c",), CHAIN, [])],
    ),
    "two at the top": (
        Dependencies(low_to_up={"a": ["b", "c"]}, up_to_low={"b": ["a"], "c": ["a"]}),
        {"a": {"unroll": 2}},
        [(("b", "c"), [leaf("a"), leaf("a")], [])],
    ),
    "two at the bottom": (
        Dependencies(low_to_up={"a": ["c"], "b": ["c"]}, up_to_low={"c": ["a", "b"]}),
        {"a": {"unroll": 1}, "b": {"unroll": 3}},
        [(("c",), [leaf("a"), leaf("b"), leaf("b"), leaf("b")], [])],
    ),
    "two in the middle": (
        Dependencies(low_to_up={"a": ["b", "c"], "b": ["d"], "c": ["d"]}, up_to_low={"b": ["a"], "d": ["a", "c"]}),
        {"a": {"unroll": 1}, "b": {"unroll": 2}, "c": {"unroll": 2}},
        [(("d",), 2 * [(("b", "c"), [leaf("a")], [])], [])],
    ),
    "two in the middle, of which the second acts on the lowest": (
        Dependencies(low_to_up={"a": ["b", "c"], "b": ["d"], "c": ["d"]}, up_to_low={"c": ["a"], "d": ["a", "b"]}),
        {"a": {"unroll": 1}, "b": {"unroll": 2}, "c": {"unroll": 2}},
        [(("d",), 2 * [(("b", "c"), [leaf("a")], [])], [])],
    ),
    "two programs side by side": (
        Dependencies(low_to_up={"a": ["b"], "c": ["d"]}, up_to_low={"b": ["a"], "d": ["c"]}),
        {"a": {"unroll": 2}},
        [(("b",), 2 * [leaf("a")], []), (("d",), [leaf("c")], [])],
    ),
}
OPTIMIZERS = {
    "momentum": optim.sgd(learning_rate=0.05, momentum=0.5, weight_decay=0.1),
    "adam": optim.adam(learning_rate=0.05),
    "clipped": optim.clipped(optimizer=optim.sgd(learning_rate=0.1, nesterov=True, momentum=0.5), max_norm=0.7),
}
SOME = [*((graph, "momentum") for graph in GRAPHS), ("three", "adam"), ("two, redone", "adam"), ("three", "clipped")]


def curve(graph: str, optimizer: str = "momentum", **fields: dict[str, Any]) -> tuple[dict[str, Level], Dependencies]:
    """The levels of a graph, with fields of their own."""
    dependencies, given, _ = GRAPHS[graph]
    among = tuple(sorted({name for edges in dependencies for start, ends in edges.items() for name in (start, *ends)}))
    levels = {
        name: Level(
            loss=partial(curved, name=name, among=among),
            init=partial(begin, place=place),
            optimizer=OPTIMIZERS[optimizer],
            batches=moving_target,
        )._replace(**(given.get(name, {}) | fields.get(name, {})))
        for place, name in enumerate(among)
    }
    return levels, dependencies


@pytest.mark.parametrize("graph, optimizer", SOME)
def test_every_gradient_is_that_of_reverse_mode_through_all_that_happened(graph, optimizer):
    levels, dependencies = curve(graph, optimizer)
    made = program(levels, dependencies)
    state = made.step(made.init(1))
    right = through_all(state, GRAPHS[graph][2], levels, dependencies)
    found = made.step(state)
    for name, one in found.items():
        way = found[name].params["w"] - state[name].params["w"]
        missed = (one.params["w"] - right[name].params["w"]).norm() / way.norm()
        assert missed < 1e-10, (name, float(missed))
        assert int(one.iteration) == int(right[name].iteration)
        assert_close(one.memory, tree.map(Tensor.detach, right[name].memory), rtol=1e-9, atol=1e-11)
        torch.testing.assert_close(one.loss, right[name].loss.detach())


def test_a_learning_rate_that_is_learned_above_is_differentiated_as_well():
    rate = lambda held: optim.sgd(learning_rate=held["b"]["w"][0].exp() / 10, momentum=0.5)  # noqa: E731
    levels, dependencies = curve("two", a={"optimizer": rate})
    made = program(levels, dependencies)
    state = made.init(0)

    def end(w: Tensor) -> Tensor:
        a, memory = {"w": _own(state["a"].params["w"])}, state["a"].memory
        for number in range(3):
            held = {"a": a, "b": {"w": w}}
            loss = levels["a"].loss(held, moving_target((0, torch.tensor(number))))
            (slope,) = torch.autograd.grad(loss, a["w"], create_graph=True)
            a, memory = rate(held).update({"w": slope}, memory, a)
        return levels["b"].loss({"a": a, "b": {"w": w}}, moving_target((0, torch.tensor(0))))

    (right,) = torch.autograd.grad(end(w := state["b"].params["w"].clone().requires_grad_()), w)
    found = made.step(state)["b"].memory.momentum["w"]
    torch.testing.assert_close(found, right + 0.1 * state["b"].params["w"], rtol=1e-10, atol=1e-12)


# Methods.


def by_solving(outer, inner, params, meta, descent):
    """The derivative of the minimum, where the descent ends."""
    end, _ = descend(inner, params, meta, descent)
    slope = lambda end, meta: torch.func.grad(inner)(end, meta, descent.batches[-1])["w"]  # noqa: E731
    v, direct = torch.func.grad(outer, argnums=(0, 1))(end, meta)
    bent = torch.func.jacrev(slope)(end, meta)["w"]
    _, pull = torch.func.vjp(partial(slope, end), meta)
    return tree.map(torch.sub, direct, pull(torch.linalg.solve(bent.T, v["w"]))[0])


@pytest.mark.parametrize("method", [unrolled, adjoint])
@pytest.mark.parametrize("graph", ["two", "two, redone", "two at the top", "two at the bottom"])
def test_the_exact_methods_are_what_happens_without_one(graph, method):
    made, same = (program(*curve(graph, "adam", a=fields)) for fields in ({}, {"hypergradient": method}))
    assert_close(made.step(made.init(2)), same.step(made.init(2)))


def test_implicit_methods_in_a_chain_give_the_derivative_of_the_nested_minimum():
    """`b` ends at its minimum given where `a` ended, at its minimum given `c`."""
    dependencies = GRAPHS["weights of what is trained before it is tuned"][0]
    matrices = [bowl(3, place, 5) for place in range(3)]
    matrices[0][SIZE : 2 * SIZE], matrices[0][:, SIZE : 2 * SIZE] = 0, 0  # `a` does not read `b`, nor `b` `c`
    matrices[1][2 * SIZE : 3 * SIZE], matrices[1][:, 2 * SIZE : 3 * SIZE] = 0, 0
    matrices[2][:SIZE], matrices[2][:, :SIZE] = 0, 0
    blocks = [slice(place * SIZE, (place + 1) * SIZE) for place in range(3)]
    for hypergradient in (by_solving, partial(conjugate_gradient, iterations=SIZE, tolerance=1e-12)):
        levels = {
            name: Level(
                loss=partial(in_bowl, matrix=matrices[place]),
                init=partial(begin, place=place),
                optimizer=newton(matrices[place][blocks[place], blocks[place]]),
                batches=steady,
                hypergradient=hypergradient if place < 2 else None,
                unroll=1 if place == 2 else 2,
            )
            for place, name in enumerate("abc")
        }
        levels["c"] = levels["c"]._replace(optimizer=optim.sgd(learning_rate=1.0))
        made = program(levels, dependencies)
        before = made.init(3)
        after = made.step(before)
        a, b, c = blocks
        by_c = -torch.linalg.solve(matrices[0][a, a], matrices[0][a, c])
        by_a = -torch.linalg.solve(matrices[1][b, b], matrices[1][b, a])
        slope = matrices[2] @ flat({**after, "c": before["c"]})
        right = slope[c] + (by_a @ by_c).T @ slope[b]
        torch.testing.assert_close(before["c"].params["w"] - after["c"].params["w"], right, rtol=1e-10, atol=1e-10)


def test_above_a_level_that_follows_an_implicit_gradient_its_steps_are_differentiated_as_they_were_taken():
    levels, dependencies = curve("three", a={"hypergradient": by_solving})
    made = program(levels, dependencies)
    state = made.init(4)

    def loss(name, a, b, c, number) -> Tensor:
        held = {"a": a, "b": b, "c": c}
        if name == "c":
            held.pop("a")
        return levels[name].loss({key: {"w": w} for key, w in held.items()}, moving_target((0, torch.tensor(number))))

    def slope(of: Tensor, by: Tensor) -> Tensor:
        return torch.autograd.grad(of, by, create_graph=True)[0]

    a, b = (state[name].params["w"].clone().requires_grad_() for name in "ab")
    c = state["c"].params["w"].clone().requires_grad_()
    velocity = {"a": 0, "b": 0, "c": 0}
    for number in range(2):
        a = _own(a)  # b came from it, and is held fixed where a step goes down by a
        for inner in range(2):
            velocity["a"] = 0.5 * velocity["a"] + slope(loss("a", a, b, c, 2 * number + inner), a) + 0.1 * a
            a = a - 0.05 * velocity["a"]
        last = lambda a, b, number=number: loss("a", a, b, c, 2 * number + 1)  # noqa: E731
        x = torch.linalg.solve(hessian(last)(a, b), slope(loss("b", a, b, c, number), a))
        by_own = _own(b)
        gradient = slope(loss("b", a, by_own, c, number), by_own) - slope(slope(last(a, by_own), a) @ x, by_own)
        velocity["b"] = 0.5 * velocity["b"] + gradient + 0.1 * b
        b = b - 0.05 * velocity["b"]
    right = slope(loss("c", None, b, c, 0), c) + 0.1 * c
    found = made.step(state)["c"].memory.momentum["w"]
    torch.testing.assert_close(found, right.detach(), rtol=1e-10, atol=1e-12)


def test_first_order_is_the_direct_gradient_and_nobody_above_sees_through_such_steps():
    levels, dependencies = curve("three", a={"hypergradient": first_order}, b={"hypergradient": first_order})
    made = program(levels, dependencies)
    state = made.init(5)
    after = made.step(state)
    ended = {"b": {"w": after["b"].params["w"]}}
    w = state["c"].params["w"].clone().requires_grad_()
    (right,) = torch.autograd.grad(levels["c"].loss({**ended, "c": {"w": w}}, moving_target((0, torch.tensor(0)))), w)
    found = after["c"].memory.momentum["w"]
    torch.testing.assert_close(found, right + 0.1 * state["c"].params["w"], rtol=1e-12, atol=1e-12)
    whole = program(*curve("three")).step(state)["c"].memory.momentum["w"]
    assert (found - whole).norm() > 0.01 * whole.norm()


def test_what_first_order_cuts_off_is_seen_by_other_ways():
    """`c` reads `a` itself: the way over `b` is cut, the other is not."""
    levels, dependencies = curve("a level read by two above it", b={"hypergradient": first_order})
    made = program(levels, dependencies)
    state = made.init(5)
    after = made.step(state)
    a, velocity = _own(state["a"].params["w"]), 0
    w = _own(state["c"].params["w"])
    for number in range(2):
        held = {"a": {"w": a}, "b": state["b"].params, "c": {"w": w}}
        loss = levels["a"].loss(held, moving_target((0, torch.tensor(number))))
        velocity = 0.5 * velocity + torch.autograd.grad(loss, a, create_graph=True)[0] + 0.1 * a
        a = a - 0.05 * velocity
    held = {"a": {"w": a}, "b": after["b"].params, "c": {"w": w}}
    (right,) = torch.autograd.grad(levels["c"].loss(held, moving_target((0, torch.tensor(0)))), w)
    found = after["c"].memory.momentum["w"]
    torch.testing.assert_close(found, right + 0.1 * state["c"].params["w"], rtol=1e-10, atol=1e-12)


# How levels wait.


def steps(made: Multilevel, state, count: int):
    for _ in range(count):
        state = made.step(state)
    return state


@pytest.mark.parametrize("back", [False, True])
def test_roll_back_neither_loses_steps_nor_the_warm_up(back):
    fields = {"unroll": 5, "warm_up": 20, "roll_back": back}
    levels, dependencies = curve("two", a=fields)
    made = program(levels, dependencies)
    start = made.init(6)
    warm = steps(made, start, 4)
    assert int(warm["a"].iteration) == 20 and int(warm["b"].iteration) == 0
    assert tree.equal(warm["b"], start["b"])
    alone = program(
        levels
        | {
            "a": curve("two")[0]["a"]._replace(unroll=20),
            "b": levels["b"]._replace(
                optimizer=Optimizer(init=lambda params: (), update=lambda grads, state, params: (params, state))
            ),
        },
        dependencies,
    )
    assert_close(warm["a"], alone.step(alone.init(6))["a"])
    later = steps(made, warm, 6)
    assert int(later["a"].iteration) == 50 and int(later["b"].iteration) == 6


def test_steps_are_redone_on_the_same_batches_with_the_new_upper_parameters():
    levels, dependencies = curve("two, redone")
    made = program(levels, dependencies)
    before = made.step(made.init(7))
    after = made.step(before)
    again = before["a"]
    for _ in range(3):
        held = {"a": again.params, "b": after["b"].params}
        place = (again.key, again.iteration)
        slope = torch.func.grad(
            lambda w, held=held, place=place: levels["a"].loss({**held, "a": {"w": w}}, moving_target(place))
        )(again.params["w"])
        params, memory = levels["a"].optimizer.update({"w": slope}, again.memory, again.params)
        again = again._replace(params=params, memory=memory, iteration=again.iteration + 1)
    assert_close(after["a"]._replace(loss=torch.zeros(())), again._replace(loss=torch.zeros(())))


def test_all_levels_above_wait_for_a_warm_up():
    for warm_up, last in ((2, [[6, 2, 0], [8, 3, 1], [10, 4, 2]]), (0, [[6, 2, 2], [8, 3, 3], [10, 4, 4]])):
        made = program(*curve("three", a={"unroll": 2, "warm_up": 3}, b={"unroll": 1, "warm_up": warm_up}))
        counted = []
        state = made.init(8)
        for _ in range(5):
            state = made.step(state)
            counted.append([int(one.iteration) for one in state.values()])
        assert counted == [[2, 0, 0], [4, 1, 0 if warm_up else 1], *last]


def wide(held, batch, *, names) -> Tensor:
    """The mean over samples of a loss of all that is held."""
    w = sum(held[name]["w"] * (place + 1) for place, name in enumerate(names))
    return torch.tanh((batch["x"] @ w - batch["y"]).square()).mean()


def samples(place) -> dict[str, Tensor]:
    number = place[1].double()
    own = torch.arange(6 * SIZE, dtype=torch.float64).reshape(6, SIZE)
    return {"x": torch.cos(number + own), "y": torch.sin(number + 2 * own[:, 0])}


def wider(**fields: dict[str, Any]) -> Multilevel:
    given = {"a": {"unroll": 2}, "b": {"roll_back": True}, "c": {}}
    levels = {
        name: Level(
            loss=partial(wide, names=[name for name in "abc" if name in (reads)]),
            init=partial(begin, place=place),
            optimizer=optim.sgd(learning_rate=0.5, momentum=0.5),
            batches=samples,
        )._replace(**(given[name] | fields.get(name, {})))
        for place, (name, reads) in enumerate({"a": "abc", "b": "abc", "c": "bc"}.items())
    }
    return program(levels, ladder(3))


@pytest.mark.parametrize("method", [None, by_solving])
def test_a_batch_in_parts_is_the_batch_at_once_at_every_level(method):
    whole = wider(a={"hypergradient": method})
    parted = wider(a={"accumulate": 3, "hypergradient": method}, b={"accumulate": 2}, c={"accumulate": 6})
    assert_close(steps(parted, parted.init(0), 3), steps(whole, whole.init(0), 3), rtol=1e-11)


@pytest.mark.parametrize("method", [None, adjoint])
def test_losses_scaled_for_sixteen_bits_move_everything_as_losses_that_are_not(method):
    plain = optim.sgd(learning_rate=0.5, momentum=0.5)
    scaled = {name: {"optimizer": loss_scaled(plain)} for name in "abc"}
    scaled["a"]["hypergradient"] = method
    made, right = wider(**scaled), wider(a={"hypergradient": method})
    found, state = steps(made, made.init(0), 3), steps(right, right.init(0), 3)
    assert_close(parameters(found), parameters(state), rtol=1e-7)


# A state is one tree, and a step is a function.


def test_a_step_is_pure_and_keeps_names_shapes_and_dtypes():
    made = wider()
    state = made.init(0)
    before = tree.map(torch.clone, state)
    after = made.step(state)
    assert tree.equal(before, state) and tree.equal(made.step(state), after)
    shapes = lambda state: {name: (leaf.shape, leaf.dtype) for name, leaf in tree.named(state).items()}  # noqa: E731
    assert shapes(after) == shapes(state)


def test_a_run_that_is_cut_and_written_down_goes_on_with_the_same_bits():
    made = wider(a={"warm_up": 3})
    cut = steps(made, made.init(0), 3)
    held = {name: leaf.clone() for name, leaf in tree.named(cut).items()}
    again = tree.fill(made.init(1), held)
    assert tree.equal(steps(made, again, 3), steps(made, made.init(0), 6))


@pytest.mark.parametrize("graph", ["two, redone", "a level read by two above it"])
def test_a_traced_step_has_the_bits_of_an_eager_one(graph):
    made = program(*curve(graph))
    state = made.init(0)
    graph = traced(made.step, state)
    after = made.step(state)
    assert tree.equal(graph(state), after) and tree.equal(graph(after), made.step(after))


@pytest.mark.parametrize("method", [None, by_solving, adjoint])
def test_members_mapped_over_seeds_are_those_alone(method):
    made = wider(a={"hypergradient": method, "warm_up": 3})
    states = tree.stack([made.init(seed) for seed in (1, 2, 3)])
    assert_close(vmap(made.step)(vmap(made.step)(states)), looped(lambda state: steps(made, state, 2), states))


def test_levels_and_seeds_have_streams_of_their_own():
    made = wider()
    keys = [int(one.key) for seed in (0, 1) for one in made.init(seed).values()]
    assert len(set(keys)) == 6


def test_members_stop_apart_by_a_view_of_the_state():
    """Early stopping is a decision about a record of a view; a member that has stopped stays as it is."""
    made, patience = wider(), 2
    view = lambda state: wide(parameters(state), samples((0, torch.tensor(0))), names="abc").double()  # noqa: E731
    states = tree.stack([made.init(seed) for seed in (1, 3)])
    record = observe.blank(tree.named(parameters(states)), 2)
    seen, stopped = [], []
    for number in range(12):
        tired = record.waited >= patience
        states = tree.where(tired, states, vmap(made.step)(states))
        values = vmap(view)(states)
        due, iteration = ~tired, torch.full((2,), number)
        record = observe.evaluated(record, due, iteration, tree.named(parameters(states)), values, higher=False)
        seen.append(values)
        stopped.append(tired.tolist())
    table = torch.stack(seen)
    assert stopped[-1] != [False, False]
    for member in range(2):
        own = table[:, member].tolist()
        taken = [row[member] for row in stopped].index(True) if stopped[-1][member] else 12
        best = min(range(taken), key=lambda place: own[place])
        assert record.value[member] == own[best] and record.iteration[member] == best
        assert taken == 12 or taken - 1 - best == patience
        kept = {name: leaf[member] for name, leaf in record.best.items()}
        assert_close(kept, tree.named(parameters(steps(made, made.init((1, 3)[member]), best + 1))))


# What is said before anything runs.


def level(**fields: Any) -> Level:
    loss = lambda held, batch: sum(params["w"].sum() for params in held.values())  # noqa: E731
    plain = optim.sgd(learning_rate=0.1)
    return Level(loss=loss, init=partial(begin, place=0), optimizer=plain, batches=steady)._replace(**fields)


def edges(up: dict[str, list[str]], down: dict[str, list[str]] | None = None) -> Dependencies:
    return Dependencies(low_to_up=up, up_to_low=down or {})


CIRCLE = "is a circle, and none of these levels could take the first step"
SAME = "but neither it nor a level below it reads {}: the steps would be the same"
UPPER = (
    "so its steps follow a hypergradient. For such steps that is not defined; with no hypergradient here they are "
    "differentiated as they were taken"
)
implicit = partial(conjugate_gradient, iterations=3)
WRONG = {
    "a circle": ({}, edges({"a": ["b"], "b": ["c"], "c": ["a"]}), f"low_to_up: `a` -> `b` -> `c` -> `a` {CIRCLE}"),
    "above itself": ({}, edges({"b": ["b"]}), f"low_to_up: `b` -> `b` {CIRCLE}"),
    "unknown": ({}, edges({"a": ["weights"]}), "low_to_up: `weights` is no level; there are `a`, `b`, `c`"),
    "unknown upper": ({}, edges({}, {"d": ["a"]}), "up_to_low: `d` is no level; there are `a`, `b`, `c`"),
    "no way up": (
        {},
        edges({"a": ["b"]}, {"b": ["a"], "c": ["b"]}),
        "up_to_low: `b` is to read `c`, but no way leads up from `b` to `c`: how should `c` see what it does? "
        "low_to_up needs an edge, or a way over other levels",
    ),
    "implicit in the middle": (
        {"b": {"hypergradient": implicit}},
        ladder(3),
        "level `b`: conjugate_gradient sees through steps down a loss of their own, but it is an upper level too: `a` "
        f"reads it, {UPPER}",
    ),
    "implicit beside one in the middle": (
        {"c": {"hypergradient": implicit}},
        GRAPHS["two in the middle"][0],
        "level `c`: conjugate_gradient sees through steps down a loss of their own, but `b`, which moves with it, "
        f"is an upper level too: `a` reads it, {UPPER}",
    ),
    "no steps": ({"a": {"unroll": 0}}, ladder(3), "level `a`: unroll is 0, and must be at least 1"),
    "no parts": ({"c": {"accumulate": 0}}, ladder(3), "level `c`: accumulate is 0, and must be at least 1"),
    "a warm-up before the start": (
        {"a": {"warm_up": -1}},
        ladder(3),
        "level `a`: warm_up is -1, and must be at least 0",
    ),
    "many steps at the top": (
        {"c": {"unroll": 2}},
        ladder(3),
        "level `c`: unroll is said to the levels above, and there are none: leave it out",
    ),
    "a method at the top": (
        {"c": {"hypergradient": implicit}},
        ladder(3),
        "level `c`: hypergradient is said to the levels above, and there are none: leave it out",
    ),
    "uneven": (
        {"b": {"unroll": 2}},
        GRAPHS["two in the middle"][0],
        "levels `b` and `c` share a level below, so they take their steps together: their unroll must be the same",
    ),
    "nothing to do again": (
        {"a": {"roll_back": True}},
        edges({"a": ["b"], "b": ["c"]}, {"c": ["a"]}),
        "level `a`: roll_back does its steps again after a step of `b`, " + SAME.format("`b`"),
    ),
}


@pytest.mark.parametrize("fields, dependencies, message", WRONG.values(), ids=WRONG.keys())
def test_what_cannot_be_meant_is_said_before_anything_runs(fields, dependencies, message):
    names = "abcd" if "d" in str(dependencies.low_to_up) else "abc"
    with pytest.raises(BadInput) as caught:
        program({name: level(**fields.get(name, {})) for name in names}, dependencies)
    assert str(caught.value) == message


def test_a_loss_is_given_what_edges_say_it_reads_and_told_what_is_missing():
    held = []

    def loss(given, batch):
        held.append(sorted(given))
        return given["a"]["w"].sum() + given["b"]["w"].sum()

    made = program({"a": level(loss=loss), "b": level()}, ladder(2))
    made.step(made.init(0))
    assert all(names == ["a", "b"] for names in held) and held
    deaf = program({"a": level(), "b": level(loss=loss)}, edges({}, {}))
    right = (
        "the loss of level `b` reads `a`, and no edge says so: low_to_up['a'] has to lead to 'b' if `a` is below it, "
        "up_to_low['a'] if it is above"
    )
    with pytest.raises(BadInput, match=f"^{re.escape(right)}$"):
        deaf.step(deaf.init(0))


def test_other_names_that_a_loss_misses_are_its_own_business():
    made = program({"a": level(loss=lambda held, batch: held["a"]["v"].sum())}, edges({}))
    with pytest.raises(KeyError, match="'v'"):
        made.step(made.init(0))


def test_a_batch_that_does_not_come_in_equal_parts_is_refused():
    made = wider(b={"accumulate": 4})
    with pytest.raises(BadInput, match=r"^level `b`: a batch of 6 does not come in 4 equal parts$"):
        made.step(made.init(0))
