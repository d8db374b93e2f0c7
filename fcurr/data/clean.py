"""Which samples are known to be right: `clean(y) -> positions` [sample] int64 in the data set, taken out of what is
trained on before classes are made rare and labels made wrong. Their labels are taken as they are."""

from typing import Annotated

import torch
from annotated_types import Ge, MinLen
from torch import Tensor

from fcurr import rng
from fcurr.types import Classes, Samples, Seed, Unit

Places = Annotated[
    tuple[Annotated[int, Ge(0), Unit("position in the data set")], ...], MinLen(1), Unit("list of positions")
]


def balanced(y: Tensor, *, size: Samples, among: Tensor, classes: Classes, seed: Seed) -> Tensor:
    """As many of every class, to within one, at random `among` the training samples; y [sample] int64.

    ValueError where a class has too few."""
    if size < classes:
        raise ValueError(f"{size} clean samples cannot show {classes} classes: at least one each")
    order = among[torch.randperm(len(among), generator=rng.generator(seed, 7))]
    wanted = [size // classes + (place < size % classes) for place in range(classes)]
    found = [order[y[order] == label][:count] for label, count in enumerate(wanted)]
    for label, (part, count) in enumerate(zip(found, wanted, strict=True)):
        if len(part) < count:
            raise ValueError(f"class {label} has {len(part)} samples to train on, and {count} are to be clean")
    return torch.cat(found).sort().values


def drawn(y: Tensor, *, size: Samples, among: Tensor, seed: Seed) -> Tensor:
    """Any, at random `among` the training samples."""
    if size >= len(among):
        raise ValueError(f"of {len(among)} samples to train on, {size} clean ones leave none")
    return among[torch.randperm(len(among), generator=rng.generator(seed, 7))[:size]].sort().values


def listed(y: Tensor, *, ids: Places) -> Tensor:
    """These, by their positions in the data set, whatever part of it they would have been in otherwise."""
    places = torch.tensor(ids)
    if int(places.max()) >= len(y):
        raise ValueError(f"there is no sample {int(places.max())}: the data has {len(y)}, counted from 0")
    if len(places.unique()) < len(places):
        twice = next(place for place in ids if ids.count(place) > 1)
        raise ValueError(f"sample {twice} is listed twice")
    return places.sort().values
