"""How good a hypergradient is, and whether a problem can have one: for people, before a run."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.func import grad
from torch.overrides import TorchFunctionMode

from fcurr import tree
from fcurr.bilevel.problem import Descent, Hypergradient, Inner, Meta, Outer, descend
from fcurr.errors import BadInput
from fcurr.types import Optimizer, Params


class Likeness(NamedTuple):
    """How a tensor is like the one it should be."""

    cosine: float  # 1 is the same direction; nan if either is zero
    relative_error: float  # |found - right| / |right|; 0 if both are zero
    scale: float  # the number s that makes |s found - right| smallest; nan if what was found is zero

    def __str__(self) -> str:
        return f"cosine {self.cosine:.6f}, relative error {self.relative_error:.2g}, best scale {self.scale:.4g}"


class Report(NamedTuple):
    """A hypergradient against the exact one; `print(report)` says it, in all and of each leaf of meta."""

    cosine: float
    relative_error: float
    scale: float
    leaves: dict[str, Likeness]  # "meta['weight']" -> its likeness

    def __str__(self) -> str:
        rows = {"in all": Likeness(*self[:3])} | (self.leaves if len(self.leaves) > 1 else {})
        width = max(map(len, rows))
        return "\n".join(f"{name:{width}}  {row}" for name, row in rows.items())


def check_hypergradient(
    method: Hypergradient, outer: Outer, inner: Inner, params: Params, meta: Meta, descent: Descent
) -> Report:
    """A method, in the dtypes it is given, against `exact`. BadInput where `check_problem` has it.

    The exact one is of the descent as it is: an implicit method is like it if the descent is long and ends at a
    minimum; `reinforce` if it has many samples and a small deviation.
    """
    check_problem(outer, inner, params, meta, descent)
    found = tree.named(method(outer, inner, params, meta, descent), "meta")
    right = tree.named(exact(outer, inner, params, meta, descent), "meta")
    leaves = {name: _likeness(found[name], leaf) for name, leaf in right.items()}
    whole = _likeness(*(torch.cat([part[name].flatten() for name in right]) for part in (found, right)))
    return Report(*whole, leaves=leaves)


def exact(outer: Outer, inner: Inner, params: Params, meta: Meta, descent: Descent) -> Meta:
    """The derivative of the steps as they are taken, in float64: reverse mode through all of them, over reverse mode in
    each. Slow, and its memory grows with the steps. What the losses have closed over (samples, buffers) becomes float64
    where it meets the parameters; what they round on purpose stays rounded."""
    params, meta, memory, batches = tree.map(_wide, (params, meta, descent.memory, [*descent.batches]))
    descent = descent._replace(memory=memory, batches=batches)
    with _Wide():
        return grad(lambda meta: outer(descend(inner, params, meta, descent)[0], meta))(meta)  # pyright: ignore


def depends(outer: Outer, params: Params, meta: Meta) -> bool:
    """Whether the outer loss is computed from the inner parameters at all, whatever its derivative is in numbers."""
    return bool(_used(lambda params: outer(params, meta), params))


def check_problem(outer: Outer, inner: Inner, params: Params, meta: Meta, descent: Descent) -> None:
    """BadInput if the hypergradient is zero for how the problem is built: no numbers are looked at. Takes a forward and
    a backward pass of each loss."""
    if not len(descent.batches):
        raise BadInput(
            "the descent has no batches: it wants one a step, or at_rest(batches) for parameters at a minimum"
        )
    batch = descent.batches[-1]
    read = _used(lambda params: outer(params, meta), params)
    if not read:
        raise BadInput(
            "the outer loss does not depend on the inner parameters: no gradient reaches them, so nothing is learned "
            "through them. Compute it from the params it is given, without detach; for what has no derivative, like an "
            "accuracy, there is reinforce"
        )
    moved = _used(lambda params: inner(params, meta, batch), params)
    if not moved:
        raise BadInput("the inner loss does not depend on the inner parameters: no step moves them")
    if not read & moved:
        raise BadInput(
            f"the outer loss depends on {', '.join(sorted(read))} only, the inner loss on {', '.join(sorted(moved))} "
            "only: what the one moves the other does not see"
        )
    by_gradient = _used(lambda meta: tree.dot(grad(inner)(params, meta, batch), params), meta, "meta")
    if not by_gradient and isinstance(descent.optimizer, Optimizer):
        raise BadInput(
            "the gradient of the inner loss does not depend on the meta parameters, and neither does the optimizer: "
            "they do not change where the descent ends"
        )


def _used(function: Callable[[Any], Tensor], given: Any, root: str = "params") -> set[str]:
    """Names of the leaves that autograd reaches from the value."""
    names = tree.named(given, root)
    _, build = tree.flatten(given)
    fresh = [leaf.detach().requires_grad_() for leaf in names.values()]
    with torch.enable_grad():
        value = function(build(fresh))
    if not value.requires_grad:
        return set()
    found = torch.autograd.grad(value.sum(), fresh, allow_unused=True)
    return {name for name, slope in zip(names, found, strict=True) if slope is not None}


def _likeness(found: Tensor, right: Tensor) -> Likeness:
    found, right = (leaf.detach().double().flatten() for leaf in (found, right))
    along = found @ right
    return Likeness(
        cosine=float(along / (found.norm() * right.norm())),
        relative_error=0.0 if torch.equal(found, right) else float((found - right).norm() / right.norm()),
        scale=float(along / (found @ found)),
    )


def _wide(leaf: Any) -> Any:
    return leaf.double() if isinstance(leaf, Tensor) and leaf.is_floating_point() else leaf


class _Wide(TorchFunctionMode):
    """Whatever meets float64 becomes float64. What is written to keeps its type."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        tensors = [leaf for leaf in tree.leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        if any(leaf.dtype == torch.float64 for leaf in tensors) and not _writes(func, kwargs):
            args, kwargs = tree.map(_wide, (args, kwargs))
        return func(*args, **(kwargs or {}))


def _writes(func: Any, kwargs: dict[str, Any]) -> bool:
    """Whether a function of torch writes to its arguments: add_, x[0] = y, x += y, out=."""
    name = getattr(func, "__name__", "")
    return name == "__setitem__" or name.startswith("__i") or (name[-1:] == "_" != name[-2:-1]) or "out" in kwargs
