"""`fcurr compare`: the folders of runs in; tables, figures and a page out."""

import re
import textwrap
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.resources import files as resources
from io import BytesIO
from math import floor, log10
from pathlib import Path
from typing import Any, Literal, NamedTuple

import matplotlib
import numpy as np
import pyarrow
import pyarrow.csv
import pyarrow.parquet
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy import ndarray

from fcurr.errors import BadInput
from fcurr.io import files, plots, store
from fcurr.study import comparing
from fcurr.study.comparing import (
    REPEATS,
    Aggregate,
    Grouping,
    Interval,
    Result,
    Row,
    Table,
    Which,
    label,
    listed,
    shown,
)
from fcurr.study.near import near

SHARES = ("accuracy", "balanced_accuracy", "top_accuracy", "exact_match")  # metrics that are shown in %
TIMES = {"last": "at the end", "best": "best on validation"}
NONE = "-"  # in a table
MOST, TOGETHER, ACROSS = 48, 8, 4  # groups in a figure; curves in one panel; panels in a row
DOTS = 200  # [1/inch] of a PNG


class Run(NamedTuple):
    name: str  # what tells its folder from the others
    folder: Path
    found: dict[str, Any]  # results.json


class Sheet(NamedTuple):
    """A table in words."""

    title: str
    header: list[str]
    rows: list[list[str]]
    labels: int  # how many columns are words; the others are numbers
    bold: set[tuple[int, int]]  # (row, column)


class Scale(NamedTuple):
    """How values of a metric are written."""

    factor: int  # 100 for shares
    form: str  # of format()
    unit: str  # "%", or nothing
    apart: str  # of a difference: "points", or nothing

    def __call__(self, value: float | None, sign: str = "") -> str:
        return NONE if value is None else format(self.factor * value, f"{sign}z{self.form}")

    def between(self, interval: Interval | None, sign: str = "") -> str:
        return NONE if interval is None else f"[{self(interval.low, sign)}, {self(interval.high, sign)}]"


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


def compare(
    folders: Sequence[Path],
    *,
    by: Sequence[str] = (),
    across: str | None = None,
    over: Sequence[str] = (),
    repeats: Sequence[str] = REPEATS,
    where: Sequence[str] = (),
    against: Sequence[str] = (),
    metric: str | None = None,
    higher: bool | None = None,
    which: Literal["last", "best", "both"] = "both",
    aggregate: Aggregate = "mean",
    to: Path | None = None,
) -> list[str]:
    """The lines to print; and everything as files in the folder `to`, if it is given."""
    runs = read(folders)
    metric, higher = chosen(runs, metric, higher)
    members = results(runs)
    kept = comparing.kept(members, where)
    found = comparing.grouping(kept, by=by, over=[*over, *([across] if across else [])], repeats=repeats)
    if across:
        found = Grouping((*found.by, across), tuple(key for key in found.over if key != across), found.repeats)
    tables = [
        comparing.table(kept, found, metric=metric, which=one, higher=higher, aggregate=aggregate, against=against)
        for one in ("last", "best")
        if which in (one, "both")
    ]
    scale = scaled(tables)
    plain = [sheet(table, scale) for table in tables]
    pivots = [pivot(table, scale) for table in tables] if across else []
    notes = ([f"Only members with {listed(where, 'and')}."] if where else []) + together(tables)
    text = [line for made in pivots or plain for line in (made.title, "", *markdown(made), "")]
    if to is None:
        return [*text, *notes]
    to.mkdir(parents=True, exist_ok=True)
    sheets = [*pivots, *plain]
    write_table(to / "comparison", rows(tables))
    write_table(to / "members", listing(kept))
    page = [line for made in sheets for line in (f"## {made.title}", "", *markdown(made), "")]
    files.write(to / "comparison.md", "\n".join([*page, *(f"- {note}" for note in notes)]).rstrip() + "\n")
    files.write(to / "comparison.tex", "\n\n".join(latex(made) for made in sheets) + "\n")
    drawn = {
        "differences": differences(tables, scale),
        "curves": curves(runs, kept, found, tables[0], scale),
    }
    for name, drawing in drawn.items():
        for suffix in (".svg", ".png"):
            (to / f"{name}{suffix}").unlink(missing_ok=True)
        if drawing is not None:
            files.write(to / f"{name}.svg", drawing.alone())
            files.write(to / f"{name}.png", drawing.png)
    files.write(to / "comparison.html", render(runs, found, tables, sheets, notes, drawn, scale, len(kept)))
    return [*text, *notes, f"report: {to / 'comparison.html'}"]


