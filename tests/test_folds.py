"""Folds: parts that take turns as the test set, plain, by classes, by groups, and nested."""

import copy
import json
from functools import partial

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from sklearn.model_selection import GroupKFold, StratifiedGroupKFold, StratifiedKFold
from small import CONFIG, fcurr, written
from torch.utils.data import TensorDataset
from worlds import blobs, seeds

from fcurr import rng
from fcurr.data import folds, splits
from fcurr.errors import BadInput
from fcurr.io import datasets
from fcurr.io.stored import from_torch

PLAIN = (splits.k_fold, splits.stratified_k_fold)
GROUPED = (splits.grouped_k_fold, splits.stratified_grouped_k_fold)
every_fold = pytest.mark.parametrize("split", PLAIN + GROUPED, ids=lambda split: split.__name__)
grouped_folds = pytest.mark.parametrize("split", GROUPED, ids=lambda split: split.__name__)
labels = st.lists(st.integers(0, 3), min_size=12, max_size=60).map(torch.tensor)
counts = st.integers(2, 5)


def given_groups(split, groups):
    return partial(split, groups=groups) if split in GROUPED else split


def grouped(y, seed):
    """[sample]: about three samples a group, numbered with gaps."""
    return 7 * rng.shuffle(torch.arange(len(y)), len(y), seed).div(3, rounding_mode="floor")


@every_fold
@given(y=labels, seed=seeds, count=st.integers(2, 4))
def test_the_test_sets_of_all_folds_are_the_data_and_no_sample_is_in_two_parts(split, y, seed, count):
    cut = partial(given_groups(split, grouped(y, seed)), y, seed=seed, folds=count, validation=0.3)
    found = [cut(fold=fold) for fold in range(count)]
    assert torch.equal(torch.cat([one.test for one in found]).sort().values, torch.arange(len(y)))
    for one in found:
        assert torch.equal(torch.cat(one).sort().values, torch.arange(len(y)))
        assert all(torch.equal(part, part.sort().values) for part in one)
        groups = len(torch.unique(grouped(y, seed)[torch.cat(one[:2])])) if split in GROUPED else len(y)
        assert len(one.train) and len(one.test) and (len(one.validation) or groups == 1)


@every_fold
@given(y=labels.filter(lambda y: len(y) >= 30), seed=seeds, count=st.integers(2, 3), inner=st.integers(2, 4))
def test_inner_folds_choose_by_every_sample_that_is_not_tested_exactly_once(split, y, seed, count, inner):
    cut = partial(given_groups(split, grouped(y, seed)), y, seed=seed, folds=count, inner_folds=inner)
    for fold in range(count):
        found = [cut(fold=fold, inner_fold=place) for place in range(inner)]
        assert all(torch.equal(one.test, found[0].test) for one in found)
        rest = torch.cat([one.validation for one in found]).sort().values
        assert torch.equal(torch.cat([rest, found[0].test]).sort().values, torch.arange(len(y)))
        for one in found:
            assert torch.equal(torch.cat(one).sort().values, torch.arange(len(y)))


@given(y=labels, seed=seeds, count=st.integers(2, 12))
def test_folds_differ_in_size_by_one_and_stratified_ones_in_every_class_by_one(y, seed, count):
    key = rng.fold(seed)
    plain, classed = folds.dealt(len(y), count, key), folds.dealt_by_class(y, count, key)
    for fold in (plain, classed):
        sizes = torch.bincount(fold, minlength=count)
        assert sizes.sum() == len(y) and sizes.max() - sizes.min() <= 1
    for label in range(4):
        of_class = torch.bincount(classed[y == label], minlength=count)
        assert of_class.max() - of_class.min() <= 1
        assert ((of_class - (y == label).sum() / count).abs() < 1).all()  # of its share, to within one sample


@given(y=labels, seed=seeds, count=counts)
def test_stratified_folds_have_the_classes_that_those_of_scikit_learn_have(y, seed, count):
    assume(bool((torch.bincount(y)[torch.unique(y)] >= count).all()))
    found = folds.dealt_by_class(y, count, rng.fold(seed))
    theirs = torch.empty_like(y)
    for fold, (_, test) in enumerate(StratifiedKFold(count).split(y, y)):
        theirs[test] = fold
    for label in torch.unique(y).tolist():
        own, right = (torch.bincount(fold[y == label], minlength=count) for fold in (found, theirs))
        assert torch.equal(own.sort().values, right.sort().values)


@given(sizes=st.lists(st.integers(1, 30), min_size=5, max_size=20), seed=seeds, count=counts)
def test_folds_of_groups_are_of_the_sizes_that_those_of_scikit_learn_are(sizes, seed, count):
    groups = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    own = torch.bincount(folds.dealt_by_group(groups, torch.zeros_like(groups), count, rng.fold(seed)))
    theirs = torch.tensor([len(test) for _, test in GroupKFold(count).split(groups, groups=groups)])
    assert torch.equal(own.sort().values, theirs.sort().values)


