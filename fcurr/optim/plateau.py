"""An optimizer that slows down when a metric stops getting better."""

from functools import partial
from typing import Annotated, NamedTuple

import torch
from annotated_types import Ge, Le
from torch import Tensor

from fcurr.types import Decay, Optimizer, Params, Positive, State, Times, Unit

Factor = Annotated[float, Ge(0), Le(1), Unit("factor of the rate")]


class PlateauState(NamedTuple):
    inner: State  # of the optimizer inside
    factor: Tensor  # [] float64, what its movements are multiplied by
    best: Tensor  # [] float64, the lowest metric seen
    waited: Tensor  # [] int64, evaluations since then


def plateau(
    *,
    optimizer: Optimizer,
    factor: Decay = 0.1,
    patience: Times = 10,
    threshold: Positive = 1e-4,
    smallest: Factor = 0.0,
) -> Optimizer:
    """Any optimizer, whose rate is multiplied by `factor` when more than `patience` evaluations in a row have not made
    the tracked metric better by `threshold`; the product of all factors is never below `smallest`.

    As torch.optim.lr_scheduler.ReduceLROnPlateau with threshold_mode="abs" takes it. Movements are scaled, so it acts
    on any learning rate, also on a schedule.
    """
    return optimizer._replace(
        init=partial(_init, optimizer=optimizer),
        update=partial(_update, optimizer=optimizer),
        advance=partial(
            _advance, optimizer=optimizer, factor=factor, patience=patience, threshold=threshold, smallest=smallest
        ),
        scale=lambda state: optimizer.scale(state.inner),
    )


def _init(params: Params, *, optimizer: Optimizer) -> PlateauState:
    return PlateauState(
        inner=optimizer.init(params),
        factor=torch.ones((), dtype=torch.float64),
        best=torch.full((), torch.inf, dtype=torch.float64),
        waited=torch.zeros((), dtype=torch.int64),
    )


def _update(grads: Params, state: PlateauState, params: Params, *, optimizer: Optimizer) -> tuple[Params, PlateauState]:
    moved, inner = optimizer.update(grads, state.inner, params)
    slowed = {name: torch.lerp(leaf, moved[name], state.factor.to(leaf.dtype)) for name, leaf in params.items()}
    return slowed, state._replace(inner=inner)


def _advance(
    state: PlateauState,
    metric: Tensor,
    *,
    optimizer: Optimizer,
    factor: Decay,
    patience: Times,
    threshold: Positive,
    smallest: Factor,
) -> PlateauState:
    better = metric < state.best - threshold  # never, for nan
    waited = torch.where(better, 0, state.waited + 1)
    tired = waited > patience
    return PlateauState(
        inner=optimizer.advance(state.inner, metric),
        factor=torch.where(tired, (state.factor * factor).clamp(min=smallest), state.factor),
        best=torch.where(better, metric.double(), state.best),
        waited=torch.where(tired, 0, waited),
    )
