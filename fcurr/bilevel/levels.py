"""Levels as records, and what can be said of them before anything runs. fcurr.bilevel.programs makes steps of them."""

from collections.abc import Callable, Mapping
from typing import Annotated, Any, NamedTuple

from annotated_types import Ge, Lt
from torch import Tensor
from torch.func import grad

from fcurr import tree
from fcurr.bilevel.graph import Graph, Group, all_below, answered, lower, top
from fcurr.bilevel.problem import Descent, Hypergradient, Inner, Meta, Outer, descend
from fcurr.errors import BadInput
from fcurr.types import Optimizer, Params, Place, State, Times, Unit

Held = Mapping[str, Params]  # level -> its parameters
WarmUp = Annotated[int, Ge(0), Lt(2**31), Unit("number of steps")]


class Level(NamedTuple):
    """What a level makes small, how it moves, and how the levels above wait for it and see through it."""

    loss: Callable[[Held, Any], Tensor]  # parameters of the level and of those it reads, a batch -> []
    init: Callable[[int], Params]  # seed -> parameters, floating-point
    optimizer: Optimizer | Callable[[Held], Optimizer]  # of its own, or made of the levels it reads (learning rates)
    batches: Callable[[Place], Any]  # (key, steps taken) -> what the loss is given
    accumulate: Times = 1  # a batch is computed in so many equal parts of its first axis, one after another
    unroll: Times = 1  # its steps for one step above
    warm_up: WarmUp = 0  # nobody above takes a step before it has taken more than this
    roll_back: bool = False  # after a step above, its steps are taken back and done again with what has changed there
    hypergradient: Hypergradient | None = None  # how the levels above see through its steps; None: as they were taken


class LevelState(NamedTuple):
    params: Params
    memory: State  # of the optimizer
    key: Tensor  # [] int64, the stream of its batches
    iteration: Tensor  # [] int64, steps taken
    loss: Tensor  # [] of the last batch, before its step; nan at first


States = dict[str, LevelState]


def parameters(state: States) -> dict[str, Params]:
    """What losses, and views for validation, are given."""
    return {name: one.params for name, one in state.items()}


def first_order(outer: Outer, inner: Inner, params: Params, meta: Meta, descent: Descent) -> Meta:
    """No derivative of the steps: as if they ended there whatever meta is. Of a level, nobody above sees through it."""
    end, _ = descend(inner, params, meta, descent)
    return grad(outer, argnums=1)(end, meta)


def method(level: Level) -> Hypergradient | None:
    """What a level is seen through by, if not by its steps as they were taken."""
    return None if level.hypergradient is first_order else level.hypergradient


def parts_of(name: str, level: Level, batch: Any) -> list[Any]:
    """A batch as it is computed, one part after another."""
    if level.accumulate == 1:
        return [batch]
    leaves, rebuild = tree.flatten(batch)
    if wrong := [len(leaf) for leaf in leaves if len(leaf) % level.accumulate]:
        raise BadInput(f"level `{name}`: a batch of {wrong[0]} does not come in {level.accumulate} equal parts")
    return [rebuild([*part]) for part in zip(*(leaf.chunk(level.accumulate) for leaf in leaves), strict=True)]


def unscaled(optimizer: Optimizer) -> Optimizer:
    """The optimizer for gradients as they are, whatever scale it expects: hypergradients know of none."""
    if optimizer.scale is Optimizer._field_defaults["scale"]:
        return optimizer

    def update(grads: Params, memory: State, params: Params) -> tuple[Params, State]:
        scale = optimizer.scale(memory)
        return optimizer.update(tree.map(lambda leaf: leaf * scale, grads), memory, params)

    return Optimizer(init=optimizer.init, update=update)


def check(levels: Mapping[str, Level], graph: Graph) -> None:
    """BadInput for what cannot be meant."""
    for name, level in levels.items():
        _check_numbers(name, level)
    for group in top(graph):
        for name in group:
            _check_top(name, levels[name])
        _check_below(group, levels, graph)


def _check_numbers(name: str, level: Level) -> None:
    for field in ("unroll", "accumulate"):
        if (value := getattr(level, field)) < 1:
            raise BadInput(f"level `{name}`: {field} is {value}, and must be at least 1")
    if level.warm_up < 0:
        raise BadInput(f"level `{name}`: warm_up is {level.warm_up}, and must be at least 0")


def _check_top(name: str, level: Level) -> None:
    for field in ("unroll", "warm_up", "roll_back", "hypergradient"):
        if getattr(level, field) != Level._field_defaults[field]:
            raise BadInput(f"level `{name}`: {field} is said to the levels above, and there are none: leave it out")


def _check_below(group: Group, levels: Mapping[str, Level], graph: Graph) -> None:
    for under in lower(graph, group):
        _check_methods(under, levels, graph)
        for field in ("unroll", "roll_back"):
            if len({getattr(levels[name], field) for name in under}) > 1:
                raise BadInput(
                    f"levels {_listed(under)} share a level below, so they take their steps together: their {field} "
                    "must be the same"
                )
        lost = all_below(graph, under) | {*under}
        if levels[under[0]].roll_back and not any(upper in graph.reads[name] for name in lost for upper in group):
            raise BadInput(
                f"level `{under[0]}`: roll_back does its steps again after a step of {_listed(group)}, but neither it "
                f"nor a level below it reads {_listed(group)}: the steps would be the same"
            )
        _check_below(under, levels, graph)


def _check_methods(group: Group, levels: Mapping[str, Level], graph: Graph) -> None:
    uppers = [name for name in group if answered(graph, name)]
    for name in group:
        if uppers and method(levels[name]):
            upper = name if name in uppers else uppers[0]
            reader = next(other for other in graph.names if other in graph.below[upper] and upper in graph.reads[other])
            it = "it" if upper == name else f"`{upper}`, which moves with it,"
            raise BadInput(
                f"level `{name}`: {_called(levels[name].hypergradient)} sees through steps down a loss of their own, "
                f"but {it} is an upper level too: `{reader}` reads it, so its steps follow a hypergradient. For such "
                "steps that is not defined; with no hypergradient here they are differentiated as they were taken"
            )


def _listed(names: Group) -> str:
    return " and ".join(f"`{name}`" for name in names)


def _called(function: Any) -> str:
    plain = getattr(function, "func", function)
    return getattr(plain, "__name__", repr(plain))
