"""Two numbers that can be measured before they are chosen: the learning rate and the batch size.

The learning-rate range test lets the rate grow at every step and watches the loss. Batch sizes are judged by what fits,
by samples a second, and by the noise of the gradient.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Annotated, NamedTuple

import torch
from annotated_types import Gt, Lt
from torch import Tensor

from fcurr import tree
from fcurr.types import Batch, Decay, Iterations, Params, Part, Positive, Samples, Unit

Multiple = Annotated[float, Gt(1), Lt(1e38), Unit("multiple of the lowest loss")]
GAIN = 0.1  # of throughput, by which doubling a batch has to pay


def geometric(iteration: Tensor, *, low: Positive, high: Positive, iterations: Iterations) -> Tensor:
    """A learning rate that grows by the same factor at every iteration, to `high` at the last:
    rate = low (high / low)^(iteration / (iterations - 1))."""
    return low * (high / low) ** (iteration.double() / max(iterations - 1, 1))


class RangeTest(NamedTuple):
    """How a loss went while the rate grew."""

    rates: Tensor  # [step] float64
    losses: Tensor  # [step] float64, before the step with the rate
    smoothed: Tensor  # [step] float64
    ended: str  # why, in words


class Rates(NamedTuple):
    """What a range test suggests; nan where it shows no descent."""

    steepest: float  # where the smoothed loss falls fastest
    lowest: float  # where it is lowest: already too large to train with
    tenth: float  # a tenth of that


def range_test(
    losses: Iterable[Tensor | float],
    *,
    low: Positive,
    high: Positive,
    iterations: Iterations,
    decay: Decay = 0.9,
    multiple: Multiple = 4.0,
) -> RangeTest:
    """The learning-rate range test over the losses of a fold of training steps, whose rate is `geometric`.

    Losses are smoothed by a running mean without the bias of its start, and are asked for one by one: none after the
    first that is not finite, or at which the smoothed loss exceeds `multiple` times the lowest that it had before (of a
    loss that is negative: is higher by so many times its size). Smith (2017), Cyclical Learning Rates for Training
    Neural Networks, section 3.3, with a rate that grows geometrically.
    """
    seen: list[float] = []
    smoothed: list[float] = []
    mean, best, ended = 0.0, math.inf, f"all {iterations:,} steps were taken"
    for number, one in zip(range(iterations), losses, strict=False):
        loss = float(one)
        if not math.isfinite(loss):
            ended = f"the loss became {loss}"
            break
        mean = decay * mean + (1 - decay) * loss
        seen.append(loss)
        smoothed.append(mean / (1 - decay ** (number + 1)))
        if smoothed[-1] > best + (multiple - 1) * abs(best):
            ended = f"the loss exceeded {multiple:g} times its lowest"
            break
        best = min(best, smoothed[-1])
    rates = geometric(torch.arange(len(seen)), low=low, high=high, iterations=iterations)
    losses, means = (torch.tensor(numbers, dtype=torch.float64) for numbers in (seen, smoothed))
    return RangeTest(rates, losses, means, ended)


def suggested(found: RangeTest, *, decay: Decay = 0.9) -> Rates:
    """Where the smoothed loss falls fastest over the logarithm of the rate, and a tenth of where it is lowest.

    Both are rules of thumb that fastai made common (`steep` and `minimum` of its lr_find; Howard and Gugger, 2020).
    The first 1 / (1 - decay) steps, over which the running mean is still short, are not asked for a slope.
    """
    rates, smoothed = found.rates, found.smoothed
    skip = math.ceil(1 / (1 - decay) - 1e-9)
    if len(rates) < skip + 3:
        return Rates(math.nan, math.nan, math.nan)
    (slope,) = torch.gradient(smoothed, spacing=(rates.log(),))
    lowest = int(smoothed[skip:].argmin()) + skip
    steepest = int(slope[skip : lowest + 1].argmin()) + skip
    if not slope[steepest] < 0:
        return Rates(math.nan, math.nan, math.nan)
    return Rates(float(rates[steepest]), float(rates[lowest]), float(rates[lowest]) / 10)


def largest(fits: Callable[[int], bool], *, first: Samples, most: Samples, within: Part = 0.0) -> int:
    """The largest size up to `most` that fits, by doubling from `first` and then by bisection, up to a part `within` of
    itself; 0 if `first` does not fit. What is smaller than a size that fits has to fit."""
    below, above = 0, min(first, most)
    while fits(above):
        below = above
        if below == most:
            return most
        above = min(2 * above, most)
    while below and above - below > max(1, int(within * below)):
        middle = (below + above) // 2
        below, above = (middle, above) if fits(middle) else (below, middle)
    return below


def line(sizes: Sequence[float], values: Sequence[float]) -> tuple[float, float]:
    """(value at 0, slope) of the straight line with the least squares."""
    x, y = (torch.tensor(numbers, dtype=torch.float64) for numbers in (sizes, values))
    slope = ((x - x.mean()) * (y - y.mean())).sum() / (x - x.mean()).square().sum()
    return float(y.mean() - slope * x.mean()), float(slope)


def knee(sizes: Sequence[int], throughput: Sequence[float], *, gain: Positive = GAIN) -> int:
    """The first of ascending sizes after which doubling gains less than `gain` of the samples a second. The next two
    sizes are asked, so that one slow measurement ends nothing; one that is no doubling is held to the same rate."""
    for place, size in enumerate(sizes[:-1]):
        further = zip(sizes[place + 1 : place + 3], throughput[place + 1 : place + 3], strict=True)
        if all(speed < throughput[place] * (1 + gain) ** math.log2(other / size) for other, speed in further):
            return size
    return sizes[-1]


class Noise(NamedTuple):
    """What a gradient is worth."""

    gradient: float  # |G|^2 of the gradient of all samples
    variance: float  # tr(Sigma), of one sample's gradient
    scale: float  # B_simple = tr(Sigma) / |G|^2, samples; nan where no gradient is told from the noise


def norms(gradient: Callable[[Batch], Params], batches: Sequence[Batch]) -> tuple[float, float]:
    """(mean |g|^2 of the gradients of small batches of one size, |g|^2 of their mean, the gradient of all together)."""
    found = [gradient(batch) for batch in batches]
    small = torch.stack([tree.dot(grads, grads).double() for grads in found]).mean()
    mean = tree.map(lambda leaf: leaf / len(found), tree.sum_of(found))
    return float(small), float(tree.dot(mean, mean))


def noise_scale(pairs: Iterable[tuple[float, float]], *, small: Samples, large: Samples) -> Noise:
    """The simple noise scale of the gradient, from pairs (|g_small|^2, |g_large|^2) of independent draws.

    |G|^2 = (large |g_large|^2 - small |g_small|^2) / (large - small), tr(Sigma) = (|g_small|^2 - |g_large|^2) /
    (1 / small - 1 / large); both are unbiased, and are averaged before they are divided. Up to about tr(Sigma) / |G|^2
    samples, a batch twice as large makes a step nearly twice as good. McCandlish et al. (2018), An Empirical Model of
    Large-Batch Training, appendix A.1.
    """
    own = torch.tensor(list(pairs), dtype=torch.float64).mean(0)
    squares = [float(number) for number in own]
    gradient = (large * squares[1] - small * squares[0]) / (large - small)
    variance = (squares[0] - squares[1]) / (1 / small - 1 / large)
    return Noise(gradient, variance, variance / gradient if gradient > 0 else math.nan)
