"""The points of a sweep."""

import itertools
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from worlds import seeds

from fcurr.errors import BadInput
from fcurr.study import spaces, sweeping
from fcurr.study.spaces import Distribution, Range, Values

words = st.sampled_from(["none", {"fn": "root", "power": 2.0}, 0.1, 3, True, [1, 2], "x"])
lists = st.lists(words, min_size=1, max_size=5)
fractions = st.floats(-1e3, 1e3).map(lambda number: round(number, 3))


@st.composite
def ranges(draw) -> dict[str, Any]:
    steps = draw(st.integers(2, 7))
    if draw(st.booleans()):
        first, step = draw(st.integers(-50, 50)), draw(st.sampled_from([-3, -1, 1, 4]))
        return {"from": first, "to": first + step * (steps - 1), "steps": steps}
    log = draw(st.booleans())
    low = draw(st.floats(1e-6, 10.0)) if log else draw(fractions)
    return {"from": low, "to": low * 7.5 if log else low + 2.5, "steps": steps, "log": log}


@st.composite
def distributions(draw) -> dict[str, Any]:
    log = draw(st.booleans())
    if draw(st.booleans()):
        low = draw(st.integers(1 if log else -20, 20))
        return {"low": low, "high": low + draw(st.integers(1, 50)), "log": log}
    low = draw(st.floats(1e-6, 10.0)) if log else draw(fractions)
    return {"low": low, "high": low + draw(st.floats(0.01, 100.0)), "log": log}


KEYS = ["optimizer.learning_rate", "optimizer.momentum", "curriculum.pace", "seed", "training.batch_size"]


def tables(*kinds) -> st.SearchStrategy[dict[str, Any]]:
    return st.dictionaries(st.sampled_from(KEYS[:3] + KEYS[4:]), st.one_of(*kinds), min_size=1, max_size=3)


grids = tables(lists, ranges())
searches = tables(lists, ranges(), distributions())


def nested(table: dict[str, Any]) -> dict[str, Any]:
    """The same section, its keys in tables."""
    found: dict[str, Any] = {}
    for key, value in table.items():
        section, _, name = key.partition(".")
        if name:
            found.setdefault(section, {})[name] = value
        else:
            found[key] = value
    return found


def inside(value: Any, space: spaces.Space) -> bool:
    if isinstance(space, Values):
        return any(value is one or value == one for one in space.values)
    low, high = sorted(space[:2])  # pyright: ignore
    whole = all(isinstance(end, int) for end in space[:2])
    return low <= value <= high and (not whole or isinstance(value, int))


@given(grids)
def test_a_grid_has_as_many_points_as_are_counted_each_within_its_space_and_no_two_alike(table):
    sweep = sweeping.read(table)
    points = sweeping.points(sweep)
    assert len(points) == sweeping.count(sweep) == len({spaces.canonical(point) for point in points})
    assert all(list(point) == list(sweep.spaces) for point in points)
    assert all(inside(value, sweep.spaces[key]) for point in points for key, value in point.items())


@given(searches, st.integers(1, 12), seeds)
def test_random_points_are_within_their_spaces_and_more_trials_keep_the_first(table, trials, seed):
    few = sweeping.read({"method": "random", "trials": trials, "seed": seed, **table})
    more = few._replace(trials=trials + 5)
    points = sweeping.points(few)
    assert len(points) == sweeping.count(few) == trials and sweeping.points(more)[:trials] == points
    assert all(inside(value, few.spaces[key]) for point in points for key, value in point.items())


@given(searches, seeds)
def test_points_are_the_same_with_dots_and_with_tables_and_whatever_else_is_drawn(table, seed):
    own = {"method": "random", "trials": 4, "seed": seed}
    points = sweeping.points(sweeping.read({**own, **table}))
    assert sorted(map(spaces.canonical, sweeping.points(sweeping.read({**nested(table), **own})))) == sorted(
        map(spaces.canonical, points)
    )
    alone = {key: table[key] for key in list(table)[:1]}
    first = sweeping.points(sweeping.read({**own, **alone}))
    assert first == [{key: point[key] for key in alone} for point in points]


