"""Reverse mode over the parts of what happened below a level, the last first.

The sum over all ways from an upper level's parameters to its loss is what comes out, with the scales of the steps as
they were taken: learning rates, and what optimizers remember, are differentiated. Kept are the states between the parts
and the graph of one part at a time.
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


class Node(NamedTuple):
    """A part of what happens between two steps of a level above."""

    run: Callable[[States], States]
    pull: Callable[[States, Back], Back]  # state before, derivatives by the state after -> by the state before


def as_taken(run: Callable[[States], States], moves: Group, reads: Group) -> Node:
    """Whatever runs, moves these levels and reads those (the moved among them), with its exact derivative."""
    return Node(run, partial(_pulled, run=run, moves=moves, reads=reads))


def led_back(name: str, slopes: Mapping[str, Params], states: Sequence[States], nodes: Sequence[Node]) -> Params:
    """The whole gradient by the parameters of a level: slopes at the end, states before and after each node."""
    back: Back = {}
    for other, one in states[-1].items():
        zeros = [torch.zeros_like(leaf) for leaf in _numbers(one)[0]]
        back[other] = add_slopes(zeros, slopes.get(other, {}))
    for node, before in zip(reversed(nodes), reversed(states[:-1]), strict=True):
        back = node.pull(before, back)
    return params_of(back[name], states[-1][name])


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


def _pulled(before: States, back: Back, *, run: Callable[[States], States], moves: Group, reads: Group) -> Back:
    opened = {name: _numbers(before[name]) for name in reads}

    def reached(numbers: Back) -> Back:
        put = {name: opened[name][1](numbers[name]) for name in reads}
        now = {name: before[name]._replace(params=params, memory=memory) for name, (params, memory) in put.items()}
        after = run(before | now)
        return {name: _numbers(after[name])[0] for name in moves}

    _, pull = vjp(reached, {name: numbers for name, (numbers, _) in opened.items()})  # pyright: ignore
    found: Back = pull({name: back[name] for name in moves})[0]
    return back | {name: found[name] if name in moves else _add(back[name], found[name]) for name in reads}


def _numbers(one: LevelState) -> tuple[list[Tensor], Callable[[list[Tensor]], Any]]:
    """The floating-point numbers of (parameters, memory), and how to put others in their places."""
    return floating((one.params, one.memory))
