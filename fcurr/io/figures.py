"""Figures of a comparison: differences with their intervals, and learning curves."""

import re
import textwrap
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy import ndarray

from fcurr.io import plots, store
from fcurr.io.sheets import TIMES, Scale, spoken
from fcurr.study.comparing import Row, Table, curve
from fcurr.study.grouping import Grouping, Result, groups
from fcurr.study.words import short

MOST, TOGETHER, ACROSS = 48, 8, 4  # groups in a figure; curves in one panel; panels in a row
DOTS = 200  # [1/inch] of a PNG


class Band(NamedTuple):
    """A learning curve of a group."""

    times: ndarray  # [evaluation] iterations
    mean: ndarray  # [evaluation] over members
    spread: ndarray  # [evaluation] standard deviation


class Drawing(NamedTuple):
    svg: str  # for a page, whose colours it takes
    png: bytes

    def alone(self) -> str:
        """The SVG for a file of its own, with colours that every program knows."""
        return re.sub(r"var\(--[\w-]+, (#[0-9a-f]{6})\)", r"\1", self.svg) + "\n"


@contextmanager
def _paper(title: str, width: float, height: float) -> Iterator[Figure]:
    """A figure of this size [pt] in a style that no settings of the user change."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update({**plots.STYLE, "svg.hashsalt": title})
        yield Figure(figsize=(width / 72, height / 72))


def _drawn(figure: Figure, meaning: str) -> Drawing:
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter("{x:,.10g}")
    svg, png = plots.svg(figure, meaning), BytesIO()
    figure.savefig(png, format="png", dpi=DOTS, facecolor="white", metadata={"Software": None})
    return Drawing(svg, png.getvalue())


def _place(figure: Figure, left: float, top: float, width: float, height: float) -> Axes:
    """Axes so far from the left and the top [pt]."""
    across, down = figure.get_size_inches() * 72
    return figure.add_axes((left / across, 1 - (top + height) / down, width / across, height / down))


def _leading(table: Table) -> list[int]:
    """Places of the groups that are drawn: the best, in the order of the table."""
    known = [at for at, row in enumerate(table.rows) if row.mean is not None]
    sign = -1 if table.higher else 1
    return sorted(sorted(known, key=lambda at: sign * (table.rows[at].mean or 0))[:MOST])


def differences(tables: Sequence[Table], scale: Scale) -> Drawing | None:
    """A line a group: its difference to the reference and the interval of that; the best on top."""
    first, names = tables[0], short([row.keys for row in tables[0].rows])
    sign = -1 if first.higher else 1
    drawn = [at for at in _leading(first) if any(table.rows[at].difference is not None for table in tables)]
    drawn.sort(key=lambda at: (first.rows[at].difference is None, sign * (first.rows[at].difference or 0)))
    if not drawn:
        return None
    to = {row.reference for row in first.rows if row.reference is not None}
    title = f"Difference to {names[min(to)]}" if len(to) == 1 else "Difference to the reference"
    unit = f"{scale.apart}, " if scale.apart else ""
    left, room, gap, step = 14 + 5.8 * max(len(names[at]) for at in drawn), 190, 22, 17
    width, height = left + len(tables) * (room + gap), 86 + step * len(drawn)
    with _paper(title, width, height) as figure:
        figure.text(6 / width, 1 - 16 / height, f"{title}, test {spoken(first)}", fontsize=10.5)
        for panel, table in enumerate(tables):
            axes = _place(figure, left + panel * (room + gap), 46, room, step * len(drawn))
            axes.set_title(TIMES[table.which], loc="left", fontsize=9.5, color=plots.FAINT, pad=6)
            axes.grid(axis="x")
            axes.grid(visible=False, axis="y")
            axes.axvline(0, color=plots.INK, linewidth=0.9)
            for y, at in enumerate(drawn):
                if panel == 0:
                    axes.text(
                        -0.03, y, names[at], va="center_baseline", ha="right", transform=axes.get_yaxis_transform()
                    )
                _whisker(axes, table, table.rows[at], y, scale)
            axes.set_ylim(len(drawn) - 0.5, -0.5)
            axes.set_yticks([])
            axes.margins(x=0.06)
            axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
            axes.set_xlabel(f"{unit}{'right' if first.higher else 'left'} is better")
        return _drawn(figure, title)


def _whisker(axes: Axes, table: Table, row: Row, y: int, scale: Scale) -> None:
    """A dot, filled where the interval excludes 0; blue for the better, orange for the worse, grey where it is open."""
    if row.difference is None:
        return
    clear = row.apart is not None and (row.apart.low > 0 or row.apart.high < 0)
    colour = plots.ARMS[0 if (row.difference > 0) == table.higher else 1] if clear else plots.FAINT
    if row.apart is not None:
        axes.plot([scale.factor * end for end in row.apart], [y, y], color=colour, linewidth=1.6, solid_capstyle="butt")
    face = colour if clear else "#ffffff"
    axes.plot([scale.factor * row.difference], [y], "o", color=colour, markerfacecolor=face, markersize=5)


def curves(
    folders: Sequence[Path], members: Sequence[Result], found: Grouping, table: Table, scale: Scale
) -> Drawing | None:
    """The metric on validation samples over iterations: lines for means over members, bands of one deviation. Few
    groups share a panel; of many, each has its own, with the others in grey behind."""
    lines: dict[tuple[int, int], list[dict[str, Any]]] = {}
    for at, folder in enumerate(folders):
        for row in store.metrics(folder):
            lines.setdefault((at, row["member"]), []).append({**row, "place": (at, row["member"])})
    name, grouped = f"validation_{table.metric}", groups(members, found.by)
    series: dict[int, Band] = {}
    for at in _leading(table):
        own = (row for result in grouped[at][1] for row in lines.get(result.place, []))
        times, values = curve(own, name)
        mean, spread = plots.moments(scale.factor * values) if values.size else (np.array([]), np.array([]))
        there = plots.thin(np.flatnonzero(np.isfinite(mean)))
        if len(there):
            series[at] = Band(times[there], mean[there], spread[there])
    if not series:
        return None
    title = f"Validation {spoken(table)}{f' ({scale.unit})' if scale.unit else ''}"
    names = short([row.keys for row in table.rows])
    if len(series) <= TOGETHER:
        return _one(series, names, title)
    return _many(series, names, title, [row.reference for row in table.rows])


def _one(series: Mapping[int, Band], names: Sequence[str], title: str) -> Drawing:
    right = 34 + 5.7 * max(len(names[at]) for at in series)
    width, height, left, top, room = 330 + right, 250, 42, 34, 178
    colours = dict(zip(series, plots.ARMS, strict=False))
    with _paper(title, width, height) as figure:
        axes = _place(figure, left, top, width - left - right, room)
        figure.text(6 / width, 1 - 16 / height, title, fontsize=10.5)
        for at, band in series.items():
            _line(axes, band, colours[at])
        _framed(axes, series.values())
        axes.set_xlabel("iterations")
        (low, high), end = axes.get_ylim(), axes.get_xlim()[1]
        ends = [float(np.clip((band.mean[-1] - low) / (high - low), 0, 1)) for band in series.values()]
        places = plots.apart(ends, [13 / room] * len(ends))
        clear = {"transform": axes.transAxes, "clip_on": False}
        for (at, band), y, place in zip(series.items(), ends, places, strict=True):
            x = band.times[-1] / end
            axes.plot([x, 1, 1.05], [y, y, place], color=colours[at], linewidth=0.9, **clear)
            axes.text(1.07, place, names[at], va="center_baseline", **clear)
        return _drawn(figure, title)


def _many(series: Mapping[int, Band], names: Sequence[str], title: str, references: Sequence[int | None]) -> Drawing:
    """A panel a group: its own curve in colour, its reference dashed, the others grey."""
    heads = {at: textwrap.fill(names[at].replace(" = ", "\u00a0=\u00a0"), 30) for at in series}
    room, tall, gap, low = 150, 84, 30, 20 + 11 * max(1 + head.count("\n") for head in heads.values())
    width, height = 40 + ACROSS * (room + gap), 16 + -(-len(series) // ACROSS) * (tall + low) + 40
    with _paper(title, width, height) as figure:
        figure.text(6 / width, 1 - 16 / height, title, fontsize=10.5)
        for number, (at, band) in enumerate(series.items()):
            row, column = divmod(number, ACROSS)
            axes = _place(figure, 40 + column * (room + gap), 16 + low + row * (tall + low), room, tall)
            for other in series.values():
                axes.plot(other.times, other.mean, color=plots.FAINT, alpha=0.3, linewidth=0.6)
            to = references[at]
            if to is not None and to in series and to != at:
                reference = series[to]
                axes.plot(reference.times, reference.mean, color=plots.INK, linewidth=1, linestyle=(0, (3, 2)))
            _line(axes, band, plots.ARMS[0])
            _framed(axes, series.values())
            axes.set_title(heads[at], loc="left", fontsize=8.5, pad=4)
            axes.tick_params(labelsize=8)
            if number + ACROSS >= len(series):
                axes.set_xlabel("iterations", fontsize=8.5)
        return _drawn(figure, title)


def _line(axes: Axes, band: Band, colour: str) -> None:
    dot: dict[str, Any] = {"marker": "o", "clip_on": False} if len(band.times) == 1 else {}
    axes.plot(band.times, band.mean, color=colour, linewidth=1.5, **dot)
    if band.spread.any():
        low, high = band.mean - band.spread, band.mean + band.spread
        axes.fill_between(band.times, low, high, color=colour, alpha=0.16, linewidth=0)


def _framed(axes: Axes, bands: Collection[Band]) -> None:
    """Where axes end: the first quarter of the evaluations, the steep start, does not count."""
    late = [(band.mean[len(band.mean) // 4 :], band.spread[len(band.mean) // 4 :]) for band in bands]
    low = min(float((mean - spread).min()) for mean, spread in late)
    high = max(float((mean + spread).max()) for mean, spread in late)
    pad = max(0.06 * (high - low), 0.005 * max(abs(low), abs(high)), 1e-12)
    axes.set_ylim(low - pad, high + pad)
    axes.set_xlim(0, max(1, *(int(band.times[-1]) for band in bands)))
    axes.xaxis.set_major_locator(MaxNLocator(3, integer=True, steps=[1, 2, 2.5, 5, 10]))
    axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
