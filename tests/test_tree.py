"""Arithmetic on trees of tensors."""

from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from worlds import numbers, seeds

from fcurr import tree


class State(NamedTuple):
    params: dict[str, Tensor]
    memory: object
    iteration: Tensor


def state(seed: int = 0) -> State:
    params = {"1.weight": numbers(2, 3, seed=seed), "0.bias": numbers(4, seed=seed + 1)}
    return State(params=params, memory=((), [numbers(2, seed=seed + 2)]), iteration=torch.tensor(seed))


@given(seed=seeds)
def test_leaves_do_not_depend_on_the_order_in_which_names_were_written(seed):
    one = state(seed)
    other = one._replace(params=dict(reversed(one.params.items())))
    assert tree.equal(tree.leaves(one), tree.leaves(other)) and tree.equal(one, other)


def test_map_keeps_the_structure_and_writes_to_nothing():
    before, after = state(1), state(1)
    twice = tree.map(lambda a, b: a + b, before, after)
    assert isinstance(twice, State) and twice.memory[0] == () and twice.iteration == 2
    assert torch.equal(twice.params["0.bias"], 2 * before.params["0.bias"])
    assert tree.equal(before, state(1))


@given(st.lists(seeds, min_size=1, max_size=4))
def test_a_member_of_a_stack_is_what_was_stacked(chosen):
    stacked = tree.stack([state(seed) for seed in chosen])
    for index, seed in enumerate(chosen):
        assert tree.equal(tree.member(stacked, index), state(seed))


def test_where_chooses_member_by_member_whatever_the_axes_of_a_leaf():
    yes, no = (tree.stack([state(seed) for seed in group]) for group in ((1, 2, 3), (4, 5, 6)))
    chosen = tree.where(torch.tensor([True, False, True]), yes, no)
    for index, seed in enumerate((1, 5, 3)):
        assert tree.equal(tree.member(chosen, index), state(seed))


@given(seed=seeds)
def test_dot_and_norm_are_those_of_all_numbers_in_one_vector(seed):
    a, b = state(seed).params, state(seed + 1).params
    flat = lambda params: np.concatenate([leaf.numpy().ravel() for _, leaf in sorted(params.items())])  # noqa: E731
    assert tree.dot(a, b).item() == pytest.approx(flat(a) @ flat(b), rel=1e-12)
    assert tree.norm(a).item() == pytest.approx(np.linalg.norm(flat(a)), rel=1e-12)


def test_the_norm_of_nothing_is_zero():
    assert tree.norm(()) == 0


@pytest.mark.parametrize(
    "one, other, same",
    [
        (torch.tensor([1.0, torch.nan]), torch.tensor([1.0, torch.nan]), True),
        (torch.tensor(torch.nan), torch.tensor(torch.nan), True),
        (torch.tensor(0.0), torch.tensor(-0.0), False),
        (torch.tensor([True, False]), torch.tensor([True, False]), True),
        (torch.tensor(1.0), torch.tensor(1.0, dtype=torch.float64), False),
        (torch.zeros(1), torch.zeros(1, dtype=torch.int32), False),
        (torch.zeros(2, 1), torch.zeros(1, 2), False),
        (torch.zeros(0), torch.zeros(0), True),
        (torch.eye(3).T, torch.eye(3), True),
        ({"a": torch.zeros(1)}, {"b": torch.zeros(1)}, False),
        ({"a": torch.zeros(1)}, [torch.zeros(1)], False),
        ((torch.zeros(1), ()), (torch.zeros(1),), False),
    ],
)
def test_equal_means_the_same_structure_and_the_same_bits(one, other, same):
    assert tree.equal(one, other) is same


def test_names_of_leaves_read_as_code():
    assert set(tree.named(state())) == {
        "state.params['0.bias']",
        "state.params['1.weight']",
        "state.memory[1][0]",
        "state.iteration",
    }
    assert list(tree.named({"a": torch.zeros(1)}, root="run")) == ["run['a']"]


@given(seed=seeds)
def test_what_was_named_fills_a_tree_like_it_again_in_any_order(seed):
    written = dict(sorted(tree.named(state(seed)).items(), reverse=True))
    assert tree.equal(tree.fill(state(0), written), state(seed))


def test_a_tree_is_not_filled_with_a_name_missing():
    tensors = tree.named(state())
    del tensors["state.iteration"]
    with pytest.raises(KeyError, match=r"state\.iteration"):
        tree.fill(state(), tensors)


@pytest.mark.parametrize(
    "name, leaf, message",
    [
        ("state.more", torch.zeros(1), "state.more does not belong here"),
        ("state.iteration", torch.zeros(2).long(), r"state.iteration is torch.int64 \[2\], not torch.int64 \[\]"),
        ("state.iteration", torch.tensor(0.0), r"state.iteration is torch.float32 \[\], not torch.int64 \[\]"),
    ],
)
def test_a_tree_is_not_filled_with_what_does_not_belong(name, leaf, message):
    with pytest.raises(ValueError, match=message):
        tree.fill(state(), tree.named(state()) | {name: leaf})
