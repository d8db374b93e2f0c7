"""Learned weights, against the papers' algorithms written naively with plain autograd and torch.optim."""

from collections.abc import Callable
from functools import partial
from typing import Any, get_args

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from test_unrolling import OPTIMIZERS, error
from torch import Tensor, nn
from torch.func import vmap
from worlds import assert_close, blobs, double, numbers, seeds, whole

from fcurr import models, optim, reweighting, tree
from fcurr.bilevel import clean, methods
from fcurr.bilevel.learned_weights import SMOOTH, Learned, Recipe, signal_to_noise
from fcurr.bilevel.methods import Reweighting
from fcurr.losses import cross_entropy, squared_error
from fcurr.precision import loss_scaled, mixed
from fcurr.routes import Route
from fcurr.tracing import traced
from fcurr.training import TrainState, train_start, train_step
from fcurr.types import Batch, Loss, Model, Optimizer, Params

DATA, CLEAN = blobs(40), blobs(12, seed=3)
MLP = models.mlp(features=(6,), classes=3, hidden=(5,))
NORMED = models.from_module(build=lambda: nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 3)))
ORDERS = get_args(methods.Order)
PAPER: dict[str, Any] = {"warm_up": 0, "clean_weight": 0.0}
HIDDEN = 7
SGD = optim.sgd(learning_rate=0.1, momentum=0.9)
every_order = pytest.mark.parametrize("order", ORDERS)


def begun(method: Reweighting, model: Model = MLP, optimizer: Optimizer = SGD, seed: int = 0) -> TrainState:
    state = train_start(seed, model=model, optimizer=optimizer)
    return double(state._replace(weighing=reweighting.begun(method.init(seed, state.params))))


def recipe_of(model: Model = MLP, optimizer: Optimizer = SGD, loss: Loss = cross_entropy, **others: Any) -> Recipe:
    fixed = {"clean": clean.shuffled(CLEAN, batch_size=5), "route": "forward" if model is NORMED else "ghost"}
    return Recipe(**{"model": model, "loss": loss, "optimizer": optimizer} | fixed | others)


def batch_at(step: int) -> Batch:
    return DATA.take((torch.arange(8) * 3 + 5 * step) % 40)


def run(method: Reweighting, state: TrainState, recipe: Recipe, steps: int = 3) -> TrainState:
    for step in range(steps):
        state = method.step(state, batch_at(step), recipe=recipe)
    return state


# what weights are, written again


def of_loss(theta: Tensor, losses: Tensor, batch: Batch) -> Tensor:
    net = nn.Sequential(nn.Linear(1, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 1), nn.Sigmoid()).double()
    a, b, c, d = theta[: 3 * HIDDEN + 1].split([HIDDEN, HIDDEN, HIDDEN, 1])
    held = {"0.weight": a[:, None], "0.bias": b, "2.weight": c[None], "2.bias": d}
    return torch.func.functional_call(net, held, (losses[:, None],))[:, 0]


def of_loss_and_class(theta: Tensor, losses: Tensor, batch: Batch) -> Tensor:
    a, b, c, d, e, f = theta.split([HIDDEN, HIDDEN, HIDDEN, 1, 3 * HIDDEN, 3])
    found = []
    for loss, label in zip(losses, batch.y, strict=True):
        units = torch.relu(a * loss + b + e.reshape(3, HIDDEN)[label])
        found.append(torch.sigmoid((units * c).sum() + d[0] + f[label]))
    return torch.stack(found)


def of_sample(theta: Tensor, losses: Tensor, batch: Batch) -> Tensor:
    return torch.sigmoid(theta[batch.id])


METHODS: dict[str, tuple[Callable[..., Reweighting], Callable]] = {
    "meta_weight_net": (partial(methods.meta_weight_net, hidden=HIDDEN, learning_rate=0.05), of_loss),
    "class_aware": (
        partial(methods.class_aware_meta_weight_net, classes=3, hidden=HIDDEN, learning_rate=0.05),
        of_loss_and_class,
    ),
    "sample_weights": (partial(methods.sample_weights, dataset_size=40), of_sample),
}
every_method = pytest.mark.parametrize("make, weigh", METHODS.values(), ids=METHODS.keys())


