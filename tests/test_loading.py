"""Samplers and a weighted mean, for people who keep their own trainer."""

import json
from functools import partial
from itertools import chain, islice

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.func import grad, vmap
from torch.utils.data import DataLoader, Dataset
from worlds import keys, numbers, seeds

from fcurr import losses, models, optim, pacing, rng, sampler, training, tree
from fcurr.errors import BadInput
from fcurr.loading import AsDrawn, CurriculumBatchSampler, CurriculumSampler, weighted_mean
from fcurr.types import Batch

SAMPLES = 50
ORDER = rng.shuffle(torch.arange(SAMPLES), SAMPLES, 5)
clocks = st.sampled_from(["step", "epoch"])
tables = st.lists(st.integers(1, SAMPLES), min_size=1, max_size=8).map(sorted)
shares = st.integers(1, 6)  # samples of a rank and step


def course(table=(20, 30, 40, 50), key=0, order=ORDER) -> sampler.Lessons:
    return sampler.lessons(order, torch.tensor(table), torch.tensor(key))


def drawn(lessons, total, batch_size, clock="step") -> list[list[int]]:
    """What fcurr draws, step after step."""
    asked = {"batch_size": batch_size, "clock": clock}
    count = int(sampler.steps(lessons, total_iterations=total, **asked))
    ids, _ = sampler.ahead(sampler.start(lessons), torch.tensor(0), lessons, steps=count, **asked)
    return ids.tolist()


def batches(lessons=None, total=12, batch_size=6, **more) -> CurriculumBatchSampler:
    return CurriculumBatchSampler(lessons or course(), total_iterations=total, batch_size=batch_size, **more)


class Numbers(Dataset[int]):
    """The sample of an id is the id."""

    def __len__(self) -> int:
        return SAMPLES

    def __getitem__(self, index: int) -> int:
        return index


def flat(parts) -> list[int]:
    return list(chain.from_iterable(parts))


def seen(loader) -> list[list[int]]:
    return [batch.tolist() for batch in loader]


@given(table=tables, key=keys, total=st.integers(1, 70), batch_size=shares, clock=clocks)
def test_the_batches_of_a_run_are_those_that_fcurr_draws(table, key, total, batch_size, clock):
    one = batches(course(table, key), total, batch_size, clock=clock)
    right = drawn(course(table, key), total, batch_size, clock)
    assert len(one) == len(right) and list(one) == right and list(one) == []
    ids = CurriculumSampler(course(table, key), total_iterations=total, batch_size=batch_size, clock=clock)
    assert len(ids) == len(right) * batch_size and list(ids) == flat(right)


@given(table=tables, share=shares, replicas=st.integers(1, 4), clock=clocks)
def test_the_parts_of_the_ranks_in_order_are_the_batch_of_one_process(table, share, replicas, clock):
    fixed = {"total": 9, "batch_size": share * replicas, "clock": clock}
    ranks = [list(batches(course(table), replicas=replicas, rank=rank, **fixed)) for rank in range(replicas)]
    assert {len(part) for rank in ranks for part in rank} == {share}
    joined = [flat(parts) for parts in zip(*ranks, strict=True)]
    assert joined == list(batches(course(table), **fixed))


@given(table=tables, clock=clocks, cut=st.integers(0, 40), ahead=st.integers(0, 8), before=shares, after=shares)
def test_a_run_goes_on_after_the_batches_trained_on_whatever_was_drawn_ahead(table, clock, cut, ahead, before, after):
    fixed = {"total": 40, "batch_size": 60, "clock": clock}
    right = drawn(course(table), 40, 60, clock)
    cut = min(cut, len(right))
    old = batches(course(table), replicas=before, rank=before - 1, **fixed)
    list(islice(old, cut + ahead))
    state = json.loads(json.dumps(old.state_dict(trained=cut)))
    ranks = [batches(course(table), replicas=after, rank=rank, **fixed) for rank in range(after)]
    for rank in ranks:
        rank.load_state_dict(state)
        assert rank.state_dict() == state
    assert [flat(parts) for parts in zip(*ranks, strict=True)] == right[cut:]


def test_ids_go_on_after_the_steps_trained_on():
    right = drawn(course(), 12, 6)
    old = CurriculumSampler(course(), total_iterations=12, batch_size=6)
    assert list(islice(old, 6 * 9)) == flat(right[:9])
    new = CurriculumSampler(course(), total_iterations=12, batch_size=6)
    new.load_state_dict(old.state_dict(trained=7))
    assert list(new) == flat(right[7:])
    new.seek(11)
    assert list(new) == right[11]


