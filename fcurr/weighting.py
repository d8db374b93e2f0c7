"""How much each sample counts, given its loss: closed forms, side by side, `weigh(past, losses, batch) -> weights`.

Weights are [batch], never negative, of the dtype of the losses, and the mean of weights times losses is made small. The
losses come detached: a weight is held fixed while the gradient is taken. Equal samples of equal losses have equal
weights, whatever their places in the batch.

A `threshold` is a number in the units of the loss or, as those are seldom known, a function `(past, losses) -> []` of
this module: `quantile` for a share of the batch, `running_mean`, or `scheduled` for one that changes. A `share` is how
many samples of the batch are in, floor(share * batch), at least 1; a schedule is given the iteration.
"""

import math
from typing import Annotated, Protocol

import torch
from annotated_types import Ge, Le, Lt
from torch import Tensor

from fcurr import rng
from fcurr.types import Batch, Past, Positive, Schedule, Share, Task, Unit

TASKS: dict[str, Task] = {"focal": "classification", "class_balanced": "classification"}  # the others: any task

Level = Annotated[float, Ge(0), Le(1e38), Unit("loss")]
Inside = Annotated[float, Ge(1e-6), Le(1 - 1e-6), Unit("number between 0 and 1")]
Exponent = Annotated[float, Ge(0), Le(1e38), Unit("exponent")]
Overlap = Annotated[float, Ge(0), Lt(1), Unit("overlap of samples")]

_SLACK = 1 + 1e-12  # 0.7 * 90 = 62.99999999999999 is meant to be whole
_INVERSE_E = (0.36787944117144233, -1.2428753672788363e-17)  # 1 / e is the sum of these
_NEAR = 1e-3
_COEFFICIENTS = (
    *(-1, 1, -1 / 3, 11 / 72, -43 / 540, 769 / 17280, -221 / 8505),
    *(680863 / 43545600, -1963 / 204120, 226287557 / 37623398400),
)


class Threshold(Protocol):
    """The loss from which on a sample is hard."""

    def __call__(self, past: Past, losses: Tensor, /) -> Tensor: ...  # []


def scheduled(past: Past, losses: Tensor, *, schedule: Schedule) -> Tensor:
    """A threshold that changes with the iteration, in the units of the loss."""
    return schedule(past.iteration)


def quantile(past: Past, losses: Tensor, *, share: Share | Schedule) -> Tensor:
    """The threshold that a share of the batch is below: the smallest loss that is out, infinite if none is.

    Losses that equal the largest one that is in are in as well. Self-paced weights are all 1 where the share is 1, so
    one that grows to 1 ends in plain training, whatever the scale of the losses.
    """
    last = _smallest(losses, _count(share, past, losses))
    return torch.where(losses > last, losses, torch.inf).amin(-1)


def running_mean(past: Past, losses: Tensor) -> Tensor:
    """The running mean of the losses; at the first step the mean of this batch."""
    return torch.where(past.loss.isnan(), losses.mean(-1), past.loss)


def uniform(past: Past, losses: Tensor, batch: Batch) -> Tensor:
    """1: plain training."""
    return torch.ones_like(losses)


def self_paced_hard(past: Past, losses: Tensor, batch: Batch, *, threshold: Positive | Threshold) -> Tensor:
    """1 where loss < threshold, 0 elsewhere: argmin over v in [0, 1] of v loss - threshold v.

    Kumar et al. (2010), Self-Paced Learning for Latent Variable Models, where the threshold is 1 / K.
    """
    return (losses < _number(threshold, past, losses)).to(losses.dtype)


def self_paced_linear(past: Past, losses: Tensor, batch: Batch, *, threshold: Positive | Threshold) -> Tensor:
    """1 - loss / threshold, at least 0: argmin over v in [0, 1] of v loss + threshold (v^2 / 2 - v).

    Jiang et al. (2014), Easy Samples First, linear soft weighting.
    """
    return 1 - _relative(threshold, past, losses)


def self_paced_logarithmic(
    past: Past, losses: Tensor, batch: Batch, *, threshold: Positive | Threshold, zeta: Inside = 0.1
) -> Tensor:
    """ln(zeta + (1 - zeta) loss / threshold) / ln(zeta), at least 0: the smaller zeta, the steeper at small losses.

    argmin over v in [0, 1] of v loss + threshold / (1 - zeta) (zeta v - zeta^v / ln(zeta)). With zeta = 1 - threshold
    it is the logarithmic soft weighting of Jiang et al. (2014), Easy Samples First, which is for thresholds below 1.
    Here any will do, because losses count as shares of it. Towards zeta = 1 it is linear.
    """
    rate = (1 - zeta) / zeta
    steps = _relative(threshold, past, losses) * rate
    return 1 - torch.log1p(steps) / torch.log1p(_filled(rate, losses))


