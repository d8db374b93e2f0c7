"""The derivative of the minimum that an inner descent leads to, whatever the way there.

At a minimum params* of the inner loss, grad_params inner(params*, meta) = 0 holds for every meta, so that

    h = d outer / dmeta - d/dmeta <grad_params inner(params*, meta), x>,    H x = v = grad_params outer(params*, meta),

where H is the Hessian of the inner loss, the mean over the descent's batches (implicit function theorem). The methods
differ in how they solve for x. Each descends first and takes the end for the minimum: as far as it is none, h is not
the derivative of anything. With `at_rest(batches)` nothing moves. What the optimizer has of the meta parameters, a
learning rate, say, does not move a minimum: it counts for nothing here.

All want a positive definite H, which networks rarely have: damping, or weight decay in the inner loss, makes it one.
"""

from collections.abc import Callable
from typing import Annotated, NamedTuple

import torch
from annotated_types import Ge, Lt
from torch import Tensor
from torch.func import grad, vjp, vmap

from fcurr import rng, tree
from fcurr.autodiff import hvp
from fcurr.bilevel.problem import Descent, Inner, Meta, Outer, descend, total
from fcurr.types import Params, Penalty, Positive, Times, Unit

Products = Annotated[int, Ge(0), Lt(2**31), Unit("number of Hessian-vector products")]
Rank = Annotated[int, Ge(1), Lt(2**31), Unit("number of columns")]
Product = Callable[[Params], Params]  # v -> H v


class Solution(NamedTuple):
    """What was found for (H + damping I) x = v."""

    x: Params
    residual: Tensor  # [] |v - (H + damping I) x| / |v|, computed anew; 0 if v is 0
    indefinite: Tensor  # [] bool, whether it ended at a direction of non-positive curvature


def conjugate_gradient(
    outer: Outer,
    inner: Inner,
    params: Params,
    meta: Meta,
    descent: Descent,
    *,
    iterations: Times,
    tolerance: Positive = 1e-5,
    damping: Penalty = 0.0,
) -> Meta:
    """The implicit derivative by conjugate gradients. Hestenes and Stiefel (1952); Rajeswaran et al. (2019), implicit
    MAML, algorithm 2.

    Nothing changes any more once |v - (H + damping I) x| <= tolerance |v|, or at a direction of non-positive curvature,
    where x stays what it is (0 at the first). `solved` tells which. As many Hessian products as iterations, always.
    """
    solve = lambda product, right: _conjugate(product, right, iterations, tolerance)[0]  # noqa: E731
    return _implicit(outer, inner, params, meta, descent, damping, solve)


def solved(
    outer: Outer,
    inner: Inner,
    params: Params,
    meta: Meta,
    descent: Descent,
    *,
    iterations: Times,
    tolerance: Positive = 1e-5,
    damping: Penalty = 0.0,
) -> Solution:
    """What `conjugate_gradient` finds for x, and how good it is."""
    end, _ = descend(inner, params, meta, descent)
    right: Params = grad(outer)(end, meta)  # pyright: ignore
    product = _curvature(inner, end, meta, descent, damping)
    x, indefinite = _conjugate(product, right, iterations, tolerance)
    missing = tree.map(torch.sub, right, product(x))
    return Solution(x=x, residual=tree.norm(missing) / _length(right), indefinite=indefinite)


def neumann(
    outer: Outer,
    inner: Inner,
    params: Params,
    meta: Meta,
    descent: Descent,
    *,
    iterations: Products,
    step_size: Positive,
) -> Meta:
    """The implicit derivative by a Neumann series, x = a sum_{j=0..iterations} (I - a H)^j v with a = `step_size`.
    Lorraine, Vicol and Duvenaud (2020), section 4.

    It converges if 0 < a lambda < 2 for every eigenvalue lambda of H, at (1 - a lambda)^iterations a direction, and
    grows without bound otherwise: half of 2 / `largest_curvature` is a good step, and a negative curvature has none.
    Cut off, it is the derivative of iterations + 1 steps of gradient descent of rate a from the minimum.
    """

    def series(product: Product, right: Params) -> Params:
        term = summed = right
        for _ in range(iterations):
            term = _add(term, -step_size, product(term))
            summed = _add(summed, 1.0, term)
        return tree.map(lambda leaf: step_size * leaf, summed)

    return _implicit(outer, inner, params, meta, descent, 0.0, series)


def largest_curvature(
    inner: Inner, params: Params, meta: Meta, descent: Descent, *, iterations: Times, key: Tensor | int = 0
) -> Tensor:
    """[] the eigenvalue of the largest magnitude of the inner loss's Hessian at the end of the descent, with its sign,
    by power iteration from a random start: in magnitude never more than it is, and less after too few iterations."""
    end, _ = descend(inner, params, meta, descent)
    product = _curvature(inner, end, meta, descent, 0.0)
    row = _row(end)
    direction = _shaped(_sketch(key, len(row), 1, row)[:, 0], end)
    for _ in range(iterations):
        direction = _unit(product(direction))
    return tree.dot(direction, product(direction))