def read(folders: Sequence[Path]) -> list[Run]:
    """What the runs found, named by the shortest ends of their paths that differ."""
    whole = [folder.resolve() for folder in folders]
    for at, folder in enumerate(whole):
        if folder in whole[:at]:
            raise BadInput(f"{folders[at]} is given twice")
    depth = 1
    while len({path.parts[-depth:] for path in whole}) < len(whole):
        depth += 1
    return [
        Run("/".join(path.parts[-depth:]), folder, _results(folder))
        for path, folder in zip(whole, folders, strict=True)
    ]


def _results(folder: Path) -> dict[str, Any]:
    if not folder.is_dir():
        raise BadInput(f"{folder} is not a folder")
    if not (folder / store.RESULTS).exists():
        inner = sorted(path.parent for path in folder.glob(f"*/{store.RESULTS}"))
        there = sorted(path.name for path in folder.iterdir() if path.name[0] != ".")
        if inner:
            hint = f"its folders have: fcurr compare {' '.join(map(str, inner[:3]))}{' ...' if len(inner) > 3 else ''}"
        elif store.CONFIG in there:
            hint = f"the run is not finished; to go on: fcurr resume {folder}"
        else:
            hint = f"it holds {listed(there, 'and')}" if there else "it is empty"
        raise BadInput(f"{folder} has no {store.RESULTS}: {hint}")
    found = store.read_json(folder / store.RESULTS)
    if not {"metric", "higher", "members"} <= found.keys() or not found["members"]:
        raise BadInput(f"{folder / store.RESULTS} holds no members: it was written by another version, or by hand")
    return found


def chosen(runs: Sequence[Run], metric: str | None, higher: bool | None) -> tuple[str, bool]:
    """The metric to compare, and whether more of it is better."""
    own = [{name for m in run.found["members"] for at in ("last", "best") for name in m[at]} for run in runs]
    there, name = sorted(set.union(*own)), metric or _tracked(runs, own)
    if name not in there:
        raise BadInput(f"no member has the metric `{name}`{near(name, there)}; there are {', '.join(there)}")
    points = {run.found["metric"]: bool(run.found["higher"]) for run in runs}
    told = higher if higher is not None else points[name] if name in points else _direction(name)
    if told is None:
        raise BadInput(f"it is not known which way {name} points: say --higher or --lower")
    return name, told


def _tracked(runs: Sequence[Run], own: Sequence[set[str]]) -> str:
    tracked = {run.found["metric"]: run.name for run in reversed(runs)}
    if len(tracked) == 1:
        return runs[0].found["metric"]
    said = ", ".join(f"{name} tracks {kind}" for kind, name in reversed(tracked.items()))
    both = sorted(set.intersection(*own))
    hint = f"choose one that all have with --metric: {listed(both, 'or')}" if both else "they have no metric in common"
    raise BadInput(f"{said}; {hint}")


def _direction(metric: str) -> bool | None:
    """Whether more is better, of the loss and of fcurr's own metrics, whose names options may follow."""
    if metric == "loss":
        return False
    from fcurr import metrics  # torch, which nothing else here needs
    from fcurr.study import units

    own = [name for name in vars(metrics) if metric == name or metric.startswith(f"{name}_")]
    found = units.direction(units.hints(getattr(metrics, max(own, key=len))).get("return")) if own else None
    return None if found is None else found.higher


def results(runs: Sequence[Run]) -> list[Result]:
    """All members; of several runs, the name of theirs is one more key."""
    found = []
    for at, run in enumerate(runs):
        for place, member in enumerate(run.found["members"]):
            other = ("member", "iterations", "best_iteration", "last", "best")
            keys = {"run": run.name} if len(runs) > 1 else {}
            keys |= {key: value for key, value in member.items() if key not in other}
            numbers: dict[Which, dict[str, float | None]] = {"last": member["last"], "best": member["best"]}
            found.append(Result((at, member.get("member", place)), keys, numbers))
    return found