def test_a_grid_is_in_written_order_the_last_key_fastest():
    sweep = sweeping.read({"b": [1, 2], "a.x": ["u", "v", "w"], "a": {"y": {"from": 0.0, "to": 0.3, "steps": 2}}})
    found = [tuple(point.values()) for point in sweeping.points(sweep)]
    assert list(sweep.spaces) == ["b", "a.x", "a.y"]
    assert found == [(b, x, y) for b in (1, 2) for x in "uvw" for y in (0.0, 0.3)]


def test_a_grid_of_a_thousand_million_is_counted_and_refused_and_any_point_of_it_is_had_at_once():
    sweep = sweeping.read({f"k{n}.x": list(range(10)) for n in range(9)})
    assert sweeping.count(sweep) == 10**9
    assert list(sweeping.point(sweep, 123_456_789).values()) == [1, 2, 3, 4, 5, 6, 7, 8, 9]
    with pytest.raises(BadInput, match=r"1,000,000,000 runs, more than 1,000: --yes makes them") as told:
        sweeping.limited(sweep)
    assert told.value.where == "sweep"
    sweeping.limited(sweep._replace(at_most=10**9))
    wide = sweeping.read({"x.y": {"from": 0, "to": 2**31 - 2, "steps": 2**31 - 1}})
    assert sweeping.point(wide, 2**30) == {"x.y": 2**30}


def evenly(**table: Any) -> list[Any]:
    return [point["x.y"] for point in sweeping.points(sweeping.read({"x.y": table}))]


def test_ranges_are_the_decimals_that_a_person_expects():
    tenths = [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9]
    assert evenly(**{"from": 0.0, "to": 0.9, "steps": 10}) == tenths
    assert evenly(**{"from": 0.9, "to": 0.0, "steps": 10}) == tenths[::-1]
    assert evenly(**{"from": 1e-5, "to": 1.0, "steps": 6, "log": True}) == [1e-5, 1e-4, 1e-3, 0.01, 0.1, 1.0]
    whole = evenly(**{"from": 16, "to": 256, "steps": 5, "log": True})
    assert whole == [16, 32, 64, 128, 256] and all(isinstance(one, int) for one in whole)
    assert evenly(**{"from": 16, "to": 81, "steps": 5, "log": True}) == [16, 24, 36, 54, 81]
    assert evenly(**{"from": 1, "to": 9, "steps": 5}) == [1, 3, 5, 7, 9]


@given(st.floats(1e-6, 1.0), st.floats(1.5, 1e4), st.integers(3, 20))
def test_a_geometric_range_grows_by_one_factor(low, factor, steps):
    values = evenly(**{"from": low, "to": low * factor, "steps": steps, "log": True})
    assert values[0] == low and values[-1] == low * factor
    for before, after in itertools.pairwise(values):
        assert math.isclose(after / before, factor ** (1 / (steps - 1)), rel_tol=1e-9)


def drawn(count: int = 2000, **space: Any) -> list[Any]:
    sweep = sweeping.read({"method": "random", "trials": count, "seed": 7, "x.y": space})
    return [point["x.y"] for point in sweeping.points(sweep)]


def test_draws_are_uniform_and_log_uniform():
    assert stats.kstest(drawn(low=-2.0, high=3.0), stats.uniform(-2, 5).cdf).pvalue > 1e-3
    rates = drawn(low=1e-6, high=1e-2, log=True)
    assert stats.kstest(rates, stats.loguniform(1e-6, 1e-2).cdf).pvalue > 1e-3
    assert stats.kstest(rates, stats.uniform(1e-6, 1e-2).cdf).pvalue < 1e-9


def test_draws_of_whole_numbers_of_lists_and_of_ranges_are_as_likely_as_they_should_be():
    counts = [drawn(low=3, high=8).count(number) for number in range(3, 9)]
    assert sum(counts) == 2000 and stats.chisquare(counts).pvalue > 1e-3
    whole = drawn(low=1, high=6, log=True)
    share = [math.log((n + 0.5) / (n - 0.5)) / math.log(13) for n in range(1, 7)]
    assert stats.chisquare([whole.count(n) for n in range(1, 7)], [2000 * part for part in share]).pvalue > 1e-3
    several = sweeping.read({"method": "random", "trials": 2000, "a": ["x", "y", {"fn": "z"}], "b.c": [1, 2, 3, 4]})
    points = sweeping.points(several)
    cells = [sum(p == {"a": a, "b.c": b} for p in points) for a in ("x", "y", {"fn": "z"}) for b in (1, 2, 3, 4)]
    assert sum(cells) == 2000 and stats.chisquare(cells).pvalue > 1e-3  # and independently of one another


