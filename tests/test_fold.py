"""A run is a fold: what the members see on the way, what stops them, and what a step may consist of."""

import warnings
from functools import partial
from itertools import islice

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.func import vmap
from worlds import assert_close, blobs, double, numbers, seeds

from fcurr import fold, models, optim, rng, sampler, training, tree
from fcurr.losses import balanced_cross_entropy, cross_entropy
from fcurr.precision import loss_scaled
from fcurr.sampler import Clock, Lessons
from fcurr.types import Batch, Place

CLASSES, SAMPLES = 3, 24
DATA = blobs(SAMPLES, (6,), CLASSES)  # float64
MLP = models.mlp(features=(6,), classes=CLASSES, hidden=(5,))
SGD = optim.sgd(learning_rate=0.1, momentum=0.9)


def begun(seed: int = 0, model=MLP, optimizer=SGD):
    return double(training.train_start(seed, model=model, optimizer=optimizer))


def taken(seed: int, size: int = 8) -> Batch:
    return DATA.take(rng.shuffle(torch.arange(size), SAMPLES, seed))


def step(state, batch, **names):
    return training.train_step(state, batch, **{"model": MLP, "loss": cross_entropy, "optimizer": SGD, **names})


def plain(varying, state, batch: Batch):
    return step(state, batch)


def lessons(paces: list[list[int]], seed: int = 0) -> Lessons:
    """A member a pace, each with an order of its own."""
    rows = torch.arange(len(paces))
    orders = rng.shuffle(torch.arange(SAMPLES), SAMPLES, rng.fold(seed, rows.unsqueeze(1)))
    return Lessons(orders=orders, sizes=torch.tensor(paces), order=rows, pace=rows, key=rng.fold(seed, 1, rows))


def program(
    paces: list[list[int]], *, move=plain, total: int = 12, clock: Clock = "step", batch_size: int = 5, seed: int = 0
):
    rows = lessons(paces, seed)
    return fold.Program(
        step=partial(fold.in_turn, move),
        varying={},
        data=DATA,
        lessons=rows,
        batch_size=batch_size,
        clock=clock,
        total_iterations=total,
    )


def started(of: fold.Program) -> fold.Run:
    return fold.begin(of, tree.stack([begun(seed) for seed in range(len(of.lessons.pace))]))


clocks = st.sampled_from(["step", "epoch"])
pace_lists = st.integers(1, 6).flatmap(  # members share a length, and sizes may rise and fall
    lambda length: st.lists(st.lists(st.integers(1, SAMPLES), min_size=length, max_size=length), min_size=1, max_size=4)
)
all_labels = st.lists(st.integers(0, CLASSES - 1), min_size=SAMPLES, max_size=SAMPLES).map(torch.tensor)


@given(pace_lists, all_labels, seeds)
def test_the_classes_in_play_are_those_of_the_first_part_of_the_order_at_every_size_of_the_pace(paces, y, seed):
    rows = lessons(paces, seed)
    table = fold.in_play(rows, y, CLASSES)
    for column in range(len(paces[0])):
        size = rows.sizes[:, column]
        right = [
            torch.bincount(y[rows.orders[member, : size[member]]], minlength=CLASSES).tolist()
            for member in range(len(paces))
        ]
        assert fold.counted(table, size).tolist() == right


@given(all_labels, seeds)
def test_members_that_share_orders_and_paces_have_the_classes_in_play_of_their_own_pair(y, seed):
    tables = lessons([[4, 9, 24], [7, 7, 20]], seed)
    order, pace = torch.tensor([0, 1, 1, 0]), torch.tensor([1, 1, 0, 0])
    rows = tables._replace(order=order, pace=pace, key=torch.arange(4))
    table = fold.in_play(rows, y, CLASSES)
    for column in range(3):
        size = rows.sizes[pace, column]
        right = [
            torch.bincount(y[tables.orders[order[m], : size[m]]], minlength=CLASSES).tolist() for m in range(len(order))
        ]
        assert fold.counted(table, size).tolist() == right


