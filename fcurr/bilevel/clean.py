"""Batches of clean samples, as a function of (key, iteration)."""

from functools import partial

import torch

from fcurr import rng
from fcurr.errors import BadInput
from fcurr.types import Batch, Dataset, Place, Samples

STREAM = 4


def shuffled(data: Dataset, *, batch_size: Samples, rank: int = 0, world: int = 1):
    """`(key, iteration) -> Batch`: pass after pass over the clean samples, each in an order of its own; of `world`
    processes each takes its part of every batch. All of them if the batch is as large as they are."""
    if len(data.y) == 0:
        raise BadInput("there are no clean samples: learned weights need some to be judged by", "clean")
    return partial(_drawn, data=data, size=min(batch_size, len(data.y)), rank=rank, world=world)


def _drawn(place: Place, *, data: Dataset, size: int, rank: int, world: int) -> Batch:
    key, iteration = place
    own = size // world
    visit = iteration * size + rank * own + torch.arange(own, device=iteration.device)
    turn, position = visit // len(data.y), visit % len(data.y)
    return data.take(rng.shuffle(position, len(data.y), rng.fold(key, STREAM, turn)))
