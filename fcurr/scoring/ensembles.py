"""Scores of one sample under many models, trained as one mapped program."""

from collections.abc import Callable

import torch
from torch import Tensor

from fcurr import rng
from fcurr.mapping import over_members
from fcurr.types import Dataset, Harder, Loss, Many, Model, Params, Seed, Times


def cross_validated_loss(
    data: Dataset,
    *,
    fit: Callable[[Dataset, Tensor], Params],
    model: Model,
    loss: Loss,
    seed: Seed,
    folds: Many = 3,
    repeats: Times = 1,
) -> Harder:
    """The loss of each sample under models that have not seen it, averaged over repeats of k-fold cross-validation.

    `fit(data, seen)` trains one member a row of `seen` [member, sample] bool, on the samples that are true, and returns
    their parameters (and buffers), stacked. Rampp et al. (2024), CVLoss; Hacohen and Weinshall (2019) bootstrap alike.
    """
    held_out = fold_masks(len(data.y), folds=folds, repeats=repeats, seed=seed)
    params = fit(data, ~held_out)
    losses = member_losses(params, data, model=model, loss=loss)
    return torch.where(held_out, losses, 0.0).sum(0) / repeats


def fold_masks(samples: int, *, folds: Many, repeats: Times, seed: Seed) -> Tensor:
    """[repeats * folds, sample] bool, true where a member must not look. In a repeat each sample is held out once, and
    folds differ in size by one at the most."""
    if folds > samples:
        raise ValueError(f"{folds} folds are more than the {samples} samples there are")
    repeat = torch.arange(repeats).unsqueeze(1)
    fold = rng.shuffle(torch.arange(samples), samples, rng.fold(seed, repeat)) % folds  # [repeat, sample]
    return (fold.unsqueeze(1) == torch.arange(folds).unsqueeze(1)).flatten(0, 1)


def member_losses(params: Params, data: Dataset, *, model: Model, loss: Loss, chunk: int = 4096) -> Tensor:
    """[member, sample]: every member's loss of every sample, a chunk of samples at a time."""
    with torch.no_grad():
        batches = (data.take(ids) for ids in torch.arange(len(data.y)).split(chunk))
        parts = [over_members(lambda own, x, y: loss(model.apply(own, x), y), params, b.x, b.y) for b in batches]
    return torch.cat(parts, dim=1)