def naive(
    state: TrainState, recipe: Recipe, weigh: Callable, rule: Callable, rate: float, order: str, steps: int = 3
) -> tuple[Params, Tensor]:
    """Shu et al. (2019), algorithm 1, or the same with one step for both: a virtual step whose graph is kept, a step of
    the weights, and a fresh pass with the new weights. -> parameters, what is learned."""
    params, memory, buffers = state.params, {}, state.buffers
    (start,) = state.weighing.learned.params.values()
    theta = start.clone().requires_grad_()
    adam = torch.optim.Adam([theta], lr=rate)

    def losses(params: Params, batch: Batch) -> Tensor:
        return recipe.loss(recipe.model.train(params, buffers, batch.x, (state.key, state.iteration))[0], batch.y)

    for step in range(steps):
        batch, few = batch_at(step), recipe.clean((state.key, torch.tensor(step)))
        leaves = {name: leaf.detach().requires_grad_() for name, leaf in params.items()}
        each = losses(leaves, batch)
        objective = (weigh(theta, each.detach(), batch) * each).mean()
        slopes = torch.autograd.grad(objective, [*leaves.values()], create_graph=True)
        ahead, after = rule(leaves, dict(zip(leaves, slopes, strict=True)), memory, step, None)
        (theta.grad,) = torch.autograd.grad(losses(ahead, few).mean(), theta)
        adam.step()
        if order == "weights first":
            each = losses(leaves, batch)
            objective = (weigh(theta.detach(), each.detach(), batch) * each).mean()
            slopes = torch.autograd.grad(objective, [*leaves.values()])
            ahead, after = rule(leaves, dict(zip(leaves, slopes, strict=True)), memory, step, None)
        params, memory = tree.map(torch.detach, (ahead, after))
    return params, theta.detach()


@every_order
@every_method
@pytest.mark.parametrize("kind", ["sgd", "Nesterov", "clipped", "AdamW"])
@pytest.mark.parametrize("model", [MLP, NORMED], ids=["mlp", "batch norm"])
def test_every_method_is_the_algorithm_of_the_paper_written_naively(make, weigh, order, kind, model):
    method = make(order=order, **PAPER)
    optimizer, rule = OPTIMIZERS[kind]
    recipe = recipe_of(model, optimizer)
    state = begun(method, model, optimizer)
    rate = 0.1 if weigh is of_sample else 0.05
    after = run(method, state, recipe)
    params, theta = naive(state, recipe, weigh, rule, rate, order)
    close = 1e-9 if kind == "AdamW" else 1e-12  # its first step amplifies rounding: see tests/test_unrolling.py
    assert error(after.params, params) <= close
    (learned,) = after.weighing.learned.params.values()
    assert error(learned, theta) <= close
    assert (learned - tree.leaves(state.weighing.learned.params)[0]).abs().max() > 0.01  # it has moved
    held = weigh(theta, torch.ones(8).double(), batch_at(3))
    assert_close(method.weigh(after, torch.ones(8).double(), batch_at(3), recipe=recipe), held)


@every_order
def test_weights_are_learned_under_a_regression(order):
    targets = numbers(3, 3)
    method = methods.meta_weight_net(hidden=HIDDEN, learning_rate=0.05, order=order, **PAPER)
    recipe = recipe_of(loss=lambda outputs, y: squared_error(outputs, targets[y]))
    state = begun(method)
    params, theta = naive(state, recipe, of_loss, OPTIMIZERS["momentum"][1], 0.05, order)
    after = run(method, state, recipe)
    assert error(after.params, params) <= 1e-12 and error(after.weighing.learned.params["network"], theta) <= 1e-12


def test_classes_start_alike_and_are_told_apart():
    method = methods.class_aware_meta_weight_net(classes=3, hidden=HIDDEN, **PAPER)
    plain = methods.meta_weight_net(hidden=HIDDEN, **PAPER)
    state = begun(method)
    losses = torch.linspace(0, 4, 8).double()
    recipe = recipe_of()
    weights = partial(method.weigh, losses=losses, batch=batch_at(0), recipe=recipe)
    assert torch.equal(weights(state), plain.weigh(begun(plain), losses, batch_at(0), recipe=recipe))
    after = run(method, state, recipe)
    one = torch.ones(3).double()
    found = method.weigh(after, one, Batch(x=one, y=torch.arange(3), id=torch.arange(3)), recipe=recipe)
    assert len(found.unique()) == 3


