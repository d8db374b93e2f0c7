"""How much samples count in the arms of a run: numbers in; numbers, sentences and figures out."""

from typing import NamedTuple

import numpy as np
from markupsafe import Markup
from numpy import ndarray

from fcurr.bilevel.learned_weights import SMOOTH
from fcurr.io import plots

DRAWN = 4  # the most arms with figures of their own
CHANCE = (1 - SMOOTH) / (1 + SMOOTH)  # signal to noise of a hypergradient that is nothing but noise
TURNS = 3  # how often a curve may cross the whole range of weights


class Weighted(NamedTuple):
    """An arm whose samples are weighted, several seeds."""

    name: str
    learned: bool  # weights are learned, not given in closed form
    weights: ndarray  # [seed, sample] after the last step
    losses: ndarray  # [seed, sample]
    iterations: ndarray  # [evaluation] int64
    effective: ndarray  # [evaluation, seed] effective sample size of the last batch, as a share of it
    snr: ndarray  # [evaluation, seed] signal to noise of the hypergradient; nan where nothing is learned (yet)
    found: dict[str, float]  # what `numbers` says of it


def worth_telling(arm: Weighted) -> bool:
    """Whether weights differ, or might have: that learned ones are all alike is news."""
    return arm.learned or differs(arm)


def differs(arm: Weighted) -> bool:
    """Whether weights differ between the samples of a seed, by more than rounding."""
    known = (weights[np.isfinite(weights)] for weights in arm.weights)
    return any(len(some) and some.max() - some.min() > 1e-5 * np.abs(some).max() for some in known)


def numbers(weights: ndarray, snr: ndarray, wrong: ndarray | None) -> dict[str, float]:
    """Means over seeds, of all training samples after the last step; nan where something is unknown, as all is of
    weights of which one is not finite. weights [seed, sample]; snr [evaluation, seed]; wrong [sample] bool: wrongly
    labelled; None if none is."""
    known = np.isfinite(weights).all(1, keepdims=True)
    seeds = [_of_seed(own, wrong) for own in np.where(known, weights, np.nan).astype(np.float64)]
    found = {name: float(np.mean([seed[name] for seed in seeds])) for name in seeds[0]}
    return found | {"hypergradient_snr": float(snr[-1].mean()) if len(snr) else np.nan}


def _of_seed(weights: ndarray, wrong: ndarray | None) -> dict[str, float]:
    total, squares = weights.sum(), np.square(weights).sum()
    found = {"mean_weight": weights.mean(), "effective_sample_size": total**2 / (len(weights) * squares or 1)}
    known = np.zeros(len(weights), dtype=bool) if wrong is None else wrong
    return found | {
        "mean_weight_right": np.nan if wrong is None or wrong.all() else weights[~wrong].mean(),
        "mean_weight_wrong": weights[known].mean() if known.any() else np.nan,
        "share_of_wrong": weights[known].sum() / total if known.any() and total else np.nan,
        "auc": told_apart(weights, known),
    }


def told_apart(weights: ndarray, wrong: ndarray) -> float:
    """The area under the ROC curve: how often a wrong label weighs less than a right one, ties counting half; nan
    where one of the two is missing, or a weight is not finite."""
    from sklearn.metrics import roc_auc_score  # slow to import

    if wrong.all() or not wrong.any() or not np.isfinite(weights).all():
        return np.nan
    return float(roc_auc_score(~wrong, weights))


