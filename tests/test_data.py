"""Splits, wrong labels, uneven classes, scalings."""

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from scipy.stats import chisquare
from sklearn.preprocessing import MinMaxScaler, StandardScaler
from worlds import labels, numbers, public, seeds

from fcurr.data import imbalance, scalings, splits
from fcurr.data import labels as noise
from fcurr.types import Chosen

SPLITS, NOISES = [splits.stratified, splits.shuffled], public(noise)
every_split = pytest.mark.parametrize("split", SPLITS, ids=lambda split: split.__name__)
every_noise = pytest.mark.parametrize("noisy", NOISES, ids=lambda noisy: noisy.__name__)
many_classes = st.lists(st.integers(0, 19), min_size=1, max_size=30).map(torch.tensor)
percents = st.tuples(st.integers(0, 50), st.integers(0, 49)).map(lambda pair: (pair[0] / 100, pair[1] / 100))


@every_split
@given(y=labels, seed=seeds, parts=percents)
def test_a_split_puts_every_sample_in_exactly_one_part(split, y, seed, parts):
    validation, test = parts
    found = split(y, seed=seed, validation=validation, test=test)
    assert torch.equal(torch.cat(found).sort().values, torch.arange(len(y)))
    assert all(torch.equal(part, part.sort().values) for part in found)


@every_split
@given(y=labels | many_classes, seed=seeds, parts=percents)
@example(y=torch.arange(20), seed=0, parts=(0.2, 0.2))  # classes of one sample
def test_the_parts_of_a_split_have_the_sizes_asked_for(split, y, seed, parts):
    validation, test = parts
    found = split(y, seed=seed, validation=validation, test=test)
    assert len(found.test) == round(test * len(y))
    assert abs(len(found.validation) - validation * len(y)) <= 1
    if (validation * 100 * len(y)) % 100 == (test * 100 * len(y)) % 100 == 0:
        assert len(found.validation) == validation * len(y)


@every_split
def test_a_split_depends_on_the_seed_alone(split):
    y = torch.arange(100) % 3
    one, same, other = (split(y, seed=seed, validation=0.2, test=0.3) for seed in (1, 1, 2))
    assert torch.equal(one.train, same.train) and not torch.equal(one.train, other.train)
    assert not torch.equal(one.test, other.test)


@given(y=labels | many_classes, seed=seeds, parts=percents)
def test_a_stratified_split_tests_and_trains_on_every_class_in_its_proportion_to_within_one_sample(y, seed, parts):
    validation, test = parts
    found = splits.stratified(y, seed=seed, validation=validation, test=test)
    classes = torch.bincount(y, minlength=20)
    for part, share in ((found.test, test), (found.train, 1 - validation - test)):
        assert ((torch.bincount(y[part], minlength=20) - share * classes).abs() < 1 + 1e-9).all()


@every_split
def test_every_sample_of_a_class_is_tested_equally_often(split):
    y = torch.arange(20) % 4
    counts = torch.zeros(20)
    for seed in range(600):
        counts[split(y, seed=seed, validation=0.2, test=0.25).test] += 1
    assert counts.sum() == 600 * 5
    assert min(chisquare(counts[y == c].tolist()).pvalue for c in range(4)) > 1e-4


@every_noise
@given(samples=st.integers(1, 60), classes=st.integers(2, 6), share=st.floats(0, 0.99), seed=seeds)
def test_noise_changes_exactly_the_share_asked_for_and_never_to_the_true_class(noisy, samples, classes, share, seed):
    y = torch.arange(samples) % classes
    wrong = noisy(y, share=share, classes=classes, seed=seed)
    assert wrong.dtype == torch.int64 and wrong.min() >= 0 and wrong.max() < classes
    assert (wrong != y).sum() == round(share * samples)
    assert torch.equal(y, torch.arange(samples) % classes)


def test_symmetric_noise_draws_all_other_classes_equally_often():
    y = torch.zeros(30_000, dtype=torch.int64) + 2
    wrong = noise.symmetric(y, share=0.5, classes=5, seed=0)
    counts = torch.bincount(wrong, minlength=5).tolist()
    assert counts[2] == 15_000 and chisquare([counts[c] for c in (0, 1, 3, 4)]).pvalue > 1e-4