@given(cut=st.integers(0, 12), epoch=st.sampled_from([1, 2, 3, 4, 6, 12]))
def test_iterating_again_gives_the_next_epoch_and_the_first_after_loading_the_rest_of_one(cut, epoch):
    right = drawn(course(), 12, 6)
    one = batches(steps_per_epoch=epoch)
    assert len(one) == epoch
    assert [list(one) for _ in range(12 // epoch)] == [right[at : at + epoch] for at in range(0, 12, epoch)]
    again = batches(steps_per_epoch=epoch)
    again.load_state_dict(one.state_dict(trained=cut))
    ends = [min(end, 12) for end in range(cut - cut % epoch + epoch, 13 + epoch, epoch)]
    pieces = [list(again) for _ in ends]
    assert pieces == [right[a:b] for a, b in zip([cut, *ends], ends, strict=False)] and list(again) == []


def test_a_sampler_that_is_asked_twice_for_an_iterator_before_drawing_draws_once():
    one = batches(steps_per_epoch=4)
    for epoch in range(3):
        iter(one)
        assert list(one) == drawn(course(), 12, 6)[4 * epoch : 4 * epoch + 4]


@pytest.mark.parametrize("persistent", [False, True])
def test_workers_deliver_what_is_drawn_epoch_after_epoch(persistent):
    right = drawn(course(), 12, 6)
    loader = DataLoader(
        Numbers(), batch_sampler=batches(steps_per_epoch=6), num_workers=2, persistent_workers=persistent
    )
    assert len(loader) == 6
    assert [seen(loader), seen(loader), seen(loader)] == [right[:6], right[6:], []]


@pytest.mark.parametrize("rank", [0, 1])
def test_a_run_stopped_in_a_pass_with_two_workers_goes_on_where_training_stood(rank):
    right = [batch[3 * rank : 3 * rank + 3] for batch in drawn(course(), 12, 6)]
    old = batches(replicas=2, rank=rank)
    loader, trained = DataLoader(Numbers(), batch_sampler=old, num_workers=2, prefetch_factor=2), []
    for batch in loader:
        trained.append(batch.tolist())
        if len(trained) == 5:
            break
    assert old.drawn > 5  # the trap: the workers are ahead
    state = old.state_dict(trained=5)
    assert state["step"] == 5
    new = batches(replicas=2, rank=rank)
    new.load_state_dict(state)
    assert trained + seen(DataLoader(Numbers(), batch_sampler=new, num_workers=2)) == right


def test_workers_that_drew_an_epoch_to_its_end_do_not_move_what_was_trained_on():
    one = batches(steps_per_epoch=4)
    loader = iter(DataLoader(Numbers(), batch_sampler=one, num_workers=2, prefetch_factor=4))
    first = next(loader).tolist()
    assert one.drawn == 4 and one.state_dict(trained=1)["step"] == 1
    with pytest.raises(BadInput, match="say how many have been trained on"):
        one.state_dict()
    new = batches(steps_per_epoch=4)
    new.load_state_dict(one.state_dict(trained=1))
    assert [first, *list(new)] == drawn(course(), 12, 6)[:4]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("cut", [0, 1, 3, 4, 5, 11, 12])
def test_a_stateful_data_loader_saves_what_it_delivered(workers, cut):
    stateful = pytest.importorskip("torchdata.stateful_dataloader")
    right = drawn(course(), 12, 6)

    def loader():
        data, drawing = Numbers(), AsDrawn(batches(steps_per_epoch=4))
        return stateful.StatefulDataLoader(data, batch_sampler=drawing, num_workers=workers)

    old, got = loader(), []
    while len(got) < cut:
        got += [batch.tolist() for batch in islice(old, cut - len(got))]
    new = loader()
    new.load_state_dict(json.loads(json.dumps(old.state_dict())))
    assert len(new) == 4
    for _ in range(4):
        got += seen(new)
    assert got == right


def test_the_curriculum_in_a_loop_of_ones_own_trains_what_fcurr_trains():
    """The whole of both: fcurr's fold, and torch's modules, optimizer and loader; in float64."""
    x, y = numbers(SAMPLES, 4, seed=1), torch.arange(SAMPLES) % 3
    model = models.mlp(features=(4,), classes=3, hidden=(5,))
    optimizer = optim.sgd(learning_rate=0.1, momentum=0.9)
    start = training.train_start(3, model=model, optimizer=optimizer)
    state = tree.map(lambda leaf: leaf.double() if leaf.is_floating_point() else leaf, start)
    net = torch.nn.Sequential(torch.nn.Linear(4, 5), torch.nn.ReLU(), torch.nn.Linear(5, 3)).double()
    net.load_state_dict({f"{2 * int(name[0])}{name[1:]}": leaf for name, leaf in state.params.items()})
    theirs = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    for ids in DataLoader(Numbers(), batch_sampler=batches()):
        theirs.zero_grad()
        losses_of_ids = torch.nn.functional.cross_entropy(net(x[ids]), y[ids], reduction="none")
        weighted_mean(losses_of_ids, torch.ones(len(ids), dtype=torch.float64)).backward()
        theirs.step()
    step = partial(training.train_step, model=model, loss=losses.cross_entropy, optimizer=optimizer)
    for ids in torch.tensor(drawn(course(), 12, 6)):
        state = step(state, Batch(x=x[ids], y=y[ids], id=ids))
    for name, leaf in state.params.items():
        torch.testing.assert_close(net.state_dict()[f"{2 * int(name[0])}{name[1:]}"], leaf, rtol=1e-12, atol=1e-13)


def test_the_state_of_another_curriculum_is_refused_in_words():
    state = batches().state_dict()
    other = course(order=ORDER.flip(0))
    more = course(order=torch.arange(60))
    for changed, words in [
        (batches(other), "under another order of the samples: other data, other scores or another way to order them"),
        (batches(more), "under another data set: of 50 samples in the order, and this one has 60"),
        (batches(course((20, 30))), "under another pace: the numbers of samples in play differ"),
        (batches(course(key=1)), "under another key: another seed"),
        (batches(batch_size=12), "under another batch size: 6, and this sampler's is 12, counted over all ranks"),
        (batches(clock="epoch"), "under another clock: step, and this sampler's is epoch"),
    ]:
        changed.seek(3)
        with pytest.raises(BadInput) as raised:
            changed.load_state_dict(state)
        assert str(raised.value) == f"the state was saved {words}" and changed.step == 3


def test_a_dict_that_is_no_state_is_refused_in_words():
    with pytest.raises(BadInput) as raised:
        batches().load_state_dict({"epoch": 3, "seed": 1})
    assert str(raised.value) == "this is not the state of a sampler: it has epoch, seed"


@given(table=tables, more=st.integers(0, 5))
def test_a_pace_that_only_stays_where_it_ended_is_the_same_pace(table, more):
    batches(course([*table, *[table[-1]] * more])).load_state_dict(batches(course(table)).state_dict())


@given(table=tables, place=st.integers(0, 7), size=st.integers(1, SAMPLES), seed=seeds)
def test_any_other_order_and_any_other_sizes_have_another_state(table, place, size, seed):
    state = batches(course(table)).state_dict()
    changed = [*table[: place % len(table)], size, *table[place % len(table) + 1 :]]
    other = batches(course(changed)).state_dict()
    assert (state["sizes"] == other["sizes"]) == (without_tail(table) == without_tail(changed))
    order = rng.shuffle(torch.arange(SAMPLES), SAMPLES, seed)
    same = torch.equal(order, ORDER)
    assert (batches(course(table, order=order)).state_dict()["order"] == state["order"]) == same
    assert all(0 <= state[name] < 2**53 for name in ("step", "order", "sizes", "key"))


def without_tail(table: list[int]) -> list[int]:
    while len(table) > 1 and table[-1] == table[-2]:
        table = table[:-1]
    return table


def test_an_iteration_that_was_broken_off_is_not_guessed_at():
    one = batches()
    list(islice(one, 5))
    with pytest.raises(BadInput) as raised:
        next(iter(one))
    assert str(raised.value) == (
        "the last iteration began at step 0 and was broken off after 5 batches had been drawn, perhaps ahead of"
        " training: call seek(trained) with the batches trained on, counted from the start of the run; and if an epoch"
        " is to be shorter, set steps_per_epoch"
    )
    one.seek(4)
    assert list(one) == drawn(course(), 12, 6)[4:]


def test_what_cannot_be_is_refused_in_words():
    members = course()._replace(key=torch.arange(3), order=torch.zeros(3).long(), pace=torch.zeros(3).long())
    one = batches()
    next(iter(one))
    for wrong, words in [
        (lambda: batches(batch_size=6, replicas=4), "a batch of 6 cannot be shared equally by 4 replicas: batch_size"
         " counts the samples of all ranks together; 4 would do"),
        (lambda: batches(batch_size=3, replicas=4), "a batch of 3 cannot be shared equally by 4 replicas: batch_size"
         " counts the samples of all ranks together; 4 would do"),
        (lambda: batches(replicas=2, rank=2), "rank 2 of 2 replicas: ranks are numbered from 0 to replicas - 1"),
        (lambda: batches(batch_size=0), "batch_size = 0 and total_iterations = 12: both are at least 1"),
        (lambda: batches(steps_per_epoch=5), "12 steps are not whole epochs of 5 steps: steps_per_epoch divides the"
         " steps of the run; without it, an epoch is the whole run"),
        (lambda: batches(members), "these are the lessons of 3 runs, and a sampler draws for one: make them with"
         " sampler.lessons(order, sizes, key)"),
        (lambda: one.seek(13), "13 batches cannot have been trained on: a run has 0 to 12"),
        (lambda: one.state_dict(trained=2), "2 batches cannot have been trained on: 1 have been drawn"),
        (lambda: one.state_dict(), "1 batches have been drawn, and a loader draws ahead of training: say how many have"
         " been trained on, state_dict(trained=...); for torchdata's StatefulDataLoader, give it AsDrawn(sampler)"),
        (lambda: weighted_mean(torch.ones(3), torch.ones(3, 1)), "losses [3] and weights [3, 1]: one weight a loss is"
         " wanted"),
    ]:  # fmt: skip
        with pytest.raises(BadInput) as raised:
            wrong()
        assert str(raised.value) == words


rows = st.integers(1, 12)
sparse = st.lists(st.sampled_from([0.0, 0.0, 0.5, 1.0, 3.0]), min_size=12, max_size=12)


@given(size=rows, weights=sparse, seed=seeds)
def test_the_weighted_mean_is_its_formula(size, weights, seed):
    values, w = numbers(size, seed=seed), weights[:size]
    right = sum(a * b for a, b in zip(w, values.tolist(), strict=True)) / sum(w) if sum(w) else 0.0
    assert float(weighted_mean(values, torch.tensor(w, dtype=torch.float64))) == pytest.approx(right, rel=1e-12)


@given(size=rows, weights=sparse, seed=seeds, left_out=st.sampled_from([0.0, 1e300, torch.inf, torch.nan]))
def test_a_weight_of_zero_is_leaving_the_sample_out_whatever_its_loss(size, weights, seed, left_out):
    w = torch.tensor(weights[:size], dtype=torch.float64)
    values = torch.where(w == 0, left_out, numbers(size, seed=seed))
    kept = w > 0
    slopes, right = grad(weighted_mean)(values, w), grad(weighted_mean)(values[kept], w[kept])
    torch.testing.assert_close(weighted_mean(values, w), weighted_mean(values[kept], w[kept]), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(slopes[kept], right, rtol=1e-12, atol=1e-12)
    assert bool((slopes[~kept] == 0).all())


@given(size=rows, weights=sparse, seed=seeds, factor=st.floats(0.01, 100))
def test_only_the_ratios_of_weights_count_and_equal_weights_are_the_mean(size, weights, seed, factor):
    values, w = numbers(size, seed=seed), torch.tensor(weights[:size], dtype=torch.float64)
    torch.testing.assert_close(weighted_mean(values, factor * w), weighted_mean(values, w), rtol=1e-12, atol=1e-12)
    equal = torch.full((size,), factor, dtype=torch.float64)
    torch.testing.assert_close(weighted_mean(values, equal), values.mean(), rtol=1e-12, atol=1e-12)


def test_if_all_weights_are_zero_the_mean_is_zero_and_so_is_its_slope():
    values = torch.tensor([1.0, torch.nan])
    assert float(weighted_mean(values, torch.zeros(2))) == 0.0
    assert grad(weighted_mean)(values, torch.zeros(2)).tolist() == [0.0, 0.0]


@given(size=rows, seed=seeds)
def test_the_slope_in_the_weights_is_that_of_the_formula_also_at_zero(size, seed):
    values, w = numbers(size, seed=seed), numbers(size, seed=seed + 1).relu()
    w = torch.cat([w, torch.tensor([0.0, 2.0], dtype=torch.float64)])
    values = torch.cat([values, numbers(2, seed=seed + 2)])
    right = (values - (w * values).sum() / w.sum()) / w.sum()
    torch.testing.assert_close(grad(weighted_mean, argnums=1)(values, w), right, rtol=1e-10, atol=1e-12)


@given(seed=seeds)
def test_the_weighted_mean_maps(seed):
    values, w = numbers(3, 5, seed=seed), numbers(3, 5, seed=seed + 1).abs()
    right = torch.stack([weighted_mean(a, b) for a, b in zip(values, w, strict=True)])
    torch.testing.assert_close(vmap(weighted_mean)(values, w), right, rtol=1e-12, atol=1e-12)


def test_a_long_run_begins_in_its_middle_at_once():
    """Half a million steps of a growing pace: as many draws would take minutes."""
    pace = partial(pacing.linear, initial_size=0.1, final_iteration=0.8, total_iterations=10**6, dataset_size=SAMPLES)
    lessons = course(sampler.tabulate(pace, 10**6).tolist())
    one = batches(lessons, total=10**6)
    one.seek(500_000)
    cursor = sampler.seek(lessons, 500_000, batch_size=6)
    right = sampler.draw(cursor, torch.tensor(500_000), lessons, batch_size=6).tolist()
    assert next(iter(one)) == right and one.state_dict(trained=500_001)["step"] == 500_001