def test_classes_are_spread_over_folds_of_groups_at_least_as_evenly_as_by_scikit_learn():
    """60 data sets whose groups have classes of their own, as speakers have moods."""

    def uneven(fold, y, count):
        table = torch.zeros(count, 4).index_put((fold, y), torch.ones(len(y)), accumulate=True)
        return float((table / table.sum(0).clamp(min=1) - 1 / count).square().mean())

    ours, theirs = [], []
    for seed in range(60):
        numbers = np.random.default_rng(seed)
        groups = np.repeat(np.arange(30), numbers.geometric(0.15, 30))
        mood = numbers.dirichlet(np.full(4, 0.7), 30)
        y = np.array([numbers.choice(4, p=mood[group]) for group in groups])
        right = torch.empty(len(y), dtype=torch.int64)
        cut = StratifiedGroupKFold(4, shuffle=True, random_state=seed)
        for fold, (_, test) in enumerate(cut.split(y, np.minimum(y, 3), groups)):
            right[test] = fold
        own = folds.dealt_by_group(torch.tensor(groups), torch.tensor(y), 4, rng.fold(seed))
        ours.append(uneven(own, torch.tensor(y), 4))
        theirs.append(uneven(right, torch.tensor(y), 4))
    assert sum(ours) < sum(theirs)


@grouped_folds
@given(y=labels, seed=seeds, count=st.integers(2, 4), validation=st.floats(0.05, 0.8))
def test_a_group_is_never_in_two_parts(split, y, seed, count, validation):
    groups = grouped(y, seed)
    cut = partial(split, y, groups=groups, seed=seed, folds=count)
    inner = {"inner_folds": 2, "inner_fold": 1} if len(torch.unique(groups)) >= 8 else {"validation": 0.5}
    for fold in range(count):
        for found in (cut(fold=fold, validation=validation), cut(fold=fold, **inner)):
            parts = [set(groups[part].tolist()) for part in found]
            assert not (parts[0] & parts[1] or parts[0] & parts[2] or parts[1] & parts[2])


@grouped_folds
@given(y=labels, seed=seeds, mixed=seeds)
def test_which_groups_are_together_does_not_depend_on_the_order_of_the_samples(split, y, seed, mixed):
    groups, order = grouped(y, seed), rng.shuffle(torch.arange(len(y)), len(y), mixed)
    for more in ({"validation": 0.3}, {"inner_folds": 2, "inner_fold": 1}):
        cut = partial(split, seed=seed, folds=2, fold=1, **more)
        one, other = cut(y, groups=groups), cut(y[order], groups=groups[order])
        for a, b in zip(one, other, strict=True):
            assert torch.equal(a, order[b].sort().values)


@every_fold
@given(y=labels, seed=seeds, mixed=seeds)
def test_samples_in_another_order_give_folds_of_the_same_sizes_and_classes(split, y, seed, mixed):
    groups, order = grouped(y, seed), rng.shuffle(torch.arange(len(y)), len(y), mixed)
    one = given_groups(split, groups)(y, seed=seed, folds=3, fold=1, validation=0.2)
    other = given_groups(split, groups[order])(y[order], seed=seed, folds=3, fold=1, validation=0.2)
    assert [len(part) for part in one] == [len(part) for part in other]
    if split is not splits.k_fold:
        assert torch.equal(torch.bincount(y[one.test], minlength=4), torch.bincount(y[order][other.test], minlength=4))


