"""Class sizes, made uneven on purpose: `imbalance(y) -> ids to keep`, side by side."""

import torch
from torch import Tensor

from fcurr import rng
from fcurr.types import Classes, Ratio, Seed


def long_tail(y: Tensor, *, ratio: Ratio, classes: Classes, seed: Seed) -> Tensor:
    """Class sizes fall geometrically from the first class to the last, which is `ratio` times smaller.

    n_c = floor(n_0 ratio^(-c / (classes - 1))), at least one, where n_0 is the smallest class's size, so that every
    class has enough. The samples kept are chosen at random. Returns positions in y, ascending. Cui et al. (2019),
    section 5.
    """
    counts = torch.bincount(y, minlength=classes)
    if not bool(counts.all()):
        raise ValueError(
            f"class {int((counts == 0).nonzero()[0])} has no samples, and the smallest class is the measure"
        )
    part = torch.arange(classes, dtype=torch.float64) / max(classes - 1, 1)
    sizes = (counts.min() * ratio ** (-part) * (1 + 1e-12)).floor().long().clamp(min=1)
    chance = rng.uniform(seed, torch.arange(len(y)))
    kept = [torch.nonzero(y == c).squeeze(1) for c in range(classes)]
    kept = [ids[torch.argsort(chance[ids], stable=True)][:size] for ids, size in zip(kept, sizes.tolist(), strict=True)]
    return torch.cat(kept).sort().values