def test_a_value_given_twice_is_one_point_and_told():
    sweep = sweeping.read({"a.b": [{"fn": "x", "k": 1}, 0.1, {"k": 1, "fn": "x"}, 0.1, True, 1]})
    assert sweep.spaces["a.b"] == Values(({"fn": "x", "k": 1}, 0.1, True, 1)) and len(sweeping.points(sweep)) == 4
    assert sweep.told[1] == "sweep.a.b: 0.1 stands there more than once; it is taken once" and len(sweep.told) == 2


def test_a_table_is_a_space_where_it_says_how_far_it_goes_and_a_part_of_the_key_elsewhere():
    table = {
        "curriculum": {"pace": {"fn": ["root", "linear"], "initial_size": {"from": 0.1, "to": 0.2, "steps": 2}}},
        "model": {"low": [1, 2], "high": {"low": 0.5, "high": 1.0}},
        "seed": [0, 1, 2],
        "method": "random",
        "trials": 3,
    }
    sweep = sweeping.read(table)
    assert sweep.spaces == {
        "curriculum.pace.fn": Values(("root", "linear")),
        "curriculum.pace.initial_size": Range(0.1, 0.2, 2, False),
        "model.low": Values((1, 2)),
        "model.high": Distribution(0.5, 1.0, False),
        "seed": Values((0, 1, 2)),
    }
    assert sweep.seed == 0 and sweep.trials == 3


def test_a_point_is_applied_to_the_config_without_its_sweep_and_changes_nothing_given():
    config = {"optimizer": {"fn": "sgd", "learning_rate": 0.1}, "curriculum": {"pace": "root"}, "sweep": {"a": [1]}}
    point = {"optimizer.learning_rate": 0.3, "curriculum.pace.power": 2.0, "seed": 4}
    before = spaces.canonical(config)
    assert sweeping.applied(config, point) == {
        "optimizer": {"fn": "sgd", "learning_rate": 0.3},
        "curriculum": {"pace": {"fn": "root", "power": 2.0}},
        "seed": 4,
    }
    assert spaces.canonical(config) == before
    assert sweeping.origin("optimizer.learning_rate", point) == "sweep.optimizer.learning_rate"
    assert sweeping.origin("curriculum.pace.power", point) == "sweep.curriculum.pace.power"
    assert sweeping.origin("data.path", point) == "data.path"


