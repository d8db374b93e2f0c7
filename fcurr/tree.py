"""Arithmetic on trees of tensors; the one file that imports optree.

torch.func walks trees with its own pytree, which orders dict keys differently: leaves of the one are never zipped with
leaves of the other, so nobody else in fcurr flattens a tree.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import optree
import torch
from torch import Tensor

T = TypeVar("T")


def map(function: Callable[..., Any], tree: T, *rest: T) -> T:
    """The tree of `function(leaf, ...)`."""
    return optree.tree_map(function, tree, *rest)  # type: ignore[return-value]


def leaves(tree: Any) -> list[Tensor]:
    """The tensors of a tree, in optree's order."""
    return optree.tree_leaves(tree)  # type: ignore[return-value]


def flatten(tree: T) -> tuple[list[Tensor], Callable[[list[Tensor]], T]]:
    """The tensors of a tree, and the function that builds a tree like it from others."""
    tensors, structure = optree.tree_flatten(tree)  # pyright: ignore
    return tensors, functools.partial(optree.tree_unflatten, structure)  # pyright: ignore


def stack(trees: Sequence[T]) -> T:
    """Trees alike, as one tree whose leaves have a leading axis of members."""
    return optree.tree_map(lambda *tensors: torch.stack(tensors), *trees)  # type: ignore[return-value]


def member(tree: T, index: int) -> T:
    """One member of a stacked tree."""
    return map(lambda leaf: leaf[index], tree)


def apart(tree: T) -> Iterator[T]:
    """The members of a stacked tree, in turn."""
    yield from (member(tree, index) for index in range(len(leaves(tree)[0])))


def where(condition: Tensor, yes: T, no: T) -> T:
    """Leaf by leaf `yes` where the condition holds, else `no`; the condition's axes are the leaves' first ones."""
    axes = lambda leaf: condition.shape + (1,) * (leaf.ndim - condition.ndim)  # noqa: E731
    shaped = lambda leaf: condition.reshape(axes(leaf)) if condition.ndim else condition  # noqa: E731
    return map(lambda a, b: torch.where(shaped(a), a, b), yes, no)


def sum_of(trees: Sequence[T]) -> T:
    """The sum of trees alike, in turn; of one, itself."""
    return functools.reduce(lambda a, b: map(torch.add, a, b), trees)


def dot(a: Any, b: Any) -> Tensor:
    """The inner product of two trees alike."""
    products = [(x * y).sum() for x, y in zip(leaves(a), leaves(b), strict=True)]
    return functools.reduce(torch.add, products) if products else torch.zeros(())


def norm(tree: Any) -> Tensor:
    """The Euclidean norm of all numbers in a tree."""
    return dot(tree, tree).sqrt()


def equal(a: Any, b: Any) -> bool:
    """Same structure, and the same bits in every leaf (nan equals nan)."""
    if optree.tree_structure(a) != optree.tree_structure(b):
        return False
    return all(
        x.shape == y.shape and x.dtype == y.dtype and torch.equal(bits(x), bits(y))
        for x, y in zip(leaves(a), leaves(b), strict=True)
    )


def raw(x: Tensor) -> memoryview:
    """The bytes of a tensor on the host, to be hashed or written."""
    return memoryview(bits(x).numpy())  # pyright: ignore[reportArgumentType]


def bits(x: Tensor) -> Tensor:
    """The bytes of a tensor, uint8."""
    flat = x.contiguous().flatten()
    return (flat if flat.stride(0) == 1 else flat.clone(memory_format=torch.contiguous_format)).view(torch.uint8)


def named(tree: Any, root: str = "state") -> dict[str, Tensor]:
    """The leaves under names that read as code: {"state.params['0.bias']": tensor}."""
    paths, tensors, _ = optree.tree_flatten_with_accessor(tree)
    return {path.codify(root): tensor for path, tensor in zip(paths, tensors, strict=True)}  # type: ignore[misc]


def fill(like: T, tensors: dict[str, Tensor], root: str = "state") -> T:
    """A tree built like `like`, from named leaves. KeyError for a name that is missing, ValueError for another shape or
    dtype, or for a name too many."""
    wanted = named(like, root)
    if extra := sorted(tensors.keys() - wanted.keys()):
        raise ValueError(f"{extra[0]} does not belong here")
    for name, leaf in wanted.items():
        if tensors[name].shape != leaf.shape or tensors[name].dtype != leaf.dtype:
            raise ValueError(
                f"{name} is {tensors[name].dtype} {list(tensors[name].shape)}, not {leaf.dtype} {list(leaf.shape)}"
            )
    return optree.tree_unflatten(optree.tree_structure(like), [tensors[name] for name in wanted])  # type: ignore