@given(classes=st.integers(2, 6), share=st.floats(0, 0.99), seed=seeds)
def test_asymmetric_noise_moves_a_class_to_the_next_and_the_last_to_the_first(classes, share, seed):
    y = torch.arange(40) % classes
    wrong = noise.asymmetric(y, share=share, classes=classes, seed=seed)
    changed = wrong != y
    assert torch.equal(wrong[changed], (y[changed] + 1) % classes)


@every_noise
def test_which_labels_are_wrong_depends_on_the_seed_and_not_on_the_labels(noisy):
    y = torch.arange(200) % 3
    one, same, other = (noisy(y, share=0.3, classes=3, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(one, same) and not torch.equal(one != y, other != y)
    turned = noisy((y + 1) % 3, share=0.3, classes=3, seed=1)
    assert torch.equal(turned != (y + 1) % 3, one != y)


@pytest.mark.parametrize(
    "ratio, classes, right",
    [
        (100.0, 3, [1000, 100, 10]),
        (8.0, 4, [1000, 500, 250, 125]),
        (10.0, 10, [1000, 774, 599, 464, 359, 278, 215, 166, 129, 100]),
        (1.0, 5, [1000] * 5),
        (1e5, 3, [1000, 3, 1]),
        (50.0, 1, [1000]),
    ],
)
def test_a_long_tail_falls_geometrically_by_the_ratio(ratio, classes, right):
    y = torch.arange(1000 * classes) % classes
    kept = imbalance.long_tail(y, ratio=ratio, classes=classes, seed=0)
    assert torch.bincount(y[kept]).tolist() == right


@given(counts=st.lists(st.integers(1, 30), min_size=1, max_size=5), ratio=st.floats(1, 50), seed=seeds)
def test_a_long_tail_starts_from_the_smallest_class_and_keeps_distinct_samples_in_their_order(counts, ratio, seed):
    y = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    kept = imbalance.long_tail(y, ratio=ratio, classes=len(counts), seed=seed)
    assert (kept[1:] > kept[:-1]).all()
    sizes = torch.bincount(y[kept], minlength=len(counts)).tolist()
    assert sizes[0] == min(counts) and sizes == sorted(sizes, reverse=True) and sizes[-1] >= 1
    if len(counts) > 1:
        assert sizes[-1] in (max(1, int(min(counts) / ratio)), max(1, int(min(counts) / ratio * (1 + 1e-9))))


def test_a_long_tail_keeps_every_sample_of_a_class_equally_often():
    y = torch.arange(40) % 2
    counts = torch.zeros(40)
    for seed in range(600):
        counts[imbalance.long_tail(y, ratio=4.0, classes=2, seed=seed)] += 1
    assert counts[y == 0].tolist() == [600] * 20 and counts[y == 1].sum() == 600 * 5
    assert chisquare(counts[y == 1].tolist()).pvalue > 1e-4


@every_noise
def test_labels_of_one_class_cannot_be_made_wrong(noisy):
    with pytest.raises(ValueError, match="labels of 1 class cannot be wrong"):
        noisy(torch.zeros(5, dtype=torch.int64), share=0.2, classes=1, seed=0)


def test_a_long_tail_of_a_class_without_samples_is_refused():
    with pytest.raises(ValueError, match="class 1 has no samples"):
        imbalance.long_tail(torch.tensor([0, 0, 2]), ratio=2.0, classes=3, seed=0)


class Stored:
    """Rows that count how many of them are read at once."""

    def __init__(self, x):
        self.x, self.shape, self.dtype, self.identity, self.most = x, tuple(x.shape), x.dtype, "", 0

    def __getitem__(self, ids):
        self.most = max(self.most, ids.numel())
        return self.x[ids]


SCALERS = {"standard": StandardScaler, "min_max": MinMaxScaler}
features = st.sampled_from([(1,), (3,), (2, 3), (2, 2, 2)])


@pytest.mark.parametrize("name", SCALERS)
@given(samples=st.integers(1, 40), shape=features, seed=seeds, unit=st.sampled_from([1e-6, 1.0, 1e8]))
def test_a_scaling_of_features_is_that_of_scikit_learn(name, samples, shape, seed, unit):
    x = unit * (3 + numbers(samples, *shape, seed=seed))
    found = getattr(scalings, name)(x)
    right = SCALERS[name]().fit_transform(x.reshape(samples, -1).numpy()).reshape(x.shape)
    assert found.shift.shape == found.factor.shape == shape and found.shift.dtype == torch.float64
    np.testing.assert_allclose(((x - found.shift) * found.factor).numpy(), right, rtol=1e-7, atol=1e-7)


@given(samples=st.integers(1, 20), seed=seeds)
def test_a_scaling_of_channels_is_that_of_scikit_learn_for_their_pixels(samples, seed):
    x = torch.tensor([1.0, 10.0, 0.1]).reshape(3, 1, 1) * (2 + numbers(samples, 3, 4, 5, seed=seed))
    found = scalings.per_channel(x)
    assert found.shift.shape == found.factor.shape == (3, 1, 1)
    pixels = x.movedim(1, -1).reshape(-1, 3).numpy()
    right = StandardScaler().fit_transform(pixels).reshape(samples, 4, 5, 3)
    np.testing.assert_allclose(((x - found.shift) * found.factor).movedim(1, -1).numpy(), right, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("scaling", [scalings.standard, scalings.min_max, scalings.per_channel])
def test_what_does_not_differ_between_samples_keeps_its_size(scaling):
    x = torch.full((3000, 2, 1, 1), 0.1)
    x[:, 1] = torch.arange(3000.0).reshape(-1, 1, 1)
    found = scaling(x)
    assert found.factor.flatten()[0] == 1 and 0 < found.factor.flatten()[1] < 1
    torch.testing.assert_close(found.shift.flatten()[0], torch.tensor(0.1))
    assert found.shift.dtype == found.factor.dtype == torch.float32


@pytest.mark.parametrize("scaling", [scalings.standard, scalings.min_max, scalings.per_channel])
@pytest.mark.parametrize("samples", [1, 1023, 1024, 1025, 3000])
def test_samples_that_are_not_in_memory_are_scaled_as_those_that_are_and_read_a_thousand_at_a_time(scaling, samples):
    x = 100 + numbers(samples, 2, 1, 3).float() * torch.arange(1.0, samples + 1).reshape(-1, 1, 1, 1)
    turn = torch.arange(samples).flip(0)
    stored = Stored(x[turn])
    one, other = scaling(x), scaling(Chosen(stored, turn))
    assert torch.equal(one.shift, other.shift) and torch.equal(one.factor, other.factor)
    assert stored.most == min(samples, 1024)


def test_numbers_far_from_0_lose_no_precision_to_their_size():
    x = 1e6 + (torch.arange(5000) % 2).float().unsqueeze(1)
    found = scalings.standard(x)
    assert found.factor.item() == pytest.approx(2, rel=1e-6) and found.shift.item() == 1_000_000.5


def test_samples_that_cannot_be_scaled_are_refused():
    with pytest.raises(
        ValueError, match=r"per_channel wants pictures \[channel, height, width\], not samples of shape \[4\]"
    ):
        scalings.per_channel(torch.ones(3, 4))
    for scaling in (scalings.standard, scalings.min_max, scalings.per_channel):
        with pytest.raises(ValueError, match=r"samples of torch\.int64 have no units to change"):
            scaling(torch.ones(3, 4, 1, 1, dtype=torch.int64))
        with pytest.raises(
            ValueError, match=r"is found from samples \[sample, feature, \.\.\.\], not from \[0, 4, 1, 1\]"
        ):
            scaling(torch.ones(0, 4, 1, 1))


@given(samples=st.integers(2, 60), test_size=st.integers(1, 59), validation=st.floats(0, 0.9), seed=seeds)
def test_a_published_split_tests_on_the_last_samples_and_chooses_by_a_part_of_the_others(
    samples, test_size, validation, seed
):
    y = torch.zeros(samples, dtype=torch.int64)
    if test_size >= samples:
        with pytest.raises(ValueError, match=f"a test set of {test_size} leaves nothing of {samples} samples"):
            splits.published(y, seed=seed, validation=validation, test_size=test_size)
        return
    found = splits.published(y, seed=seed, validation=validation, test_size=test_size)
    assert found.test.tolist() == list(range(samples - test_size, samples))
    assert len(found.validation) == round(validation * (samples - test_size))
    assert sorted([*found.train.tolist(), *found.validation.tolist()]) == list(range(samples - test_size))