def rows(tables: Sequence[Table]) -> list[dict[str, Any]]:
    """A line a group and moment, for programs."""
    return [
        {
            "metric": table.metric,
            "parameters": table.which,
            **row.keys,
            "n": row.n,
            "mean": row.mean,
            "deviation": row.deviation,
            "low": row.interval and row.interval.low,
            "high": row.interval and row.interval.high,
            "rank": row.rank,
            "reference": None if row.reference is None else label(table.rows[row.reference].keys),
            "pairs": row.pairs,
            "difference": row.difference,
            "difference_low": row.apart and row.apart.low,
            "difference_high": row.apart and row.apart.high,
        }
        for table in tables
        for row in table.rows
    ]


def listing(members: Sequence[Result]) -> list[dict[str, Any]]:
    """A line a member, for programs."""
    return [
        {
            **member.keys,
            **{f"{at}_{name}": value for at, found in member.numbers.items() for name, value in found.items()},
        }
        for member in comparing.in_order(members)
    ]


def write_table(path: Path, lines: Sequence[Mapping[str, Any]]) -> None:
    """As .csv and as .parquet. A column of numbers holds numbers, any other words; what is not there is empty."""
    columns = {}
    for key in dict.fromkeys(key for line in lines for key in line):
        values = [line.get(key) for line in lines]
        numeric = all(v is None or (isinstance(v, int | float) and not isinstance(v, bool)) for v in values)
        if any(isinstance(v, float) for v in values):
            values = [None if v is None else float(v) for v in values] if numeric else values
        kind = None if numeric and any(v is not None for v in values) else pyarrow.string()
        columns[key] = pyarrow.array(
            values if kind is None else [None if v is None else shown(v) for v in values], kind
        )
    table = pyarrow.table(columns)
    text, bits = BytesIO(), BytesIO()
    pyarrow.csv.write_csv(table, text)
    pyarrow.parquet.write_table(table, bits)
    files.write(path.with_suffix(".csv"), text.getvalue())
    files.write(path.with_suffix(".parquet"), bits.getvalue())


def scaled(tables: Sequence[Table]) -> Scale:
    """Two decimals of a %, or four digits of the largest mean."""
    if tables[0].metric in SHARES:
        return Scale(100, ".2f", "%", "points")
    means = [abs(row.mean) for table in tables for row in table.rows if row.mean]
    size = floor(log10(max(means))) if means else 0
    return Scale(1, f",.{max(0, 3 - size)}f" if -5 < size < 9 else ".3e", "", "")


def titled(table: Table, scale: Scale) -> str:
    return f"Test {spoken(table)}{f', {scale.unit}' if scale.unit else ''}, {TIMES[table.which]}"


def spoken(table: Table) -> str:
    return table.metric.replace("_", " ")


def together(tables: Sequence[Table]) -> list[str]:
    """The notes, once each; those that hold for one table only say so."""
    common = [note for note in tables[0].notes if all(note in table.notes for table in tables)]
    own = [f"{TIMES[t.which].capitalize()}: {n}" for t in tables for n in t.notes if n not in common]
    return common + own


def sheet(table: Table, scale: Scale) -> Sheet:
    """Keys, and what is known of each group."""
    to = {row.reference for row in table.rows if row.reference is not None}
    to_whom = label(table.rows[min(to)].keys) if len(to) == 1 else "its reference"
    header = ["n", "mean ± deviation", "95 % interval", "mean rank", f"difference to {to_whom}"]
    lines = []
    for at, row in enumerate(table.rows):
        apart = "reference" if row.reference == at else scale(row.difference, "+")
        apart += f" {scale.between(row.apart, '+')}" if row.apart else ""
        rank = NONE if row.rank is None else f"{row.rank:.2f}"
        numbers = [str(row.n), _spread(row, scale), scale.between(row.interval), rank, apart]
        lines.append([*map(shown, row.keys.values()), *numbers])
    keys = list(table.rows[0].keys)
    many = len(table.rows) > 1
    bold = {(at, len(keys) + 1) for at, row in enumerate(table.rows) if row.best and many}
    return Sheet(
        titled(table, scale),
        [*keys, *(header if many else header[:3])],
        lines if many else [line[: len(keys) + 3] for line in lines],
        len(keys),
        bold,
    )


