"""Which samples are known to be right: `clean(y) -> positions` [sample] int64, taken out of the training samples before
classes are made rare and labels made wrong."""

import torch
from torch import Tensor

from fcurr import rng
from fcurr.types import Samples, Seed


def balanced(y: Tensor, *, size: Samples, classes: int, seed: Seed) -> Tensor:
    """As many of every class, to within one; y [sample] int64. ValueError where a class has too few."""
    if size < classes:
        raise ValueError(f"{size} clean samples cannot show {classes} classes: at least one each")
    order = torch.randperm(len(y), generator=rng.generator(seed, 7))
    wanted = [size // classes + (place < size % classes) for place in range(classes)]
    found = [order[y[order] == label][:count] for label, count in enumerate(wanted)]
    for label, (part, count) in enumerate(zip(found, wanted, strict=True)):
        if len(part) < count:
            raise ValueError(f"class {label} has {len(part)} samples to train on, and {count} are to be clean")
    return torch.cat(found).sort().values


def drawn(y: Tensor, *, size: Samples, seed: Seed) -> Tensor:
    """Any, at random."""
    if size >= len(y):
        raise ValueError(f"of {len(y)} samples to train on, {size} clean ones leave none")
    return torch.randperm(len(y), generator=rng.generator(seed, 7))[:size].sort().values
