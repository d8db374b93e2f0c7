"""Groups of trained members compared over seeds: means with intervals, ranks, and paired differences.

A member has keys (its run, its arm, its axes) and numbers. `by` names the keys whose values make a group, `repeats`
those that only repeat it, such as the seed. What varies besides is aggregated within a repeat first, so that members
that share a seed do not count as several. A repeat of a group is then one number: numbers are averaged and resampled
over repeats, ranked within each, and groups are paired by them.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from math import isfinite
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy import ndarray
from scipy import stats

from fcurr.errors import BadInput
from fcurr.study.grouping import Grouping, Result, Which, groups, in_order, same
from fcurr.study.near import near
from fcurr.study.words import REFERENCES, label, listed, shown, words

CONFIDENCE, RESAMPLES = 0.95, 9999
AGGREGATES = {"mean": np.mean, "median": np.median, "max": np.max, "min": np.min}
Aggregate = Literal["mean", "median", "max", "min"]
Repeat = tuple[str, ...]  # the values of the repeats' keys, in words
Curve = tuple[ndarray, ndarray]  # iterations [evaluation], values [evaluation, member]


class Interval(NamedTuple):
    low: float
    high: float


class Row(NamedTuple):
    """A group. None stands for what cannot be known."""

    keys: dict[str, Any]  # of `by`; None where the group's members have no such key
    n: int  # repeats with a finite number
    mean: float | None
    deviation: float | None  # sample standard deviation (n - 1)
    interval: Interval | None  # of the mean
    rank: float | None  # the mean over repeats; 1 is best, ties share the average of their places
    reference: int | None  # the row it is compared with, which may be itself
    pairs: int  # repeats that both have
    difference: float | None  # the mean over pairs of its number less the reference's
    apart: Interval | None  # of the difference
    best: bool  # no group has a better mean


class Table(NamedTuple):
    metric: str
    which: Which
    higher: bool  # is better
    rows: list[Row]
    notes: list[str]  # what a reader of the numbers has to know


def repeated(
    results: Sequence[Result], repeats: Sequence[str], *, metric: str, which: Which, aggregate: Aggregate = "mean"
) -> dict[Repeat, float]:
    """The group's number in each repeat; members without a finite one are left out."""
    found: dict[Repeat, list[float]] = {}
    for result in in_order(results):
        if (value := _number(result, metric, which)) is not None:
            found.setdefault(_repeat(result, repeats), []).append(value)
    return {repeat: float(AGGREGATES[aggregate](found[repeat])) for repeat in sorted(found)}