# learning to reweight


def ren(state: TrainState, recipe: Recipe, batch: Batch) -> Tensor:
    """Ren et al. (2018), algorithm 1: minus the derivative by weights at 0 of the clean loss after a step of gradient
    descent, made positive and divided by its sum; here by its mean."""
    weights = torch.zeros(len(batch.id), dtype=torch.float64, requires_grad=True)
    place = (state.key, state.iteration)
    leaves = {name: leaf.clone().requires_grad_() for name, leaf in state.params.items()}
    each = recipe.loss(recipe.model.train(leaves, state.buffers, batch.x, place)[0], batch.y)
    slopes = torch.autograd.grad((weights * each).sum(), [*leaves.values()], create_graph=True)
    ahead = {name: leaf - 0.1 * slope for (name, leaf), slope in zip(leaves.items(), slopes, strict=True)}
    few = recipe.clean(place)
    outputs, _ = recipe.model.train(ahead, state.buffers, few.x, place)
    (slope,) = torch.autograd.grad(recipe.loss(outputs, few.y).mean(), weights)
    positive = (-slope).clamp(min=0)
    return positive * len(batch.id) / positive.sum() if positive.sum() > 0 else positive


@pytest.mark.parametrize("model", [MLP, NORMED], ids=["mlp", "batch norm"])
def test_learning_to_reweight_is_the_algorithm_of_the_paper_by_double_backward(model):
    method = methods.learning_to_reweight(**PAPER)
    recipe = recipe_of(model)
    state = begun(method, model)
    silent: list[int] = []
    for step in range(3):
        batch = batch_at(step)
        batch = batch._replace(y=(batch.y + batch.id % 2) % 3)  # half of the labels are wrong
        weights = ren(state, recipe, batch)
        silent.append(int((weights == 0).sum()))
        assert_close(method.weigh(state, torch.zeros(8), batch, recipe=recipe), weights, rtol=1e-11)
        weighed = partial(reweighting.weighted_step, model=model, loss=cross_entropy, optimizer=SGD)
        right = weighed(state, batch, weigh=lambda *given: weights)  # noqa: B023
        state = method.step(state, batch, recipe=recipe)
        assert_close(state, right, rtol=1e-11)
    assert any(0 < count < 8 for count in silent)


def aligned(state: TrainState, recipe: Recipe, batch: Batch, power: float = 1.0) -> Tensor:
    method = methods.learning_to_reweight(power=power, **PAPER)
    return method.weigh(state, torch.zeros(len(batch.id)), batch, recipe=recipe)


