"""The report of a run: one page that needs nothing else. Numbers in, HTML out."""

import base64
from importlib.resources import files
from io import BytesIO
from itertools import cycle
from math import floor, isfinite, log10
from typing import Any, NamedTuple

import numpy as np
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup
from matplotlib.image import imsave
from numpy import ndarray

from fcurr.io import plots, weights
from fcurr.io.weights import Weighted
from fcurr.study.words import REFERENCES, SHARES

CLASSES, MATRICES = 30, 4  # confusions of more classes, or of more arms, are not drawn
Row = dict[str, Any]  # "arm", "last_mean", "last_std", "best_mean", "best_std", "seeds"; nan where nothing is known


class Arm(NamedTuple):
    """One way of training, several seeds."""

    name: str
    iterations: ndarray  # [evaluation] int64, when one of its seeds was evaluated
    validation: ndarray  # [evaluation, seed] the tracked metric of the validation samples; nan before the first
    loss: ndarray  # [evaluation, seed] mean training loss since the last evaluation; nan if there was no step
    sizes: ndarray  # [evaluation] samples in play at those iterations


class Picture(NamedTuple):
    """A training sample to look at."""

    id: int
    pixels: ndarray  # [height, width] or [height, width, 3] in [0, 1]
    given: str  # the label trained on
    true: str  # the label before noise
    score: float  # larger is harder; or its weight


class Story(NamedTuple):
    """All that the report tells."""

    name: str  # of the run
    metric: str  # the tracked metric: "mean_squared_error"
    higher: bool  # higher is better
    length: str  # of the training: "1,000 steps"
    summary: list[tuple[str, str]]  # facts in order: ("training samples", "1,078")
    arms: list[Arm]
    table: list[Row]  # of the tracked metric on test samples; standard deviations over seeds (n - 1)
    confusion: dict[str, ndarray]  # arm -> [class, class] test samples of the row's class taken for the column's
    classes: list[str]
    scores: ndarray | None  # [sample] difficulty of the training samples, larger is harder
    wrong: ndarray | None  # [sample] bool, wrongly labelled
    easiest: list[Picture]
    hardest: list[Picture]
    controls: list[str]  # the arms that learned weights are compared with
    weighted: list[Weighted]  # the arms that weight samples, but for those that weight all alike
    lightest: list[Picture]  # of the first of them that learns, or of all; its mean weight over seeds as score
    heaviest: list[Picture]
    config: str  # TOML
    environment: dict[str, str]


class Ruler(NamedTuple):
    """How values of the tracked metric are written: the same decimals on all of the page."""

    factor: int  # 100 for shares
    form: str  # of format()
    unit: str  # " %", or nothing
    apart: str  # of a difference: " points", or nothing

    def __call__(self, value: float) -> str:
        return format(self.factor * value, self.form) if isfinite(value) else "—"


def ruler(story: Story) -> Ruler:
    """Two decimals of a %, or four digits of the largest value."""
    if story.metric in SHARES:
        return Ruler(100, ".2f", "\u00a0%", " points")
    values = [abs(row[key]) for row in story.table for key in ("last_mean", "best_mean") if isfinite(row[key])]
    size = floor(log10(max(values))) if any(values) else 0
    return Ruler(1, f",.{max(0, 3 - size)}f" if -5 < size < 9 else ".3e", "", "")


def render(story: Story) -> str:
    """The page. What the story does not have (scores, pictures, environment) has no section."""
    page = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    rule = ruler(story)
    page.filters.update(number=lambda value, form: format(value, form) if isfinite(value) else "—")
    page.filters.update(value=rule, png=png, short=lambda name: plots.shorten(name, 12))
    colours = dict(zip((arm.name for arm in story.arms), cycle(plots.COLOURS), strict=False))
    tops = [ranked(story, which)[:1] for which in ("last", "best")]
    return page.from_string(files("fcurr.io").joinpath("report.html").read_text(encoding="utf-8")).render(
        story=story,
        metric=spoken(story),
        unit=f" ({rule.unit.strip()})" if rule.unit else "",
        reading=reading(story),
        figures={name: Markup(svg) for name, svg in figures(story).items()},
        rows=[{**row, "colour": colours.get(row["arm"], "var(--faint)"), "spread": spread(row)} for row in story.table],
        weighing=weighing(story, colours),
        colours=colours,
        seeded=any(len(arm.weights) > 1 for arm in story.weighted),
        tops=[best[0][f"{which}_mean"] if best else None for best, which in zip(tops, ("last", "best"), strict=True)],
        ends=ends(story.table),
        matrices=matrices(story),
        long=any(len(name) > 3 for name in story.classes),
        unscored=0 if story.scores is None else int((~np.isfinite(story.scores)).sum()),
        banded=any(arm.validation.shape[1] > 1 for arm in story.arms),
        palette=plots.PALETTE,
    )


def spoken(story: Story) -> str:
    """The metric's name in words."""
    return story.metric.replace("_", " ")


