"""Programs of any number of levels: a step is a pure function of one state.

A step of a level comes after the steps that the levels below take for it. Its gradient is the direct one, of its loss
by its own parameters, and what comes back along every way down, because where the levels below end depends on these
parameters too: fcurr.bilevel.pulling goes back through all that happened below since the level's last step.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial, reduce
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.func import vjp

from fcurr import rng, tree
from fcurr.autodiff import detached
from fcurr.bilevel.graph import Dependencies, Graph, Group, all_below, answered, graph_of, lower, top
from fcurr.bilevel.levels import Held, Level, LevelState, States, check, first_order, method, parts_of, unscaled
from fcurr.bilevel.problem import Descent, Hypergradient, Meta, moving
from fcurr.bilevel.pulling import Back, Node, Window, add_slopes, as_taken, led_back, nothing, params_of, window
from fcurr.errors import BadInput
from fcurr.types import Optimizer, Params, Seed


class Multilevel(NamedTuple):
    """A program: one step is one step of the levels at the top, after all that belongs below it."""

    init: Callable[[int], States]
    step: Callable[[States], States]


class _World(NamedTuple):
    levels: Mapping[str, Level]
    graph: Graph


def program(levels: Mapping[str, Level], dependencies: Dependencies) -> Multilevel:
    """The levels as one program. BadInput for what cannot be meant, before anything runs.

    The levels above see through the steps of a level as they were taken, as far back as their own last step: its
    optimizer's memory and the gradients it was led by are differentiated. With a `hypergradient` they see through its
    `unroll` steps by that method, and no further. A level that one below reads has no gradient of a loss that a method
    could be given: it is always seen through as its steps were taken, except for `first_order`.
    """
    world = _World({**levels}, graph_of(levels, dependencies))
    check(world.levels, world.graph)
    return Multilevel(init=partial(_init, world=world), step=partial(_step, world=world))


def _init(seed: Seed, *, world: _World) -> States:
    held = {name: level.init(seed) for name, level in world.levels.items()}
    return {
        name: LevelState(
            params=held[name],
            memory=_optimizer(name, held, world).init(held[name]),
            key=rng.fold(seed, place),
            iteration=torch.zeros((), dtype=torch.int64),
            loss=torch.full((), torch.nan, dtype=tree.leaves(held[name])[0].dtype),
        )
        for place, name in enumerate(world.levels)
    }


def _step(state: States, *, world: _World) -> States:
    for group in top(world.graph):
        state = _together(state, group=group, world=world)
    return state


def _together(state: States, *, group: Group, world: _World) -> States:
    """One step of the levels of a group, with all that belongs below it."""
    seen = _window(group, state, world)
    after = seen.end | {name: _moved(name, seen, world) for name in group}
    for under in lower(world.graph, group):
        if world.levels[under[0]].roll_back:
            back = {name: state[name] for name in _moves(under, world)}
            after = _ran(_rounds(under, world), after | back)
    return after


def _window(group: Group, state: States, world: _World) -> Window:
    """What the levels below do for one step of a group."""
    nodes = _below(group, world)
    if any(answered(world.graph, name) for name in group):
        return window(nodes, state)
    return nothing(_ran(nodes, state))


def _ran(nodes: Sequence[Node], state: States) -> States:
    return reduce(lambda before, node: node.run(before), nodes, state)


def _below(group: Group, world: _World) -> list[Node]:
    return [node for under in lower(world.graph, group) for node in _rounds(under, world)]


def _rounds(group: Group, world: _World) -> list[Node]:
    """All steps of a group for one step above."""
    unroll = world.levels[group[0]].unroll
    if any(answered(world.graph, name) for name in group):
        run = partial(_together, group=group, world=world)
        return unroll * [_as_taken(run, _moves(group, world), world)]
    if method(world.levels[group[0]]) and not world.graph.below[group[0]]:
        return [_steps(group[0], unroll, world)]
    return unroll * [*_below(group, world), *(_steps(name, 1, world) for name in group)]


def _steps(name: str, count: int, world: _World) -> Node:
    """Steps of a level that no level below reads."""
    run = partial(_alone, name=name, count=count, world=world)
    if by := method(world.levels[name]):
        pulled = partial(_by_method, by=by, name=name, count=count, world=world)
        return Node(run, lambda state: (run(state), partial(pulled, state)))
    return _as_taken(run, (name,), world)


def _alone(state: States, *, name: str, count: int, world: _World) -> States:
    for _ in range(count):
        state = state | {name: _moved(name, nothing(state), world)}
    return state


def _moved(name: str, seen: Window, world: _World) -> LevelState:
    """A level after a step."""
    state, level, graph = seen.end, world.levels[name], world.graph
    one, held = state[name], {other: state[other].params for other in graph.names if other in graph.reads[name]}
    optimizer = _optimizer(name, held, world)
    led = answered(graph, name)
    by = [other for other in held if other == name or (led and other in graph.below[name])]
    value, slopes = _slopes(name, held, by, level.batches((one.key, one.iteration)), optimizer.scale(one.memory), world)
    grads = led_back(name, slopes, seen) if led else slopes[name]
    params, memory = optimizer.update(grads, one.memory, one.params)
    after = one._replace(params=params, memory=memory, iteration=one.iteration + 1, loss=value.to(one.loss.dtype))
    if level.hypergradient is first_order:
        after = detached(after)
    waits = [
        state[other].iteration > world.levels[other].warm_up
        for other in graph.names
        if other in graph.below[name] and world.levels[other].warm_up
    ]
    return tree.where(torch.stack(waits).all(), after, one) if waits else after


def _slopes(
    name: str, held: Held, by: Sequence[str], batch: Any, scale: Tensor | float, world: _World
) -> tuple[Tensor, dict[str, Params]]:
    """The loss, and its gradients by the parameters of some levels, times what the optimizer expects."""
    values, found = [], []
    parts = parts_of(name, world.levels[name], batch)
    for part in parts:
        objective = lambda some, part=part: _loss(name, {**held, **some}, part, world)  # noqa: E731
        value, pull = vjp(objective, {other: held[other] for other in by})  # pyright: ignore
        values.append(value)
        found.append(pull(torch.ones_like(value) * (scale / len(parts)))[0])
    return sum(values[1:], values[0]) / len(parts), tree.sum_of(found)


def _as_taken(run: Callable[[States], States], moves: Group, world: _World) -> Node:
    read = {*moves}.union(*(world.graph.reads[name] for name in moves))
    return as_taken(run, moves, tuple(name for name in world.graph.names if name in read))


def _by_method(before: States, back: Back, *, by: Hypergradient, name: str, count: int, world: _World) -> Back:
    """By a hypergradient of the outer loss that is linear, with these derivatives for its slopes."""
    level, one = world.levels[name], before[name]
    meta = {other: before[other].params for other in world.graph.names if other in world.graph.reads[name] - {name}}
    v = params_of(back[name], one)
    back = back | {name: [torch.zeros_like(leaf) for leaf in back[name]]}
    if not meta:
        return back

    def inner(params: Params, meta: Meta, batch: Any) -> Tensor:
        losses = [
            _loss(name, {**meta, name: params}, part, world) for part in parts_of(name, world.levels[name], batch)
        ]
        return sum(losses[1:], losses[0]) / len(losses)

    batches = [level.batches((one.key, one.iteration + ahead)) for ahead in range(count)]
    optimizer = lambda meta: unscaled(moving(Descent(level.optimizer, (), ()), meta))  # noqa: E731
    descent = Descent(optimizer=optimizer, memory=one.memory, batches=batches)
    found = by(lambda params, meta: tree.dot(v, params), inner, one.params, meta, descent)
    return back | {other: add_slopes(back[other], found[other]) for other in meta}


def _loss(name: str, held: Held, batch: Any, world: _World) -> Tensor:
    try:
        return world.levels[name].loss(held, batch)
    except KeyError as missing:
        if (other := missing.args[0]) not in {*world.graph.names} - {*held}:
            raise
        raise BadInput(
            f"the loss of level `{name}` reads `{other}`, and no edge says so: low_to_up[{other!r}] has to lead to "
            f"{name!r} if `{other}` is below it, up_to_low[{other!r}] if it is above"
        ) from missing


def _optimizer(name: str, held: Held, world: _World) -> Optimizer:
    read = {other: held[other] for other in world.graph.names if other in world.graph.reads[name] - {name}}
    return moving(Descent(optimizer=world.levels[name].optimizer, memory=(), batches=()), read)


def _moves(group: Group, world: _World) -> Group:
    """The levels of a group and all below, in order."""
    within = all_below(world.graph, group) | {*group}
    return tuple(name for name in world.graph.names if name in within)
