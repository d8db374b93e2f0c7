"""Learning rates that change with the number of updates already made, side by side: `schedule(iteration) -> rate`."""

import math

import torch
from torch import Tensor

from fcurr.types import Decay, Iterations, Rate, Samples, Schedule


def constant(iteration: Tensor, *, learning_rate: Rate) -> Tensor:
    """Always the same: rate = learning_rate."""
    return torch.as_tensor(learning_rate, dtype=torch.float64, device=iteration.device).expand(iteration.shape)


def linear(iteration: Tensor, *, initial: Rate, final: Rate, total_iterations: Iterations) -> Tensor:
    """In a straight line from one number to another, where it stays."""
    return initial + (final - initial) * (iteration.double() / total_iterations).clamp(max=1.0)


def step(iteration: Tensor, *, learning_rate: Rate, every: Iterations, factor: Decay = 0.1) -> Tensor:
    """Falls by a factor every so many iterations: rate = learning_rate * factor^floor(iteration / every)."""
    return learning_rate * factor ** (iteration // every).double()


def cosine(iteration: Tensor, *, learning_rate: Rate, total_iterations: Iterations, final_rate: Rate = 0.0) -> Tensor:
    """Falls along half a cosine, and stays at its end.

    rate = final_rate + (learning_rate - final_rate) (1 + cos(pi t / total_iterations)) / 2, t = iteration at most
    total_iterations. Loshchilov and Hutter (2017), SGDR, eq. 5, without restarts.
    """
    part = (iteration.double() / total_iterations).clamp(max=1.0)
    return final_rate + (learning_rate - final_rate) * 0.5 * (1 + torch.cos(math.pi * part))


def by_epoch(iteration: Tensor, *, learning_rate: Schedule, dataset_size: Samples, batch_size: Samples) -> Tensor:
    """Any schedule, changing only where an epoch begins: its rate at the last multiple of ceil(dataset_size /
    batch_size) updates, which is one pass over all samples."""
    epoch = -(-dataset_size // batch_size)
    return learning_rate(iteration - iteration % epoch)


def warm_up(iteration: Tensor, *, learning_rate: Rate | Schedule, iterations: Iterations) -> Tensor:
    """Any rate or schedule, rising in a straight line at first: rate * min(1, (iteration + 1) / iterations).

    Goyal et al. (2017), Accurate, Large Minibatch SGD, section 2.2.
    """
    rate = learning_rate(iteration) if callable(learning_rate) else learning_rate
    return rate * ((iteration + 1).double() / iterations).clamp(max=1.0)
