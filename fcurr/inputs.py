"""Samples in units that suit a network, as a part of the network: the units travel with its buffers."""

from functools import partial

from torch import Tensor

from fcurr.types import Buffers, Model, Params, Place

SHIFT, FACTOR = "input.shift", "input.factor"


def scaled(model: Model, shift: Tensor, factor: Tensor) -> Model:
    """The model of (x - shift) * factor; both broadcast over samples [batch, ...]."""
    return Model(
        init=partial(_init, model=model, shift=shift, factor=factor),
        apply=partial(_apply, model=model),
        train=partial(_train, model=model),
    )


def _init(seed: int, *, model: Model, shift: Tensor, factor: Tensor) -> tuple[Params, Buffers]:
    params, buffers = model.init(seed)
    return params, {**buffers, SHIFT: shift.clone(), FACTOR: factor.clone()}


def _apply(params: Params, x: Tensor, *, model: Model) -> Tensor:
    rest = {name: leaf for name, leaf in params.items() if name not in (SHIFT, FACTOR)}
    return model.apply(rest, (x - params[SHIFT]) * params[FACTOR])


def _train(params: Params, buffers: Buffers, x: Tensor, place: Place, *, model: Model) -> tuple[Tensor, Buffers]:
    shift, factor = buffers[SHIFT], buffers[FACTOR]
    rest = {name: leaf for name, leaf in buffers.items() if name not in (SHIFT, FACTOR)}
    outputs, after = model.train(params, rest, (x - shift) * factor, place)
    return outputs, {**after, SHIFT: shift, FACTOR: factor}
