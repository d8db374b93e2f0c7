"""Traced functions: the same bits, less Python, and memory that is let go."""

import gc
import weakref
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.func import vmap
from worlds import numbers, seeds

from fcurr import losses, models, optim, training, tree
from fcurr.tracing import compiled, traced
from fcurr.types import Batch


def _many(x, y, z):
    """Aliases, double transposes, lists of tensors, constants, several outputs, one of them an input."""
    a = x.detach().t().t() @ y
    b = torch.cat([a, a.t().contiguous(), torch.full_like(a, 2.5)], dim=0)
    unused = b.sin()
    del unused
    return {"b": b.double(), "where": torch.where(b > 0, b, z), "same": z, "two": tuple(b.split([4, 8]))}


@given(seed=seeds)
def test_a_traced_function_gives_the_bits_of_the_function(seed):
    examples = [numbers(4, 4, seed=place) for place in (1, 2)] + [torch.tensor(0.5, dtype=torch.float64)]
    given_ = [numbers(4, 4, seed=seed), numbers(4, 4, seed=seed + 1), torch.tensor(-1.0, dtype=torch.float64)]
    assert tree.equal(traced(_many, *examples)(*given_), _many(*given_))


@given(seed=seeds, members=st.integers(1, 3))
def test_a_traced_step_of_adam_under_vmap_gives_the_bits_of_the_step(seed, members):
    model = models.mlp(features=(3,), classes=2, hidden=(4,))
    method = training.gradient_descent(
        model=model, loss=losses.cross_entropy, optimizer=optim.adam(learning_rate=0.01, weight_decay=0.1)
    )
    states = tree.stack([method.init(place) for place in range(members)])
    batch = Batch(
        numbers(members, 5, 3, seed=seed).float(),
        torch.arange(5).expand(members, 5) % 2,
        torch.arange(5).expand(members, 5),
    )
    step = vmap(method.step)
    quick = traced(step, states, batch)
    once, twice = step(states, batch), quick(states, batch)
    assert tree.equal(once, twice)
    assert tree.equal(step(once, batch), quick(twice, batch))


def test_a_traced_function_writes_to_no_argument():
    x = torch.ones(3)
    quick = traced(lambda a: a.clone().add_(1).relu_(), x)
    assert quick(x).tolist() == [2.0] * 3 and x.tolist() == [1.0] * 3


def test_arguments_that_are_given_away_are_let_go_before_the_end():
    """A million numbers through a chain: what is not needed any more is not there any more."""
    alive: list[int] = []
    references: list[weakref.ref] = []

    @torch.library.custom_op("fcurr_tests::look", mutates_args=())
    def look(x: torch.Tensor) -> torch.Tensor:
        alive.append(sum(reference() is not None for reference in references))
        return x.clone()

    @look.register_fake
    def _(x):
        return torch.empty_like(x)

    def chain(a, b):
        return look(look(a * 2) + b)

    quick = traced(chain, torch.ones(2), torch.ones(2))
    alive.clear()
    arguments = [torch.ones(2), torch.ones(2)]
    references += [weakref.ref(argument) for argument in arguments]
    quick.give(arguments)
    assert arguments == [] and alive == [1, 0]
    alive.clear(), references.clear()
    kept = [torch.ones(2), torch.ones(2)]
    references += [weakref.ref(argument) for argument in kept]
    quick(*kept)
    gc.collect()
    assert alive == [2, 2]


def test_a_function_that_decides_by_values_is_not_traced():
    with pytest.raises(Exception, match=r"[Dd]ata-dependent|item"):
        traced(lambda x: x if x.sum() > 0 else -x, torch.ones(2))


@pytest.mark.long
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_a_traced_step_compiled_is_the_step_to_rounding(momentum):
    model = models.mlp(features=(3,), classes=2, hidden=(4,))
    method = training.gradient_descent(
        model=model, loss=losses.cross_entropy, optimizer=optim.sgd(learning_rate=0.1, momentum=momentum)
    )
    state, batch = method.init(0), Batch(numbers(5, 3).float(), torch.arange(5) % 2, torch.arange(5))
    fused = compiled(traced(method.step, state, batch))
    for _ in range(3):
        after, right = fused(state, batch), method.step(state, batch)
        torch.testing.assert_close(tree.named(after), tree.named(right), rtol=1e-4, atol=1e-6)
        state = right


def test_a_partial_is_traced_as_a_function():
    assert traced(partial(torch.add, alpha=2), torch.ones(2), torch.ones(2))(torch.ones(2), torch.ones(2)).tolist() == [
        3,
        3,
    ]


def test_only_zeros_that_were_made_for_a_sum_are_left_out():
    """A tensor that began as zeros may have been written to, and who writes to a sum does not write to its parts."""

    def mask(x):
        z = torch.zeros(3)
        z[0] = 1.0
        return x + z

    def written(x):
        y = x + torch.zeros(3)
        y.mul_(2)
        return y, x

    def kept(x):
        return torch.relu(2 * x + torch.zeros(3))

    x = torch.tensor([-1.0, 2.0, 3.0])
    for function in (mask, written, kept):
        before = x.clone()
        assert tree.equal(traced(function, x)(x), function(x)) and torch.equal(x, before)
    assert not any("add" in str(node.target) for node in traced(kept, x).module.graph.nodes)


def test_a_write_that_nobody_sees_is_left_out_and_others_are_not():
    def dead(x):
        torch.relu_(x * 2)
        return x + 1

    def alive(x):
        y = x * 2
        z = y.view(3, 1)
        torch.relu_(z)
        return y

    x = torch.tensor([-1.0, 2.0, 3.0])
    assert torch.equal(traced(dead, x)(x), dead(x)) and torch.equal(traced(alive, x)(x), alive(x))
    assert not any("relu" in str(node.target) for node in traced(dead, x).module.graph.nodes)
