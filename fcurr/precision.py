"""Training in sixteen bits: a model whose products are taken in a shorter type, and gradients kept in its range."""

from functools import partial
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from fcurr import tree
from fcurr.types import Buffers, Model, Optimizer, Params, Place, State

Precision = Literal["float32", "bfloat16", "float16"]
FIRST, GROWTH, BACKOFF, INTERVAL = 2.0**16, 2.0, 0.5, 2000  # as torch.amp.GradScaler
SMALLEST, LARGEST = 2.0**-126, 2.0**127  # normal numbers of float32: a scale of 0 or infinity would never come back


def mixed(model: Model, precision: Precision) -> Model:
    """The model under torch.autocast: products in `precision`, parameters, sums and outputs in their own type.

    Micikevicius et al. (2018), Mixed precision training.
    """
    if precision == "float32":
        return model
    dtype = getattr(torch, precision)
    return model._replace(
        apply=partial(_apply, model=model, dtype=dtype), train=partial(_train, model=model, dtype=dtype)
    )


def _apply(params: Params, x: Tensor, *, model: Model, dtype: torch.dtype) -> Tensor:
    with torch.autocast(x.device.type, dtype=dtype, cache_enabled=False), _WholeNorms():
        return model.apply(params, x).float()


def _train(
    params: Params, buffers: Buffers, x: Tensor, place: Place, *, model: Model, dtype: torch.dtype
) -> tuple[Tensor, Buffers]:
    with torch.autocast(x.device.type, dtype=dtype, cache_enabled=False), _WholeNorms():
        outputs, after = model.train(params, buffers, x, place)
    return outputs.float(), {name: leaf.to(buffers[name].dtype) for name, leaf in after.items()}


class _WholeNorms(TorchFunctionMode):
    """Batch normalisation in the type of its statistics: mapped over members, torch (2.13) has no kernel for two
    types. The numbers are those of autocast, to rounding."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None) -> Any:
        x = args[0] if func is F.batch_norm else None
        if isinstance(x, Tensor) and x.dtype in (torch.bfloat16, torch.float16):
            return func(x.float(), *args[1:], **(kwargs or {})).to(x.dtype)
        return func(*args, **(kwargs or {}))


class ScaledState(NamedTuple):
    inner: State  # of the optimizer inside
    scale: Tensor  # [] float32, what losses are multiplied by before they are differentiated
    good: Tensor  # [] int64, updates since the scale changed or a gradient was not finite


def loss_scaled(optimizer: Optimizer) -> Optimizer:
    """Any optimizer, for gradients multiplied by a scale that keeps small ones from vanishing in float16.

    Where a gradient is not finite nothing moves and the scale is halved; after 2000 good updates it is doubled, as
    torch.amp.GradScaler does. Micikevicius et al. (2018), section 3.2.
    """
    return Optimizer(
        init=partial(_scaled_init, optimizer=optimizer),
        update=partial(_scaled_update, optimizer=optimizer),
        advance=lambda state, metric: state._replace(inner=optimizer.advance(state.inner, metric)),
        scale=lambda state: state.scale * optimizer.scale(state.inner),
    )


def _scaled_init(params: Params, *, optimizer: Optimizer) -> ScaledState:
    return ScaledState(
        inner=optimizer.init(params),
        scale=torch.full((), FIRST),
        good=torch.zeros((), dtype=torch.int64),
    )


def _scaled_update(
    grads: Params, state: ScaledState, params: Params, *, optimizer: Optimizer
) -> tuple[Params, ScaledState]:
    finite = torch.stack([leaf.isfinite().all() for leaf in grads.values()]).all()
    plain = {name: leaf / state.scale for name, leaf in grads.items()}
    moved, inner = optimizer.update(plain, state.inner, params)
    good = torch.where(finite, state.good + 1, 0)
    doubled = (state.scale * GROWTH).clamp(max=LARGEST)
    grown = torch.where(good == INTERVAL, doubled, state.scale)
    after = ScaledState(
        inner=tree.where(finite, inner, state.inner),
        scale=torch.where(finite, grown, (state.scale * BACKOFF).clamp(min=SMALLEST)),
        good=torch.where(good == INTERVAL, 0, good),
    )
    return tree.where(finite, moved, params), after