def test_an_order_of_the_first_part_of_the_samples_has_classes_in_play_too():
    rows = lessons([[2, 5]])
    short = rows._replace(orders=rows.orders[:, :5])
    y = torch.arange(SAMPLES) % CLASSES
    for size in (2, 5):
        found = fold.counted(fold.in_play(short, y, CLASSES), torch.tensor([size]))
        assert found[0].tolist() == torch.bincount(y[rows.orders[0, :size]], minlength=CLASSES).tolist()


def test_looking_up_the_classes_in_play_warns_of_nothing():
    torch.set_warn_always(True)  # else some are given once a process
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            for members in (1, 2):
                heard_counts([[4, 9, 24]] * members, clock="step", batch_size=5, seed=0)
    finally:
        torch.set_warn_always(False)


def heard_counts(paces, *, clock, batch_size, seed, total: int = 12):
    """The counts, and the batches, that the step of every iteration was given."""
    told = []

    def listen(varying, state, batch):
        told.append((varying["counts"].tolist(), batch.id.tolist()))
        return state

    of = program(paces, move=listen, total=total, clock=clock, batch_size=batch_size, seed=seed)
    of = of._replace(in_play=fold.in_play(of.lessons, DATA.y, CLASSES))
    cursors = [run.cursor for run in fold.proceed(of, started(of))]
    count = len(paces)
    return [told[at : at + count] for at in range(0, len(told), count)], cursors, of


@given(paces=pace_lists, clock=clocks, batch_size=st.integers(1, 30), seed=seeds)
def test_a_step_is_told_the_classes_in_play_where_its_batch_ends(paces, clock, batch_size, seed):
    """A member that has finished is told something, and does not move."""
    told, cursors, of = heard_counts(paces, clock=clock, batch_size=batch_size, seed=seed)
    lasts = fold.lengths(of).tolist()
    for turn, (members, cursor) in enumerate(zip(told, cursors, strict=True)):
        for member, (counts, _) in enumerate(members):
            if turn < lasts[member]:
                part = DATA.y[of.lessons.orders[member, : cursor.size[member]]]
                assert counts == torch.bincount(part, minlength=CLASSES).tolist()


@given(
    pace=st.lists(st.integers(1, SAMPLES), min_size=1, max_size=6).map(sorted),
    clock=clocks,
    batch_size=st.integers(1, 30),
    seed=seeds,
)
def test_while_the_pace_rises_every_sample_of_a_batch_is_among_those_in_play(pace, clock, batch_size, seed):
    """So no sample of a batch has the weight 0 of a class that is not there yet."""
    told, _, _ = heard_counts([pace], clock=clock, batch_size=batch_size, seed=seed)
    for ((counts, ids),) in told:
        assert all(counts[label] > 0 for label in DATA.y[ids].tolist())


@pytest.mark.parametrize("route", ["in turn", "traced"])
@pytest.mark.parametrize("batch_size", [4, 5])
def test_balanced_cross_entropy_in_a_program_is_that_of_the_samples_in_play(batch_size, route):
    """Against a loop by hand, with weights of its own, over two members of different paces."""
    paces, total = [[4, 6, 9, 24], [24, 24, 24, 24]], 12

    def balanced(varying, state, batch):
        return step(state, batch, loss=partial(balanced_cross_entropy, counts=varying["counts"]))

    of = program(paces, move=balanced, total=total, batch_size=batch_size)
    table = fold.in_play(of.lessons, DATA.y, CLASSES)
    of = of._replace(in_play=table, varying={"counts": table.counts[:, -1]})
    if route == "traced":
        run = started(of)
        batch = DATA.take(torch.zeros(2, batch_size, dtype=torch.int64))
        of = of._replace(step=fold.together(balanced, of.varying, run.train, batch))
    end = fold.finish(of, started(of))

    for member in range(2):
        own = of.lessons._replace(order=of.lessons.order[member], pace=of.lessons.pace[member])
        cursor, state = sampler.start(own._replace(key=of.lessons.key[member])), begun(member)
        own = own._replace(key=of.lessons.key[member])
        for turn in range(total):
            visits = sampler.visit(cursor, torch.tensor(turn), own, batch_size=batch_size)
            batch, cursor = DATA.take(sampler.ids(visits, own)), sampler.after(visits)
            counts = torch.bincount(DATA.y[own.orders[member, : cursor.size]], minlength=CLASSES).double()
            weights = torch.where(counts > 0, 1 / counts, 0)
            weights = weights / weights.sum() * (counts > 0).sum()
            loss = nn.CrossEntropyLoss(weights, reduction="none")
            state = step(state, batch, loss=loss)
        assert_close(tree.member(end.train, member), state)


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(2, 4, batch_first=True)
        self.head = nn.Linear(4, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(x.reshape(len(x), 3, 2))[0][:, -1])


