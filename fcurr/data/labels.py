"""Wrong labels, made on purpose: `noise(y) -> y`, side by side. Exactly round(share * samples) labels change."""

import torch
from torch import Tensor

from fcurr import rng
from fcurr.types import Classes, Part, Seed


def symmetric(y: Tensor, *, share: Part, classes: Classes, seed: Seed) -> Tensor:
    """A share of the labels, chosen at random, becomes any other class with equal chance.

    The true class is never drawn, so the share is the true rate of wrong labels. Patrini et al. (2017), section 6.
    """
    wrong = _chosen(len(y), share, classes, seed)
    move = 1 + (rng.fold(seed, 1, torch.arange(len(y))) >> 1).remainder(classes - 1)
    return torch.where(wrong, (y + move) % classes, y)


def asymmetric(y: Tensor, *, share: Part, classes: Classes, seed: Seed) -> Tensor:
    """A share of the labels, chosen at random, becomes the next class, and the last the first ("pair flipping").

    Han et al. (2018), Co-teaching, section 4.
    """
    return torch.where(_chosen(len(y), share, classes, seed), (y + 1) % classes, y)


def _chosen(samples: int, share: float, classes: int, seed: int) -> Tensor:
    """[samples] bool, exactly round(share * samples) of them true."""
    if classes < 2:
        raise ValueError(f"labels of {classes} class cannot be wrong")
    return rng.shuffle(torch.arange(samples), samples, rng.fold(seed, 0)) < round(share * samples)
