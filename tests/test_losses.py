"""What training makes small, against torch.nn.functional."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch.func import grad, vmap
from worlds import numbers, public, seeds

from fcurr import losses


@given(
    seed=seeds, batch=st.integers(1, 9), classes=st.integers(1, 7), scale=st.floats(0, 300), smooth=st.floats(0, 0.99)
)
def test_cross_entropy_is_that_of_torch_for_any_smoothing(seed, batch, classes, scale, smooth):
    outputs, y = numbers(batch, classes, seed=seed, scale=scale), torch.arange(batch) % classes
    right = F.cross_entropy(outputs, y, reduction="none", label_smoothing=smooth)
    torch.testing.assert_close(losses.cross_entropy(outputs, y, smoothing=smooth), right, rtol=1e-12, atol=1e-12)
    smoothing = torch.tensor(smooth, dtype=torch.float64)
    torch.testing.assert_close(losses.cross_entropy(outputs, y, smoothing=smoothing), right, rtol=1e-12, atol=1e-12)


@given(seed=seeds)
def test_the_gradient_of_cross_entropy_is_that_of_torch(seed):
    outputs, y = numbers(5, 4, seed=seed), torch.arange(5) % 4
    ours = grad(lambda z: losses.cross_entropy(z, y, smoothing=0.1).sum())(outputs)
    right = grad(lambda z: F.cross_entropy(z, y, reduction="sum", label_smoothing=0.1))(outputs)
    torch.testing.assert_close(ours, right, rtol=1e-12, atol=1e-12)


def test_cross_entropy_of_confident_mistakes_is_finite_in_float32():
    outputs = torch.tensor([[1e4, -1e4], [-1e4, 1e4]])
    assert losses.cross_entropy(outputs, torch.tensor([1, 1])).tolist() == [2e4, 0.0]


@pytest.mark.parametrize("loss", public(losses), ids=lambda loss: loss.__name__)
@given(seed=seeds)
def test_a_loss_is_one_number_a_sample_and_mapped_over_members_equals_the_loop(loss, seed):
    outputs, y = numbers(4, 6, 3, seed=seed), torch.arange(6) % 3
    mapped = vmap(loss, in_dims=(0, None))(outputs, y)
    assert mapped.shape == (4, 6)
    torch.testing.assert_close(mapped, torch.stack([loss(one, y) for one in outputs]), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("loss", public(losses), ids=lambda loss: loss.__name__)
def test_a_loss_of_a_sample_does_not_depend_on_the_batch_it_is_in(loss):
    outputs, y = numbers(6, 3), torch.arange(6) % 3
    alone = torch.cat([loss(outputs[i : i + 1], y[i : i + 1]) for i in range(6)])
    torch.testing.assert_close(loss(outputs, y), alone, rtol=1e-12, atol=1e-12)