FAULTS = {
    "no table": ([1], "", "[1] is not a table"),
    "nothing": ({"method": "grid"}, "", 'nothing is swept: give a key of the config a list, "optimizer.learning_rate"'),
    "an empty list": ({"o": {"r": []}}, "o.r", "an empty list has no value to take"),
    "an empty part": ({"o..r": [1]}, "o..r", "a part of this key is empty"),
    "no list": ({"o.r": 0.1}, "o.r", "0.1 is not a list of values, a range (from, to, steps) or a distribution (low"),
    "an empty table": ({"o": {"r": {}}}, "o.r", "{} is not a list of values"),
    "a component alone": (
        {"c.pace": {"fn": "root"}},
        "c.pace.fn",
        '"root" is not a list of values, a range (from, to, steps) or a distribution (low, high); '
        "a component is swept as one of a list, [{ fn = ... }]",
    ),
    "an own key, misspelt": ({"metod": "grid", "a": [1]}, "metod", "(low, high) (did you mean `method`?)"),
    "an unknown method": (
        {"method": "rondom", "a": [1]},
        "method",
        "there is no method `rondom` (did you mean `random`?); there are grid, random, tpe",
    ),
    "an unknown pruner": ({"pruner": "hyper", "a": [1]}, "pruner", "there is no pruner `hyper`"),
    "trials": ({"method": "tpe", "trials": 0, "a": [1]}, "trials", "0 is not a number of times: a whole number"),
    "no trials": ({"method": "random", "a": [1]}, "", "random needs `trials`, a number of times: a whole number"),
    "trials of a grid": ({"trials": 3, "a": [1]}, "trials", "a grid takes every point; `trials` is for random and tpe"),
    "a pruned grid": ({"pruner": "median", "a": [1]}, "pruner", "a grid takes every point to its end"),
    "a distribution in a grid": (
        {"o.r": {"low": 0.1, "high": 0.2}},
        "o.r",
        "a grid needs a list or a range (from, to, steps); distributions are for random and tpe",
    ),
    "both": ({"o.r": {"from": 0.1, "low": 0.2}}, "o.r", "has `from` or `to`, of a range, and `low` or `high`, of a"),
    "low above high": ({"o.r": {"low": 2.0, "high": 1.0}}, "o.r", "low = 2.0 is not less than high = 1.0"),
    "low as high": ({"o.r": {"low": 1, "high": 1}}, "o.r", "low = 1 is not less than high = 1"),
    "no logarithm": (
        {"o.r": {"low": 0.0, "high": 1.0, "log": True}},
        "o.r",
        "low = 0.0 has no logarithm: with log = true it is greater than 0",
    ),
    "no logarithm of a range": ({"o.r": {"from": 1.0, "to": -1.0, "steps": 2, "log": True}}, "o.r", "-1.0 has no log"),
    "no end": ({"o.r": {"low": 0.1}}, "o.r", "a distribution needs `high`, a number: a number"),
    "a word": ({"o.r": {"low": "small", "high": 1.0}}, "o.r.low", '"small" is not a number'),
    "a truth": ({"o.r": {"low": False, "high": 1.0}}, "o.r.low", "false is not a number"),
    "no number": ({"o.r": {"low": math.nan, "high": 1.0}}, "o.r.low", "NaN is not a number"),
    "an unknown word": (
        {"o.r": {"low": 0.1, "hihg": 1.0}},
        "o.r.hihg",
        "a distribution takes no `hihg` (did you mean `high`?); it takes low, high, log",
    ),
    "no steps": ({"o.r": {"from": 0.1, "to": 1.0}}, "o.r", "a range needs `steps`, how many values there are from"),
    "one step": ({"o.r": {"from": 0, "to": 1, "steps": 1}}, "o.r.steps", "1 is not a number of parts: a whole number"),
    "fractions": (
        {"o.r": {"from": 0, "to": 1, "steps": 11}},
        "o.r",
        "11 steps from 0 to 1 do not fall on whole numbers: for fractions write 0.0 and 1.0",
    ),
    "geometric fractions": ({"o.r": {"from": 1, "to": 10, "steps": 3, "log": True}}, "o.r", "3 steps from 1 to 10 do"),
    "one value": ({"o.r": {"from": 0.5, "to": 0.5, "steps": 3}}, "o.r", "3 steps from 0.5 to 0.5 are not different"),
    "log": ({"o.r": {"low": 0.1, "high": 1.0, "log": "yes"}}, "o.r.log", '"yes" is not true or false'),
    "twice": ({"o.r": [1], "o": {"r": [2]}}, "o.r", "is given twice, with a dot and as a table"),
    "within another": (
        {"c.pace": ["none"], "c.pace.power": [1.0]},
        "c.pace.power",
        "`c.pace` is swept as a whole, and `c.pace.power` within it: one of them",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_wrong_with_a_sweep_is_said_where_it_is(fault):
    table, where, words = FAULTS[fault]
    table = {"method": "random", "trials": 2, **table} if "distribution" in words and "grid" not in words else table
    with pytest.raises(BadInput) as told:
        sweeping.read(table)
    assert words in str(told.value) and told.value.where == (f"sweep.{where}" if where else "sweep")


JSON = st.recursive(
    st.one_of(st.booleans(), st.integers(-(10**320), 10**320), st.floats(), st.text(max_size=5)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(
            st.sampled_from(["fn", "from", "to", "low", "high", "log", "steps", "method", "trials", "a", "a.b", ""]),
            inner,
            max_size=4,
        ),
    ),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from(["method", "trials", "seed", "at_most", "a", "a.b", "c"]), JSON, max_size=4))
def test_any_table_is_a_sweep_that_can_be_counted_or_bad_input(table):
    try:
        sweep = sweeping.read(table)
    except BadInput as told:
        assert told.where.startswith("sweep")
    else:
        assert sweeping.count(sweep) >= 1 and list(sweeping.point(sweep, 0)) == list(sweep.spaces)
