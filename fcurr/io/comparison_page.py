"""The page of a comparison: comparison.html, which needs nothing else."""

from collections.abc import Mapping, Sequence
from importlib.resources import files as resources

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from fcurr.io import figures, plots
from fcurr.io.figures import Drawing
from fcurr.io.sheets import Scale, Sheet, spoken
from fcurr.study.comparing import Table
from fcurr.study.grouping import Grouping
from fcurr.study.words import label, listed


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
    runs: Sequence[str],
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
        "runs": ", ".join(runs),
        "members": f"{members:,}",
        "groups": f"{len(tables[0].rows):,}, by {listed(found.by, 'and')}",
        "repeats": listed(found.repeats, "and") or "none",
        "better": f"{'higher' if tables[0].higher else 'lower'} {spoken(tables[0])}",
    }
    return page.from_string(resources("fcurr.io").joinpath("comparison.html").read_text(encoding="utf-8")).render(
        title=f"Test {spoken(tables[0])} of {', '.join(runs)}",
        lead=[reading(table, scale) for table in tables],
        facts=facts,
        sheets=sheets,
        notes=notes,
        figures={name: Markup(drawing.svg) for name, drawing in drawn.items() if drawing is not None},
        shown=min(len(tables[0].rows), figures.MOST),
        groups=len(tables[0].rows),
        together=figures.TOGETHER,
        palette=plots.PALETTE,
    )
