"""What a person sees of a run is what happened in it."""

import statistics
from math import isnan, nan

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from worlds import seeds

from fcurr import observe, tree

EVERY = 10  # steps between evaluations


def params_at(turn: float, members: int = 2) -> dict[str, torch.Tensor]:
    return {"w": torch.full((members, 3), float(turn)), "n": torch.full((members,), int(turn))}


def told(rows, due, higher: bool) -> list[observe.Record]:
    """The records after evaluations of two members; rows [turn][member], due likewise."""
    records = [observe.blank(params_at(-1), 2)]
    for turn, (values, who) in enumerate(zip(rows, due, strict=True)):
        when = torch.tensor([EVERY * (turn + 1)] * 2)
        value = torch.tensor(values, dtype=torch.float64)
        records.append(observe.evaluated(records[-1], torch.tensor(who), when, params_at(turn), value, higher))
    return records


values = st.one_of(st.integers(0, 3).map(float), st.just(nan), st.sampled_from([torch.inf, -torch.inf]))
pairs = st.tuples(values, values)
turns = st.lists(st.tuples(pairs, st.tuples(st.booleans(), st.booleans())), min_size=1, max_size=10)


@given(turns, st.booleans())
def test_the_record_keeps_the_first_of_the_best_evaluations_of_every_member(turns, higher):
    """Of those that are due; the very first if none is a number."""
    record = told([row for row, _ in turns], [who for _, who in turns], higher)[-1]
    for member in range(2):
        seen = [(turn, row[member]) for turn, (row, who) in enumerate(turns) if who[member]]
        real = [(turn, value) for turn, value in seen if not isnan(value)]
        if not seen:
            assert tree.equal(tree.member(record, member), tree.member(observe.blank(params_at(-1), 2), member))
            continue
        sign = -1 if higher else 1
        turn, value = min(real, key=lambda pair: (sign * pair[1], pair[0])) if real else seen[0]
        assert record.value[member] == value or (record.value[member].isnan() and not real)
        assert record.iteration[member] == EVERY * (turn + 1)
        assert record.best["w"][member].tolist() == [float(turn)] * 3 and record.best["n"][member] == turn
        assert record.evaluated[member] == EVERY * (seen[-1][0] + 1)
        assert record.waited[member] == sum(later > turn for later, _ in seen)


@given(turns, st.booleans())
def test_members_that_are_not_due_stay_as_they_are_bit_for_bit(turns, higher):
    records = told([row for row, _ in turns], [who for _, who in turns], higher)
    for (_, who), before, after in zip(turns, records[:-1], records[1:], strict=True):
        for member in range(2):
            assert who[member] or tree.equal(tree.member(before, member), tree.member(after, member))


@given(turns, st.booleans())
def test_the_records_of_members_are_those_of_each_alone_and_keep_their_dtypes(turns, higher):
    rows, due = zip(*turns, strict=True)
    both = told(rows, due, higher)
    for member in range(2):
        alone = told([[row[member]] * 2 for row in rows], [[who[member]] * 2 for who in due], higher)
        assert tree.equal(tree.member(both[-1], member), tree.member(alone[-1], 0))
    kinds = [[(leaf.dtype, leaf.shape) for leaf in tree.leaves(record)] for record in both]
    assert all(kind == kinds[0] for kind in kinds)


def test_an_evaluation_that_is_not_a_number_is_never_better_but_the_first_is_kept_until_one_is():
    always = [(True, True)] * 3
    record = told([(nan, 1.0)], always[:1], higher=True)[-1]
    assert record.best["w"][:, 0].tolist() == [0.0, 0.0] and record.iteration.tolist() == [EVERY, EVERY]
    record = told([(nan, 1.0), (nan, nan)], always[:2], higher=True)[-1]
    assert record.best["w"][:, 0].tolist() == [0.0, 0.0] and record.waited.tolist() == [1, 1]
    record = told([(nan, 1.0), (nan, nan), (-5.0, 0.5)], always, higher=True)[-1]
    assert record.best["w"][:, 0].tolist() == [2.0, 0.0] and record.value.tolist() == [-5.0, 1.0]
    assert record.waited.tolist() == [0, 2]


def test_an_evaluation_writes_to_none_of_its_arguments():
    record, variables = observe.blank(params_at(-1), 2), params_at(5)
    value, due = torch.tensor([1.0, 2.0], dtype=torch.float64), torch.tensor([True, False])
    before = tree.map(torch.clone, (record, variables, value, due))
    after = observe.evaluated(record, due, torch.tensor([3, 3]), variables, value, True)
    assert tree.equal((record, variables, value, due), before) and not tree.equal(record, after)


@given(st.lists(st.floats(0, 1), min_size=2, max_size=9))
def test_a_spread_is_the_mean_and_the_sample_standard_deviation(values):
    found = observe.spread(torch.tensor(values, dtype=torch.float64))
    assert found == pytest.approx((statistics.fmean(values), statistics.stdev(values)), abs=1e-12)


def test_one_seed_has_no_spread():
    assert observe.spread(torch.tensor([0.5])) == (0.5, 0.0)


@given(st.lists(st.integers(0, 5), min_size=1, max_size=30), st.floats(0, 1))
def test_the_hardest_are_as_many_as_asked_and_none_is_easier_than_one_left_out(scores, share):
    values = torch.tensor(scores, dtype=torch.float64)
    hard = observe.hardest(values, share)
    assert int(hard.sum()) == round(share * len(scores))
    if bool(hard.any()) and not bool(hard.all()):
        assert values[hard].min() >= values[~hard].max()


@given(seeds, st.integers(1, 9))
def test_ranks_are_places_in_the_order_from_0_to_1(seed, size):
    order = torch.randperm(size, generator=torch.Generator().manual_seed(seed))
    ranks = observe.ranks(order)
    assert [float(ranks[sample]) for sample in order] == pytest.approx([p / max(size - 1, 1) for p in range(size)])
