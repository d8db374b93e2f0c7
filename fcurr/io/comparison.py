"""`fcurr compare`: the folders of runs in; tables, figures and a page out."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from fcurr.errors import BadInput
from fcurr.io import comparison_page, figures, files, sheets, store
from fcurr.study import comparing, grouping
from fcurr.study.comparing import Aggregate
from fcurr.study.grouping import REPEATS, Grouping, Result, Which
from fcurr.study.near import near
from fcurr.study.words import listed


class Run(NamedTuple):
    name: str  # what tells its folder from the others
    folder: Path
    found: dict[str, Any]  # results.json


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
    kept = grouping.kept(members, where)
    found = grouping.grouping(kept, by=by, over=[*over, *([across] if across else [])], repeats=repeats)
    if across:
        found = Grouping((*found.by, across), tuple(key for key in found.over if key != across), found.repeats)
    tables = [
        comparing.table(kept, found, metric=metric, which=one, higher=higher, aggregate=aggregate, against=against)
        for one in ("last", "best")
        if which in (one, "both")
    ]
    scale = sheets.scaled(tables)
    plain = [sheets.sheet(table, scale) for table in tables]
    pivots = [sheets.pivot(table, scale) for table in tables] if across else []
    notes = ([f"Only members with {listed(where, 'and')}."] if where else []) + sheets.together(tables)
    text = [line for made in pivots or plain for line in (made.title, "", *sheets.markdown(made), "")]
    if to is None:
        return [*text, *notes]
    to.mkdir(parents=True, exist_ok=True)
    made = [*pivots, *plain]
    sheets.write_table(to / "comparison", sheets.rows(tables))
    sheets.write_table(to / "members", sheets.listing(kept))
    page = [line for one in made for line in (f"## {one.title}", "", *sheets.markdown(one), "")]
    files.write(to / "comparison.md", "\n".join([*page, *(f"- {note}" for note in notes)]).rstrip() + "\n")
    files.write(to / "comparison.tex", "\n\n".join(map(sheets.latex, made)) + "\n")
    drawn = {
        "differences": figures.differences(tables, scale),
        "curves": figures.curves([run.folder for run in runs], kept, found, tables[0], scale),
    }
    for name, drawing in drawn.items():
        for suffix in (".svg", ".png"):
            (to / f"{name}{suffix}").unlink(missing_ok=True)
        if drawing is not None:
            files.write(to / f"{name}.svg", drawing.alone())
            files.write(to / f"{name}.png", drawing.png)
    names = [run.name for run in runs]
    html = comparison_page.render(names, found, tables, made, notes, drawn, scale, len(kept))
    files.write(to / "comparison.html", html)
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