def figures(story: Story) -> dict[str, str]:
    """Name -> SVG, or "" where there is nothing to draw."""
    scores = "" if story.scores is None else plots.histogram(story.scores, story.wrong)
    if not story.arms:
        return {"validation": "", "loss": "", "pace": "", "scores": scores}
    rule = ruler(story)
    validation = [(arm.name, arm.iterations, rule.factor * arm.validation) for arm in story.arms]
    loss = [(arm.name, arm.iterations, arm.loss) for arm in story.arms]
    title = f"validation {spoken(story)}{' (%)' if rule.unit else ''}"
    shown = limits([arm[2] for arm in validation], (0.0, 100.5) if rule.unit else (-np.inf, np.inf))
    return {
        "validation": plots.curves(validation, title=title, limits=shown),
        "loss": plots.curves(loss, title="training loss", log=wide([arm[2] for arm in loss])),
        "pace": plots.pace([(arm.name, arm.iterations, arm.sizes) for arm in story.arms]),
        "scores": scores,
    }


def weighing(story: Story, colours: dict[str, str]) -> dict[str, Any]:
    """What the section of weights shows: sentences, a row of numbers an arm, figures an arm, and figures of all."""
    arms, wrong = story.weighted, story.wrong
    if not arms:
        return {}
    own = {arm.name: arm for arm in arms}
    unknown = np.full((1, 1), np.nan)
    lines = {"effective": [], "snr": []}
    for arm in story.arms or arms:  # all of them, for their colours
        there = own.get(arm.name)
        times = arm.iterations if there is None else there.iterations
        for key, series in lines.items():
            values = np.repeat(unknown, len(times), 0) if there is None else getattr(there, key)
            series.append((arm.name, times, values))
    snr = [values for _, _, values in lines["snr"]]
    log = wide(snr)
    effective = [(name, times, 100 * values) for name, times, values in lines["effective"]]
    drawn = weights.drawn(arms)
    return {
        "words": [words for arm in weights.meant(arms)[: weights.DRAWN] if (words := weights.told(arm, wrong))],
        "rows": [{"arm": arm.name, "colour": colours.get(arm.name, "var(--faint)"), **arm.found} for arm in arms],
        "drawn": [
            (arm.name, Markup(weights.over_loss(arm, wrong)), Markup(weights.spread(arm, wrong))) for arm in drawn
        ],
        "effective": Markup(plots.curves(effective, title="effective sample size (% of a batch)", limits=(0, 101))),
        "snr": Markup(plots.curves(lines["snr"], title="signal to noise of the hypergradient", log=log)),
        "chance": weights.CHANCE,
        "differing": sum(map(weights.differs, arms)),
        "pictured": pictured.name if (pictured := weights.pictured(arms)) else "",
    }


