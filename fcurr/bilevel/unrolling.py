"""Exact hypergradients through inner steps: the derivative of the updates as they are taken.

The derivative of an update is that of the optimizer's own function, so momentum, Nesterov's, decay, Adam and clipping
are all right, learning rates included, and whatever an optimizer remembers carries derivatives as well. Franceschi et
al. (2017), Forward and reverse gradient-based hyperparameter optimization, section 3.
"""

import torch
from torch import Tensor
from torch.func import grad, vjp

from fcurr import tree
from fcurr.autodiff import floating
from fcurr.bilevel.problem import Descent, Inner, Meta, Outer, descend, moving, slope, step
from fcurr.types import Batch, Params, State, Times


def unrolled(outer: Outer, inner: Inner, params: Params, meta: Meta, descent: Descent) -> Meta:
    """Reverse mode through all steps at once: the graph of every step is kept. The reference for the others."""

    def reached(meta: Meta) -> Tensor:
        return outer(descend(inner, params, meta, descent)[0], meta)

    return grad(reached)(meta)


def adjoint(outer: Outer, inner: Inner, params: Params, meta: Meta, descent: Descent) -> Meta:
    """The same number by the adjoint recursion: parameters and the optimizer's memory of every step are kept, and the
    graph of one step at a time. Time is linear in the steps."""
    return truncated(outer, inner, params, meta, descent, last=max(len(descent.batches), 1))


def truncated(outer: Outer, inner: Inner, params: Params, meta: Meta, descent: Descent, *, last: Times) -> Meta:
    """The adjoint recursion through the `last` steps only, as if the meta parameters had not acted before.

    Shaban et al. (2019), Truncated back-propagation for bilevel optimization. One step of many can point the wrong way:
    `check_hypergradient` says how far.
    """
    memory, path = descent.memory, []
    early = len(descent.batches) - last
    for number, batch in enumerate(descent.batches):
        if number >= early:
            path.append((params, memory, batch))
        params, memory = step(inner, params, memory, meta, batch, descent)
    p, found = grad(outer, argnums=(0, 1))(params, meta)
    r = [torch.zeros_like(leaf) for leaf in floating(memory)[0]]
    for before in reversed(path):
        p, r, more = pulled_back(inner, *before, meta, descent, p, r)  # pyright: ignore
        found = tree.map(torch.add, found, more)
    return found


def pulled_back(
    inner: Inner, params: Params, memory: State, batch: Batch, meta: Meta, descent: Descent, p: Params, r: list[Tensor]
) -> tuple[Params, list[Tensor], Meta]:
    """One step backwards: derivatives with respect to what a step gave, parameters p and memory r (its floating
    leaves), become those with respect to what it was given, and to the meta parameters."""
    numbers, whole = floating(memory)

    def update(grads: Params, numbers: list[Tensor], params: Params, meta: Meta) -> tuple[Params, list[Tensor]]:
        moved, after = moving(descent, meta).update(grads, whole(numbers), params)
        return moved, floating(after)[0]

    def slopes(params: Params, meta: Meta) -> Params:
        return slope(inner, params, memory, meta, batch, descent)

    grads, through_loss = vjp(slopes, params, meta)  # pyright: ignore
    _, through_update = vjp(update, grads, numbers, params, meta)  # pyright: ignore
    q, r, *direct = through_update((p, r))
    p, more = tree.map(torch.add, direct, [*through_loss(q)])
    return p, r, more
