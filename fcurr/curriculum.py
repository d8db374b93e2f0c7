"""Score x pace -> draw, first half: the order in which samples come into play.

A curriculum is one permutation of the samples: what is in play at size n is its first n entries, so the set in play
only ever grows. An order ranks the samples by difficulty; a sampling rearranges the ranking so that every first part
has the class balance asked for, with exact sizes.
"""

import heapq
from collections.abc import Iterator

import torch
from torch import Tensor

from fcurr import rng
from fcurr.types import Seed


def easy_first(scores: Tensor, *, seed: Seed) -> Tensor:
    """The easiest samples first: a curriculum. Bengio et al. (2009)."""
    return _ascending(scores, seed)


def hard_first(scores: Tensor, *, seed: Seed) -> Tensor:
    """The hardest samples first: an anti-curriculum. Wu, Dyer and Neyshabur (2021), section 3."""
    return _ascending(-scores, seed)


def random(scores: Tensor, *, seed: Seed) -> Tensor:
    """No order: samples come into play at random, at the same pace. The control of every curriculum."""
    return rng.shuffle(torch.arange(len(scores)), len(scores), rng.fold(seed, 1))


def unbalanced(order: Tensor, y: Tensor) -> Tensor:
    """The order as it is, whatever the classes."""
    return order


def balanced(order: Tensor, y: Tensor) -> Tensor:
    """Classes take turns, each in the order's order, until they are exhausted.

    At every size, two classes differ by one sample at the most unless the smaller is already all in play.
    """
    return order[torch.argsort(_turn(y[order]), stable=True)]


def original(order: Tensor, y: Tensor) -> Tensor:
    """Every first part has the classes of the whole: at size n, class c has n N_c / N samples, rounded up or down.

    Balinski and Young (1975) call this satisfying quota; the earliest-deadline schedule of Steiner and Yeomans (1993)
    reaches it for all sizes at once. A class of fewer than N / n samples may have none. O(N log classes), in Python.
    """
    queues = order[torch.argsort(y[order], stable=True)]  # class after class, each in the order's order
    counts = torch.bincount(y)
    places = (counts.cumsum(0) - counts).tolist()
    slots = []
    for c in _by_quota(counts.tolist()):
        slots.append(places[c])
        places[c] += 1
    return queues[torch.tensor(slots, dtype=torch.int64)]


def _ascending(scores: Tensor, seed: Seed) -> Tensor:
    """Positions by ascending score; ties by a key of (seed, id), never by the order of the rows."""
    if bool(scores.isnan().any()):
        raise ValueError(f"score {int(scores.isnan().nonzero()[0])} is nan: samples without a score have no order")
    chance = torch.argsort(rng.fold(seed, 0, torch.arange(len(scores))))
    return chance[torch.argsort(scores[chance], stable=True)]


def _turn(labels: Tensor) -> Tensor:
    """How many of the same label stand before each."""
    by_class = torch.argsort(labels, stable=True)
    counts = torch.bincount(labels)
    turns = torch.arange(len(labels)) - (counts.cumsum(0) - counts)[labels[by_class]]
    return torch.empty_like(turns).scatter_(0, by_class, turns)


def _by_quota(counts: list[int]) -> Iterator[int]:
    """Classes, one a slot: the k-th sample of a class comes after slot floor((k - 1) N / N_c), by slot ceil(k N / N_c),
    and among those that may come the one with the earliest deadline does."""
    total = sum(counts)
    taken = [0] * len(counts)
    resting = [(0, c) for c, size in enumerate(counts) if size]  # (slot after which the next may come, class)
    ready: list[tuple[int, int]] = []  # (slot by which the next must have come, class)
    for slot in range(total):
        while resting and resting[0][0] <= slot:
            _, c = heapq.heappop(resting)
            heapq.heappush(ready, (-(-(taken[c] + 1) * total // counts[c]), c))
        _, c = heapq.heappop(ready)
        taken[c] += 1
        yield c
        if taken[c] < counts[c]:
            heapq.heappush(resting, (taken[c] * total // counts[c], c))
