"""Randomness as a function of a key and a place.

No generator outlives a call: every number is `hash(key, place)`, so the batch of step 1,000,000 is drawn without
drawing the others, members of a mapped run have independent streams, and a resumed run needs no generator state. All
functions are integer tensor arithmetic and broadcast, so they give the same numbers in a loop, under vmap and compiled,
on any device; `generator` is the way out for eager code that wants torch's own distributions.
"""

import torch
from torch import Tensor

_GOLDEN = -0x61C8864680B583EB  # 2**64 / golden ratio, as a signed integer
_FIRST = -0x40A7B892E31B1A47  # the multipliers of the SplitMix64 finaliser (Steele, Lea and Flood, 2014)
_SECOND = -0x6B2FB644ECCEEE15
ROUNDS = 8  # of `shuffle`; five leave small ranges visibly uneven (tests/test_rng.py)


def _mix(bits: Tensor) -> Tensor:
    """A bijection of 64-bit integers in which every input bit moves every output bit. Masks make the shifts logical."""
    bits = (bits ^ ((bits >> 30) & 0x3FFFFFFFF)) * _FIRST
    bits = (bits ^ ((bits >> 27) & 0x1FFFFFFFFF)) * _SECOND
    return bits ^ ((bits >> 31) & 0x1FFFFFFFF)


def fold(key: Tensor | int, *places: Tensor | int) -> Tensor:
    """The key of a place inside the stream of `key`; int64, broadcast over keys and places."""
    key = torch.as_tensor(key, dtype=torch.int64)
    for place in places:
        key = _mix(_mix(key + _GOLDEN) + place)
    return key


def uniform(key: Tensor | int, *places: Tensor | int) -> Tensor:
    """Float32 in [0, 1), one number a place."""
    return ((fold(key, *places) >> 40) & 0xFFFFFF) * 2.0**-24


def generator(key: Tensor | int, *places: Tensor | int) -> torch.Generator:
    """A fresh CPU generator of torch, seeded by the place."""
    return torch.Generator().manual_seed(int(fold(key, *places)))


def shuffle(position: Tensor | int, size: Tensor | int, key: Tensor | int, rounds: int = ROUNDS) -> Tensor:
    """Where a keyed shuffle of `range(size)` puts `position`; O(1) time and memory a position, broadcast.

    A Feistel network over a ragged grid: the range is laid out in rows of about its square root, the last row short.
    A round reflects every row by a number hashed from its place, then every column likewise. Each reflection permutes
    the cells that exist, so for every size the whole is a bijection, without walking through cells that do not. No
    number is ever divided by 0; torch 2.13's inductor pads vectors with zeros, and divides by these but for the clamps.
    """
    size = torch.as_tensor(size, dtype=torch.int64)
    width = size.double().sqrt().ceil().long()
    full, tail = size // width, size % width  # whole rows, and the length of the short one
    position = torch.as_tensor(position, dtype=torch.int64)
    row, column = position // width, position % width
    key = fold(key, 0)
    for turn in range(rounds):
        column = (_hash(key, 2 * turn, row) - column) % torch.where(row < full, width, tail).clamp(min=1)
        row = (_hash(key, 2 * turn + 1, column) - row) % (full + (column < tail)).clamp(min=1)
    return row * width + column


def _hash(key: Tensor, turn: int, place: Tensor) -> Tensor:
    """40 bits of (key, turn, place): half of `fold`, enough inside `shuffle`, whose rounds go on mixing."""
    bits = place * _GOLDEN + (key + _SALTS[turn])
    bits = (bits ^ ((bits >> 32) & 0xFFFFFFFF)) * _FIRST
    return (bits >> 24) & 0xFFFFFFFFFF


_SALTS = tuple(fold(0, turn).item() for turn in range(2 * ROUNDS))