def self_paced_mixture(
    past: Past, losses: Tensor, batch: Batch, *, threshold: Positive | Threshold, certain: Inside = 0.5
) -> Tensor:
    """1 up to the loss certain * threshold, 0 from the threshold on, and falling as zeta (1 / loss - 1 / threshold)
    between, zeta = threshold certain / (1 - certain).

    argmin over v in [0, 1] of v loss - zeta ln(v + zeta / threshold). Jiang et al. (2014), Easy Samples First, mixture
    weighting with lambda_1 = threshold and lambda_2 = certain * threshold. That of Zhao et al. (2015), Self-Paced
    Learning for Matrix Factorization, is the same of the roots of loss and thresholds.
    """
    start = _filled(certain, losses)
    part = torch.maximum(_relative(threshold, past, losses), start)
    return start * (1 - part) / ((1 - start) * part)


def superloss(
    past: Past, losses: Tensor, batch: Batch, *, threshold: Level | Threshold, penalty: Positive = 1.0
) -> Tensor:
    """exp(-W(max(-1 / e, (loss - threshold) / (2 penalty)))), in (0, e]: 1 at the threshold, more below, less above.

    W is lambert_w. The weight is the sigma in (0, e] where (loss - threshold) sigma + penalty ln(sigma)^2 is smallest,
    and the derivative of that minimum by the loss: a step down the mean of weights times losses is one down the
    SuperLoss itself. Castells, Weinzaepfel and Revaud (2020), SuperLoss: the threshold tau is a number, such as the log
    of the number of classes, or `running_mean`; the penalty is lambda, smaller where more is to be told apart.
    """
    exact = losses.double()
    above = (exact - _number(threshold, past, exact)) / _filled(penalty, exact)
    return torch.exp(-lambert_w(0.5 * above)).to(losses.dtype)


def focal(past: Past, losses: Tensor, batch: Batch, *, gamma: Exponent = 2.0) -> Tensor:
    """(1 - exp(-loss))^gamma, for losses that are -log p: what is right already counts less.

    Lin et al. (2017), Focal Loss, eq. 4 as a weight: unlike the gradient of losses.focal, it is held fixed.
    """
    return (-torch.expm1(-losses.clamp(min=0))) ** gamma


def class_balanced(past: Past, losses: Tensor, batch: Batch, *, counts: Tensor, beta: Overlap = 0.999) -> Tensor:
    """(1 - beta) / (1 - beta^counts_y), scaled so that the weights of the K classes with samples sum to K.

    One over the effective number of samples of the class: plain training for beta = 0, and towards beta = 1 one over
    counts, as in losses.balanced_cross_entropy. counts [class] int64: in a run, how many samples of each class are in
    play. Labels that are shares of classes have the mean weight of these. Cui et al. (2019), Class-Balanced Loss Based
    on Effective Number of Samples; the paper tries beta from 0.9 to 0.9999.
    """
    there = counts > 0
    overlap = torch.log(_filled(beta, losses.double()))
    inverse = there / -torch.expm1(counts.clamp(min=1) * overlap)  # the factor 1 - beta falls out
    weights = (there.sum() * inverse / inverse.sum()).to(losses.dtype)
    return batch.y.to(losses.dtype) @ weights if batch.y.dtype.is_floating_point else weights[batch.y]


def rho_loss(past: Past, losses: Tensor, batch: Batch, *, irreducible: Tensor, share: Share | Schedule = 0.1) -> Tensor:
    """batch / kept for the share of the batch with the largest loss - irreducible[id], 0 for the others.

    What is learnable and not yet learned. irreducible [sample]: the loss of every sample under a model trained on other
    data. Mindermann et al. (2022), Prioritized Training on Points that are Learnable, Worth Learning, and Not Yet
    Learnt, eq. 3; the paper keeps 0.1.
    """
    return _kept(irreducible[batch.id].to(losses) - losses, share, past)


def trimmed(past: Past, losses: Tensor, batch: Batch, *, share: Share | Schedule) -> Tensor:
    """batch / kept for the share of the batch with the smallest losses, 0 for the others: the mean over those kept.

    A control for every reweighting: with a share p of wrong labels, share = 1 - p. Shen and Sanghavi (2019), Learning
    with Bad Training Data via Iterative Trimmed Loss Minimization, by the batch.
    """
    return _kept(losses, share, past)


