"""The report of a run: one page that needs nothing else. Numbers in, HTML out."""

import base64
from importlib.resources import files
from io import BytesIO
from itertools import cycle
from math import isfinite
from typing import Any, NamedTuple

import numpy as np
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup
from matplotlib.image import imsave
from numpy import ndarray

from fcurr.io import plots

REFERENCES = ("plain", "random")  # arms without an order of difficulty: what the others have to beat
Row = dict[str, Any]  # "arm", "last_mean", "last_std", "best_mean", "best_std", "seeds"


class Arm(NamedTuple):
    """One way of training, several seeds."""

    name: str
    accuracy: ndarray  # [evaluation, seed] of the test samples, in [0, 1]
    validation: ndarray  # [evaluation, seed] of the validation samples, in [0, 1]
    loss: ndarray  # [evaluation, seed] mean training loss since the last evaluation; nan if there was no step
    sizes: ndarray  # [evaluation] samples in play at those iterations


class Picture(NamedTuple):
    """A training sample to look at."""

    id: int
    pixels: ndarray  # [height, width] or [height, width, 3] in [0, 1]
    given: str  # the label trained on
    true: str  # the label before noise
    score: float  # larger is harder


class Story(NamedTuple):
    """All that the report tells."""

    name: str  # of the run
    summary: list[tuple[str, str]]  # facts in order: ("training samples", "1,078")
    iterations: ndarray  # [evaluation] int64
    arms: list[Arm]
    table: list[Row]  # accuracies in [0, 1]; standard deviations over seeds (n - 1)
    scores: ndarray | None  # [sample] difficulty of the training samples, larger is harder
    wrong: ndarray | None  # [sample] bool, wrongly labelled
    easiest: list[Picture]
    hardest: list[Picture]
    config: str  # TOML
    environment: dict[str, str]


def render(story: Story) -> str:
    """The page. What the story does not have (scores, pictures, environment) has no section."""
    page = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    page.filters.update(percent=percent, png=png)
    colours = dict(zip((arm.name for arm in story.arms), cycle(plots.COLOURS), strict=False))
    return page.from_string(files("fcurr.io").joinpath("report.html").read_text(encoding="utf-8")).render(
        story=story,
        reading=reading(story),
        figures={name: Markup(svg) for name, svg in figures(story).items()},
        rows=[{**row, "colour": colours.get(row["arm"], "var(--faint)"), "spread": spread(row)} for row in story.table],
        ends=ends(story.table),
        unscored=0 if story.scores is None else int((~np.isfinite(story.scores)).sum()),
        banded=any(arm.accuracy.shape[1] > 1 for arm in story.arms),
        palette=plots.PALETTE,
    )


def figures(story: Story) -> dict[str, str]:
    """Name -> SVG, or "" where there is nothing to draw."""
    scores = "" if story.scores is None else plots.histogram(story.scores, story.wrong)
    if not story.arms:
        return {"test": "", "validation": "", "loss": "", "pace": "", "scores": scores}
    test = [(arm.name, 100 * arm.accuracy) for arm in story.arms]
    validation = [(arm.name, 100 * arm.validation) for arm in story.arms]
    loss = [(arm.name, arm.loss) for arm in story.arms]
    both = limits([values for _, values in test + validation])
    return {
        "test": plots.curves(story.iterations, test, title="test accuracy (%)", limits=both),
        "validation": plots.curves(story.iterations, validation, title="validation accuracy (%)", limits=both),
        "loss": plots.curves(story.iterations, loss, title="training loss", log=wide([values for _, values in loss])),
        "pace": plots.pace(story.iterations, [(arm.name, arm.sizes) for arm in story.arms]),
        "scores": scores,
    }