def single(tensors):
    return tree.map(lambda leaf: leaf.float() if leaf.is_floating_point() else leaf, tensors)


class Written(nn.Module):
    """Written in place into a tensor that has no members: what torch cannot map."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return torch.zeros(len(x), CLASSES, dtype=x.dtype).add_(self.layer(x))


@pytest.mark.parametrize("build", [Recurrent, Written])
@pytest.mark.parametrize("count", [1, 3])
def test_members_of_a_model_that_torch_cannot_map_are_those_of_each_alone(build, count):
    model = models.from_module(build=build)
    one = lambda varying, state, batch: step(state, batch, model=model)  # noqa: E731
    states = tree.stack([begun(seed, model) for seed in range(count)])
    batches = [tree.stack([taken(3 * turn + seed) for seed in range(count)]) for turn in range(3)]
    move = fold.together(one, {}, states, batches[0])
    if build is Written:
        with pytest.raises(RuntimeError):
            vmap(one)({}, states, batches[0])  # else this test proves nothing
    ended, alone = states, list(tree.apart(states))
    for batch in batches:
        ended = move({}, ended, batch)
        alone = [one({}, state, own) for state, own in zip(alone, tree.apart(batch), strict=True)]
    assert_close(ended, tree.stack(alone))
    assert not tree.equal(ended.params, states.params)


def test_a_step_in_turn_is_the_mapped_step():
    states, batch = tree.stack([begun(seed) for seed in range(3)]), tree.stack([taken(seed) for seed in range(3)])
    varying = {"rate": torch.tensor([0.1, 0.2, 0.4], dtype=torch.float64)}
    one = lambda own, state, batch: step(state, batch, optimizer=optim.sgd(learning_rate=own["rate"], momentum=0.9))  # noqa: E731
    assert_close(fold.in_turn(one, varying, states, batch), vmap(one)(varying, states, batch))


def test_one_member_is_not_mapped_so_that_its_step_may_be_anything_that_can_be_traced(monkeypatch):
    monkeypatch.setattr(fold, "vmap", lambda function: pytest.fail("a single member was mapped"))
    states, batch = tree.stack([begun()]), tree.stack([taken(0)])
    found = fold.together(plain, {}, states, batch)({}, states, batch)
    assert tree.equal(found, tree.stack([step(begun(), taken(0))]))


def test_what_is_wrong_in_a_step_is_raised_and_not_taken_for_what_cannot_be_mapped():
    def wrong(varying, state, batch):
        raise RuntimeError("the shapes do not fit")

    states, batch = tree.stack([begun(seed) for seed in range(2)]), tree.stack([taken(0)] * 2)
    with pytest.raises(RuntimeError, match="the shapes do not fit"):
        fold.together(wrong, {}, states, batch)


PACES = [[4, 6, 9, 24], [24, 24, 24, 24], [9, 9, 10, 10]]


@pytest.mark.parametrize("clock", ["step", "epoch"])
@given(cut=st.integers(1, 11), member=st.integers(0, 2))
def test_a_member_whose_last_step_is_lowered_stays_there_and_the_others_go_on_as_they_would_have(clock, cut, member):
    of = program(PACES, clock=clock, total=12 if clock == "step" else 4)
    whole = WHOLE.setdefault(clock, list(fold.proceed(of, started(of))))
    here = whole[cut - 1]
    at = min(cut, int(here.last[member]))
    lowered = here._replace(last=here.last.index_fill(0, torch.tensor(member), at))
    rest = list(fold.proceed(of, lowered))
    assert len(rest) == fold.length(lowered) - cut
    for run, right in zip(rest, whole[cut:], strict=False):
        for other in range(3):
            stands = here if other == member else right
            assert tree.equal(tree.member(run.train, other), tree.member(stands.train, other))
            assert tree.equal(tree.member(run.cursor, other), tree.member(stands.cursor, other))
            assert run.clock[other] == stands.clock[other]
        assert torch.equal(run.last, lowered.last) and run.iteration == right.iteration


WHOLE: dict[str, list[fold.Run]] = {}


def test_a_run_whose_members_have_all_been_stopped_is_at_its_end():
    of = program(PACES)
    here = list(islice(fold.proceed(of, started(of)), 5))[-1]
    stopped = here._replace(last=torch.full((3,), 5))
    assert fold.length(stopped) == 5 and list(fold.proceed(of, stopped)) == [] and fold.finish(of, stopped) is stopped


def test_a_run_is_as_long_as_its_clock_says_and_can_be_continued_by_raising_its_last_step():
    short, long = program(PACES, total=5), program(PACES, total=9)
    ended = fold.finish(short, started(short))
    assert ended.last.tolist() == fold.lengths(short).tolist() == [5, 5, 5]
    continued = fold.finish(long, ended._replace(last=fold.lengths(long)))
    assert tree.equal(continued, fold.finish(long, started(long)))


def test_by_steps_a_program_reads_the_steps_that_each_member_has_taken():
    of = program(PACES, total=6)
    run = started(of)
    run = run._replace(last=torch.tensor([6, 2, 4]))
    read = [state.clock.tolist() for state in (run, *fold.proceed(of, run))]
    assert read == [[min(turn, last) for last in (6, 2, 4)] for turn in range(7)]


@given(paces=pace_lists, batch_size=st.integers(1, 30), total=st.integers(1, 4))
def test_by_epochs_a_program_reads_the_passes_that_each_member_has_completed(paces, batch_size, total):
    of = program(paces, move=lambda varying, state, batch: state, total=total, clock="epoch", batch_size=batch_size)
    lasts = fold.lengths(of).tolist()
    run = started(of)
    assert run.clock.tolist() == [0] * len(paces)
    for turn, after in enumerate(fold.proceed(of, run)):
        for member, pace in enumerate(paces):
            seen, passes = min(turn + 1, lasts[member]) * batch_size, 0
            while seen >= pace[min(passes, len(pace) - 1)]:
                seen, passes = seen - pace[min(passes, len(pace) - 1)], passes + 1
            assert after.clock[member] == passes


def normed() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, CLASSES))


def noisy() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 50), nn.Dropout(0.5), nn.ReLU(), nn.Linear(50, CLASSES))


@pytest.mark.parametrize("optimizer", [SGD, loss_scaled(SGD)], ids=["plain", "scaled"])
@given(seed=seeds, accumulate=st.sampled_from([1, 2, 4, 8]))
def test_a_batch_in_parts_moves_the_state_as_the_whole_batch_does(optimizer, seed, accumulate):
    state, batch = begun(seed, optimizer=optimizer), taken(seed)
    assert_close(
        step(state, batch, optimizer=optimizer, accumulate=accumulate), step(state, batch, optimizer=optimizer)
    )


@given(seed=seeds)
def test_running_statistics_see_the_parts_of_a_batch_one_after_another(seed):
    model = models.from_module(build=normed)
    state, batch = begun(0, model), taken(seed)
    after = step(state, batch, model=model, accumulate=2)
    net = normed().double().train()
    net.load_state_dict(training.variables(state))
    halves = [(nn.functional.cross_entropy(net(x), y)) for x, y in zip(batch.x.chunk(2), batch.y.chunk(2), strict=True)]
    torch.stack(halves).mean().backward()
    assert_close(after.buffers, dict(net.named_buffers()))
    grads = {name: torch.as_tensor(leaf.grad) for name, leaf in net.named_parameters()}
    assert_close(after.params, {name: state.params[name] - 0.1 * leaf for name, leaf in grads.items()})


def test_parts_of_a_batch_draw_different_numbers_and_a_batch_in_one_part_draws_what_it_always_drew():
    model = models.from_module(build=noisy)
    state, one = begun(0, model), taken(0, 4)
    twice = Batch(*(torch.cat([leaf, leaf]) for leaf in one))
    whole, parts = (step(state, twice, model=model, accumulate=count) for count in (1, 2))
    single_part = step(state, one, model=model)
    assert not tree.equal(parts.params, single_part.params)  # equal if both halves had dropped the same
    assert tree.equal(whole, step(state, twice, model=model))


def test_a_batch_that_does_not_come_in_equal_parts_is_refused_in_words():
    with pytest.raises(ValueError) as raised:
        step(begun(), taken(0, 8), accumulate=3)
    assert str(raised.value) == "a batch of 8 does not come in 3 equal parts"


def jittered(batch: Batch, place: Place) -> Batch:
    key, iteration = place
    noise = rng.uniform(key, iteration, batch.id.unsqueeze(1), torch.arange(batch.x.shape[1]))
    return batch._replace(x=batch.x + noise)


@pytest.mark.parametrize("accumulate", [1, 4])
def test_a_step_is_taken_on_the_batch_augmented_at_its_place(accumulate):
    state = begun()._replace(iteration=torch.tensor(7))
    found = step(state, taken(0), augment=jittered, accumulate=accumulate)
    assert_close(found, step(state, jittered(taken(0), (state.key, state.iteration))))
    assert not tree.equal(found.params, step(state, taken(0)).params)
    later = step(state._replace(iteration=torch.tensor(8)), taken(0), augment=jittered)
    assert not tree.equal(found.params, later.params)


def test_augmentations_follow_one_another_each_with_a_stream_of_its_own():
    seen = []

    def note(batch: Batch, place: Place) -> Batch:
        seen.append((place[0].item(), place[1].item()))
        return batch._replace(x=2 * batch.x + 1)

    batch, key = taken(0), torch.tensor(5)
    found = training.in_order(batch, (key, torch.tensor(3)), chain=[note, note])
    assert torch.equal(found.x, 4 * batch.x + 3) and torch.equal(found.y, batch.y)
    assert len({key for key, _ in seen}) == 2 and [iteration for _, iteration in seen] == [3, 3]
    assert training.in_order(batch, (key, key), chain=[]) is batch


def with_nan(batch: Batch) -> Batch:
    return batch._replace(x=batch.x.index_fill(0, torch.tensor([2]), torch.nan))


@pytest.mark.parametrize("build", [None, normed])
def test_a_step_that_would_end_in_nan_is_not_taken_and_its_loss_says_so(build):
    model = models.from_module(build=build) if build else MLP
    careful = partial(training.skipping, step=partial(step, model=model))
    state = careful(begun(0, model), taken(0))
    assert tree.equal(state, step(begun(0, model), taken(0), model=model))  # a good step is the step
    hurt = careful(state, with_nan(taken(1)))
    assert hurt.loss.isnan() and hurt.iteration == state.iteration + 1
    assert tree.equal(hurt._replace(loss=state.loss, iteration=state.iteration), state)
    mapped = vmap(careful)(tree.stack([state] * 2), tree.stack([taken(1), with_nan(taken(1))]))
    assert_close(tree.member(mapped, 0), careful(state, taken(1)))
    assert tree.equal(tree.member(mapped, 1), hurt)


def test_a_step_to_parameters_that_are_not_finite_is_not_taken_although_its_loss_is():
    wild = partial(step, optimizer=optim.sgd(learning_rate=1e308, momentum=0.9))
    state, batch = begun(), taken(0)._replace(x=1e3 * taken(0).x)
    assert wild(state, batch).loss.isfinite() and not training.finite(state, wild(state, batch))
    hurt = training.skipping(state, batch, step=wild)
    assert tree.equal(hurt.params, state.params) and tree.equal(hurt.optimizer, state.optimizer) and hurt.loss.isnan()


def test_a_state_is_finite_if_its_loss_and_all_its_parameters_are():
    state = step(begun(), taken(0))
    assert training.finite(state, state) and not training.finite(
        begun(), begun()
    )  # there is no loss before the first step
    for wrong in (torch.nan, torch.inf, -torch.inf):
        assert not training.finite(state, state._replace(loss=torch.tensor(wrong)))
        for name in state.params:
            broken = {key: leaf.clone() for key, leaf in state.params.items()}
            broken[name].view(-1)[-1] = wrong
            assert not training.finite(state, state._replace(params=broken))


def test_an_evaluation_is_heard_by_the_optimizer_and_changes_nothing_else():
    listening = optim.plateau(optimizer=optim.sgd(learning_rate=0.1), factor=0.5, patience=1)
    method = training.gradient_descent(model=MLP, loss=cross_entropy, optimizer=listening)
    state = method.init(0)
    for _ in range(3):
        before, state = state, method.advance(state, torch.tensor(1.0))
        assert tree.equal(state, before._replace(optimizer=state.optimizer))
    assert state.optimizer.factor == 0.5
    batch = single(taken(0))
    once, halved = begun_in_single(0), method.step(state, batch)
    full = training.train_step(once, batch, model=MLP, loss=cross_entropy, optimizer=optim.sgd(learning_rate=0.1))
    for name, leaf in once.params.items():
        moved = halved.params[name] - leaf
        torch.testing.assert_close(moved, 0.5 * (full.params[name] - leaf), rtol=1e-4, atol=1e-7)
    deaf = training.gradient_descent(model=MLP, loss=cross_entropy, optimizer=optim.sgd(learning_rate=0.1))
    assert tree.equal(deaf.advance(once, torch.tensor(1.0)), once)


def begun_in_single(seed: int):
    return training.train_start(seed, model=MLP, optimizer=optim.sgd(learning_rate=0.1))


def test_members_hear_metrics_of_their_own():
    listening = optim.plateau(optimizer=SGD, factor=0.5, patience=1)
    states = tree.stack([begun(seed, optimizer=listening) for seed in range(2)])
    hear = vmap(partial(training.heard, optimizer=listening))
    for metrics in ([1.0, 1.0], [1.0, 0.5], [1.0, 0.2]):
        states = hear(states, torch.tensor(metrics))
    assert states.optimizer.factor.tolist() == [0.5, 1.0]


@given(seed=seeds)
def test_what_a_team_shares_is_what_the_step_goes_on_with(seed):
    """Two processes with half a batch each, and the mean of what both have found, take the step of the whole."""
    state, batch = begun(seed), taken(seed)
    halves, found = [Batch(*part) for part in zip(*(leaf.chunk(2) for leaf in batch), strict=True)], []
    for half in halves:
        step(state, half, shared=lambda own: (found.append(own), own)[1])
    mean = tree.map(lambda leaf: leaf / 2, tree.sum_of(found))
    assert_close(step(state, halves[0], shared=lambda own: mean), step(state, batch))


def test_processes_of_a_team_draw_different_numbers_and_one_alone_draws_as_ever():
    model, x = models.from_module(build=noisy), numbers(8, 6)
    params, buffers = double(model.init(0))
    place = (torch.tensor(0), torch.tensor(0))
    drawn = [
        training.apart(model, training.Team(rank, 2, training.alone)).train(params, buffers, x, place)[0]
        for rank in range(2)
    ]
    assert not torch.equal(*drawn) and training.apart(model, training.ALONE) is model
