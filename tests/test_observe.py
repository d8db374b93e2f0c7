"""What a person sees of a run is what happened in it."""

import statistics

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fcurr import observe


def _params(value: float) -> dict[str, torch.Tensor]:
    return {"w": torch.full((2, 3), value)}


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=8))
def test_the_record_keeps_the_first_of_the_best_evaluations_of_every_member(scores):
    """Two members; the second one's scores are the first one's backwards."""
    record = observe.blank(_params(-1.0), 2)
    turned = scores[::-1]
    for step, ((validation, test), (other, judged)) in enumerate(zip(scores, turned, strict=True)):
        at = torch.tensor(10 * (step + 1))
        pair = torch.tensor([validation, other]), torch.tensor([test, judged])
        record = observe.evaluated(record, at, _params(float(step)), *pair)
    for member, own in enumerate((scores, turned)):
        best = max(range(len(own)), key=lambda step: (own[step][0], -step))
        assert (int(record.validation[member]), int(record.test[member])) == own[best]
        assert int(record.iteration[member]) == 10 * (best + 1)
        assert record.best["w"][member].tolist() == [float(best)] * 3


def test_the_mean_loss_begins_anew_at_an_evaluation():
    record = observe.blank(_params(0.0), 2)
    for loss, active in (([1.0, 2.0], [True, True]), ([3.0, 4.0], [True, False])):
        record = observe.stepped(record, torch.tensor(loss), torch.tensor(active))
    assert (record.loss / record.batches).tolist() == [2.0, 2.0]  # the second member had finished after one step
    zero = torch.zeros(2, dtype=torch.int64)
    record = observe.evaluated(record, torch.tensor(2), _params(0.0), zero, zero)
    assert record.batches.tolist() == [0, 0] and record.loss.tolist() == [0.0, 0.0]


def test_a_record_does_not_share_memory_with_the_state_it_was_made_from():
    params = _params(1.0)
    assert observe.blank(params, 2).best["w"].data_ptr() != params["w"].data_ptr()


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


@given(st.permutations(range(7)))
def test_ranks_are_places_in_the_order_from_0_to_1(order):
    ranks = observe.ranks(torch.tensor(order))
    assert [float(ranks[sample]) for sample in order] == pytest.approx([place / 6 for place in range(7)])