def hardest(past: Past, losses: Tensor, batch: Batch, *, share: Share | Schedule) -> Tensor:
    """batch / kept for the share of the batch with the largest losses, 0 for the others: rho_loss without a reference.

    Shrivastava et al. (2016), Training Region-based Object Detectors with Online Hard Example Mining.
    """
    return _kept(-losses, share, past)


def random_weights(past: Past, losses: Tensor, batch: Batch) -> Tensor:
    """max(0, z) of standard normal z, scaled to a mean of 1 over the batch; a function of (key, iteration, id).

    A control for every reweighting: about half of a batch has weight 0. If all has, as half of the batches of one
    sample, all weights are 0. Ren et al. (2018), Learning to Reweight Examples, the baseline Random.
    """
    drawn = torch.erfinv(2 * rng.uniform(past.key, past.iteration, batch.id) - 1).relu().to(losses)
    total = drawn.sum(-1)
    return len(drawn) * drawn / torch.where(total > 0, total, 1.0)


def lambert_w(z: Tensor) -> Tensor:
    """W with W e^W = z, W >= -1: the principal branch, for z in [-1 / e, 1e307]; beyond, its values at these ends.

    Correct to about 1e-14 in float64, with its first to third derivatives: near -1 / e by the series in the root of
    2 (e z + 1), elsewhere by steps of Halley and then of Newton.
    """
    x = z.double().clamp(max=1e307)
    above = math.e * ((x + _INVERSE_E[0]) + _INVERSE_E[1])  # e z + 1, without cancellation
    near, far = above.clamp(1e-40, _NEAR), x.clamp(min=(_NEAR - 1) / math.e)
    return torch.where(above < _NEAR, _series((2 * near).sqrt()), _iterated(far)).to(z.dtype)


def _series(p: Tensor) -> Tensor:
    """W at z = (p^2 / 2 - 1) / e. Corless et al. (1996), On the Lambert W Function."""
    w = torch.zeros_like(p)
    for coefficient in reversed(_COEFFICIENTS):
        w = coefficient + p * w
    return w


def _iterated(z: Tensor) -> Tensor:
    fixed = z.detach()
    root, log = (2 * (math.e * fixed + 1)).clamp(min=0).sqrt(), torch.log1p(fixed.clamp(min=0))
    w = torch.where(fixed < 0, root / (1 + root / 3) - 1, log - log * torch.log1p(log) / (2 + log))
    for _ in range(2):
        step = _newton(w, fixed)
        w = w - step / (1 - 0.5 * step * (2 + w) / (1 + w))
    for _ in range(2):  # after one the first derivative is right, after two the third
        w = w - _newton(w, z)
    return w


def _newton(w: Tensor, z: Tensor) -> Tensor:
    return (w - z * torch.exp(-w)) / (1 + w)


def _filled(number: float | Tensor, like: Tensor) -> Tensor:
    """[] of the dtype and on the device of another tensor."""
    if isinstance(number, Tensor):
        return number.to(like)
    return torch.full((), number, dtype=like.dtype, device=like.device)


def _number(threshold: float | Threshold, past: Past, losses: Tensor) -> Tensor:
    return _filled(threshold(past, losses) if callable(threshold) else threshold, losses)


def _relative(threshold: Positive | Threshold, past: Past, losses: Tensor) -> Tensor:
    """[batch] loss / threshold, in [0, 1]."""
    level = _number(threshold, past, losses).clamp(min=torch.finfo(losses.dtype).tiny)
    return (losses / level).clamp(0, 1)


def _count(share: Share | Schedule, past: Past, losses: Tensor) -> Tensor:
    """[] int64: how many samples a share of the batch is."""
    part = _filled(share(past.iteration) if callable(share) else share, losses.double())
    return (part * len(losses) * _SLACK).floor().long().clamp(1, len(losses))


def _smallest(values: Tensor, count: Tensor) -> Tensor:
    """[] the count-th smallest."""
    return values.sort().values.gather(0, (count - 1).reshape(1)).squeeze(0)


def _kept(values: Tensor, share: Share | Schedule, past: Past) -> Tensor:
    """batch / kept for the smallest values. Those equal to the last that is kept share what is left among them."""
    count = _count(share, past, values)
    last = _smallest(values, count)
    below, at, kept = (leaf.to(values.dtype) for leaf in (values < last, values == last, count))
    return (below + at * ((kept - below.sum(-1)) / at.sum(-1))) * (len(values) / kept)