@given(seed=seeds.map(lambda seed: seed // 2), power=st.floats(0, 1), factor=st.floats(1e-6, 1e6))
def test_its_weights_are_never_negative_have_mean_one_or_are_all_zero_and_know_no_unit(seed, power, factor):
    data = blobs(6, seed=seed)
    state = begun(methods.learning_to_reweight(), seed=seed)
    batch, recipe = whole(data), recipe_of()
    weights = aligned(state, recipe, batch, power)
    assert (weights >= 0).all()
    assert weights.mean().item() == pytest.approx(1) or not weights.any()
    larger = recipe._replace(loss=lambda outputs, y: factor * cross_entropy(outputs, y))
    assert_close(aligned(state, larger, batch, power), weights, rtol=1e-6)
    if power == 0:
        assert len(weights[weights > 0].unique()) <= 1


def test_samples_whose_gradients_are_orthogonal_or_opposed_count_nothing():
    linear = models.mlp(features=(4,), classes=1, hidden=())
    axes = torch.eye(4, dtype=torch.float64)
    loss = lambda outputs, y: outputs[:, 0] * y[:, 0]  # noqa: E731
    few = Batch(x=axes[:1], y=torch.ones(1, 1).double(), id=torch.zeros(1).long())
    state = begun(methods.learning_to_reweight(), linear)
    without_bias = linear._replace(train=lambda p, b, x, place: (x @ p["0.weight"].T + 0 * p["0.bias"], b))
    recipe = recipe_of(without_bias, loss=loss, clean=lambda place: few, route="forward")
    batch = Batch(x=axes[[0, 1, 0, 0]], y=torch.tensor([[1.0], [1.0], [-1.0], [3.0]]).double(), id=torch.arange(4))
    assert_close(aligned(state, recipe, batch), torch.tensor([1.0, 0, 0, 3]).double())
    opposed = batch._replace(y=-torch.ones(4, 1).double())
    assert not aligned(state, recipe, opposed).any()
    after = methods.learning_to_reweight(**PAPER).step(state, opposed, recipe=recipe)
    assert tree.equal(after.params, state.params)  # no step, without momentum to go on by


# around the step

MADE = {
    **{f"{name}, {order}": make(order=order, **PAPER) for name, (make, _) in METHODS.items() for order in ORDERS},
    "learning_to_reweight": methods.learning_to_reweight(**PAPER),
    "clean samples as well": methods.meta_weight_net(hidden=HIDDEN, warm_up=1, clean_weight=0.3),
    "label_correction": methods.label_correction(dataset_size=40, classes=3, task="classification", **PAPER),
}
every_made = pytest.mark.parametrize("method", MADE.values(), ids=MADE.keys())


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("kind", ["momentum, decay", "clipped Adam"])
def test_a_warm_up_is_plain_training_and_nothing_that_is_learned_moves(order, kind):
    optimizer, _ = OPTIMIZERS[kind]
    method = methods.meta_weight_net(hidden=HIDDEN, warm_up=3, clean_weight=0.0, order=order)
    recipe = recipe_of(optimizer=optimizer)
    first = begun(method, optimizer=optimizer)
    state = plain = first
    for step in range(3):
        state = method.step(state, batch_at(step), recipe=recipe)
        plain = train_step(plain, batch_at(step), model=MLP, loss=cross_entropy, optimizer=optimizer)
        assert_close(state._replace(weighing=()), plain._replace(weighing=()), rtol=1e-9)
        assert tree.equal(state.weighing.learned, first.weighing.learned)
        assert state.weighing.weight == 1 and state.weighing.effective == 1
    state = method.step(state, batch_at(3), recipe=recipe)
    assert not tree.equal(state.weighing.learned.params, first.weighing.learned.params)
    assert state.weighing.weight != 1


@every_made
def test_a_control_settles_its_own_weights_and_trains_by_them(method):
    own = torch.linspace(0, 2, 8).double()
    recipe = recipe_of(settle=lambda weights, past, losses, batch: own, learns=torch.tensor(0.0).double())
    state = begun(method)
    state = state._replace(iteration=torch.tensor(5))
    after = method.step(state, batch_at(0), recipe=recipe)
    weighed = partial(reweighting.weighted_step, model=MLP, loss=cross_entropy, optimizer=SGD)
    right = weighed(state, batch_at(0), weigh=lambda *given: own)
    assert_close(after.params, right.params, rtol=1e-9)
    assert_close(after.weighing._replace(learned=()), right.weighing, rtol=1e-9)


@every_made
def test_running_statistics_are_those_of_one_pass_over_the_batch(method):
    recipe = recipe_of(NORMED)
    state = begun(method, NORMED)
    after = method.step(state, batch_at(0), recipe=recipe)
    plain = train_step(state, batch_at(0), model=NORMED, loss=cross_entropy, optimizer=SGD)
    assert tree.equal(after.buffers, plain.buffers) and after.buffers["1.num_batches_tracked"] == 1


def test_what_is_noted_is_as_defined():
    method = methods.meta_weight_net(hidden=HIDDEN, learning_rate=0.05, **PAPER)
    state, recipe = begun(method), recipe_of()
    assert all(bool(leaf.isnan()) for leaf in (state.loss, *state.weighing[:3]))
    running, mean, square = None, torch.zeros(3 * HIDDEN + 1).double(), 0.0
    for step in range(4):
        losses = cross_entropy(MLP.apply(state.params, batch_at(step).x), batch_at(step).y)
        weights = method.weigh(state, losses, batch_at(step), recipe=recipe)
        leaves = {"network": state.weighing.learned.params["network"].clone()}
        before, state = state, method.step(state, batch_at(step), recipe=recipe)
        running = losses.mean() if running is None else 0.9 * running + 0.1 * losses.mean()
        assert_close(state.loss, losses.mean())
        assert_close(state.weighing.loss, running)
        assert_close(state.weighing.weight, weights.mean())
        assert_close(state.weighing.effective, weights.sum() ** 2 / weights.square().sum() / 8)
        h = hypergradient(before, state, leaves)
        mean, square = SMOOTH * mean + (1 - SMOOTH) * h, SMOOTH * square + (1 - SMOOTH) * h.square().sum()
        learned: Learned = state.weighing.learned
        assert_close(learned.mean["network"], mean, rtol=1e-6, atol=1e-9)
        assert_close(learned.square, square, rtol=1e-6)
        lack = 1 - SMOOTH ** (step + 1)  # of moments that began at zero
        signal, whole = (mean / lack).square().sum(), square / lack
        if step:  # one hypergradient alone has no noise
            assert_close(signal_to_noise(learned), signal / (whole - signal), rtol=1e-2)
    assert not signal_to_noise(begun(method).weighing.learned).isfinite()


def hypergradient(before: TrainState, after: TrainState, held: Any) -> Tensor:
    """What Adam has been given, by what it remembers."""
    first = [state.weighing.learned.optimizer.first["network"] for state in (before, after)]
    return (first[1] - 0.9 * first[0]) / 0.1


def test_clean_samples_are_trained_on_by_the_gradient_of_the_step_before():
    method = methods.meta_weight_net(hidden=HIDDEN, warm_up=0, clean_weight=0.3)
    plain = optim.sgd(learning_rate=0.1)
    recipe = recipe_of(optimizer=plain)
    state = begun(method, optimizer=plain)
    slopes = {name: torch.zeros_like(leaf) for name, leaf in state.params.items()}
    for step in range(3):
        batch, few = batch_at(step), recipe.clean((state.key, state.iteration))
        leaves = {name: leaf.clone().requires_grad_() for name, leaf in state.params.items()}
        losses = cross_entropy(MLP.apply(leaves, batch.x), batch.y)
        weights = method.weigh(state, losses.detach(), batch, recipe=recipe)
        found = torch.autograd.grad((weights.detach() * losses).mean(), [*leaves.values()])
        right = {n: p - 0.1 * (g + 0.3 * slopes[n]) for (n, p), g in zip(state.params.items(), found, strict=True)}
        state = method.step(state, batch, recipe=recipe)
        assert_close(state.params, right)
        leaves = {name: leaf.clone().requires_grad_() for name, leaf in right.items()}
        loss = cross_entropy(MLP.apply(leaves, few.x), few.y).mean()
        slopes = dict(zip(leaves, torch.autograd.grad(loss, [*leaves.values()]), strict=True))
        assert_close(state.weighing.learned.clean, slopes)


@every_order
def test_a_hypergradient_that_is_not_finite_leaves_the_weights_as_they_are(order):
    method = methods.meta_weight_net(hidden=HIDDEN, order=order, **PAPER)
    few = whole(CLEAN)
    bad = few._replace(x=few.x.clone().index_fill_(0, torch.tensor([1]), torch.inf))
    state = run(method, begun(method), recipe_of())
    after = method.step(state, batch_at(0), recipe=recipe_of(clean=lambda place: bad))
    assert tree.equal(after.weighing.learned, state.weighing.learned)
    assert all(leaf.isfinite().all() for leaf in after.params.values())
    assert not tree.equal(after.params, state.params)


@every_made
def test_a_batch_in_parts_is_the_batch_and_every_route_leads_to_the_same_step(method):
    state = begun(method)
    right = run(method, state, recipe_of())
    for route in get_args(Route):
        for accumulate in (1, 2, 4):
            found = run(method, state, recipe_of(route=route, accumulate=accumulate))
            assert_close(found, right, rtol=1e-8, atol=1e-11)


@every_made
def test_a_scale_of_the_loss_changes_nothing(method):
    scaled = loss_scaled(SGD)
    found = run(method, begun(method, optimizer=scaled), recipe_of(optimizer=scaled))
    right = run(method, begun(method), recipe_of())
    assert_close(found.params, right.params, rtol=1e-8, atol=1e-11)
    assert_close(found.weighing, right.weighing, rtol=1e-8, atol=1e-11)


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_in_sixteen_bits_the_weights_learn_by_the_same_hypergradient_but_for_rounding(precision):
    method = methods.meta_weight_net(hidden=HIDDEN, **PAPER)
    data, samples = (one._replace(x=whole(one).x.float()) for one in (DATA, CLEAN))
    few = clean.shuffled(samples, batch_size=12)
    found = []
    for model, optimizer in ((MLP, SGD), (mixed(MLP, precision), loss_scaled(SGD))):
        state = train_start(0, model=model, optimizer=optimizer)
        state = state._replace(weighing=reweighting.begun(method.init(0, state.params)))
        recipe = recipe_of(model, optimizer, clean=few, route="forward" if precision == "float16" else "ghost")
        found.append(method.step(state, data.take(torch.arange(40)), recipe=recipe).weighing.learned.mean["network"])
    assert F.cosine_similarity(*found, dim=0) > 0.99
    assert found[1].norm().item() == pytest.approx(found[0].norm().item(), rel=0.1)


@every_made
def test_members_are_mapped_as_in_a_loop(method):
    recipe = recipe_of()
    states = tree.stack([method.step(begun(method, seed=seed), batch_at(0), recipe=recipe) for seed in (1, 2)])
    one = lambda state: method.step(state, batch_at(1), recipe=recipe)  # noqa: E731
    before = tree.map(torch.clone, states)
    mapped = vmap(one)(states)
    assert tree.equal(before, states)
    assert_close(mapped, tree.stack([one(state) for state in tree.apart(states)]), rtol=1e-7, atol=1e-10)


@pytest.mark.parametrize("name", ["meta_weight_net, weights first", "clean samples as well", "learning_to_reweight"])
def test_a_traced_step_of_members_has_the_bits_of_an_eager_one(name):
    method, recipe = MADE[name], recipe_of()
    states = tree.stack([method.step(begun(method, seed=seed), batch_at(0), recipe=recipe) for seed in (1, 2)])
    mapped = vmap(lambda state: method.step(state, batch_at(1), recipe=recipe))
    graph, after = traced(mapped, states), mapped(states)
    assert tree.equal(graph(states), after) and tree.equal(graph(after), mapped(after))
    alone = tree.member(states, 0)
    one = lambda state: method.step(state, batch_at(1), recipe=recipe)  # noqa: E731
    assert_close(traced(one, alone)(alone), one(alone), rtol=1e-9)  # eager, plain autograd takes another way


@every_made
def test_what_the_augmentation_changes_is_what_is_trained_on(method):
    double_x = lambda batch, place: batch._replace(x=2 * batch.x)  # noqa: E731
    state = begun(method)
    found = method.step(state, batch_at(0), recipe=recipe_of(augment=double_x))
    twice = batch_at(0)._replace(x=2 * batch_at(0).x)
    assert tree.equal(found, method.step(state, twice, recipe=recipe_of()))


def test_samples_without_a_weight_of_their_own_take_the_last_one():
    method = methods.sample_weights(dataset_size=4, **PAPER)
    state = begun(method)
    table = {"weight": torch.arange(4).double()}
    state = state._replace(weighing=state.weighing._replace(learned=state.weighing.learned._replace(params=table)))
    batch = Batch(x=numbers(3, 6), y=torch.zeros(3).long(), id=torch.tensor([0, 3, 17]))
    found = method.weigh(state, torch.zeros(3).double(), batch, recipe=recipe_of())
    assert_close(found, torch.sigmoid(torch.tensor([0.0, 3, 3]).double()))


def test_what_is_learned_starts_by_its_seed():
    make = partial(methods.meta_weight_net, hidden=50)
    one, same, other = (make().init(seed, {"w": torch.ones(2)}) for seed in (1, 1, 2))
    assert tree.equal(one, same) and not tree.equal(one.params, other.params)
    a, b, c, d = one.params["network"].split([50, 50, 50, 1])
    assert a.abs().max() <= 1 and b.abs().max() <= 1 and c.abs().max() <= 50**-0.5 and d.abs().max() <= 50**-0.5
    assert a.abs().max() > 0.8 and c.abs().max() > 0.8 * 50**-0.5
    assert one.clean["w"].shape == (2,) and not make(clean_weight=0.0).init(1, {"w": torch.ones(2)}).clean
