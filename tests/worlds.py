"""Small worlds: data, numbers and trees that tests of many rooms share."""

import inspect
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from fcurr import tree
from fcurr.types import Batch, Dataset, Params, Shape

seeds = st.integers(0, 2**31 - 1)
keys = st.integers(-(2**63), 2**63 - 1)
labels = st.lists(st.integers(0, 3), min_size=1, max_size=40).map(torch.tensor)  # [sample] int64


def public(module: ModuleType) -> list[Callable[..., Any]]:
    """The components of a module: its own functions, found by looking. A new one is tested by existing."""
    functions = inspect.getmembers(module, inspect.isfunction)
    return [f for name, f in functions if f.__module__ == module.__name__ and not name.startswith("_")]


def numbers(*shape: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    """Float64, normally distributed."""
    return scale * torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def blobs(samples: int = 24, features: Shape = (6,), classes: int = 3, seed: int = 0) -> Dataset:
    """Classes around centres of their own; float64."""
    y = torch.arange(samples) % classes
    centres = numbers(classes, *features, seed=seed + 1)
    x = centres[y] + 0.5 * numbers(samples, *features, seed=seed)
    return Dataset(x=x, y=y, classes=tuple("abcdefghij"[:classes]))


def whole(data: Dataset) -> Batch:
    return data.take(torch.arange(len(data.y)))


def double(state: Any) -> Any:
    """The tree with its floating-point leaves in float64."""
    return tree.map(lambda leaf: leaf.double() if leaf.is_floating_point() else leaf, state)


def members(stacked: Any) -> Iterator[Any]:
    """The members of a stacked tree, in turn."""
    yield from (tree.member(stacked, index) for index in range(len(tree.leaves(stacked)[0])))


def looped(function: Callable[..., Any], *stacked: Any) -> Any:
    """What vmap(function)(*stacked) should be."""
    return tree.stack([function(*one) for one in members(stacked)])


def assert_close(a: Any, b: Any, rtol: float = 1e-9, atol: float = 1e-12) -> None:
    """Two trees, equal to rounding, with the same names and dtypes."""
    torch.testing.assert_close(tree.named(a), tree.named(b), rtol=rtol, atol=atol, equal_nan=True)


def copied(params: Params) -> Params:
    return {name: leaf.clone() for name, leaf in params.items()}
