"""A step that weighs its samples, against the gradient of the weighted mean by plain autograd."""

from functools import partial
from typing import Any, get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_unrolling import OPTIMIZERS, every_optimizer
from torch import Tensor, nn
from torch.func import vmap
from worlds import assert_close, blobs, copied, double, looped, seeds

from fcurr import models, optim, reweighting, rng, tree, weighting
from fcurr.losses import cross_entropy
from fcurr.precision import loss_scaled
from fcurr.reweighting import Weighing, begun, looked, past, weighted_step
from fcurr.routes import Route
from fcurr.tracing import traced
from fcurr.training import TrainState, train_start, train_step
from fcurr.types import Batch, Model, Optimizer

DATA = blobs(30)
MLP = models.mlp(features=(6,), classes=3, hidden=(5,))
NORMED = models.from_module(
    build=lambda: nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Dropout(0.2), nn.Tanh(), nn.Linear(5, 3))
)
SGD = optim.sgd(learning_rate=0.1, momentum=0.9)
FALLING = partial(weighting.self_paced_linear, threshold=weighting.running_mean)


def start(model: Model = MLP, optimizer: Optimizer = SGD, seed: int = 0) -> TrainState:
    return double(train_start(seed, model=model, optimizer=optimizer)._replace(weighing=begun()))


def batch_at(step: int) -> Batch:
    return DATA.take((torch.arange(12) * 7 + 5 * step) % 30)


def steps(state: TrainState, weigh: Any, count: int = 3, **others: Any) -> TrainState:
    fixed = {"model": MLP, "loss": cross_entropy, "optimizer": SGD} | others
    for step in range(count):
        state = weighted_step(state, batch_at(step), weigh=weigh, **fixed)
    return state


@every_optimizer
@pytest.mark.parametrize("model", [MLP, NORMED], ids=["mlp", "batch norm, dropout"])
@pytest.mark.parametrize("accumulate", [1, 3])
def test_with_weights_of_one_it_is_plain_training(optimizer, rule, model, accumulate):
    shared: dict[str, Any] = {"model": model, "loss": cross_entropy, "optimizer": optimizer, "accumulate": accumulate}
    state = plain = start(model, optimizer)
    for step in range(3):
        state = weighted_step(state, batch_at(step), weigh=weighting.uniform, **shared)
        plain = train_step(plain, batch_at(step), **shared)
    assert_close(state._replace(weighing=()), plain._replace(weighing=()), rtol=1e-8)
    if accumulate == 1:
        assert tree.equal(state._replace(weighing=(), loss=plain.loss), plain._replace(weighing=()))


def test_in_float32_weights_of_one_give_the_bits_of_plain_training():
    shared: dict[str, Any] = {"model": MLP, "loss": cross_entropy, "optimizer": SGD}
    batch = batch_at(0)._replace(x=batch_at(0).x.float())
    state = train_start(0, model=MLP, optimizer=SGD)._replace(weighing=begun())
    found = weighted_step(state, batch, weigh=weighting.uniform, **shared)
    assert tree.equal(found.params, train_step(state, batch, **shared).params)


@pytest.mark.parametrize("kind", ["momentum, decay", "AdamW", "clipped", "schedule"])
def test_it_goes_down_the_gradient_of_the_weighted_mean_and_weights_are_held_fixed(kind):
    optimizer, rule = OPTIMIZERS[kind]
    state = start(optimizer=optimizer)
    params, memory, running = state.params, {}, torch.tensor(torch.nan).double()
    for step in range(3):
        batch = batch_at(step)
        leaves = {name: leaf.detach().requires_grad_() for name, leaf in params.items()}
        losses = cross_entropy(MLP.apply(leaves, batch.x), batch.y)
        level = losses.mean() if step == 0 else running
        weights = (1 - losses / level).clamp(min=0).detach()
        slopes = torch.autograd.grad((weights * losses).mean(), [*leaves.values()])
        params, memory = rule(leaves, dict(zip(leaves, slopes, strict=True)), memory, step, None)
        params, memory = tree.map(torch.detach, (params, memory))
        running = losses.mean().detach() if step == 0 else 0.9 * running + 0.1 * losses.mean().detach()
        state = weighted_step(state, batch, model=MLP, loss=cross_entropy, optimizer=optimizer, weigh=FALLING)
        assert 0 < weights.count_nonzero() < 12
        assert_close(state.params, params, rtol=1e-9)
        assert_close(state.loss, losses.mean().detach())
        effective = weights.sum() ** 2 / weights.square().sum() / 12
        assert_close(state.weighing, Weighing(running, weights.mean(), effective))
        assert state.iteration == step + 1


def test_samples_that_weigh_nothing_do_not_move_anything():
    state = start(optimizer=optim.sgd(learning_rate=0.1))
    others = partial(steps, state, count=1, optimizer=optim.sgd(learning_rate=0.1))
    none = others(lambda past, losses, batch: torch.zeros_like(losses))
    assert tree.equal(none.params, state.params) and none.weighing.effective == 0
    first = others(lambda past, losses, batch: (batch.id == batch_at(0).id[0]).to(losses.dtype))
    alone = weighted_step(
        state,
        Batch(*(leaf[:1] for leaf in batch_at(0))),
        model=MLP,
        loss=cross_entropy,
        optimizer=optim.sgd(learning_rate=0.1 / 12),
        weigh=weighting.uniform,
    )
    assert_close(first.params, alone.params)
    assert first.weighing.effective.item() == pytest.approx(1 / 12)


