"""Training that begins where another ended: models that start from given tensors, and keep some as they are.

Tensors are matched by name, and taken where the shapes agree. A pattern is a name in which * stands for anything and ?
for one character.
"""

from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from functools import partial
from typing import NamedTuple

from torch import Tensor

from fcurr.errors import BadInput
from fcurr.types import Buffers, Model, Params, Place

LISTED = 4  # names that a message shows, at most


class Source(NamedTuple):
    """Tensors to start from."""

    tensors: Params  # parameters and buffers
    name: str  # where they are from, in words


class Agreement(NamedTuple):
    """What a model takes of the tensors that it is offered."""

    taken: tuple[str, ...]
    other: tuple[str, ...]  # in both, but of another shape: the model's own are by seed
    unknown: tuple[str, ...]  # that the model does not have
    missing: tuple[str, ...]  # of the model, that it is not offered: by seed


def offered(tensors: Params, *, only: Sequence[str] = (), without: Sequence[str] = ()) -> Params:
    """The tensors whose names match one of `only`, or all if there are none, and none of `without`. BadInput for a
    pattern that matches no name."""
    wanted = set(_matching(tensors, only, "only")) if only else set(tensors)
    left = wanted - set(_matching(tensors, without, "without"))
    return {name: leaf for name, leaf in tensors.items() if name in left}


def agreement(model: Model, tensors: Params) -> Agreement:
    """By names and shapes; whole numbers are not taken for others. BadInput if nothing would be taken."""
    own = _all_of(model)
    both = [name for name in own if name in tensors]
    taken = tuple(name for name in both if _alike(own[name], tensors[name]))
    if not taken:
        shapes = ("there are", tensors), ("the model has", own)
        said = "; ".join(f"{words} {listed(_shaped(name, of[name]) for name in of)}" for words, of in shapes)
        raise BadInput(f"nothing fits the model by name and shape: {said}")
    return Agreement(
        taken=taken,
        other=tuple(name for name in both if name not in taken),
        unknown=tuple(name for name in tensors if name not in own),
        missing=tuple(name for name in own if name not in tensors),
    )


def started(model: Model, tensors: Params) -> Model:
    """The model whose `init` gives these tensors where name and shape agree, parameters and buffers alike, and its own,
    by the seed, elsewhere."""
    taken = {name: tensors[name] for name in agreement(model, tensors).taken}
    return model._replace(init=partial(_started_init, model=model, tensors=taken))


def held(model: Model, patterns: Sequence[str]) -> tuple[str, ...]:
    """The parameters whose names match. BadInput for a pattern that matches none, and if none would be left to
    learn."""
    params, _ = model.init(0)
    found = _matching(params, patterns, "freeze")
    if len(found) == len(params):
        raise BadInput(f"nothing is left to train: {listed(found)} are all parameters there are", "freeze")
    return found


def frozen(model: Model, names: Sequence[str]) -> Model:
    """The model with these parameters among its buffers: no gradient is taken with respect to them, no optimizer sees
    them, and they stay bitwise what they are. They keep their names.

    So a gradient is clipped by the norm of what is learned, and weight decay does not touch them. Running statistics
    are no parameters: in training BatchNorm normalises by the batch, also where its scale is frozen, so the statistics
    that evaluation uses go on following the data.
    """
    if not names:
        return model
    return Model(
        init=partial(_frozen_init, model=model, names=tuple(names)),
        apply=model.apply,
        train=partial(_frozen_train, model=model, names=tuple(names)),
    )


def listed(names: Iterable[str]) -> str:
    """Some names, and how many more."""
    found = list(names)
    more = f" and {len(found) - LISTED} more" if len(found) > LISTED else ""
    return f"{', '.join(found[:LISTED])}{more}" if found else "nothing"


def differing(model: Model, tensors: Params, names: Iterable[str]) -> str:
    """Tensors of two shapes: "head.weight ([10, 32] there, [2, 32] here)"."""
    own = _all_of(model)
    return listed(f"{name} ({list(tensors[name].shape)} there, {list(own[name].shape)} here)" for name in names)


def _started_init(seed: int, *, model: Model, tensors: Params) -> tuple[Params, Buffers]:
    params, buffers = ({**part} for part in model.init(seed))
    for part in (params, buffers):
        part |= {name: tensors[name].to(leaf, copy=True) for name, leaf in part.items() if name in tensors}
    return params, buffers


def _frozen_init(seed: int, *, model: Model, names: tuple[str, ...]) -> tuple[Params, Buffers]:
    params, buffers = model.init(seed)
    learned = {name: leaf for name, leaf in params.items() if name not in names}
    return learned, {**{name: params[name] for name in names}, **buffers}


def _frozen_train(
    params: Params, buffers: Buffers, x: Tensor, place: Place, *, model: Model, names: tuple[str, ...]
) -> tuple[Tensor, Buffers]:
    kept = {name: buffers[name] for name in names}
    rest = {name: leaf for name, leaf in buffers.items() if name not in kept}
    outputs, after = model.train({**params, **kept}, rest, x, place)
    return outputs, {**kept, **after}


def _all_of(model: Model) -> Params:
    params, buffers = model.init(0)
    return {**params, **buffers}


def _alike(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and a.is_floating_point() == b.is_floating_point()


def _shaped(name: str, leaf: Tensor) -> str:
    return f"{name} {list(leaf.shape)}"


def _matching(names: Iterable[str], patterns: Sequence[str], where: str) -> tuple[str, ...]:
    """The names that match a pattern, in their order."""
    every = list(names)
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in every):
            raise BadInput(f"`{pattern}` matches none of {listed(every)}", where)
    return tuple(name for name in every if any(fnmatchcase(name, pattern) for pattern in patterns))