@every_fold
def test_folds_depend_on_the_seed_alone_and_inner_folds_on_the_place_as_well(split):
    y = torch.arange(120) % 3
    cut = partial(given_groups(split, torch.arange(120) // 2), y, folds=3, validation=0.2)
    one, same, other = (cut(seed=seed, fold=0) for seed in (1, 1, 2))
    assert all(torch.equal(a, b) for a, b in zip(one, same, strict=True))
    assert not torch.equal(one.test, other.test) and not torch.equal(one.validation, other.validation)


@every_fold
def test_every_sample_is_as_likely_to_be_tested_first_or_to_choose_as_any_other(split):
    y = torch.arange(24) % 3
    cut = partial(given_groups(split, torch.arange(24) // 2), y, folds=4, fold=0, validation=1 / 3)
    tested, chosen = torch.zeros(24), torch.zeros(24)
    for seed in range(600):
        found = cut(seed=seed)
        tested[found.test] += 1
        chosen[found.validation] += 1
    for times in (tested, chosen):
        expected = times.mean()
        assert ((times - expected).abs() < 5 * expected.sqrt()).all()


@pytest.mark.parametrize("split", PLAIN, ids=lambda split: split.__name__)
@given(y=labels, seed=seeds, percent=st.integers(0, 80))
def test_validation_is_a_part_of_what_is_not_tested(split, y, seed, percent):
    found = split(y, seed=seed, folds=4, fold=2, validation=percent / 100)
    assert abs(len(found.validation) - percent / 100 * (len(y) - len(found.test))) <= 1


@grouped_folds
@given(seed=seeds, part=st.sampled_from([0.1, 0.15, 0.2, 0.25, 1 / 3, 0.5]))
def test_validation_of_groups_of_one_size_is_the_share_asked_for_to_within_a_group(split, seed, part):
    found = split(torch.arange(600) % 3, groups=torch.arange(600) // 5, seed=seed, folds=3, fold=0, validation=part)
    assert abs(len(found.validation) - part * 400) <= 0.05 * 400 * part + 5 * 3


WRONG = {
    "a place that is none": ({"folds": 3, "fold": 3}, "fold", "there is no fold 3: the last of 3 is 2"),
    "an inner place that is none": (
        {"folds": 3, "fold": 0, "inner_folds": 2, "inner_fold": 2},
        "inner_fold",
        "there is no inner fold 2: the last of 2 is 1",
    ),
    "an inner place of no folds": (
        {"folds": 3, "fold": 0, "inner_fold": 1},
        "inner_fold",
        "there is no inner fold 1: inner_folds says of how many",
    ),
    "one inner fold": (
        {"folds": 3, "fold": 0, "inner_folds": 1},
        "inner_folds",
        "of 1 inner fold nothing is left to train on: 2 at the least, or 0 for none",
    ),
    "two ways to choose": (
        {"folds": 3, "fold": 0, "inner_folds": 2, "validation": 0.1},
        "validation",
        "2 inner folds choose, and so would validation = 0.1: one of the two",
    ),
}


@every_fold
@pytest.mark.parametrize("case", WRONG)
def test_folds_that_cannot_be_cut_are_named(split, case):
    fixed, where, words = WRONG[case]
    y = torch.arange(30) % 3
    with pytest.raises(BadInput) as wrong:
        given_groups(split, torch.arange(30) // 2)(y, seed=0, **fixed)
    assert (wrong.value.where, str(wrong.value)) == (where, words)


def test_more_folds_than_samples_or_groups_are_refused_and_more_than_a_class_has_are_not():
    y = torch.tensor([0, 1, 0, 1, 0, 0])
    for split in PLAIN:
        with pytest.raises(ValueError, match=r"^7 folds of 6 samples: every fold needs one of its own$"):
            split(y, seed=0, folds=7, fold=0)
    for split in GROUPED:
        with pytest.raises(ValueError, match=r"^3 folds of 2 groups: every fold needs one of its own$"):
            split(y, groups=torch.tensor([5, 5, 5, 9, 9, 9]), seed=0, folds=3, fold=0)
    tests = [splits.stratified_k_fold(y, seed=0, folds=3, fold=fold).test for fold in range(3)]
    assert sorted(int(y[test].sum()) for test in tests) == [0, 1, 1]


def test_a_part_of_the_data_keeps_its_groups():
    data = blobs(samples=6)
    assert data.groups == () and data.part(torch.tensor([1, 2])).groups == ()
    part = data._replace(groups=torch.tensor([3, 3, 1, 1, 0, 0])).part(torch.tensor([4, 0, 2]))
    assert torch.equal(torch.as_tensor(part.groups), torch.tensor([0, 3, 1]))


def table(folder, kind, **columns):
    path = folder / f"t.{kind}"
    if kind == "parquet":
        pyarrow.parquet.write_table(pyarrow.table(columns), path)
    else:
        rows = zip(*columns.values(), strict=True)
        path.write_text("\n".join([",".join(columns), *(",".join(str(cell) for cell in row) for row in rows)]))
    return str(path)


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_a_column_of_groups_is_numbered_in_sorted_order_and_is_no_feature(kind, tmp_path):
    columns = {"a": [1.0, 2.0, 3.0], "who": ["eve", "ada", "eve"], "label": [0, 1, 0]}
    read = getattr(datasets, kind)
    found = read(path=table(tmp_path, kind, **columns), group="who")
    assert found.features == (1,) and torch.equal(found.groups, torch.tensor([1, 0, 1]))
    columns["who"] = [20, 3, 20]
    assert torch.equal(read(path=table(tmp_path, kind, **columns), group="who").groups, torch.tensor([1, 0, 1]))
    for task in ("regression", "multi-label"):
        found = read(path=table(tmp_path, kind, **columns), group="who", task=task)
        assert found.features == (1,) and torch.equal(found.groups, torch.tensor([1, 0, 1]))
    for group, words in (("whom", "has no column `whom`; it has a, who, label"), ("label", "is the label already")):
        with pytest.raises(BadInput, match=words) as wrong:
            read(path=table(tmp_path, kind, **columns), group=group)
        assert wrong.value.where == "group"


def test_arrays_and_torch_data_sets_have_groups_if_they_are_named(tmp_path):
    x, y = np.ones((4, 2)), np.array([0, 1, 0, 1])
    np.savez(tmp_path / "d.npz", x=x, y=y, who=np.array([7, 7, 2, 2]), odd=np.array([0.5, 1, 1, 1]), few=np.ones(3))
    read = partial(datasets.npz, path=str(tmp_path / "d.npz"))
    assert read().groups == () and torch.equal(torch.as_tensor(read(group="who").groups), torch.tensor([1, 1, 0, 0]))
    for group, words in (
        ("whom", "has no array `whom`"),
        ("odd", "groups are fractions, or not there: a group is a whole number or a text"),
        ("few", r"groups of shape \[3\] do not fit 4 samples: one each is right"),
    ):
        with pytest.raises(BadInput, match=words):
            read(group=group)
    found = from_torch(TensorDataset(torch.tensor(x), torch.tensor(y)), groups=["b", "a", "b", "b"])
    assert torch.equal(torch.as_tensor(found.groups), torch.tensor([1, 0, 1, 1]))


def config(folder, split, **data):
    numbers = np.random.default_rng(0)
    x, y = numbers.normal(size=(60, 4)), np.arange(60) % 3
    np.savez(folder / "d.npz", x=x, y=y, who=np.arange(60) // 4)
    own = {key: copy.deepcopy(CONFIG[key]) for key in ("name", "model", "optimizer", "training")}
    return own | {"data": {"fn": "npz", "path": str(folder / "d.npz"), **data}, "split": split}


def test_a_run_trains_and_tests_on_folds_of_groups(tmp_path):
    split = {"fn": "grouped_k_fold", "folds": 5, "fold": 1, "inner_folds": 3, "inner_fold": 2}
    path = written(tmp_path, config(tmp_path, split, group="who"))
    assert fcurr("run", path, "--out", tmp_path / "runs").exit_code == 0
    seen = []
    for part in ("train", "validation", "test"):
        table = pyarrow.parquet.read_table(tmp_path / f"runs/small/predictions/{part}.parquet")
        seen.append({sample // 4 for sample in table["id"].to_pylist()})
    assert [len(part) for part in seen] == [8, 4, 3] and len(set.union(*seen)) == 15
    assert json.loads((tmp_path / "runs/small/results.json").read_text())["facts"]["samples to train on"] == "32"


def test_a_column_of_groups_is_none_of_those_that_samples_to_predict_have(tmp_path):
    for task in ("classification", "regression"):
        numbers = np.random.default_rng(0).normal(size=(40, 2))
        rows = {"a": numbers[:, 0].tolist(), "who": [f"p{i // 4}" for i in range(40)], "b": numbers[:, 1].tolist()}
        data = table(tmp_path, "csv", **rows, label=[i % 2 for i in range(40)])
        split = {"fn": "grouped_k_fold", "folds": 4, "fold": 0, "validation": 0.25}
        found = config(tmp_path, split) | {"data": {"fn": "csv", "path": data, "group": "who", "task": task}}
        assert fcurr("run", written(tmp_path, found), "--out", tmp_path / task).exit_code == 0
        to = tmp_path / f"{task}.csv"
        assert fcurr("predict", tmp_path / task / "small", data, "--to", to).exit_code == 0
        assert len(to.read_text().splitlines()) == 41


def test_what_cannot_be_folded_is_said_where_it_was_written(tmp_path):
    said = {
        "grouped_k_fold": "split: grouped_k_fold keeps groups together, and the data has none: readers of tables take"
        " `group`, a column",
        "k_fold": "split.fold: there is no fold 7: the last of 5 is 4",
    }
    for fn, words in said.items():
        path = written(tmp_path, config(tmp_path, {"fn": fn, "folds": 5, "fold": 7 if fn == "k_fold" else 1}))
        result = fcurr("check", path)
        assert result.exit_code == 2 and words in result.stderr, result.stderr
    data = config(tmp_path, {"fn": "stratified_k_fold", "folds": 5, "fold": 0, "validation": 0.1}, task="regression")
    result = fcurr("check", written(tmp_path, data))
    assert "split: stratified_k_fold wants a class a sample, and the labels are numbers; k_fold does not" in (
        result.stderr
    )


def test_a_run_without_validation_samples_is_told_so(tmp_path):
    result = fcurr("check", written(tmp_path, config(tmp_path, {"fn": "k_fold", "folds": 5, "fold": 0})))
    assert "of 60 samples none is left to choose by: the validation split is empty" in result.stderr
