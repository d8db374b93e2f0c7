"""Which samples are clean, and the batches they come in."""

from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.func import vmap
from worlds import blobs, keys, labels, seeds, whole

from fcurr.bilevel.clean import apart, shuffled
from fcurr.data.clean import balanced, drawn, listed
from fcurr.errors import BadInput

sizes = st.integers(1, 20)


def ids(found, key: int, iteration: int) -> list[int]:
    batch = found((torch.tensor(key), torch.tensor(iteration)))
    assert (batch.x[:, 0] == batch.id).all() and (batch.y == batch.id % 3).all()
    return batch.id.tolist()


def counted(samples: int):
    """Samples that say who they are."""
    data = blobs(samples)
    return data._replace(x=torch.arange(samples)[:, None] * torch.ones(1, 6))


@given(key=keys, samples=sizes, batch=st.integers(1, 30), passes=st.integers(1, 3))
def test_each_pass_visits_every_clean_sample_once(key, samples, batch, passes):
    found = shuffled(counted(samples), batch_size=batch)
    size = min(batch, samples)
    visits = [one for step in range(-(-passes * samples // size)) for one in ids(found, key, step)]
    for turn in range(passes):
        assert sorted(visits[turn * samples : (turn + 1) * samples]) == [*range(samples)]


@given(key=keys, samples=sizes, batch=st.integers(1, 30), world=st.integers(1, 4), passes=st.integers(1, 3))
def test_parts_of_the_processes_make_the_whole_and_each_pass_visits_every_sample_once(
    key, samples, batch, world, passes
):
    size = min(batch, samples)
    if size < world:
        return
    each = [shuffled(counted(samples), batch_size=batch, rank=rank, world=world) for rank in range(world)]
    visits: list[int] = []
    for step in range(-(-passes * samples // (size // world))):
        parts = [ids(found, key, step) for found in each]
        assert [len(part) for part in parts] == [size // world] * world
        drawn_now = [one for part in parts for one in part]
        visits += drawn_now
        if size % world == 0:
            assert drawn_now == ids(shuffled(counted(samples), batch_size=batch), key, step)
    for turn in range(passes):
        assert sorted(visits[turn * samples : (turn + 1) * samples]) == [*range(samples)]


def test_a_batch_is_a_function_of_key_and_iteration_in_an_order_of_its_own_each_pass():
    found = shuffled(counted(20), batch_size=20)
    assert ids(found, 1, 0) == ids(found, 1, 0)
    assert len({tuple(ids(found, key, step)) for key in (1, 2) for step in (0, 1, 2)}) == 6
    assert sorted(ids(found, 1, 0)) == [*range(20)]


def test_members_draw_as_each_alone():
    found = shuffled(counted(9), batch_size=4)
    places = torch.tensor([1, 2, 3]), torch.tensor([0, 5, 7])
    mapped = vmap(lambda key, iteration: found((key, iteration)).id)(*places)
    assert mapped.tolist() == [ids(found, int(key), int(step)) for key, step in zip(*places, strict=True)]


def test_without_clean_samples_there_is_a_message():
    with pytest.raises(BadInput) as wrong:
        shuffled(counted(3).part(torch.tensor([], dtype=torch.int64)), batch_size=4)
    assert wrong.value.where == "clean"
    assert str(wrong.value) == "there are no clean samples: learned weights need some to be judged by"
    with pytest.raises(BadInput) as wrong:
        shuffled(counted(3), batch_size=4, rank=3, world=4)
    assert str(wrong.value) == "4 processes cannot share 3 clean samples"


def test_clean_samples_that_are_trained_on_as_well_are_refused():
    train, few = blobs(20), blobs(5, seed=9)
    apart(train, few)
    mixed = whole(few).x.index_copy(0, torch.tensor([2, 4]), train.take(torch.tensor([7, 0])).x)
    both = few._replace(x=mixed)
    with pytest.raises(BadInput) as wrong:
        apart(train, both)
    assert wrong.value.where == "clean"
    assert str(wrong.value) == (
        "2 of 5 clean samples are trained on as well (the first: 2): what judges the weights must not be among what is "
        "weighted"
    )


# which samples


@given(seed=seeds, samples=st.integers(12, 60), classes=st.integers(1, 4), extra=st.integers(0, 8))
def test_balanced_takes_as_many_of_every_class_to_within_one_and_none_twice(seed, samples, classes, extra):
    y = torch.arange(samples) % classes
    size = min(classes + extra, samples)
    found = balanced(y, size=size, among=torch.arange(len(y)), classes=classes, seed=seed)
    counts = torch.bincount(y[found], minlength=classes)
    assert len(found) == size == len(found.unique()) and found.dtype == torch.int64
    assert counts.max() - counts.min() <= 1 and counts.tolist() == sorted(counts.tolist(), reverse=True)
    assert torch.equal(found, found.sort().values) and found.min() >= 0 and found.max() < samples


@given(y=labels, seed=seeds)
def test_drawn_takes_any_once_and_leaves_some(y, seed):
    for size in range(1, len(y)):
        found = drawn(y, size=size, among=torch.arange(len(y)), seed=seed)
        assert len(found.unique()) == size == len(found)
        assert set(found.tolist()) < set(range(len(y)))


@pytest.mark.parametrize(
    "choose",
    [partial(drawn, size=10, among=torch.arange(60)), partial(balanced, size=10, among=torch.arange(60), classes=3)],
)
def test_the_seed_decides_and_every_sample_may_be_taken(choose):
    y = torch.arange(60) % 3
    assert torch.equal(choose(y, seed=1), choose(y, seed=1)) and not torch.equal(choose(y, seed=1), choose(y, seed=2))
    taken = torch.bincount(torch.cat([choose(y, seed=seed) for seed in range(600)]), minlength=60)
    assert (taken - 100).abs().max() < 50  # five standard deviations


def test_what_cannot_be_taken_is_said():
    y = torch.tensor([0, 0, 0, 1, 2, 2])
    with pytest.raises(ValueError) as wrong:
        balanced(y, size=6, among=torch.arange(len(y)), classes=3, seed=0)
    assert str(wrong.value) == "class 1 has 1 samples to train on, and 2 are to be clean"
    with pytest.raises(ValueError) as wrong:
        balanced(y, size=2, among=torch.arange(len(y)), classes=3, seed=0)
    assert str(wrong.value) == "2 clean samples cannot show 3 classes: at least one each"
    with pytest.raises(ValueError) as wrong:
        drawn(y, size=6, among=torch.arange(len(y)), seed=0)
    assert str(wrong.value) == "of 6 samples to train on, 6 clean ones leave none"


def test_listed_samples_are_those_and_a_wrong_list_is_told():
    y = torch.arange(5)
    assert listed(y, ids=(4, 0)).tolist() == [0, 4]
    with pytest.raises(ValueError, match=r"^there is no sample 5: the data has 5, counted from 0$"):
        listed(y, ids=(5,))
    with pytest.raises(ValueError, match=r"^sample 1 is listed twice$"):
        listed(y, ids=(1, 2, 1))
