"""The order in which samples come into play."""

from collections import Counter

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy.stats import chisquare
from worlds import labels, seeds

from fcurr import curriculum, rng

ORDERS = [curriculum.easy_first, curriculum.hard_first, curriculum.random]
SAMPLINGS = [curriculum.unbalanced, curriculum.balanced, curriculum.original]
every_order = pytest.mark.parametrize("order", ORDERS, ids=lambda order: order.__name__)
every_sampling = pytest.mark.parametrize("sampling", SAMPLINGS, ids=lambda sampling: sampling.__name__)
difficulties = st.lists(st.floats(allow_nan=False), min_size=1, max_size=40).map(torch.tensor)
tied = st.lists(st.sampled_from([0.0, 1.0, 2.0]), min_size=1, max_size=40).map(torch.tensor)


def shuffled(y: torch.Tensor, seed: int) -> torch.Tensor:
    return rng.shuffle(torch.arange(len(y)), len(y), seed)


@every_order
@given(scores=difficulties | tied, seed=seeds)
def test_an_order_is_a_permutation(order, scores, seed):
    assert torch.equal(order(scores, seed=seed).sort().values, torch.arange(len(scores)))


@given(scores=difficulties | tied, seed=seeds)
def test_easy_first_rises_and_hard_first_falls(scores, seed):
    rising, falling = scores[curriculum.easy_first(scores, seed=seed)], scores[curriculum.hard_first(scores, seed=seed)]
    assert (rising[1:] >= rising[:-1]).all() and (falling[1:] <= falling[:-1]).all()


@given(scores=tied, seed=seeds)
def test_ties_are_broken_by_a_key_of_seed_and_sample_whatever_the_scores_around_them(scores, seed):
    chance = curriculum.easy_first(torch.zeros(len(scores)), seed=seed)
    for order in (curriculum.easy_first, curriculum.hard_first):
        found = order(scores, seed=seed)
        for value in scores.unique():
            assert torch.equal(found[scores[found] == value], chance[scores[chance] == value])


@every_order
def test_samples_that_are_equally_hard_come_in_all_orders_equally_often(order):
    counts = Counter(tuple(order(torch.zeros(4), seed=seed).tolist()) for seed in range(4800))
    assert len(counts) == 24 and chisquare(list(counts.values())).pvalue > 1e-4


@given(scores=difficulties, other=difficulties, seed=seeds)
def test_a_random_order_does_not_look_at_the_scores(scores, other, seed):
    assume(len(scores) == len(other) or len(scores) > 1)
    other = torch.zeros(len(scores)) if len(other) != len(scores) else other
    assert torch.equal(curriculum.random(scores, seed=seed), curriculum.random(other, seed=seed))


@pytest.mark.parametrize("order", [curriculum.easy_first, curriculum.hard_first])
def test_a_score_that_is_nan_is_refused(order):
    with pytest.raises(ValueError) as raised:
        order(torch.tensor([1.0, torch.nan, 2.0, torch.nan]), seed=0)
    assert str(raised.value) == "score 1 is nan: samples without a score have no order"


@every_sampling
@given(y=labels, seed=seeds)
def test_a_sampling_is_a_permutation_that_keeps_the_order_inside_every_class(sampling, y, seed):
    order = shuffled(y, seed)
    found = sampling(order, y)
    assert found.dtype == torch.int64 and torch.equal(found.sort().values, torch.arange(len(y)))
    for c in y.unique():
        assert torch.equal(found[y[found] == c], order[y[order] == c])


@given(y=labels, seed=seeds)
def test_unbalanced_is_the_order_itself(y, seed):
    assert torch.equal(curriculum.unbalanced(shuffled(y, seed), y), shuffled(y, seed))


@given(y=labels, seed=seeds)
def test_balanced_classes_differ_by_one_at_every_size_unless_the_smaller_is_exhausted(y, seed):
    found = y[curriculum.balanced(shuffled(y, seed), y)]
    totals = torch.bincount(y, minlength=4)
    for size in range(1, len(y) + 1):
        counts = torch.bincount(found[:size], minlength=4)
        assert (counts[counts < totals] >= counts.max() - 1).all()


@given(y=labels, seed=seeds)
def test_original_gives_every_class_its_quota_rounded_up_or_down_at_every_size(y, seed):
    found = y[curriculum.original(shuffled(y, seed), y)]
    totals = torch.bincount(y, minlength=4)
    for size in range(1, len(y) + 1):
        counts = torch.bincount(found[:size], minlength=4)
        assert (counts >= size * totals // len(y)).all() and (counts <= -(-size * totals // len(y))).all()


@given(totals=st.lists(st.integers(0, 60), min_size=1, max_size=7).filter(any))
def test_quotas_are_kept_for_any_class_sizes(totals):
    taken, whole = [0] * len(totals), sum(totals)
    for size, c in enumerate(curriculum._by_quota(totals), start=1):
        taken[c] += 1
        assert all(size * n // whole <= k <= -(-size * n // whole) for k, n in zip(taken, totals, strict=True))
    assert taken == totals


RANKS = torch.tensor([5.0, 0, 7, 2, 9, 4, 1, 8, 3, 6])  # aucurriculum 0.1.1, run on this
LABELS = torch.tensor([0, 0, 0, 0, 0, 0, 1, 1, 1, 2])


@pytest.mark.parametrize(
    "order, right",
    [(curriculum.easy_first, [1, 6, 3, 8, 5, 0]), (curriculum.hard_first, [4, 7, 2, 9, 0, 5])],
)
def test_the_first_six_samples_are_those_of_the_published_implementation(order, right):
    assert curriculum.unbalanced(order(RANKS, seed=0), LABELS)[:6].tolist() == right


@pytest.mark.parametrize(
    "sampling, order, right",
    [
        (curriculum.balanced, curriculum.easy_first, {1, 6, 3, 8, 9}),
        (curriculum.balanced, curriculum.hard_first, {4, 7, 2, 9, 8}),
        (curriculum.original, curriculum.easy_first, {1, 3, 5, 0, 6, 8}),
        (curriculum.original, curriculum.hard_first, {4, 2, 0, 5, 7, 8}),
    ],
)
def test_six_samples_hold_the_published_members_as_far_as_exactly_six_allow(sampling, order, right):
    found = set(sampling(order(RANKS, seed=0), LABELS)[:6].tolist())
    assert len(found) == 6 and len(found & right) >= 5  # theirs are 5 and 7 samples where 6 are asked for
