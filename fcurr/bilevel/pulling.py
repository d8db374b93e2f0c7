"""Reverse mode over the parts of what happened below a level, the last first.

The sum over all ways from an upper level's parameters to its loss is what comes out, with the scales of the steps as
they were taken: learning rates, and what optimizers remember, are differentiated. Kept are the states between the parts
and the graph of one part at a time; of the last part it is built where it runs.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.func import vjp

from fcurr import tree
from fcurr.autodiff import floating
from fcurr.bilevel.graph import Group
from fcurr.bilevel.levels import LevelState, States
from fcurr.types import Params

Back = dict[str, list[Tensor]]  # level -> derivatives by its floating-point numbers: parameters, then memory
Pull = Callable[[Back], Back]  # derivatives by the state after a part -> by the state before it


class Node(NamedTuple):
    """A part of what happens between two steps of a level above."""

    run: Callable[[States], States]
    opened: Callable[[States], tuple[States, Pull]]  # runs as well, and can be gone back through


def as_taken(run: Callable[[States], States], moves: Group, reads: Group) -> Node:
    """Whatever runs, moves these levels and reads those (the moved among them), with its exact derivative."""
    return Node(run, partial(_opened, run=run, moves=moves, reads=reads))


class Window(NamedTuple):
    """What has happened since a level's last step."""

    before: Sequence[tuple[Node, States]]  # each part but the last, and the state that it found
    pull: Pull  # through the last part
    end: States


def window(nodes: Sequence[Node], state: States) -> Window:
    """All parts, run one after another; there is one at least."""
    before = []
    for node in nodes[:-1]:
        before.append((node, state))
        state = node.run(state)
    end, pull = nodes[-1].opened(state)
    return Window(before, pull, end)


def nothing(state: States) -> Window:
    """Where nothing has to be gone back through."""
    return Window((), lambda back: back, state)


def led_back(name: str, slopes: Mapping[str, Params], seen: Window) -> Params:
    """The whole gradient by the parameters of a level, given the slopes of its loss at the end."""
    back: Back = {}
    for other, one in seen.end.items():
        zeros = [torch.zeros_like(leaf) for leaf in _numbers(one)[0]]
        back[other] = add_slopes(zeros, slopes.get(other, {}))
    back = seen.pull(back)
    for node, before in reversed(seen.before):
        back = node.opened(before)[1](back)
    return params_of(back[name], seen.end[name])


def params_of(numbers: list[Tensor], one: LevelState) -> Params:
    """Derivatives as a tree like the level's parameters."""
    leaves, rebuild = tree.flatten(one.params)
    return rebuild(numbers[: len(leaves)])


def add_slopes(numbers: list[Tensor], slopes: Params) -> list[Tensor]:
    """Derivatives and others, by the parameters alone."""
    own = tree.leaves(slopes)
    return _add(numbers[: len(own)], own) + numbers[len(own) :]


def _add(some: list[Tensor], others: list[Tensor]) -> list[Tensor]:
    return [a + b for a, b in zip(some, others, strict=True)]


def _opened(before: States, *, run: Callable[[States], States], moves: Group, reads: Group) -> tuple[States, Pull]:
    numbers = {name: _numbers(before[name]) for name in reads}

    def reached(some: Back) -> tuple[Back, States]:
        put = {name: numbers[name][1](some[name]) for name in reads}
        now = {name: before[name]._replace(params=params, memory=memory) for name, (params, memory) in put.items()}
        after = run(before | now)
        return {name: _numbers(after[name])[0] for name in moves}, after

    _, pull, after = vjp(reached, {name: own for name, (own, _) in numbers.items()}, has_aux=True)  # pyright: ignore

    def pulled(back: Back) -> Back:
        found: Back = pull({name: back[name] for name in moves})[0]
        return back | {name: found[name] if name in moves else _add(back[name], found[name]) for name in reads}

    return after, pulled


def _numbers(one: LevelState) -> tuple[list[Tensor], Callable[[list[Tensor]], Any]]:
    """The floating-point numbers of (parameters, memory), and how to put others in their places."""
    return floating((one.params, one.memory))