def pivot(table: Table, scale: Scale) -> Sheet:
    """The last key across, the others down; a cell a group. The best of each column is bold."""
    *down, across = table.rows[0].keys
    heads = list(dict.fromkeys(shown(row.keys[across]) for row in table.rows))
    cells: dict[tuple[str, ...], dict[str, Row]] = {}
    for row in table.rows:
        cells.setdefault(tuple(shown(row.keys[key]) for key in down), {})[shown(row.keys[across])] = row
    lines, bold = [], set()
    for at, (keys, own) in enumerate(cells.items()):
        lines.append([*keys, *(_spread(own[head], scale) if head in own else NONE for head in heads)])
        for column, head in enumerate(heads):
            rivals = [other[head].mean for other in cells.values() if head in other]
            means = [mean for mean in rivals if mean is not None]
            if head in own and len(means) > 1 and own[head].mean == (max if table.higher else min)(means):
                bold.add((at, len(down) + column))
    title = f"{titled(table, scale)}: mean ± deviation by {across}"
    return Sheet(title, [*down, *heads], lines, len(down), bold)


def _spread(row: Row, scale: Scale) -> str:
    return scale(row.mean) if row.deviation is None else f"{scale(row.mean)} ± {scale(row.deviation)}"


def markdown(made: Sheet) -> list[str]:
    """A table that is even in a terminal as well."""
    lines = [[_quiet(cell) for cell in line] for line in (made.header, *made.rows)]
    for row, column in made.bold:
        lines[row + 1][column] = f"**{lines[row + 1][column]}**"
    widths = [max(3, *(len(line[at]) for line in lines)) for at in range(len(made.header))]
    left = [at < made.labels for at in range(len(widths))]
    rule = [f"{'-' * width}" if first else f"{'-' * (width - 1)}:" for width, first in zip(widths, left, strict=True)]
    filled = [
        [
            cell.ljust(width) if first else cell.rjust(width)
            for cell, width, first in zip(line, widths, left, strict=True)
        ]
        for line in lines
    ]
    return [f"| {' | '.join(line)} |" for line in (filled[0], rule, *filled[1:])]


def _quiet(text: str) -> str:
    """What Markdown would take for its own, as it is."""
    return re.sub(r"([\\|*`<~]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9]))", r"\\\1", text).replace("\n", " ")


LATEX = {
    **{letter: rf"\{letter}" for letter in "&%$#_{}"},
    **{"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$"},
    **{"[": "{[}", "]": "{]}", "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}", "\n": " "},
}  # a [ at the beginning of a line would be an option of the line before


def latex(made: Sheet) -> str:
    """A table for the package booktabs."""

    def line(cells: Sequence[str], at: int | None = None) -> str:
        texts = [_escaped(cell, at is not None and column >= made.labels) for column, cell in enumerate(cells)]
        for column in range(len(texts)):
            texts[column] = rf"\textbf{{{texts[column]}}}" if (at, column) in made.bold else texts[column]
        return rf"{' & '.join(texts)} \\"

    return "\n".join(
        [
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{_escaped(made.title)}}}",
            rf"\begin{{tabular}}{{{'l' * made.labels}{'r' * (len(made.header) - made.labels)}}}",
            r"\toprule",
            line(made.header),
            r"\midrule",
            *(line(cells, at) for at, cells in enumerate(made.rows)),
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
        ]
    )


def _escaped(text: str, number: bool = False) -> str:
    """Text for LaTeX; a minus before a digit is one in a number."""
    said = "".join(LATEX.get(letter, letter) for letter in text)
    return re.sub(r"-(?=\d)", "$-$", said) if number else said


