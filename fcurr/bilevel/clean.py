"""Batches of clean samples, as a function of (key, iteration)."""

from functools import partial

import torch

from fcurr import rng
from fcurr.errors import BadInput
from fcurr.types import Batch, Dataset, Place, Samples

STREAM = 4


def shuffled(data: Dataset, *, batch_size: Samples, rank: int = 0, world: int = 1):
    """`(key, iteration) -> Batch`: pass after pass over the clean samples, each in an order of its own; of `world`
    processes each takes an equal part of every batch, so a batch may be up to world - 1 samples smaller. All samples if
    the batch is as large as they are."""
    if batch_size < 1:
        raise BadInput(f"a batch of {batch_size} clean samples is none", "clean")
    if len(data.y) == 0:
        raise BadInput("there are no clean samples: learned weights need some to be judged by", "clean")
    size = min(batch_size, len(data.y))
    if size < world:
        raise BadInput(f"{world} processes cannot share {size} clean samples", "clean")
    return partial(_drawn, data=data, own=size // world, rank=rank, world=world)


def _drawn(place: Place, *, data: Dataset, own: int, rank: int, world: int) -> Batch:
    key, iteration = place
    visit = (iteration * world + rank) * own + torch.arange(own, device=iteration.device)
    turn, position = visit // len(data.y), visit % len(data.y)
    return data.take(rng.shuffle(position, len(data.y), rng.fold(key, STREAM, turn)))


def apart(train: Dataset, clean: Dataset) -> None:
    """BadInput if a clean sample is trained on as well: its loss would say nothing that training does not see. Samples
    are compared number by number."""
    sides = [data.take(torch.arange(len(data.y))).x.flatten(1) for data in (train, clean)]
    known = {row.numpy().tobytes() for row in sides[0].cpu()}
    both = [place for place, row in enumerate(sides[1].cpu()) if row.numpy().tobytes() in known]
    if both:
        what = f"{len(both)} of {len(clean.y)} clean samples are trained on as well (the first: {both[0]})"
        raise BadInput(f"{what}: what judges the weights must not be among what is weighted", "clean")
