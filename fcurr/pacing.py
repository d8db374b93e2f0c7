"""How many samples are in play: open-loop paces, side by side.

A pace is `pace(state, iteration) -> size`, a 0-d int64 tensor in [1, dataset_size] that never falls. With u the part of
the ramp that is done, u = iteration / (final_iteration * total_iterations), every pace here is

    size = floor(dataset_size * (b + (1 - b) * f(u))),        b = initial_size, f(0) = 0, f(1) = 1,

exact at both ends: floor(b * dataset_size), at least 1, at iteration 0, and the whole set at and after the end of the
ramp. A `final_iteration` of 0 is no ramp. Iterations and hyperparameters may be tensors, to be mapped over; shares are
best given in float64, in which sums are made. The families are those of Wu, Dyer and Neyshabur, When Do Curricula
Work? (2021), appendix B.
"""

import math

import torch
from torch import Tensor

from fcurr.types import Iterations, Portion, Power, Samples, Share, State

_SLACK = 1 + 1e-12  # floats such as 0.7 * 45000 = 31499.999999999996 are meant to be whole


def none(state: State, iteration: Tensor | int, *, dataset_size: Samples) -> Tensor:
    """All samples, always: training without a curriculum. size = dataset_size."""
    return _samples(1.0, 1.0, _ramp(iteration, 0.0, 1), dataset_size)


def linear(
    state: State,
    iteration: Tensor | int,
    *,
    initial_size: Share,
    final_iteration: Portion,
    total_iterations: Iterations,
    dataset_size: Samples,
) -> Tensor:
    """The same number of samples is added every iteration. f(u) = u.

    Wu et al. (2021), appendix B; Bengio et al. (2009) for the idea.
    """
    u = _ramp(iteration, final_iteration, total_iterations)
    return _samples(initial_size, u, u, dataset_size)


def quadratic(
    state: State,
    iteration: Tensor | int,
    *,
    initial_size: Share,
    final_iteration: Portion,
    total_iterations: Iterations,
    dataset_size: Samples,
) -> Tensor:
    """Slow, then fast. f(u) = u^2.

    Wu et al. (2021), appendix B.
    """
    u = _ramp(iteration, final_iteration, total_iterations)
    return _samples(initial_size, u**2, u, dataset_size)


def root(
    state: State,
    iteration: Tensor | int,
    *,
    initial_size: Share,
    final_iteration: Portion,
    total_iterations: Iterations,
    dataset_size: Samples,
    power: Power = 2.0,
) -> Tensor:
    """Fast, then slow. f(u) = u^(1 / power).

    Wu et al. (2021), appendix B; with power 2 the pace of Platanios et al. (2019) but for its start.
    """
    u = _ramp(iteration, final_iteration, total_iterations)
    return _samples(initial_size, u ** (1 / power), u, dataset_size)


def polynomial(
    state: State,
    iteration: Tensor | int,
    *,
    initial_size: Share,
    final_iteration: Portion,
    total_iterations: Iterations,
    dataset_size: Samples,
    power: Power = 3.0,
) -> Tensor:
    """Slow, then fast, by any power. f(u) = u^power.

    Wu et al. (2021), appendix B, with any power.
    """
    u = _ramp(iteration, final_iteration, total_iterations)
    return _samples(initial_size, u**power, u, dataset_size)


def exponential(
    state: State,
    iteration: Tensor | int,
    *,
    initial_size: Share,
    final_iteration: Portion,
    total_iterations: Iterations,
    dataset_size: Samples,
) -> Tensor:
    """Hardly anything for long, then everything. f(u) = (e^(10 u) - 1) / (e^10 - 1).

    Wu et al. (2021), appendix B.
    """
    u = _ramp(iteration, final_iteration, total_iterations)
    return _samples(initial_size, torch.expm1(10 * u) / math.expm1(10), u, dataset_size)


def logarithmic(
    state: State,
    iteration: Tensor | int,
    *,
    initial_size: Share,
    final_iteration: Portion,
    total_iterations: Iterations,
    dataset_size: Samples,
) -> Tensor:
    """Nearly everything at once, then the rest. f(u) = 1 + ln(u + e^-10) / 10, which is 1 a few millionths early.

    Wu et al. (2021), appendix B.
    """
    u = _ramp(iteration, final_iteration, total_iterations)
    return _samples(initial_size, 1 + 0.1 * torch.log(u + math.exp(-10)), u, dataset_size)


def one_step(
    state: State,
    iteration: Tensor | int,
    *,
    initial_size: Share,
    final_iteration: Portion,
    total_iterations: Iterations,
    dataset_size: Samples,
) -> Tensor:
    """The first part alone, then everything. f(u) = floor(u).

    Wu et al. (2021), appendix B; the single step of Hacohen and Weinshall (2019).
    """
    u = _ramp(iteration, final_iteration, total_iterations)
    return _samples(initial_size, torch.floor(u), u, dataset_size)


def _ramp(iteration: Tensor | int, final_iteration: Portion, total_iterations: Iterations) -> Tensor:
    """u in [0, 1], float64; exactly 1 from the end of the ramp on, whatever the rounding of its length."""
    iteration = torch.as_tensor(iteration).double()
    length = torch.as_tensor(final_iteration, dtype=torch.float64, device=iteration.device) * total_iterations
    done = iteration * _SLACK >= length
    return torch.where(done, 1.0, iteration / torch.where(done, 1.0, length))


def _samples(initial_size: Share, f: Tensor | float, u: Tensor, dataset_size: Samples) -> Tensor:
    """The share b + (1 - b) f of the data as a number of samples, int64."""
    b = torch.as_tensor(initial_size, dtype=torch.float64, device=u.device)
    whole = torch.as_tensor(dataset_size, device=u.device)
    some = torch.floor((b + (1 - b) * f) * whole.double() * _SLACK).long()
    return torch.where(u < 1, torch.minimum(some.clamp(min=1), whole), whole)
