"""Comparisons: laws of tables, and numbers by other means."""

import itertools
import random
import warnings

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

pytest.importorskip("scipy")

from scipy import stats

from fcurr.errors import BadInput
from fcurr.study import comparing, grouping, words
from fcurr.study.comparing import Interval, Table
from fcurr.study.grouping import Grouping, Result

numbers = st.floats(-1e3, 1e3, width=32)
ROOT = {"fn": "root", "power": 2.0, "initial_size": 0.2}


def result(place: int, value: float | None, **keys) -> Result:
    """Of a key with a dot, the name with an underscore twice: split__fold."""
    named = {key.replace("__", "."): given for key, given in keys.items()}
    return Result((0, place), {"arm": "plain", **named}, {"last": {"accuracy": value}, "best": {"accuracy": value}})


def world(values: dict[str, list[float | None]]) -> list[Result]:
    """Arm -> a number a seed."""
    pairs = [(arm, seed, value) for arm, own in values.items() for seed, value in enumerate(own)]
    return [result(place, value, arm=arm, seed=seed) for place, (arm, seed, value) in enumerate(pairs)]


def table(results, *, higher=True, aggregate="mean", against=(), **keys) -> Table:
    found = grouping.grouping(results, **keys)
    return comparing.table(
        results, found, metric="accuracy", which="last", higher=higher, aggregate=aggregate, against=against
    )


@st.composite
def worlds(draw, least=1):
    """Some arms, each with a number for every seed."""
    count = draw(st.integers(least, 6))
    arms = draw(st.lists(st.sampled_from("abcde"), min_size=2, max_size=4, unique=True))
    return {arm: draw(st.lists(numbers, min_size=count, max_size=count)) for arm in arms}


def near(a, b, scale=1.0):
    return a == b or np.allclose(a, b, rtol=1e-9, atol=1e-9 * scale)


@given(values=worlds(), order=st.randoms(use_true_random=False))
def test_the_order_in_which_members_come_does_not_matter(values, order: random.Random):
    members = world(values)
    mixed = list(members)
    order.shuffle(mixed)
    assert table(mixed) == table(members)


@given(values=st.lists(numbers, min_size=2, max_size=12).map(np.array))
def test_an_interval_holds_the_mean_and_lies_among_the_values(values):
    low, high = comparing.interval(values) or (np.nan, np.nan)
    slack = 1e-9 * (1 + abs(values).max())
    assert values.min() - slack <= low <= values.mean() + slack
    assert values.mean() - slack <= high <= values.max() + slack


def test_an_interval_is_the_one_that_all_resamples_give():
    """By enumeration of all 4^4 resamples: no more than 2.5 % of them lie beyond either end, up to chance."""
    values = np.array([0.1, 0.4, 0.5, 2.0])
    means = np.array([np.mean(drawn) for drawn in itertools.product(values, repeat=4)])
    low, high = comparing.interval(values) or (np.nan, np.nan)
    assert (means < low - 1e-9).mean() < 0.03 and (means <= low + 1e-9).mean() > 0.02
    assert (means > high + 1e-9).mean() < 0.03 and (means >= high - 1e-9).mean() > 0.02


def test_equal_values_have_an_interval_without_width_and_one_value_has_none():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert comparing.interval(np.full(5, 0.25)) == Interval(0.25, 0.25)
        assert comparing.interval(np.array([0.25])) is None
        found = table(world({"plain": [0.1, 0.2, 0.3], "b": [0.35, 0.45, 0.55]}))
    apart = found.rows[1].apart
    assert apart is not None and near(apart.low, 0.25) and near(apart.high, 0.25)


@given(values=worlds())
def test_ranks_of_a_complete_table_sum_to_what_places_sum_to(values):
    rows = table(world(values)).rows
    assert near(sum(row.rank or 0 for row in rows), len(rows) * (len(rows) + 1) / 2)


@given(values=worlds(), higher=st.booleans())
def test_ranks_are_one_more_than_those_ahead_and_half_of_those_level(values, higher):
    rows, sign = table(world(values), higher=higher).rows, 1 if higher else -1
    for row in rows:
        own = values[row.keys["arm"]]
        by_hand = [
            1
            + sum(sign * other[seed] > sign * own[seed] for other in values.values())
            + (sum(other[seed] == own[seed] for other in values.values()) - 1) / 2
            for seed in range(len(own))
        ]
        assert near(row.rank, np.mean(by_hand))