def told(arm: Weighted, wrong: ndarray | None) -> Markup:
    """What the numbers of an arm say; nothing where they are unknown."""
    found, name = arm.found, Markup("<b>{}</b>").format(arm.name)
    share, auc = found["share_of_wrong"], found["auc"]
    if not np.isfinite(found["effective_sample_size"]):
        return Markup("")
    if not differs(arm):
        return Markup("{} gives all samples the same weight.").format(name)
    if wrong is not None and np.isfinite([share, auc]).all():
        right, other = found["mean_weight_right"], found["mean_weight_wrong"]
        return Markup(
            "{} gives right labels a mean weight of {:#.3g}, wrong ones {:#.3g}: wrong labels are {:.1f}\u00a0% of the"
            " training samples and carry {:.1f}\u00a0% of all weight. Of a right and a wrong label, the wrong one"
            " weighs less in {:.1f}\u00a0% of pairs, ties counted half."
        ).format(name, right, other, 100 * wrong.mean(), 100 * share, 100 * auc)
    words = "{} weighs samples as unevenly as if {:.1f}\u00a0% of them counted, all alike, and the others not at all."
    return Markup(words).format(name, 100 * found["effective_sample_size"])


def fact(arms: list[Weighted], wrong: ndarray | None) -> list[tuple[str, str]]:
    """The line for a terminal: of the arms that learn, or of all if none does."""
    known = [arm for arm in meant(arms) if np.isfinite(arm.found["share_of_wrong"])]
    if wrong is None or not known:
        return []
    said = ", ".join(f"{arm.found['share_of_wrong']:.1%} in {arm.name}" for arm in known[:DRAWN])
    more = f" and {len(known) - DRAWN} more" if len(known) > DRAWN else ""
    return [("weight on wrong labels", f"{said}{more}; they are {wrong.mean():.1%} of the samples")]


def meant(arms: list[Weighted]) -> list[Weighted]:
    """The arms a reader asks about: those that learn, or all if none does."""
    return [arm for arm in arms if arm.learned] or arms


def by_weight(arm: Weighted) -> tuple[ndarray, ndarray]:
    """Places of samples, those that count least first, of equals those of larger losses; and the mean weights over
    seeds [sample]. Samples whose weight is not finite are left out."""
    with np.errstate(invalid="ignore"):
        mean, loss = arm.weights.astype(np.float64).mean(0), arm.losses.astype(np.float64).mean(0)
    order = np.lexsort((-loss, mean))
    return order[np.isfinite(mean[order])], mean


def drawn(arms: list[Weighted]) -> list[Weighted]:
    """The arms that have figures of their own, those that learn first."""
    return sorted(filter(differs, arms), key=lambda arm: not arm.learned)[:DRAWN]


def pictured(arms: list[Weighted]) -> Weighted | None:
    """The arm whose samples are shown."""
    return next(filter(differs, meant(arms)), None)


def over_loss(arm: Weighted, wrong: ndarray | None) -> str:
    """Weight over loss, a dot a sample and seed; where it is a function of the loss, its curve."""
    apart = np.zeros(arm.losses.shape[1], dtype=bool) if wrong is None else wrong
    groups = {"": ~apart} if wrong is None else {"right label": ~apart, "wrong label": apart}
    losses, weights = arm.losses.astype(np.float64), arm.weights.astype(np.float64)
    pairs = {name: (losses[:, group].ravel(), weights[:, group].ravel()) for name, group in groups.items()}
    curves = [along(*seed) for seed in zip(losses, weights, strict=True)]
    joined = [curve for curve in curves if curve is not None]
    return plots.dots(pairs, joined, title="weight over the loss", along="loss of the sample")


def along(losses: ndarray, weights: ndarray) -> tuple[ndarray, ndarray] | None:
    """Losses [sample] in order and their weights, if these are a function of them: on the way from the smallest loss to
    the largest they go up and down by no more than TURNS times their range. None if they are not."""
    known = np.isfinite(losses) & np.isfinite(weights)
    order = np.lexsort((weights[known], losses[known]))
    x, y = losses[known][order], weights[known][order]
    return (x, y) if len(x) > 1 and np.abs(np.diff(y)).sum() <= TURNS * (y.max() - y.min()) else None


def spread(arm: Weighted, wrong: ndarray | None) -> str:
    """How weights are spread, over right and wrong labels."""
    tiled = None if wrong is None else np.tile(wrong, len(arm.weights))
    return plots.histogram(
        arm.weights.astype(np.float64).ravel(), tiled, along="weight", meaning="histogram of the weights"
    )