def limits(values: list[ndarray]) -> tuple[float, float]:
    """Where an axis of accuracies [evaluation, seed] in % begins and ends. The first quarter of the evaluations does
    not count: the steep start would flatten what the arms differ in."""
    means, spreads = zip(*(plots.moments(value[len(value) // 4 :]) for value in values), strict=True)
    mean, half = np.concatenate(means), np.concatenate(spreads)
    if not np.isfinite(mean).any():
        return 0.0, 100.0
    low, high = np.nanmin(mean - half), np.nanmax(mean + half)
    pad = max(0.06 * (high - low), 0.5)
    return max(float(low - pad), 0.0), min(float(high + pad), 100.5)


def wide(losses: list[ndarray]) -> bool:
    """Whether an axis must be logarithmic to show both ends."""
    means = np.concatenate([plots.moments(values)[0] for values in losses])
    return bool(np.nanmax(means, initial=0) > 20 * np.nanmin(means, initial=np.inf) > 0)


def reading(story: Story) -> Markup:
    """What the table says, in a few careful sentences."""
    last, chosen = ranked(story.table, "last"), ranked(story.table, "best")
    if not last:
        return Markup("No test accuracy was measured.")
    best, seeds = last[0], last[0]["seeds"]
    has = f"has the highest mean test accuracy of {len(last)} arms:" if len(last) > 1 else "has a test accuracy of"
    over = f"{seeds} seeds, standard deviation {percent(spread(best))}" if seeds > 1 else "one seed"
    said = [
        _say("After {} iterations, {} {}", f"{story.iterations[-1]:,}", best, has),
        _say("{}\u00a0% ({}).", percent(best["last_mean"]), over),
        *_margins(last, "last"),
    ]
    if len(chosen) > 1:
        who = "it leads as well" if chosen[0] is best else _say("{} leads", chosen[0])
        said += [_say("Taken where validation is best*, {}, with {}\u00a0%.", who, percent(chosen[0]["best_mean"]))]
        said += _margins(chosen, "best")
    return Markup(" ").join(said)


def ranked(table: list[Row], which: str) -> list[Row]:
    """The rows that have this mean, highest first."""
    return sorted((row for row in table if isfinite(row[f"{which}_mean"])), key=lambda row: -row[f"{which}_mean"])


def _margins(rows: list[Row], which: str) -> list[Markup]:
    """How far the first row is above the references, or the next row if it is one of them or there are none: a sentence
    for all of which the same holds."""
    best, *others = rows
    kinds = {row["arm"].split(",")[0]: row for row in reversed(others)}  # "plain, rate = 0.1": the best of each
    references = [kinds[kind] for kind in REFERENCES if kind in kinds and best["arm"].split(",")[0] not in REFERENCES]
    said: dict[str, list[Markup]] = {}
    for other in references or others[:1]:
        mean = other[f"{which}_mean"]
        points = 100 * (best[f"{which}_mean"] - mean)
        above = _say("{} points above {} ({}\u00a0%)", f"{points:.2f}", other, percent(mean))
        if points == 0:
            above, so = _say("the same as {}", other), ""
        elif min(best["seeds"], other["seeds"]) < 2:
            so = "; with one seed there is no telling whether that is more than chance"
        elif points > 100 * max(spread(best, which), spread(other, which)):
            so = ", more than one standard deviation over seeds of either arm"
        else:
            so = ", not more than one standard deviation over seeds, so it may well be chance"
        said.setdefault(so, []).append(above)
    return [_say("That is {}{}.", Markup(" and ").join(group), so) for so, group in said.items()]


def _say(words: str, *values: Any) -> Markup:
    """The words with values in them, escaped; a row of the table is named by its arm."""
    return Markup(words).format(*(Markup("<b>{}</b>").format(v["arm"]) if isinstance(v, dict) else v for v in values))


def percent(share: float) -> str:
    """A share in [0, 1] as a number of %."""
    return f"{100 * share:.2f}" if isfinite(share) else "—"


def spread(row: Row, which: str = "last") -> float:
    """The standard deviation over seeds, 0 where it is unknown."""
    return row[f"{which}_std"] if row["seeds"] > 1 and isfinite(row[f"{which}_std"]) else 0.0


def ends(table: list[Row]) -> tuple[float, float] | None:
    """The ends of an axis on which all last accuracies lie with their standard deviation; None if that is a point."""
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