@given(values=worlds(least=2))
def test_swapping_a_group_and_its_reference_negates_the_difference_and_its_interval(values):
    first, second = list(values)[:2]
    there, back = (table(world(values), against=[to]).rows for to in (first, second))
    ahead = next(row for row in there if row.keys["arm"] == second)
    behind = next(row for row in back if row.keys["arm"] == first)
    assert ahead.difference == pytest.approx(-(behind.difference or 0), abs=1e-9)
    assert ahead.apart and behind.apart
    assert ahead.apart.low == pytest.approx(-behind.apart.high, abs=1e-6)
    assert ahead.apart.high == pytest.approx(-behind.apart.low, abs=1e-6)


@given(values=worlds(least=2), power=st.integers(-8, 8), flip=st.booleans())
def test_numbers_in_another_unit_give_the_same_table_in_that_unit(values, power, flip):
    """Powers of two are exact; with a minus, lower is better, and what was high is low."""
    factor = -(2.0**power) if flip else 2.0**power
    rows = table(world(values)).rows
    scaled = table(world({k: [factor * v for v in own] for k, own in values.items()}), higher=not flip).rows
    for row, other in zip(rows, scaled, strict=True):
        assert (row.n, row.rank, row.best, row.pairs) == (other.n, other.rank, other.best, other.pairs)
        assert near(other.mean, factor * row.mean) and near(other.deviation, abs(factor) * row.deviation)
        ends = sorted(factor * end for end in row.interval)
        assert other.interval == pytest.approx(tuple(ends), rel=1e-6, abs=1e-6 * abs(factor))


@given(values=worlds(least=2), shifts=st.lists(numbers, min_size=6, max_size=6))
def test_what_all_groups_of_a_seed_share_does_not_change_their_differences(values, shifts):
    moved = {arm: [v + shifts[at] for at, v in enumerate(own)] for arm, own in values.items()}
    first = next(iter(values))
    pairs = zip(table(world(values), against=[first]).rows, table(world(moved), against=[first]).rows, strict=True)
    for row, other in pairs:
        assert (row.difference is None) == (row.keys["arm"] == first)
        if row.difference is not None:
            assert other.difference == pytest.approx(row.difference, abs=1e-6)
            assert other.apart == pytest.approx(row.apart, abs=1e-6)


def test_a_small_table_is_what_is_found_by_hand():
    rows = table(world({"plain": [0.5, 0.6, 0.7], "easy_first": [0.6, 0.6, 0.9], "hard_first": [0.4, 0.7, 0.1]})).rows
    assert [row.keys["arm"] for row in rows] == ["plain", "easy_first", "hard_first"]
    assert [row.mean for row in rows] == pytest.approx([0.6, 0.7, 0.4])
    assert [row.deviation for row in rows] == pytest.approx([0.1, 0.03**0.5, 0.3])
    assert [row.rank for row in rows] == pytest.approx([(2 + 2.5 + 2) / 3, (1 + 2.5 + 1) / 3, (3 + 1 + 3) / 3])
    assert [row.reference for row in rows] == [0, 0, 0]
    assert [row.difference for row in rows] == [None, pytest.approx(0.1), pytest.approx(-0.2)]
    assert [row.pairs for row in rows] == [0, 3, 3] and [row.best for row in rows] == [False, True, False]


def test_intervals_are_those_of_scipy_for_a_mean_and_for_paired_samples():
    a, b = np.array([0.5, 0.6, 0.75, 0.71]), np.array([0.4, 0.7, 0.1, 0.3])
    rows = table(world({"plain": list(b), "a": list(a)})).rows

    def difference(x, y, axis):
        return np.mean(x - y, axis=axis)

    options = {"method": "percentile", "n_resamples": 9999}
    own = stats.bootstrap((a,), np.mean, rng=np.random.default_rng(0), **options)
    both = stats.bootstrap((a, b), difference, paired=True, rng=np.random.default_rng(0), **options)
    assert rows[1].interval == pytest.approx(tuple(own.confidence_interval))
    assert rows[1].apart == pytest.approx(tuple(both.confidence_interval))


def test_the_notes_say_how_often_few_repeats_hold_the_truth():
    draws = np.random.default_rng(0)
    for count, expected in ((5, 0.84), (10, 0.90)):
        drawn = stats.bootstrap(
            (draws.standard_normal((2000, count)),),
            np.mean,
            axis=1,
            n_resamples=999,
            method="percentile",
            rng=np.random.default_rng(0),
        ).confidence_interval
        assert abs(((drawn.low <= 0) & (drawn.high >= 0)).mean() - expected) < 0.02
    (note,) = table(world({"plain": [0.1, 0.2, 0.3]})).notes
    assert note == (
        "Bootstrap intervals of few repeats are too narrow: of 5, a 95 % interval holds the truth in about 84 of 100 "
        "cases, of 10 in about 90."
    )