def interval(values: ndarray) -> Interval | None:
    """Percentile bootstrap interval of the mean of values [n], from the same resamples each time; None of one. (Efron
    and Tibshirani, 1993, section 13.3. BCa covers no better for a handful, and is not defined where all are equal.)"""
    if len(values) < 2:
        return None
    found = stats.bootstrap(
        (values,),
        np.mean,
        n_resamples=RESAMPLES,
        batch=max(1, 10**7 // len(values)),
        confidence_level=CONFIDENCE,
        method="percentile",
        rng=np.random.default_rng(0),
    )
    return Interval(float(found.confidence_interval.low), float(found.confidence_interval.high))


def paired(own: Mapping[Repeat, float], other: Mapping[Repeat, float]) -> ndarray:
    """[pair] differences, own less other, of the repeats that both have, in the order of `own`."""
    return np.array([own[repeat] - other[repeat] for repeat in own if repeat in other])


def ranks(columns: Sequence[Mapping[Repeat, float]], higher: bool) -> list[float | None]:
    """The mean rank of each group over repeats, among the groups that have a number there; alone, it has none."""
    places: list[list[float]] = [[] for _ in columns]
    for repeat in sorted({repeat for column in columns for repeat in column}):
        there = [at for at, column in enumerate(columns) if repeat in column]
        if len(there) > 1:
            values = np.array([columns[at][repeat] for at in there])
            for at, rank in zip(there, stats.rankdata(-values if higher else values), strict=True):
                places[at].append(float(rank))
    return [float(np.mean(own)) if own else None for own in places]


def references(rows: Sequence[Mapping[str, Any]], against: Sequence[str] = ()) -> list[int | None]:
    """The row that each row (its keys) is compared with. `against` says which can be: key=value, or a value, or a whole
    name; else it is plain or random training, and where there is neither, nothing is compared. If one row is that, it
    serves all; if several, each row takes the one with which it shares all other keys, or none. A key that the wanted
    ones tell, as an arm tells its weighting, is no other key."""
    wanted = _wanted(rows, against)
    if not wanted:
        return [None] * len(rows)
    fitting = [at for at, keys in enumerate(rows) if all(shown(keys[key]) == text for key, text in wanted.items())]
    if len(fitting) == 1:
        return [fitting[0]] * len(rows)
    if not fitting:
        raise BadInput(f"there is no group {', '.join(against)} to compare with; there are {listed(map(label, rows))}")
    tell = [tuple(shown(keys[key]) for key in wanted) for keys in rows]
    pairs = {key: {(told, shown(keys[key])) for told, keys in zip(tell, rows, strict=True)} for key in rows[0]}
    other = [key for key, known in pairs.items() if len(known) > len(set(tell))]
    rest = [tuple(shown(keys[key]) for key in other) for keys in rows]
    counterparts = {rest[at]: at for at in fitting}
    return [counterparts.get(keys) for keys in rest]


def _wanted(rows: Sequence[Mapping[str, Any]], against: Sequence[str]) -> dict[str, str]:
    """Key -> value in words, of the references."""
    if not against:
        plain = [(key, name) for name in REFERENCES for key in rows[0] for row in rows if shown(row[key]) == name]
        return dict(plain[:1])
    wanted: dict[str, str] = {}
    for text in against:
        key, _, value = text.partition("=")
        whole = [row for row in rows if label(row) == text]
        named = [(key, row[key]) for row in rows if key in row and same(value, row[key])]
        pairs = named or [(k, v) for row in rows for k, v in row.items() if same(text, v)]
        if not whole and not pairs:
            known = [label(row) for row in rows]
            guess = near(text, dict.fromkeys([*known, *(shown(value) for row in rows for value in row.values())]))
            raise BadInput(f"there is no group `{text}` to compare with{guess}; there are {listed(known)}")
        wanted |= {k: shown(v) for k, v in (whole[0].items() if whole else pairs[:1])}
    return wanted


def table(
    results: Sequence[Result],
    found: Grouping,
    *,
    metric: str,
    which: Which,
    higher: bool,
    aggregate: Aggregate = "mean",
    against: Sequence[str] = (),
) -> Table:
    """A row a group."""
    grouped = groups(results, found.by)
    columns = [repeated(own, found.repeats, metric=metric, which=which, aggregate=aggregate) for _, own in grouped]
    compared = references([keys for keys, _ in grouped], against)
    means = [float(np.mean(list(column.values()))) if column else None for column in columns]
    known = [mean for mean in means if mean is not None]
    best = (max if higher else min)(known, default=None)
    rows = []
    for at, ((keys, _), rank) in enumerate(zip(grouped, ranks(columns, higher), strict=True)):
        values, reference = np.array(list(columns[at].values())), compared[at]
        apart = paired(columns[at], columns[reference]) if reference not in (None, at) else np.array([])
        row = Row(
            keys=keys,
            n=len(values),
            mean=means[at],
            deviation=float(values.std(ddof=1)) if len(values) > 1 else None,
            interval=interval(values),
            rank=rank,
            reference=reference,
            pairs=len(apart),
            difference=float(apart.mean()) if len(apart) else None,
            apart=interval(apart),
            best=means[at] is not None and means[at] == best,
        )
        rows.append(row)
    made = Table(metric, which, higher, rows, [])
    return made._replace(notes=_notes(made, found, grouped, columns, aggregate))


def _notes(
    made: Table, found: Grouping, grouped: list, columns: list[dict[Repeat, float]], aggregate: str
) -> list[str]:
    """What the numbers do not say."""
    said, rows, again = [], made.rows, words(found.repeats)
    if found.over:
        inside = f"Within each {again}, the" if found.repeats else "Each number is the"
        took = f"{aggregate} over {listed(found.over, 'and')}"
        said.append(f"{inside} {took} is taken first." if found.repeats else f"{inside} {took}.")
        counts = [Counter(_repeat(result, found.repeats) for result in own).values() for _, own in grouped]
        least, most = min(map(min, counts)), max(map(max, counts))
        if least < most:
            said.append(f"Not all of them are over as many members: from {least} to {most}.")
        if aggregate == ("max" if made.higher else "min"):
            said.append("That chooses by the test samples, so the numbers are too good.")
    lost = []
    for keys, own in grouped:
        if out := [r for r in own if _number(r, made.metric, made.which) is None]:
            which = f": {listed((_called(r, found) for r in out), 'and')}" if found.repeats or found.over else ""
            lost.append(f"{label(keys)} ({len(out)} of {len(own)}{which})")
    if lost:
        said.append(
            f"Members without a finite {made.metric} are left out, which flatters their groups: {'; '.join(lost)}."
        )
    partial, alone = [], []
    for at, row in enumerate(rows):
        if row.reference is None:
            alone.append(label(row.keys))
        elif row.reference != at and row.pairs < max(row.n, rows[row.reference].n):
            partial.append(f"{label(row.keys)} ({row.pairs} of {max(row.n, rows[row.reference].n)})")
    if len(alone) == len(rows) > 1:
        said.append("Nothing is called plain or random, so no group is compared with another: --against names one.")
    elif alone and len(rows) > 1:
        said.append(f"There is no group to compare with for {listed(alone, 'and')}.")
    if partial:
        said.append(f"Differences are over the pairs there are, which is not every {again}: {'; '.join(partial)}.")
    if len(columns) > 1 and any(column.keys() != columns[0].keys() for column in columns):
        said.append(f"Not every group has a number for every {again}: there, ranks are among fewer.")
    sizes = [row.n for row in rows if row.n]
    if sizes and max(sizes) == 1:
        said.append(f"With one {again} a group there is no telling what is more than chance.")
    elif sizes and min(size for size in sizes if size > 1) < 10:
        said.append(
            "Bootstrap intervals of few repeats are too narrow: of 5, a 95 % interval holds the truth in about "
            "84 of 100 cases, of 10 in about 90."
        )
    if "split.fold" in found.repeats and len({repeat for column in columns for repeat in column}) > 1:
        said.append("Folds share training samples: intervals over them are too narrow.")
    if (tried := sum(row.apart is not None for row in rows)) > 4:
        said.append(f"{tried} differences are looked at: one in twenty 95 % intervals misses 0 by chance alone.")
    return said


def curve(rows: Iterable[Mapping[str, Any]], name: str) -> Curve:
    """Of rows with "place" (of the member), "iteration" and a number, which may be None: a column a member, which keeps
    its last value until it has another; nan before the first."""
    own = sorted((row for row in rows if name in row), key=lambda row: (row["place"], row["iteration"]))
    times = {time: at for at, time in enumerate(sorted({row["iteration"] for row in own}))}
    members = {place: at for at, place in enumerate(dict.fromkeys(row["place"] for row in own))}
    grid = np.full((len(times), len(members)), np.nan)
    for row in own:
        grid[times[row["iteration"]] :, members[row["place"]]] = np.nan if row[name] is None else row[name]
    return np.array(list(times), dtype=np.int64), grid


def _number(result: Result, metric: str, which: Which) -> float | None:
    value = result.numbers[which].get(metric)
    return value if value is not None and isfinite(value) else None


def _repeat(result: Result, repeats: Sequence[str]) -> Repeat:
    return tuple(shown(result.keys.get(key)) for key in repeats)


def _called(result: Result, found: Grouping) -> str:
    """A member within its group: "seed = 3"."""
    return " ".join(f"{key}={shown(result.keys.get(key))}" for key in (*found.repeats, *found.over))