def nystrom(
    outer: Outer,
    inner: Inner,
    params: Params,
    meta: Meta,
    descent: Descent,
    *,
    rank: Rank,
    damping: Positive,
    key: Tensor | int,
) -> Meta:
    """The implicit derivative with a Hessian of low rank, inverted by Woodbury's identity. Hataya and Yamada (2023).

    H is known by `rank` products with it, all at once, in orthonormal directions Q that are drawn by the key: with
    Y = H Q it is taken for Y (Q^T Y)^+ Y^T, which is H itself if H has no higher rank. What is not seen of H has the
    curvature `damping`, and curvature that is not positive, to rounding, is left out, so the inverse is never larger
    than 1 / damping. The paper takes columns of H, so coordinates for Q; directions that mix all parameters see more
    with as many products, and need no luck with parameters that do nothing. Per product conjugate gradients come much
    closer: this is for the products' sake, which do not wait for one another. Memory: 2 rank parameter sets.
    """

    def solve(product: Product, right: Params) -> Params:
        v = _row(right)  # [number]
        directions = _sketch(key, len(v), rank, v)  # [number, rank]
        seen = vmap(lambda row: _row(product(_shaped(row, right))))(directions.T).T  # [number, rank]
        factor = _factor(directions, seen)
        return _shaped(_woodbury(factor, v, damping), right)

    return _implicit(outer, inner, params, meta, descent, 0.0, solve)


def _implicit(
    outer: Outer,
    inner: Inner,
    params: Params,
    meta: Meta,
    descent: Descent,
    damping: float,
    solve: Callable[[Product, Params], Params],
) -> Meta:
    end, _ = descend(inner, params, meta, descent)
    right, direct = grad(outer, argnums=(0, 1))(end, meta)  # pyright: ignore
    x = solve(_curvature(inner, end, meta, descent, damping), right)
    slope = lambda meta: grad(lambda at: total(inner, at, meta, descent.batches))(end)  # noqa: E731
    _, pull = vjp(slope, meta)  # pyright: ignore
    return tree.map(torch.sub, direct, pull(x)[0])


def _curvature(inner: Inner, at: Params, meta: Meta, descent: Descent, damping: float) -> Product:
    """v -> (H + damping I) v."""
    product = hvp(lambda at: total(inner, at, meta, descent.batches), at)
    return lambda vector: _add(product(vector), damping, vector)


def _conjugate(product: Product, right: Params, iterations: int, tolerance: float) -> tuple[Params, Tensor]:
    """x, and whether it ended at a direction of non-positive curvature. What has ended goes on unchanged."""
    x = tree.map(torch.zeros_like, right)
    residual = direction = right
    left = tree.dot(residual, residual)
    enough = tolerance**2 * left
    indefinite = torch.zeros_like(left, dtype=torch.bool)
    for _ in range(iterations):
        bent = product(direction)
        curvature = tree.dot(direction, bent)
        wanted = left > enough
        indefinite = indefinite | (wanted & (curvature <= 0))
        going = wanted & (curvature > 0)
        length = torch.where(going, left, 0.0) / torch.where(going, curvature, 1.0)
        x, residual = _add(x, length, direction), _add(residual, -length, bent)
        before, left = torch.where(going, left, 1.0), torch.where(going, tree.dot(residual, residual), left)
        direction = tree.map(
            lambda new, old, go=going, b=left / before: torch.where(go, new + b * old, old), residual, direction
        )
    return x, indefinite


def _factor(directions: Tensor, seen: Tensor) -> Tensor:
    """[number, rank] a B with B B^T = Y (Q^T Y)^+ Y^T, over the positive part of Q^T Y.

    The eigenvectors only choose a basis, so they are not differentiated: equal eigenvalues do no harm.
    """
    middle = directions.T @ seen
    middle = (middle + middle.T) / 2
    values, basis = torch.linalg.eigh(middle.detach())
    kept = values > len(values) * torch.finfo(values.dtype).eps * values.abs().amax()
    basis = basis * kept
    lower, _ = torch.linalg.cholesky_ex(basis.T @ middle @ basis + torch.diag_embed((~kept).to(values.dtype)))
    return torch.linalg.solve_triangular(lower, (seen @ basis).T, upper=False).T


def _woodbury(factor: Tensor, v: Tensor, damping: float) -> Tensor:
    """(B B^T + damping I)^{-1} v = (v - B (damping I + B^T B)^{-1} B^T v) / damping, refined once: the difference
    cancels as many digits as damping is smaller than the curvature."""
    small = factor.T @ factor + damping * torch.eye(factor.shape[1], dtype=v.dtype, device=v.device)
    lower, _ = torch.linalg.cholesky_ex(small)
    seen = lambda v: torch.cholesky_solve((factor.T @ v).unsqueeze(1), lower)[:, 0]  # noqa: E731
    once = (v - factor @ seen(v)) / damping
    missing = v - factor @ (factor.T @ once) - damping * once
    return once + (missing - factor @ seen(missing)) / damping


def _sketch(key: Tensor | int, rows: int, columns: int, like: Tensor) -> Tensor:
    """[row, column] orthonormal columns in random directions; as many columns as rows at the most."""
    places = torch.arange(rows * columns, device=like.device).reshape(rows, columns)
    return torch.linalg.qr((rng.uniform(key, places) - 0.5).to(like.dtype))[0]


def _row(params: Params) -> Tensor:
    """All numbers of a tree, in a row."""
    return torch.cat([leaf.flatten() for leaf in tree.leaves(params)])


def _shaped(row: Tensor, like: Params) -> Params:
    """A row as a tree again."""
    leaves, build = tree.flatten(like)
    parts = row.split([leaf.numel() for leaf in leaves])
    return build([part.reshape(leaf.shape).to(leaf.dtype) for part, leaf in zip(parts, leaves, strict=True)])


def _length(params: Params) -> Tensor:
    """[] the norm; 1 of zeros, so that it can be divided by and differentiated."""
    squared = tree.dot(params, params)
    return torch.where(squared > 0, squared, 1.0).sqrt()


def _unit(params: Params) -> Params:
    size = _length(params)
    return tree.map(lambda leaf: leaf / size, params)


def _add(tensors: Params, factor: Tensor | float, others: Params) -> Params:
    return tree.map(lambda a, b: a + factor * b, tensors, others)