def test_one_seed_has_a_mean_and_a_difference_and_no_interval():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = table(world({"plain": [0.5], "b": [0.75]}))
    row = found.rows[1]
    assert (row.mean, row.deviation, row.interval, row.difference, row.apart) == (0.75, None, None, 0.25, None)
    assert found.notes == ["With one seed a group there is no telling what is more than chance."]


def test_members_without_a_finite_number_are_left_out_and_counted():
    values = {"plain": [0.5, 0.6, 0.7], "b": [0.6, None, 0.9], "c": [None, float("nan"), float("inf")]}
    found = table(world(values))
    plain, b, c = found.rows
    assert (plain.n, b.n, c.n) == (3, 2, 0) and b.mean == pytest.approx(0.75) and b.pairs == 2
    assert b.difference == pytest.approx(0.15)
    assert (c.mean, c.deviation, c.interval, c.rank, c.difference, c.best) == (None, None, None, None, None, False)
    assert found.notes[:3] == [
        "Members without a finite accuracy are left out, which flatters their groups: b (1 of 3: seed=1); "
        "c (3 of 3: seed=0, seed=1 and seed=2).",
        "Differences are over the pairs there are, which is not every seed: b (2 of 3); c (0 of 3).",
        "Not every group has a number for every seed: there, ranks are among fewer.",
    ]


def test_where_a_group_is_alone_it_has_no_rank():
    members = [result(0, 0.5, seed=0), result(1, 0.7, arm="b", seed=1)]
    assert [row.rank for row in table(members).rows] == [None, None]


def test_groups_are_made_by_all_that_varies_but_for_the_seed_and_folds():
    axes = itertools.product(("plain", "b"), (0.1, 0.01), (0, 1), (0, 1))
    members = [
        result(at, 0.5, arm=arm, optimizer__learning_rate=rate, seed=seed, split__fold=fold, model="mlp")
        for at, (arm, rate, seed, fold) in enumerate(axes)
    ]
    found = grouping.grouping(members)
    assert found == Grouping(("arm", "optimizer.learning_rate"), (), ("seed", "split.fold"))
    rows = table(members).rows
    assert [tuple(row.keys.values()) for row in rows] == [("plain", 0.01), ("plain", 0.1), ("b", 0.01), ("b", 0.1)]
    assert {row.n for row in rows} == {4}
    over = grouping.grouping(members, over=["split.fold", "optimizer.learning_rate"])
    assert over == Grouping(("arm",), ("optimizer.learning_rate", "split.fold"), ("seed",))
    assert grouping.grouping(members, by=["model"]).over == ("arm", "optimizer.learning_rate")
    assert grouping.grouping(members, repeats=["split.fold"]).by == ("arm", "optimizer.learning_rate", "seed")


@pytest.mark.parametrize(("aggregate", "expected"), [("mean", 0.4), ("median", 0.35), ("max", 0.7), ("min", 0.2)])
def test_what_is_aggregated_over_is_one_number_a_seed(aggregate, expected):
    """A seed's values are [0.1, 0.3, 0.6] and [0.3, 0.4, 0.8]: seeds are averaged after that."""
    values = {0: [0.1, 0.3, 0.6], 1: [0.3, 0.4, 0.8]}
    members = [
        result(3 * seed + at, value, seed=seed, rate=at) for seed, own in values.items() for at, value in enumerate(own)
    ]
    expected = {"mean": (1 / 3 + 0.5) / 2}.get(aggregate, expected)
    found = table(members, over=["rate"], aggregate=aggregate)
    assert found.rows[0].n == 2 and found.rows[0].mean == pytest.approx(expected)
    assert found.notes[0] == f"Within each seed, the {aggregate} over rate is taken first."
    assert ("That chooses by the test samples, so the numbers are too good." in found.notes) == (aggregate == "max")
    fewer = table(members[:-1], over=["rate"], aggregate=aggregate)
    assert fewer.notes[1] == "Not all of them are over as many members: from 2 to 3."


@given(values=worlds(least=2), copies=st.integers(2, 3))
def test_members_that_share_a_seed_do_not_count_as_several(values, copies):
    """Copies along an axis that is aggregated over change nothing."""
    members = world(values)
    again = [
        r._replace(place=(0, copies * r.place[1] + at), keys={**r.keys, "copy": at})
        for r in members
        for at in range(copies)
    ]
    for row, other in zip(table(members).rows, table(again, over=["copy"]).rows, strict=True):
        assert row.n == other.n and near(row.mean, other.mean, 1e3) and near(row.deviation, other.deviation, 1e3)


