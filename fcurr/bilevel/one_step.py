"""The exact hypergradient of one inner step, where meta parameters see the network's losses only (`Weighted`).

With L the losses at the parameters, c = d objective / d L what each counts, g = J^T c the gradient that the update is
given and v = grad outer after the step, the chain rule leaves one number a sample:

    q = (d update / d g)^T v,    s = J q,    s_i = <grad L_i, q>,    h = d outer / d meta + d/d meta <c(meta, L), s>

so only what comes after the network is differentiated twice, and s comes by any route of fcurr.routes. Shu et al.
(2019), Meta-Weight-Net, eq. 3 to 5 for plain SGD.
"""

from functools import partial

from torch.func import grad, vjp

from fcurr import tree
from fcurr.autodiff import transformed
from fcurr.bilevel.problem import Descent, Meta, Outer, Weighted, moving
from fcurr.errors import BadInput
from fcurr.routes import Losses, Route, chosen, near
from fcurr.types import Params


def one_step(
    outer: Outer, inner: Weighted, params: Params, meta: Meta, descent: Descent, *, route: Route | None = None
) -> Meta:
    """The exact hypergradient of a descent of one step, by a route, or by the one that `chosen` takes (which tries, so
    it is for eager calls: under a transform, name the route)."""
    if len(descent.batches) != 1:
        raise BadInput(f"one_step is for a descent of one batch, not {len(descent.batches)}: adjoint takes any number")
    (batch,) = descent.batches
    losses: Losses = lambda params: (inner.losses(params, batch), {})  # noqa: E731
    if route is None:
        if transformed((params, meta)):
            raise ValueError("under a transform nothing can be tried: name the route, chosen(...) says which")
        route = chosen(losses, params).route
    here = near(losses, params, route)
    counts = partial(grad(inner.objective, argnums=1), meta)

    def update(grads: Params, meta: Meta) -> Params:
        scale = moving(descent, meta).scale(descent.memory)
        return moving(descent, meta).update(tree.map(lambda leaf: leaf * scale, grads), descent.memory, params)[0]

    after, pullback = vjp(update, here.pulled(counts(here.losses, batch)), meta)  # pyright: ignore
    v, direct = grad(outer, argnums=(0, 1))(after, meta)
    q, by_rate = pullback(v)
    s = here.along(q)
    through = grad(lambda meta: (grad(inner.objective, argnums=1)(meta, here.losses, batch) * s).sum())(meta)
    return tree.sum_of([direct, by_rate, through])
