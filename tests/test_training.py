"""How the state moves."""

from functools import partial
from itertools import islice

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.func import grad, vmap
from worlds import assert_close, blobs, double, numbers, seeds

from fcurr import evaluating, fold, metrics, models, optim, rng, sampler, training, tree
from fcurr.autodiff import losses_and_grad
from fcurr.losses import cross_entropy
from fcurr.sampler import Lessons
from fcurr.types import Batch, Params

DATA = blobs()  # 24 samples of 6 features, 3 classes, float64
MLP = models.mlp(features=(6,), classes=3, hidden=(5,))
RATES = torch.tensor([0.05, 0.1, 0.4, 0.2], dtype=torch.float64)


def normed() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 5, bias=False), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 3))


MODELS = {"mlp": MLP, "batch_norm": models.from_module(build=normed)}
OPTIMIZERS = {"sgd": partial(optim.sgd, momentum=0.9), "adam": optim.adam}
every_model = pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
every_optimizer = pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)


def step(varying: Params, state, batch: Batch, *, model=MLP, make=OPTIMIZERS["sgd"]):
    optimizer = make(learning_rate=varying["learning_rate"])
    return training.train_step(state, batch, model=model, loss=cross_entropy, optimizer=optimizer)


def begun(seed: int = 0, model=MLP, make=OPTIMIZERS["sgd"]):
    return double(training.train_start(seed, model=model, optimizer=make(learning_rate=0.1)))


def taken(seed: int, size: int = 8) -> Batch:
    return DATA.take(rng.shuffle(torch.arange(size), 24, seed))