def test_a_single_reference_serves_all_and_of_several_each_group_takes_its_counterpart():
    keys = [("plain", None), ("b", 0.1), ("b", 0.2)]
    single = [result(at, 0.1 * at, arm=arm, **({"rate": rate} if rate else {})) for at, (arm, rate) in enumerate(keys)]
    assert [row.reference for row in table(single).rows] == [0, 0, 0]
    pairs = [("plain", 0.1), ("plain", 0.2), ("b", 0.1), ("b", 0.2), ("b", 0.3)]
    several = [result(at, 0.1 * at, arm=arm, rate=rate) for at, (arm, rate) in enumerate(pairs)]
    found = table(several)
    assert [row.reference for row in found.rows] == [0, 1, 0, 1, None]
    assert "There is no group to compare with for b, rate = 0.3." in found.notes
    for against, expected in {
        ("rate=0.1",): [0, 0, 2, 2, 2],
        ("0.20",): [1, 1, 3, 3, 3],
        ("b", "rate=0.3"): [4] * 5,
        ("b, rate = 0.2",): [3] * 5,
    }.items():
        assert [row.reference for row in table(several, against=against).rows] == expected, against


def test_the_reference_is_plain_or_random_training_or_none():
    def chosen(*arms):
        rows = table(world({arm: [0.1] for arm in arms})).rows
        return next(None if row.reference is None else arms[row.reference] for row in rows)

    assert chosen("a", "random", "plain") == "plain"
    assert chosen("a", "random", "b") == "random"
    assert chosen("b", "a") is None
    note = "Nothing is called plain or random, so no group is compared with another: --against names one."
    assert note in table(world({"b": [0.1, 0.2], "a": [0.1, 0.2]})).notes
    assert note not in table(world({"b": [0.1, 0.2], "a": [0.1, 0.2]}), against=["a"]).notes


def test_an_arm_that_is_named_after_the_order_that_is_swept_makes_no_groups_of_its_own():
    swept = [
        result(at, 0.1 * at, arm=order, curriculum__order={"fn": order} if at % 2 else order, rate=rate, seed=seed)
        for at, (order, rate, seed) in enumerate(itertools.product(("random", "easy_first"), (0.1, 0.2), (0, 1)))
    ]
    found = grouping.grouping(swept)
    assert found == Grouping(("curriculum.order", "rate"), (), ("seed",))
    assert [row.reference for row in table(swept).rows] == [0, 1, 0, 1]
    assert grouping.grouping(swept, by=["arm"]).by == ("arm",)
    assert grouping.grouping(swept, over=["arm"]).over == ("arm",)
    other = [member._replace(keys={**member.keys, "arm": "mine"}) for member in swept[:1]]
    assert grouping.grouping([*swept, *other]).by == ("arm", "curriculum.order", "rate")


def test_what_an_arm_tells_is_no_other_key_that_its_reference_has_to_share():
    axes = itertools.product((("random", None), ("superloss", {"fn": "superloss"})), (0.1, 0.2), (0, 1))
    members = [
        result(at, 0.1, arm=arm, weighting=weighting, rate=rate, seed=seed)
        for at, ((arm, weighting), rate, seed) in enumerate(axes)
    ]
    assert [row.reference for row in table(members).rows] == [0, 1, 0, 1]


def test_values_are_shown_as_people_write_them():
    assert words.shown(ROOT) == "root(initial_size=0.2, power=2)"
    assert [words.shown(value) for value in (None, True, 2.0, 1e-05, [16, 16], {"fn": "none"}, {"a": 1})] == [
        "-",
        "true",
        "2",
        "1e-05",
        "[16, 16]",
        "none",
        "(a=1)",
    ]


def test_names_in_a_figure_are_no_longer_than_tells_them_apart():
    rows = [
        {"arm": "plain", "curriculum.pace": None, "optimizer.rate": None},
        {"arm": "c", "curriculum.pace": ROOT, "optimizer.rate": 0.1},
        {"arm": "c", "curriculum.pace": {"fn": "linear", "initial_size": 0.2}, "optimizer.rate": 0.1},
    ]
    assert words.short(rows) == ["plain", "root, rate = 0.1", "linear, rate = 0.1"]
    rows.append({**rows[1], "curriculum.pace": {**ROOT, "power": 3.0}})
    assert words.short(rows)[1] == "root(initial_size=0.2, power=2), rate = 0.1"
    assert words.short([{"arm": ""}]) == ["all"]


