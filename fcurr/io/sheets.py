"""Tables of a comparison in words: for a terminal, Markdown and LaTeX; and as CSV and Parquet, for programs."""

import re
from collections.abc import Mapping, Sequence
from io import BytesIO
from math import floor, log10
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow
import pyarrow.csv
import pyarrow.parquet

from fcurr.io import files
from fcurr.study.comparing import Interval, Row, Table
from fcurr.study.grouping import Result, in_order
from fcurr.study.words import SHARES, label, shown

TIMES = {"last": "at the end", "best": "best on validation"}
NONE = "-"  # in a table
LONG = 24  # letters of a name that is not put over a column any more


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
    first = tables[0].rows
    to = {row.reference for row in first if row.reference is not None}
    whole = label(first[min(to)].keys) if len(to) == 1 else ""
    about = [f"Differences are to {whole}."] if len(whole) > LONG else []
    common = [note for note in tables[0].notes if all(note in table.notes for table in tables)]
    own = [f"{TIMES[t.which].capitalize()}: {n}" for t in tables for n in t.notes if n not in common]
    return about + common + own


def sheet(table: Table, scale: Scale) -> Sheet:
    """Keys, and what is known of each group."""
    to = {row.reference for row in table.rows if row.reference is not None}
    to_whom = label(table.rows[min(to)].keys) if len(to) == 1 else "its reference"
    header = ["n", "mean ± deviation", "95 % interval"]
    if len(table.rows) > 1:
        header += ["mean rank", f"difference to {to_whom}" if len(to_whom) <= LONG else "difference"][: 2 if to else 1]
    keys, lines = list(table.rows[0].keys), []
    words = [_column([row.keys[key] for row in table.rows]) for key in keys]
    for at, row in enumerate(table.rows):
        apart = "reference" if row.reference == at else scale(row.difference, "+")
        apart += f" {scale.between(row.apart, '+')}" if row.apart else ""
        rank = NONE if row.rank is None else f"{row.rank:.2f}"
        numbers = [str(row.n), _spread(row, scale), scale.between(row.interval), rank, apart]
        lines.append([*(column[at] for column in words), *numbers[: len(header)]])
    bold = {(at, len(keys) + 1) for at, row in enumerate(table.rows) if row.best and len(table.rows) > 1}
    return Sheet(titled(table, scale), [*keys, *header], lines, len(keys), bold)


def _column(values: Sequence[Any]) -> list[str]:
    """Values of a key in words; numbers of a search to four digits, if these tell them apart."""
    whole = [shown(value) for value in values]
    few = [f"{v:.4g}" if isinstance(v, float) and len(shown(v)) > 6 else shown(v) for v in values]
    return few if len(set(few)) == len(set(whole)) else whole


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
        for member in in_order(members)
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
