"""Processes that train together, started by torchrun: each computes a part of every batch, and they share the mean.

After a step all have the same state, bit for bit, so the first one writes and the others only compute.
"""

import contextlib
import os
from collections.abc import Callable, Iterator

import torch
import torch.distributed as dist
from torch import Tensor

from fcurr import tree
from fcurr.training import ALONE, Found, Team


@contextlib.contextmanager
def team() -> Iterator[Team]:
    """The processes that torchrun has started, or this one alone."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield ALONE
        return
    accelerated = torch.cuda.is_available()
    if accelerated:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    dist.init_process_group("nccl" if accelerated else "gloo")
    try:
        yield Team(rank=dist.get_rank(), world=dist.get_world_size(), shared=mean)
        dist.barrier()  # who leaves early takes the others down
    finally:
        dist.destroy_process_group()


def speaks() -> bool:
    """Whether this process is alone or the first of those that torchrun has started."""
    return int(os.environ.get("RANK", "0")) == 0


def mean(found: Found) -> Found:
    """Losses, buffers and gradients, averaged over processes in one message; whole numbers stay as they are."""
    floating = [leaf for leaf in tree.leaves(found) if leaf.is_floating_point()]
    packed = torch.cat([leaf.flatten() for leaf in floating])
    parts = iter(_mean(packed).split([leaf.numel() for leaf in floating]))
    return tree.map(lambda leaf: next(parts).reshape(leaf.shape) if leaf.is_floating_point() else leaf, found)


@torch.library.custom_op("fcurr::mean_over_processes", mutates_args=())
def _mean(x: Tensor) -> Tensor:
    shared = x.clone()
    dist.all_reduce(shared)
    return shared / dist.get_world_size()


@_mean.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


@_mean.register_vmap
def _(info: object, in_dims: tuple[int | None, ...], x: Tensor) -> tuple[Tensor, int | None]:
    return _mean(x), in_dims[0]


def agreed(asked: Callable[[], int], team: Team) -> Callable[[], int]:
    """The signal that has come to any of the processes, or 0, the same answer in all of them."""
    if team.world == 1:
        return asked

    def ask() -> int:
        signal = torch.tensor(asked(), device="cuda" if dist.get_backend() == "nccl" else "cpu")
        dist.all_reduce(signal, dist.ReduceOp.MAX)
        return int(signal)

    return ask


def meet(team: Team) -> None:
    """Returns when all processes have come here."""
    if team.world > 1:
        dist.barrier()
