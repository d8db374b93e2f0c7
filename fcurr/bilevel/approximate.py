"""Hypergradients by trying: differences instead of second derivatives, and for an outer objective without any
derivative, perturbed meta parameters.

The first two look at the last step of the descent, params <- update(g) with g = grad_params inner(params, meta, batch),
and take what was before it for given. With v = grad outer after it and q = (d update / d g)^T v, the pullback of v by
the update as it was taken (learning rate, momentum, preconditioner and clipping are in it, and the sign), the exact
derivative of that step is h = d outer / d meta + d/d meta <g(meta), q> + v^T d update / d meta.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.func import grad, vjp

from fcurr import rng, tree
from fcurr.bilevel.problem import Descent, Inner, Meta, Outer, Weighted, descend, moving
from fcurr.mapping import over_members
from fcurr.types import Batch, Params, Positive, Times


def finite_difference(
    outer: Outer, inner: Inner, params: Params, meta: Meta, descent: Descent, *, radius: Positive = 0.01
) -> Meta:
    """The derivative of the last step, by central differences along q. Liu, Simonyan and Yang (2019), DARTS, eq. 8.

        d/dmeta <g(meta), q> = (grad_meta inner(params + e q) - grad_meta inner(params - e q)) / 2e + O(e^2),

    e = radius / |q|, at the parameters where the step was taken. Whatever `inner` holds fixed with `detach`, a
    difference does not: a weight of a sample's own detached loss moves with it, and of such a loss this is another
    derivative (of Meta-Weight-Net 72 % off, and never better for a smaller radius). From the outside that cannot be
    seen. `Weighted` says it: there only the losses are differenced, s = (L(params + e q) - L(params - e q)) / 2e, the
    objective sees those of `params`, and d/dmeta <d objective / d losses, s> is right with and without `detach`.

    Costs two forward passes (`Weighted`) or two gradients. Kinks (ReLU) make it worse for a large radius, rounding for
    a small one. A parameter that never had a gradient has the derivative 1 / epsilon in Adam's update: where v is not
    zero there, q is hardly anything else, and in float32 a difference along it sees nothing.
    """
    step = _last(outer, inner, params, meta, descent)
    by_gradient = _difference(inner, step.params, meta, step.batch, step.pulled, radius)
    return tree.sum_of([step.direct, step.by_rate, by_gradient])


def sama(outer: Outer, inner: Inner, params: Params, meta: Meta, descent: Descent, *, radius: Positive = 1.0) -> Meta:
    """SAMA: as `finite_difference`, at the parameters after the descent. Choe et al. (2023), Making scalable meta
    learning practical, section 3.

    The inverse of the Hessian is replaced by the identity, and the optimizer's preconditioner applied to v. Ours is the
    derivative of the last update as it was taken; the paper's, of Adam only, leaves out the bias correction, which
    changes its length (4.5 times at step 51). Of a `Weighted` loss only the losses are differenced, as there; the paper
    sees through `detach`, and so does this if the same loss is given as a plain function.
    """
    step = _last(outer, inner, params, meta, descent)
    by_gradient = _difference(inner, step.after, meta, step.batch, step.pulled, radius)
    return tree.sum_of([step.direct, step.by_rate, by_gradient])


def reinforce(
    outer: Outer,
    inner: Inner,
    params: Params,
    meta: Meta,
    descent: Descent,
    *,
    key: Tensor | int,
    samples: Times,
    deviation: Positive,
) -> Meta:
    """An estimate of d/dmeta E[outer(descend(m), m)], m ~ N(meta, deviation^2 I), that asks for values of `outer` only:
    an accuracy will do. Williams (1992), section 5.

    With e ~ N(0, I), drawn by the key, the mean over samples of e (F(meta + deviation e) - F(meta - deviation e)) /
    (2 deviation). Without bias for every deviation and number of samples; the two sides of a sample share their
    baseline, which cancels. Of a function that is straight over the deviation the error is sqrt((n + 1) / samples) of
    the gradient's length, for n meta parameters: for few of them. Costs 2 samples descents, mapped.
    """
    leaves, build = tree.flatten(meta)
    noise = build([_normal(rng.fold(key, place), samples, leaf) for place, leaf in enumerate(leaves)])

    def value(noise: Meta, side: float) -> Tensor:
        there = tree.map(lambda leaf, e: leaf + side * e, meta, noise)
        return outer(descend(inner, params, there, descent)[0], there)

    slope = lambda noise: (value(noise, deviation) - value(noise, -deviation)) / (2 * deviation)  # noqa: E731
    slopes = over_members(slope, noise)  # [sample]
    return tree.map(lambda e: torch.tensordot(slopes.to(e.dtype), e, 1) / samples, noise)


class _Last(NamedTuple):
    """The last step of a descent, and the outer gradient after it, pulled back to before."""

    params: Params  # before the step
    batch: Batch
    after: Params
    pulled: Params  # q
    direct: Meta  # d outer / d meta
    by_rate: Meta  # v^T d update / d meta


def _last(outer: Outer, inner: Inner, params: Params, meta: Meta, descent: Descent) -> _Last:
    *before, batch = descent.batches
    params, memory = descend(inner, params, meta, descent._replace(batches=before))

    def update(grads: Params, meta: Meta) -> Params:
        optimizer = moving(descent, meta)
        return optimizer.update(tree.map(lambda leaf: leaf * optimizer.scale(memory), grads), memory, params)[0]

    after, pullback = vjp(update, grad(inner)(params, meta, batch), meta)  # pyright: ignore
    v, direct = grad(outer, argnums=(0, 1))(after, meta)  # pyright: ignore
    pulled, by_rate = pullback(v)
    return _Last(params=params, batch=batch, after=after, pulled=pulled, direct=direct, by_rate=by_rate)


def _difference(inner: Inner, at: Params, meta: Meta, batch: Batch, along: Params, radius: float) -> Meta:
    """d/dmeta <grad_params inner(at, meta, batch), along>."""
    squared = tree.dot(along, along)
    size = radius / torch.where(squared > 0, squared, 1.0).sqrt()
    ahead, behind = (tree.map(lambda a, b, e=e: a + e * b, at, along) for e in (size, -size))
    between = lambda a, b: (a - b) / (2 * size)  # noqa: E731
    if not isinstance(inner, Weighted):
        slope = grad(inner, argnums=1)
        return tree.map(between, slope(ahead, meta, batch), slope(behind, meta, batch))
    s = between(inner.losses(ahead, batch), inner.losses(behind, batch))  # [batch], or [batch, ...]
    here = inner.losses(at, batch)
    counts = lambda meta: grad(inner.objective, argnums=1)(meta, here, batch)  # noqa: E731
    return vjp(counts, meta)[1](s)[0]  # pyright: ignore


def _normal(key: Tensor, samples: int, like: Tensor) -> Tensor:
    """[sample, ...] standard normal numbers, as many a sample as a leaf has. Box and Muller (1958)."""
    places = torch.arange(samples * like.numel(), device=like.device).reshape(samples, *like.shape)
    radius, angle = rng.uniform(key, 0, places), rng.uniform(key, 1, places)
    return ((-2 * torch.log1p(-radius)).sqrt() * torch.cos(2 * torch.pi * angle)).to(like.dtype)