@given(
    keys=st.lists(
        st.tuples(st.sampled_from(["", "plain", "b"]), st.sampled_from([None, "none", 1, 2.5, ROOT, [8]])),
        min_size=1,
        max_size=8,
        unique_by=repr,
    )
)
def test_names_in_a_figure_tell_groups_apart(keys):
    rows = [{"arm": arm, "curriculum.pace": pace} for arm, pace in keys]
    assume(len({words.label(row) for row in rows}) == len(rows))
    assert len(set(words.short(rows))) == len(rows)


def test_conditions_on_a_key_are_alternatives_and_on_several_all_hold():
    members = [result(at, 0.5, arm=arm, rate=rate) for at, (arm, rate) in enumerate(itertools.product("abc", (0.1, 1)))]
    kept = grouping.kept(members, ["arm=a", "arm=b", "rate=1.0"])
    assert [tuple(r.keys.values()) for r in kept] == [("a", 1), ("b", 1)]
    assert grouping.kept(members, []) == members
    paced = [result(0, 0.5, curriculum__pace=ROOT), result(1, 0.5)]
    assert grouping.kept(paced, ["curriculum.pace=root(initial_size=0.2, power=2)"]) == paced[:1]


def test_of_many_names_the_first_are_listed():
    assert words.listed("abc", "and") == "a, b and c" and words.listed(["a"], "and") == "a"
    assert words.listed(["a, b", "c"]) == "a, b; c" and words.listed([]) == ""
    assert words.listed(map(str, range(15))) == "0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11 and 3 more"


def test_a_curve_keeps_the_last_value_of_a_member_and_does_not_know_what_was_before_the_first():
    rows = [
        {"place": (0, 1), "iteration": 20, "loss": 2.0},
        {"place": (0, 0), "iteration": 10, "loss": 1.0},
        {"place": (0, 0), "iteration": 30, "loss": None},
        {"place": (0, 0), "iteration": 40, "other": 7.0},
    ]
    times, values = comparing.curve(rows, "loss")
    assert times.tolist() == [10, 20, 30]
    assert np.array_equal(values, [[1, np.nan], [1, 2], [np.nan, 2]], equal_nan=True)
    assert comparing.curve(rows, "accuracy")[1].size == 0


MEMBERS = [
    result(at, 0.5, arm=arm, seed=seed) for at, (arm, seed) in enumerate(itertools.product(("plain", "b"), (0, 1)))
]
FAULTS = {
    "there is no key `arms` to group by (did you mean `arm`?); there are arm, seed": lambda: grouping.grouping(
        MEMBERS, by=["arms"]
    ),
    "there is no key `sed` to aggregate over (did you mean `seed`?); there are arm, seed": lambda: grouping.grouping(
        MEMBERS, over=["sed"]
    ),
    "there is no key `fold` that repeats a group; there are arm, seed": lambda: grouping.grouping(
        MEMBERS, repeats=["fold"]
    ),
    "`arm` is to be grouped by and aggregated over: it can be one of them": lambda: grouping.grouping(
        MEMBERS, by=["arm"], over=["arm"]
    ),
    "`arm` is not KEY=VALUE, such as arm=plain": lambda: grouping.kept(MEMBERS, ["arm"]),
    "there is no key `rm` to choose members by (did you mean `arm`?); there are arm, seed": lambda: grouping.kept(
        MEMBERS, ["rm=b"]
    ),
    "no member has arm=plan (did you mean `plain`?); arm is plain or b": lambda: grouping.kept(MEMBERS, ["arm=plan"]),
    "no member has arm=b and seed=1": lambda: grouping.kept(MEMBERS[:-1], ["arm=b", "seed=1"]),
    "there is no group `plan` to compare with (did you mean `plain`?); there are plain, b": lambda: table(
        MEMBERS, against=["plan"]
    ),
    "there is no group arm=b, seed=1 to compare with; there are plain, seed = 0; plain, seed = 1; b, seed = 0": (
        lambda: table(MEMBERS[:-1], by=["arm", "seed"], against=["arm=b", "seed=1"])
    ),
}


@pytest.mark.parametrize("message", FAULTS)
def test_what_cannot_be_compared_is_said_in_a_line(message):
    with pytest.raises(BadInput) as wrong:
        FAULTS[message]()
    assert str(wrong.value) == message