def test_a_weighting_is_told_the_place_the_running_loss_and_the_batch_after_augmentation():
    told: list[Any] = []

    def weigh(past: Any, losses: Tensor, batch: Batch) -> Tensor:
        told.append((past, losses, batch))
        return torch.ones_like(losses)

    state = steps(start(), weigh, count=2, augment=lambda batch, place: batch._replace(x=batch.x + place[1]))
    (first, losses, _), (second, _, batch) = told
    assert first.iteration == 0 and second.iteration == 1
    assert first.loss.isnan() and torch.equal(second.loss, losses.mean())
    assert torch.equal(first.key, rng.fold(state.key, reweighting.WEIGHING)) and torch.equal(second.key, first.key)
    assert torch.equal(batch.x, batch_at(1).x + 1) and torch.equal(batch.id, batch_at(1).id)
    assert not losses.requires_grad
    assert tree.equal(past(state)._replace(loss=second.loss), second._replace(iteration=torch.tensor(2)))


@given(
    losses=st.lists(st.floats(0, 10), min_size=1, max_size=8).map(torch.tensor),
    seed=seeds,
    before=st.floats(0, 10) | st.just(torch.nan),
)
def test_what_is_noted_is_the_running_mean_and_the_effective_size(losses, seed, before):
    weights = rng.uniform(seed, torch.arange(len(losses)))
    then = begun(("kept",))._replace(loss=torch.tensor(before))
    after = reweighting.noted(then, reweighting.moments(losses.float(), weights), ("new",))
    mean = losses.mean().item()
    right = mean if before != before else 0.9 * before + 0.1 * mean
    assert after.loss.item() == pytest.approx(right, rel=1e-4, abs=1e-6)
    assert after.weight.item() == pytest.approx(weights.mean().item(), rel=1e-4, abs=1e-6)
    share = weights.sum() ** 2 / weights.square().sum() / len(weights) if weights.any() else 0.0
    assert after.effective.item() == pytest.approx(float(share), rel=1e-4, abs=1e-6)
    assert after.learned == ("new",) and after.effective <= 1 + 1e-5


def test_before_the_first_step_nothing_is_known():
    assert all(leaf.isnan() and leaf.dtype == torch.float32 for leaf in begun()[:3]) and begun().learned == ()


@pytest.mark.parametrize("route", get_args(Route))
@pytest.mark.parametrize("accumulate", [2, 3])
def test_a_batch_looked_at_in_parts_is_the_batch(route, accumulate):
    state = start()
    look = partial(looked, state, batch_at(0), model=MLP, loss=cross_entropy, route=route)
    whole, parts = look(accumulate=1), look(accumulate=accumulate)
    weights = torch.linspace(0, 1, 12).double()
    assert_close(parts.losses, whole.losses)
    assert_close(parts.pulled(weights), whole.pulled(weights))
    assert_close(parts.along(state.params), whole.along(state.params))


def test_parts_hand_running_statistics_on_and_draw_each_for_itself():
    state = start(NORMED)
    shared: dict[str, Any] = {"model": NORMED, "loss": cross_entropy, "optimizer": SGD, "accumulate": 3}
    found = weighted_step(state, batch_at(0), weigh=FALLING, **shared)
    assert tree.equal(found.buffers, train_step(state, batch_at(0), **shared).buffers)
    assert found.buffers["1.num_batches_tracked"] == 3


def test_a_scale_of_the_loss_changes_nothing():
    scaled = loss_scaled(SGD)
    found = steps(start(optimizer=scaled), FALLING, optimizer=scaled)
    assert_close(found.params, steps(start(), FALLING).params)
    assert found.optimizer.good == 3


@settings(max_examples=8)
@given(seed=seeds, kind=st.sampled_from(["momentum, decay", "Adam", "clipped"]), accumulate=st.sampled_from([1, 2]))
def test_members_are_mapped_as_in_a_loop(seed, kind, accumulate):
    optimizer, _ = OPTIMIZERS[kind]
    states = tree.stack([start(optimizer=optimizer, seed=seed + k) for k in range(3)])
    one = lambda state: steps(state, FALLING, 2, optimizer=optimizer, accumulate=accumulate)  # noqa: E731
    assert_close(vmap(one)(states), looped(one, states), rtol=1e-7)


def test_traced_it_has_the_bits_of_an_eager_step_and_arguments_stay_as_they_are():
    state = start(NORMED)
    one = lambda state, batch: weighted_step(  # noqa: E731
        state, batch, model=NORMED, loss=cross_entropy, optimizer=SGD, weigh=FALLING
    )
    before = copied(state.params), copied(state.buffers)
    found = one(state, batch_at(0))
    assert tree.equal(before, (state.params, state.buffers))
    graph = traced(one, state, batch_at(0))
    assert tree.equal(graph(state, batch_at(0)), found)
    assert tree.equal(graph(found, batch_at(1)), one(found, batch_at(1)))
