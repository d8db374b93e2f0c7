"""Figures as text: numbers in, SVG out. Words stay words: they can be searched, and take the font of the page.

Every colour is a CSS variable with its light colour as fallback, so a figure reads on light and dark paper, and alone.
"""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from html import escape
from io import StringIO
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter
from numpy import ndarray

ARMS = ("#0072b2", "#d55e00", "#009e73", "#aa4499", "#b98700", "#332288", "#7a7a7a", "#3fa3d8")  # colour-blind safe
NIGHT = ("#4fa8e0", "#ff8f4a", "#2cc79a", "#e08ad2", "#f0c550", "#a79bff", "#b4b4b4", "#bde6ff")  # the same in the dark
DASHES = ("-", (0, (5, 2)), (0, (1.5, 1.5)))  # tell apart where colours begin again
INK, FAINT, GRID = "#2b2f36", "#666c75", "#e4e1da"
PALETTE = {  # CSS variable -> (light, dark)
    "ink": (INK, "#e6e4df"),
    "faint": (FAINT, "#a3a8b0"),
    "grid": (GRID, "#3a3e45"),
    **{f"arm-{at}": pair for at, pair in enumerate(zip(ARMS, NIGHT, strict=True))},
}
VARIABLES = {light: f"var(--{name}, {light})" for name, (light, _) in PALETTE.items()}
COLOURS = [VARIABLES[light] for light in ARMS]  # of the arms, in CSS
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,  # a name may contain $
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9.5,
    "axes.titlesize": 10.5,
    "axes.titlepad": 10,
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.color": GRID,
    **dict.fromkeys(["axes.spines.top", "axes.spines.right", "axes.spines.left"], False),
    **dict.fromkeys(["ytick.major.size", "ytick.minor.size"], 0),
    **dict.fromkeys(["xtick.color", "ytick.color", "axes.labelcolor", "axes.edgecolor"], FAINT),
    "text.color": INK,
}
WIDTH, HEIGHT, LEFT, BOTTOM, TOP = 360, 234, 36, 38, 30  # [pt] of a figure and its margins
POINTS = 120  # the most evaluations drawn
BINS, EACH = 60, 12  # of dots: intervals of the x axis, and the most dots in one
NOUGHT = 1e-6  # of the largest x: what is smaller is drawn there, on a logarithmic axis
Series = tuple[str, ndarray, ndarray]  # name, iterations [evaluation], values [evaluation, seed]


class Line(NamedTuple):
    name: str  # beside its end; a line of text each
    x: ndarray  # [point]
    y: ndarray  # [point] finite
    spread: ndarray  # [point] half the height of the band
    look: dict  # color, linestyle