def program(rows: list[int], *, clock="step", total_iterations: int = 40, traced: bool = False) -> fold.Program:
    """Members that differ in everything but the data; there are four, rows 0 to 3."""
    orders = rng.shuffle(torch.arange(24), 24, torch.arange(2).unsqueeze(1))
    sizes = torch.tensor([[4, 6, 9, 24], [24, 24, 24, 24]])
    chosen = torch.tensor(rows)
    lessons = Lessons(orders=orders, sizes=sizes, order=chosen % 2, pace=chosen // 2, key=rng.fold(7, chosen))
    varying = {"learning_rate": RATES[chosen]}
    asked = {"batch_size": 5, "clock": clock, "total_iterations": total_iterations}
    mapped = vmap(step)
    if traced:
        example = tree.stack([begun(row) for row in rows]), DATA.take(torch.zeros(len(rows), 5, dtype=torch.int64))
        mapped = fold.together(partial(step), varying, *example)
    return fold.Program(step=mapped, varying=varying, data=DATA, lessons=lessons, **asked)


def started(rows: list[int], of: fold.Program) -> fold.Run:
    return fold.begin(of, tree.stack([begun(row) for row in rows]))


@every_model
@every_optimizer
@given(seed=st.integers(0, 2**31 - 1))
def test_a_step_writes_to_none_of_its_arguments_and_keeps_names_shapes_and_dtypes(model, make, seed):
    for cast in (double, lambda tensors: tree.map(lambda x: x.float() if x.is_floating_point() else x, tensors)):
        state, batch = cast(begun(seed, model, make)), cast(taken(seed))
        before = tree.map(torch.clone, (state, batch))
        after = training.train_step(state, batch, model=model, loss=cross_entropy, optimizer=make(learning_rate=0.1))
        assert tree.equal((state, batch), before)
        kinds = [(name, leaf.shape, leaf.dtype) for name, leaf in tree.named(state).items()]
        assert [(name, leaf.shape, leaf.dtype) for name, leaf in tree.named(after).items()] == kinds
        assert after.iteration == state.iteration + 1 and not tree.equal(after.params, state.params)
        assert not any(leaf.requires_grad for leaf in tree.leaves(after))


@every_optimizer
def test_training_is_the_loop_of_torch_over_a_module_in_float32(make):
    model, optimizer = MODELS["batch_norm"], make(learning_rate=0.05)
    state = training.train_start(3, model=model, optimizer=optimizer)
    net = normed()
    net.load_state_dict(training.variables(state))
    theirs = {"sgd": partial(torch.optim.SGD, momentum=0.9), "adam": torch.optim.Adam}
    theirs = theirs["adam" if make is optim.adam else "sgd"](net.parameters(), lr=0.05)
    for seed in range(20):
        batch = taken(seed)._replace(x=taken(seed).x.float())
        state = training.train_step(state, batch, model=model, loss=cross_entropy, optimizer=optimizer)
        theirs.zero_grad()
        loss = nn.functional.cross_entropy(net(batch.x), batch.y)
        loss.backward()
        theirs.step()
        torch.testing.assert_close(state.loss, loss.detach(), rtol=1e-3, atol=1e-5)
    assert_close(training.variables(state), dict(net.state_dict()), rtol=1e-3, atol=1e-5)


def test_the_state_before_the_first_step_comes_from_the_seed_alone():
    method = training.gradient_descent(model=MLP, loss=cross_entropy, optimizer=optim.sgd(learning_rate=0.1))
    one, same, other = (method.init(seed) for seed in (1, 1, 2))
    assert tree.equal(one, same) and not tree.equal(one.params, other.params) and one.key != other.key
    assert one.iteration == 0 and one.loss.isnan()
    after, again = (double(one)._replace(iteration=torch.tensor(5)) for _ in range(2))
    assert tree.equal(method.step(after, taken(0)), method.step(again, taken(0)))
    assert method.step(after, taken(0)).iteration == 6


@every_model
@every_optimizer
def test_steps_mapped_over_members_equal_the_loop(model, make):
    states = tree.stack([begun(seed, model, make) for seed in range(3)])
    batches = tree.stack([taken(seed) for seed in range(3)])
    one = partial(step, model=model, make=make)
    mapped = vmap(one)({"learning_rate": RATES[:3]}, states, batches)
    looped = [
        one({"learning_rate": float(rate)}, tree.member(states, i), tree.member(batches, i))
        for i, rate in enumerate(RATES[:3])
    ]
    assert_close(mapped, tree.stack(looped))


@every_model
@every_optimizer
def test_a_traced_step_gives_the_bits_of_the_mapped_step(model, make):
    one = partial(step, model=model, make=make)
    varying = {"learning_rate": RATES[:3]}
    states = tree.stack([begun(seed, model, make) for seed in range(3)])
    batches = [tree.stack([taken(3 * turn + seed) for seed in range(3)]) for turn in range(6)]
    traced, mapped = fold.together(one, varying, states, batches[0]), vmap(one)
    theirs = ours = states
    for batch in batches:
        ours, theirs = traced(varying, ours, batch), mapped(varying, theirs, batch)
        assert tree.equal(ours, theirs)
    assert not tree.equal(ours, states)
    other = {"learning_rate": RATES[1:]}
    assert tree.equal(traced(other, ours, batches[0]), mapped(other, ours, batches[0]))


@pytest.mark.parametrize("clock", ["step", "epoch"])
@given(cut=st.integers(1, 39))
def test_a_run_cut_anywhere_goes_on_to_the_same_bits(clock, cut):
    rows = [0, 3]
    of = program(rows, clock=clock, total_iterations=40 if clock == "step" else 7)
    states = RUNS.setdefault(clock, list(fold.proceed(of, started(rows, of))))
    cut = min(cut, len(states) - 1)
    copied = tree.map(torch.clone, states[cut - 1])
    rest = list(fold.proceed(of, copied))
    assert len(rest) == len(states) - cut
    assert all(tree.equal(one, other) for one, other in zip(rest, states[cut:], strict=True))


RUNS: dict[str, list[fold.Run]] = {}


@pytest.mark.parametrize("clock", ["step", "epoch"])
def test_members_of_a_program_are_the_runs_of_each_alone(clock):
    rows = [0, 1, 2, 3]
    of = program(rows, clock=clock, total_iterations=9)
    end = fold.finish(of, started(rows, of))
    for row in rows:
        alone = program([row], clock=clock, total_iterations=9)
        right = fold.finish(alone, started([row], alone))
        assert_close(tree.member(end.train, row), tree.member(right.train, 0))
        assert tree.equal(tree.member(end.cursor, row), tree.member(right.cursor, 0))


def test_a_traced_program_ends_in_the_bits_of_the_mapped_program():
    rows = [0, 1, 2]
    traced, mapped = (program(rows, total_iterations=12, traced=yes) for yes in (True, False))
    assert tree.equal(fold.finish(traced, started(rows, traced)), fold.finish(mapped, started(rows, mapped)))


def test_a_step_that_is_traced_may_have_hyperparameters_of_its_own():
    def scaled(varying, state, batch, *, factor=2.0):
        return state * varying * factor + batch

    examples = [torch.full((3,), number) for number in (5.0, 6.0, 7.0)]
    found = fold.together(scaled, *examples)(*(torch.full((3,), number) for number in (2.0, 3.0, 4.0)))
    assert found.tolist() == [16.0] * 3


def test_a_traced_step_tells_arguments_apart_that_were_one_tensor_in_the_example():
    ones = torch.ones(3)
    traced = fold.together(lambda varying, state, batch: varying - 10 * state + 100 * batch, ones, ones, ones)
    assert traced(ones, 2 * ones, 3 * ones).tolist() == [281.0] * 3


def test_members_that_finish_earlier_stay_as_they_are():
    of = program([0, 2], clock="epoch", total_iterations=4)  # passes of 4, 6, 9, 24 samples, and of 24 four times
    limits = sampler.steps(of.lessons, total_iterations=4, batch_size=5, clock="epoch").tolist()
    assert limits == [9, 20] and fold.length(started([0, 2], of)) == 20
    states = list(fold.proceed(of, started([0, 2], of)))
    assert len(states) == 20
    for run in states[9:]:
        assert tree.equal(tree.member((run.train, run.cursor), 0), tree.member((states[8].train, states[8].cursor), 0))
    assert states[-1].train.iteration.tolist() == limits and states[-1].iteration == 20
    assert not tree.equal(tree.member(states[9].train.params, 1), tree.member(states[8].train.params, 1))


def test_a_run_that_has_ended_is_its_own_end():
    of = program([0], total_iterations=3)
    end = fold.finish(of, started([0], of))
    assert end.iteration == 3 and list(fold.proceed(of, end)) == [] and fold.finish(of, end) is end


def test_how_many_steps_are_drawn_ahead_does_not_show(monkeypatch):
    of = program([0, 1], total_iterations=11)
    right = fold.finish(of, started([0, 1], of))
    monkeypatch.setattr(fold, "AHEAD", 3)
    assert tree.equal(fold.finish(of, started([0, 1], of)), right)


def test_a_fold_writes_to_none_of_its_states():
    of = program([0, 1], total_iterations=6)
    begin = started([0, 1], of)
    before = tree.map(torch.clone, (begin, of.data.x, of.lessons))
    states = list(fold.proceed(of, begin))
    copies = [tree.map(torch.clone, run) for run in islice(fold.proceed(of, begin), 6)]
    assert tree.equal((begin, of.data.x, of.lessons), before)
    assert all(tree.equal(run, copy) for run, copy in zip(states, copies, strict=True))


def correct(params) -> torch.Tensor:
    """[member] how many of the 24 samples are classified right."""
    found = evaluating.answers(params, DATA, model=MLP, loss=cross_entropy)
    return (found.outputs.argmax(-1) == DATA.y).sum(1)


def test_training_learns():
    of = program([0, 1, 2], total_iterations=150)
    end = fold.finish(of, started([0, 1, 2], of))
    begin = correct(started([0, 1, 2], of).train.params)
    assert (correct(end.train.params) >= 22).all() and (begin < 22).all()


def objective(batch: Batch):
    return lambda params: (cross_entropy(MLP.apply(params, batch.x), batch.y), {})


@given(seed=seeds, weights=st.lists(st.floats(0, 5), min_size=8, max_size=8))
def test_the_gradient_is_that_of_the_weighted_sum_of_losses(seed, weights):
    params, batch, weights = begun(seed).params, taken(seed), torch.tensor(weights, dtype=torch.float64)
    losses, _, gradient = losses_and_grad(objective(batch), params, weights)
    leaves = {name: leaf.clone().requires_grad_() for name, leaf in params.items()}
    (weights * objective(batch)(leaves)[0]).sum().backward()
    assert_close(gradient, {name: leaf.grad for name, leaf in leaves.items()})
    assert torch.equal(losses, objective(batch)(params)[0])


@given(seed=seeds)
def test_a_sample_of_weight_zero_is_as_if_it_were_not_there_and_weights_add_up(seed):
    params, batch = begun(seed).params, taken(seed)
    gradient = lambda weights: losses_and_grad(objective(batch), params, weights)[2]  # noqa: E731
    w = torch.tensor([1.0, 2.0, 0.5, 3.0, 0.0, 0.0, 0.0, 0.0], dtype=torch.float64)
    part = tree.map(lambda leaf: leaf[:4], batch)
    assert_close(gradient(w), losses_and_grad(objective(part), params, w[:4])[2])
    assert_close(gradient(w + w.flip(0)), tree.map(torch.add, gradient(w), gradient(w.flip(0))))


@given(seed=seeds)
def test_both_routes_of_differentiation_give_the_same_bits(seed):
    params, batch, weights = begun(seed).params, taken(seed), torch.full((8,), 1 / 8, dtype=torch.float64)
    eager = losses_and_grad(objective(batch), params, weights)
    tracked = {name: leaf.clone().requires_grad_() for name, leaf in params.items()}
    functional = losses_and_grad(objective(batch), tracked, weights)
    assert functional[2]["0.weight"].requires_grad and not eager[2]["0.weight"].requires_grad
    assert tree.equal(tree.map(torch.detach, functional), eager)


def test_the_gradient_belongs_to_the_autograd_graph_that_the_parameters_come_from():
    batch, weights = taken(0), torch.ones(8, dtype=torch.float64)
    scaled = lambda scale: {name: scale * leaf for name, leaf in begun().params.items()}  # noqa: E731
    end = lambda scale: tree.norm(losses_and_grad(objective(batch), scaled(scale), weights)[2])  # noqa: E731
    scale, nudge = torch.tensor(1.3, dtype=torch.float64, requires_grad=True), 1e-6
    (slope,) = torch.autograd.grad(end(scale), scale)
    right = (end(scale.detach() + nudge) - end(scale.detach() - nudge)) / (2 * nudge)
    assert slope.item() == pytest.approx(right.item(), rel=1e-6)


def test_a_parameter_that_is_not_used_has_a_gradient_of_zeros():
    params = begun().params | {"unused": numbers(3)}
    for tracked in (False, True):
        asked = {name: leaf.clone().requires_grad_(tracked) for name, leaf in params.items()}
        gradient = losses_and_grad(objective(taken(0)), asked, torch.ones(8, dtype=torch.float64))[2]
        assert gradient["unused"].tolist() == [0.0] * 3


def test_the_gradient_can_be_differentiated_by_the_weights():
    params, batch, weights = begun().params, taken(0), numbers(8).abs()
    end = lambda weights: tree.norm(losses_and_grad(objective(batch), params, weights)[2])  # noqa: E731
    slope = grad(end)(weights)
    nudge = 1e-6 * numbers(8, seed=1)
    assert torch.dot(slope, nudge).item() == pytest.approx(
        float(end(weights + nudge) - end(weights - nudge)) / 2, rel=1e-6
    )


def test_the_loss_after_a_step_can_be_differentiated_by_the_learning_rate():
    state, judge = begun(), objective(taken(1))
    end = lambda rate: judge(step({"learning_rate": rate}, state, taken(0)).params)[0].sum()  # noqa: E731
    rate, nudge = torch.tensor(0.1, dtype=torch.float64), 1e-6
    slope = (end(rate + nudge) - end(rate - nudge)) / (2 * nudge)
    assert grad(end)(rate).item() == pytest.approx(slope.item(), rel=1e-6)


def test_answers_are_what_each_member_gives_whatever_the_chunk():
    states = tree.stack([begun(seed) for seed in range(4)])
    find = partial(evaluating.answers, states.params, DATA, model=MLP, loss=cross_entropy)
    whole_at_once = find()
    for seed in range(4):
        outputs = MLP.apply(begun(seed).params, DATA.x)
        assert_close(whole_at_once.outputs[seed], outputs)
        assert_close(whole_at_once.losses[seed], cross_entropy(outputs, DATA.y))
    assert_close(find(chunk=5), whole_at_once)
    numbers_of = evaluating.measured(whole_at_once, DATA.y, {"accuracy": partial(metrics.accuracy, classes=3)})
    right = (whole_at_once.outputs.argmax(-1) == DATA.y).double().mean(1)
    assert_close(numbers_of["accuracy"], right, rtol=1e-6)
    assert len(set(right.tolist())) > 1


@given(seed=seeds, size=st.integers(1, 24))
def test_members_of_a_seen_program_see_the_samples_that_are_true_and_no_others(seed, size):
    scores = numbers(3, 24, seed=seed)
    seen = scores >= scores.sort(descending=True).values[:, size - 1 : size]
    of = fold.seen_program(DATA, seen, step=vmap(step), key=torch.tensor(seed), batch_size=5, total_iterations=9)
    ids, _ = sampler.ahead(sampler.start(of.lessons), torch.tensor(0), of.lessons, steps=9, batch_size=5)
    for row in range(3):
        drawn = set(ids[:, row].flatten().tolist())
        mine = set(seen[row].nonzero().flatten().tolist())
        assert drawn <= mine and (drawn == mine or size > 9 * 5)
    assert not torch.equal(ids[:, 0], ids[:, 1]) or size == 1


def test_members_of_a_seen_program_may_have_seen_more_or_less():
    seen = torch.arange(24) < torch.tensor([[3], [24], [10]])
    of = fold.seen_program(DATA, seen, step=vmap(step), key=torch.tensor(0), batch_size=6, total_iterations=4)
    ids, _ = sampler.ahead(sampler.start(of.lessons), torch.tensor(0), of.lessons, steps=4, batch_size=6)
    assert [len(set(ids[:, row].flatten().tolist())) for row in range(3)] == [3, 24, 10]


@pytest.mark.long
@pytest.mark.parametrize("make", [optim.sgd, optim.adam], ids=["sgd", "adam"])
def test_a_step_compiled_whole_is_the_eager_step(make):
    """A step of a gradient that is a product of matrices, where compilers fuse."""
    method = training.gradient_descent(model=MLP, loss=cross_entropy, optimizer=make(learning_rate=0.05))
    state, compiled = method.init(0), torch.compile(method.step, fullgraph=True)
    batch = taken(0)._replace(x=taken(0).x.float())
    theirs = compiled(state, batch)
    assert_close(theirs, method.step(state, batch), rtol=1e-4, atol=1e-5)
    assert not tree.equal(theirs.params, state.params)