# figures


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
    svg, png = plots._svg(figure, meaning), BytesIO()
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
    first, names = tables[0], comparing.short([row.keys for row in tables[0].rows])
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
    runs: Sequence[Run], members: Sequence[Result], found: Grouping, table: Table, scale: Scale
) -> Drawing | None:
    """The metric on validation samples over iterations: lines for means over members, bands of one deviation. Few
    groups share a panel; of many, each has its own, with the others in grey behind."""
    lines: dict[tuple[int, int], list[dict[str, Any]]] = {}
    for at, run in enumerate(runs):
        for row in store.metrics(run.folder):
            lines.setdefault((at, row["member"]), []).append({**row, "place": (at, row["member"])})
    name, grouped = f"validation_{table.metric}", comparing.groups(members, found.by)
    series: dict[int, Band] = {}
    for at in _leading(table):
        own = (row for result in grouped[at][1] for row in lines.get(result.place, []))
        times, values = comparing.curve(own, name)
        mean, spread = plots.moments(scale.factor * values) if values.size else (np.array([]), np.array([]))
        there = plots.thin(np.flatnonzero(np.isfinite(mean)))
        if len(there):
            series[at] = Band(times[there], mean[there], spread[there])
    if not series:
        return None
    title = f"Validation {spoken(table)}{f' ({scale.unit})' if scale.unit else ''}"
    names = comparing.short([row.keys for row in table.rows])
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


# the page


def reading(table: Table, scale: Scale) -> str:
    """What the table says, in careful sentences."""
    tops = [row for row in table.rows if row.best]
    if not tops:
        return f"No group has a finite {spoken(table)}."
    best, unit = tops[0], f" {scale.unit}" if scale.unit else ""
    when = "At the end" if table.which == "last" else "With the parameters that are best on validation"
    most = "highest" if table.higher else "lowest"
    over = f"mean of {best.n}, standard deviation {scale(best.deviation)}" if best.n > 1 else "of one"
    value = f"{scale(best.mean)}{unit} ({over})"
    if len(table.rows) == 1:
        return f"{when}, test {spoken(table)} is {value}."
    who = listed((label(row.keys) for row in tops), "and")
    said = f"{when}, {who} {'have' if len(tops) > 1 else 'has'} the {most} test {spoken(table)}: {value}."
    if best.reference is None or best.difference is None:
        return said
    reference = label(table.rows[best.reference].keys)
    apart = f"{scale(abs(best.difference))}{f' {scale.apart}' if scale.apart else ''}"
    side = "above" if best.difference > 0 else "below" if best.difference < 0 else "from"
    said += f" That is {apart} {side} {reference}"
    if best.apart is None:
        return f"{said}; with one pair there is no telling whether that is more than chance."
    chance = best.apart.low <= 0 <= best.apart.high
    so = "which holds 0, so it may well be chance" if chance else "which does not hold 0"
    return f"{said}, 95 % interval of the difference {scale.between(best.apart, '+')}, {so}."


def render(
    runs: Sequence[Run],
    found: Grouping,
    tables: Sequence[Table],
    sheets: Sequence[Sheet],
    notes: Sequence[str],
    drawn: Mapping[str, Drawing | None],
    scale: Scale,
    members: int,
) -> str:
    """The page, which needs nothing else."""
    page = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    facts = {
        "runs": ", ".join(run.name for run in runs),
        "members": f"{members:,}",
        "groups": f"{len(tables[0].rows):,}, by {listed(found.by, 'and')}",
        "repeats": listed(found.repeats, "and") or "none",
        "better": f"{'higher' if tables[0].higher else 'lower'} {spoken(tables[0])}",
    }
    return page.from_string(resources("fcurr.io").joinpath("comparison.html").read_text(encoding="utf-8")).render(
        title=f"Test {spoken(tables[0])} of {', '.join(run.name for run in runs)}",
        lead=[reading(table, scale) for table in tables],
        facts=facts,
        sheets=sheets,
        notes=notes,
        figures={name: Markup(drawing.svg) for name, drawing in drawn.items() if drawing is not None},
        shown=min(len(tables[0].rows), MOST),
        groups=len(tables[0].rows),
        together=TOGETHER,
        palette=plots.PALETTE,
    )