def limits(values: list[ndarray], bounds: tuple[float, float]) -> tuple[float, float] | None:
    """Where an axis of values [evaluation, seed] begins and ends. The first quarter of the evaluations does not count:
    the steep start would flatten what the arms differ in."""
    means, spreads = zip(*(plots.moments(value[len(value) // 4 :]) for value in values), strict=True)
    mean, half = np.concatenate(means), np.concatenate(spreads)
    if not np.isfinite(mean).any():
        return None
    low, high = float(np.nanmin(mean - half)), float(np.nanmax(mean + half))
    pad = max(0.06 * (high - low), 0.005 * max(abs(low), abs(high)), 1e-12)
    found = max(low - pad, bounds[0]), min(high + pad, bounds[1])
    return found if np.isfinite(found).all() and found[0] < found[1] else None


def wide(losses: list[ndarray]) -> bool:
    """Whether an axis must be logarithmic to show both ends."""
    means = np.concatenate([plots.moments(values)[0] for values in losses])
    return bool(np.nanmax(means, initial=0) > 20 * np.nanmin(means, initial=np.inf) > 0)


def matrices(story: Story) -> list[dict[str, Any]]:
    """For each of the best arms, rows of cells: the share of a row's samples, how many they are, if it is right."""
    if len(story.classes) > CLASSES:
        return []
    best = [row["arm"] for row in ranked(story, "best") if row["arm"] in story.confusion][:MATRICES]
    found = []
    for name in (name for name in story.confusion if name in best):
        counts = np.asarray(story.confusion[name])
        shares = counts / counts.sum(1, keepdims=True).clip(min=1)
        cells = [
            [(shares[row, column], int(counts[row, column]), row == column) for column in range(len(counts))]
            for row in range(len(counts))
        ]
        found.append({"arm": name, "rows": list(zip(story.classes, cells, strict=True))})
    return found


def reading(story: Story) -> Markup:
    """What the table says, in a few careful sentences."""
    last, chosen, rule = ranked(story, "last"), ranked(story, "best"), ruler(story)
    what = spoken(story)
    if not last:
        return Markup("No test {} was measured.").format(what)
    best, seeds = last[0], last[0]["seeds"]
    most = "highest" if story.higher else "lowest"
    has = f"has the {most} test {what} of {len(last)} arms," if len(last) > 1 else f"has a test {what} of"
    mean = " in the mean" if seeds > 1 else ""
    over = f"{seeds} seeds, standard deviation {rule(spread(best))}" if seeds > 1 else "one seed"
    control = ", a control," if best["arm"] in story.controls else ""
    said = [
        _say("After {}, {}{} {}", story.length, best, control, has),
        _say("{}{}{} ({}).", rule(best["last_mean"]), rule.unit, mean, over),
        *_margins(story, last, "last"),
    ]
    if control and any(row["arm"] not in story.controls for row in last):
        said.append(Markup("No arm beats all of its controls."))
    if len(chosen) > 1:
        other = ", a control," if chosen[0]["arm"] in story.controls else ""
        who = "it leads as well" if chosen[0] is best else _say("{}{} leads", chosen[0], other)
        said += [_say("Taken where validation is best*, {}, with {}{}.", who, rule(chosen[0]["best_mean"]), rule.unit)]
        said += _margins(story, chosen, "best")
    return Markup(" ").join(said)


def ranked(story: Story, which: str) -> list[Row]:
    """The rows that have this mean, best first."""
    sign = -1 if story.higher else 1
    known = [row for row in story.table if isfinite(row[f"{which}_mean"])]
    return sorted(known, key=lambda row: sign * row[f"{which}_mean"])


def _margins(story: Story, rows: list[Row], which: str) -> list[Markup]:
    """How far the first row is ahead of its rivals: a sentence for all of which the same holds."""
    (best, *others), rule = rows, ruler(story)
    side = "above" if story.higher else "below"
    said: dict[str, list[Markup]] = {}
    for other, role in rivals(story, best, others):
        mean = other[f"{which}_mean"]
        gap = abs(best[f"{which}_mean"] - mean)
        above = _say("{}{} {} {}{} ({}{})", rule(gap), rule.apart, side, other, role, rule(mean), rule.unit)
        if gap == 0:
            above, so = _say("the same as {}{}", other, role), ""
        elif min(best["seeds"], other["seeds"]) < 2:
            so = "; with one seed there is no telling whether that is more than chance"
        elif gap > max(spread(best, which), spread(other, which)):
            so = ", more than one standard deviation over seeds of either arm"
        else:
            so = ", not more than one standard deviation over seeds, so it may well be chance"
        said.setdefault(so, []).append(above)
    return [_say("That is {}{}.", Markup(" and ").join(group), so) for so, group in said.items()]


def rivals(story: Story, best: Row, others: list[Row]) -> list[tuple[Row, str]]:
    """The rows that the best one has to beat, and what they are in words: the best of the controls, and plain training;
    of a control, the best arm that is none; where there are no controls, the references, or the next row."""
    controls = [row for row in others if row["arm"] in story.controls]
    if best["arm"] in story.controls:
        tried = [row for row in others if row["arm"] not in story.controls][:1]
        return [(row, ", the best that is no control") for row in tried] or [(row, "") for row in others[:1]]
    kinds = {_kind(row): row for row in reversed(others)}  # "plain, rate = 0.1": the best of each
    if controls:
        plain = kinds.get("plain", controls[0])
        first = f", the best of {len(controls)} controls" if len(controls) > 1 else ", its control"
        return [(controls[0], first), *([] if plain is controls[0] else [(plain, "")])]
    references = [kinds[kind] for kind in REFERENCES if kind in kinds and _kind(best) not in REFERENCES]
    return [(row, "") for row in references or others[:1]]


def _kind(row: Row) -> str:
    return row["arm"].split(",")[0]


def _say(words: str, *values: Any) -> Markup:
    """The words with values in them, escaped; a row of the table is named by its arm."""
    return Markup(words).format(*(Markup("<b>{}</b>").format(v["arm"]) if isinstance(v, dict) else v for v in values))


def spread(row: Row, which: str = "last") -> float:
    """The standard deviation over seeds, 0 where it is unknown."""
    return row[f"{which}_std"] if row["seeds"] > 1 and isfinite(row[f"{which}_std"]) else 0.0


def ends(table: list[Row]) -> tuple[float, float] | None:
    """The ends of an axis on which all last values lie with their standard deviation; None if that is a point."""
    marks = [row["last_mean"] + side * spread(row) for row in table for side in (-1, 1) if isfinite(row["last_mean"])]
    return (min(marks), max(marks)) if marks and min(marks) < max(marks) else None


def png(pixels: ndarray, *, most: int = 64) -> str:
    """A sample as the address of a PNG that is part of the page; sides over `most` pixels are thinned."""
    image = np.nan_to_num(np.clip(np.asarray(pixels, dtype=np.float64), 0, 1))
    image = image[:, :, None] if image.ndim == 2 else image
    step = -(-max(image.shape[:2]) // most)
    colours = (255 * np.broadcast_to(image, (*image.shape[:2], 3))[::step, ::step]).round().astype(np.uint8)
    file = BytesIO()
    imsave(file, colours, format="png", metadata={"Software": ""})  # pyright: ignore[reportArgumentType]
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