def curves(series: Sequence[Series], *, title: str, limits=None, log: bool = False) -> str:
    """A line for the mean over seeds, a band of one standard deviation (n - 1) to both sides. Evaluations at which a
    seed is not finite are left out; if nothing is left, the figure is ""."""
    lines = []
    for at, (name, iterations, values) in enumerate(series):
        mean, spread = moments(values)
        kept = thin(np.flatnonzero(np.isfinite(mean)))
        look = {"color": ARMS[at % len(ARMS)], "linestyle": DASHES[at // len(ARMS) % len(DASHES)]}
        if len(kept):
            lines.append(Line(shorten(name), iterations[kept], mean[kept], spread[kept], look))
    return _lines(lines, _end(series), title=title, limits=limits, log=log) if lines else ""


def pace(sizes: Sequence[Series]) -> str:
    """Samples in play [evaluation], a step line for each distinct pace, named after all arms that keep it."""
    groups: dict[tuple, list[int]] = {}
    for at, (_, iterations, size) in enumerate(sizes):
        groups.setdefault((tuple(iterations), tuple(size)), []).append(at)
    lines = []
    shared = [arms for arms in groups.values() if len(arms) > 1]
    for arms in groups.values():
        _, iterations, size = sizes[arms[0]]
        kept = thin(np.arange(len(iterations)))
        alone = {"color": ARMS[arms[0] % len(ARMS)]}
        look = {"color": FAINT, "linestyle": DASHES[shared.index(arms) % len(DASHES)]} if arms in shared else alone
        name = "\n".join(shorten(sizes[arm][0]) for arm in arms)
        lines.append(Line(name, iterations[kept], np.array(size)[kept], np.zeros(len(kept)), look))
    return _lines(lines, _end(sizes), title="samples in play", limits=(0, None), style="steps-post")


def _end(series: Sequence[Series]) -> int:
    """The last iteration of all."""
    return max(int(iterations[-1]) for _, iterations, _ in series)


def histogram(
    scores: ndarray,
    wrong: ndarray | None,
    *,
    along: str = "difficulty score (larger is harder)",
    meaning: str = "histogram of the difficulty scores",
) -> str:
    """How scores are spread; right and wrong labels apart, each in % of its own group, if there are both. Scores that
    are not finite are left out; if nothing is left, the figure is ""."""
    finite = np.isfinite(scores)
    if not finite.any():
        return ""
    mixed = wrong is not None and 0 < wrong[finite].sum() < finite.sum()
    groups = {"right label": ~wrong, "wrong label": wrong} if wrong is not None and mixed else {"": finite}
    low, high = scores[finite].min(), scores[finite].max()
    edges = np.linspace(low, high, 41) if high - low > 1e-9 * abs(high) else low + max(1, abs(low)) * np.array([-1, 1])
    if (
        high - low < 60 and abs(low) < 1e9 and np.array_equal(scores[finite], scores[finite].round())
    ):  # counts: a bar each
        edges = np.arange(low - 0.5, high + 1)
    with _canvas("share of right and of wrong labels (%)" if mixed else "samples", right=16) as (figure, axes):
        for (label, group), shade in zip(groups.items(), ARMS, strict=False):
            values = scores[finite & group]
            heights = np.histogram(values, edges)[0] * (100 / len(values) if mixed else 1)
            axes.stairs(heights, edges, fill=True, color=shade, alpha=0.3, linewidth=0)
            axes.stairs(heights, edges, color=shade, linewidth=1.4, label=f"{label} ({len(values):,})")
        if mixed:
            axes.legend(frameon=False, handlelength=1.2)
        axes.set_xlabel(along)
        return svg(figure, meaning)


def dots(
    groups: dict[str, tuple[ndarray, ndarray]],
    joined: Sequence[tuple[ndarray, ndarray]] = (),
    *,
    title: str,
    along: str,
) -> str:
    """Group -> (x, y) [point]: a dot a point, of many a few at every x; and (x, y) [point], finite and in order, that a
    line joins. Points of groups that are not finite are left out; if nothing is left, the figure is ""."""
    pairs = ((name, x, y, np.isfinite(x) & np.isfinite(y)) for name, (x, y) in groups.items())
    known = {name: (x[there], y[there]) for name, x, y, there in pairs if there.any()}
    if not known:
        return ""
    everything = np.concatenate([x for x, _ in known.values()])
    low, high = np.quantile(everything, [0.1, 0.9])
    log = bool(everything.min() >= 0 and high > 20 * low)
    floor = max(everything.max() * NOUGHT, 1e-30)
    with _canvas(title, right=16) as (figure, axes):
        for x, y in joined:
            kept = some(np.log10(x.clip(floor)) if log else x)
            axes.plot(x[kept].clip(floor) if log else x[kept], y[kept], color=FAINT, linewidth=0.8, clip_on=False)
        for (name, (x, y)), shade in zip(known.items(), ARMS, strict=False):
            places = x.clip(floor) if log else x
            kept = some(np.log10(places) if log else places)
            at, height = (np.stack([v[kept], v[kept], np.full(len(kept), np.nan)], 1).ravel() for v in (places, y))
            (line,) = axes.plot(at, height, color=shade, alpha=0.75, linewidth=3, solid_capstyle="round", clip_on=False)
            line.get_path().should_simplify = False  # a dot is a line from a point to itself
            axes.plot([], [], "o", color=shade, markersize=4, label=f"{name} ({len(x):,})")
        if log:
            axes.set_xscale("log")
            axes.xaxis.set_major_locator(LogLocator(numticks=6))
            axes.xaxis.set_minor_formatter(NullFormatter())
        if len(known) > 1:
            above = {"loc": "lower right", "bbox_to_anchor": (1.0, 1.0), "ncols": 2, "columnspacing": 1.0}
            axes.legend(frameon=False, handletextpad=0.1, borderpad=0.1, **above)
        axes.set_ylim(0, None)
        axes.set_xlabel(along)
        return svg(figure, title)


def some(places: ndarray) -> ndarray:
    """Positions of the points [point], but of those in one of BINS intervals of equal width at most EACH, evenly
    chosen."""
    edges = np.linspace(places.min(), places.max(), BINS + 1)[1:-1]
    bins = np.searchsorted(edges, places, side="right")
    return np.concatenate([thin(np.flatnonzero(bins == bin), EACH) for bin in np.unique(bins)])


def shorten(name: str, most: int = 18) -> str:
    """The name, its middle left out if it is long: names that begin alike often end apart."""
    return name if len(name) <= most else f"{name[: most // 2]}…{name[1 - most // 2 :]}"


def moments(values: ndarray) -> tuple[ndarray, ndarray]:
    """Mean and standard deviation (n - 1; 0 of one) over the last axis; nan where a value is not finite."""
    values = np.where(np.isfinite(values), values, np.nan)
    return values.mean(axis=1), values.std(axis=1, ddof=1) if values.shape[1] > 1 else 0 * values[:, 0]


def thin(positions: ndarray, most: int = POINTS) -> ndarray:
    """At most so many of the positions, evenly chosen, first and last among them."""
    return positions[np.unique(np.linspace(0, len(positions) - 1, min(len(positions), most)).round().astype(int))]


@contextmanager
def _canvas(title: str, right: float = 8) -> Iterator[tuple[Figure, Axes]]:
    """Axes with this margin [pt] at their right, in a style that no settings of the user change."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update({**STYLE, "svg.hashsalt": title})
        figure = Figure(figsize=(WIDTH / 72, HEIGHT / 72))
        size = (WIDTH - LEFT - right) / WIDTH, (HEIGHT - BOTTOM - TOP) / HEIGHT
        axes = figure.add_axes((LEFT / WIDTH, BOTTOM / HEIGHT, *size))
        axes.set_title(title, loc="left", x=-LEFT / (WIDTH - LEFT - right))
        yield figure, axes


def _lines(lines: list[Line], end: int, *, title: str, limits=None, log=False, style="default") -> str:
    letters = max(len(part) for line in lines for part in line.name.split("\n"))
    with _canvas(title, 26 + 6 * letters) as (figure, axes):
        for line in lines:
            dot = {"marker": "o", "clip_on": False} if len(line.x) == 1 else {}
            axes.plot(line.x, line.y, drawstyle=style, **dot, **line.look)
            if line.spread.any():
                band = line.y - line.spread, line.y + line.spread
                axes.fill_between(line.x, *band, color=line.look["color"], alpha=0.16, linewidth=0)
        if log:
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=7))
            axes.yaxis.set_minor_formatter(NullFormatter())
        axes.set_ylim(limits)
        axes.set_xlim(0, max(end, 1))
        axes.xaxis.set_major_locator(MaxNLocator(4 if end < 1e5 else 2, integer=True, steps=[1, 2, 2.5, 5, 10]))
        axes.set_xlabel("iterations")
        _names(axes, lines)
        return svg(figure, title)


def _names(axes: Axes, lines: Sequence[Line]) -> None:
    """Each line's name beside its end, moved apart where ends are close."""
    to_axes = axes.transData + axes.transAxes.inverted()
    ends = np.array([to_axes.transform((line.x[-1], line.y[-1])) for line in lines]).clip(0, 1)
    heights = [12 / (HEIGHT - BOTTOM - TOP) * (line.name.count("\n") + 1) for line in lines]
    clear = {"transform": axes.transAxes, "clip_on": False}
    for line, (x, y), place in zip(lines, ends, apart(list(ends[:, 1]), heights), strict=True):
        axes.plot([x, 1.0, 1.05], [y, y, place], color=line.look["color"], linewidth=0.9, **clear)
        axes.text(1.07, place, line.name, va="center", linespacing=1.25, **clear)


def apart(wanted: Sequence[float], heights: Sequence[float]) -> list[float]:
    """Centres near the wanted ones, in their order, that do not overlap; in [-0.06, 1.06] if they fit."""
    places, floor, ceiling = list(wanted), -0.06, max(1.06, sum(heights) - 0.06)
    order = sorted(range(len(wanted)), key=lambda at: wanted[at])
    for at in order:
        places[at] = max(places[at], floor + heights[at] / 2)
        floor = places[at] + heights[at] / 2
    for at in reversed(order):
        places[at] = min(places[at], ceiling - heights[at] / 2)
        ceiling = places[at] - heights[at] / 2
    return places


def svg(figure: Figure, meaning: str) -> str:
    for axis in (figure.axes[0].xaxis, figure.axes[0].yaxis):
        axis.set_major_formatter("{x:,.10g}")
    file = StringIO()
    figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    text = file.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text[text.index("<svg") :], flags=re.DOTALL)
    text = re.sub(r'<g id="[^"]*">', "<g>", text)  # ids would meet those of the next figure
    text = re.sub(r' d="[^"]*"', lambda path: re.sub(r"(\.\d\d)\d+", r"\1", path[0]), text)
    text = re.sub(r"(?<=: )#[0-9a-f]{6}(?=[;\"])", lambda code: VARIABLES.get(code[0], code[0]), text)
    return text.replace("<svg", f'<svg role="img" aria-label="{escape(meaning)}"', 1).strip()
