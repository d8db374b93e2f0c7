"""Training in sixteen bits, against torch.autocast and the rule of torch.amp.GradScaler."""

from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.func import vmap
from worlds import assert_close, blobs, numbers, seeds

from fcurr import fold, models, optim, precision, rng, training, tree
from fcurr.losses import cross_entropy
from fcurr.precision import loss_scaled, mixed
from fcurr.types import Batch, Optimizer, Params

DATA = blobs()
DATA = DATA._replace(x=torch.as_tensor(DATA.x).float())
PLACE = (torch.tensor(0), torch.tensor(0))
SHORT = ["bfloat16", "float16"]
STEP = {"bfloat16": 2.0**-8, "float16": 2.0**-11}  # half the distance between numbers at 1
every_short = pytest.mark.parametrize("short", SHORT)


def normed() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 3))


def convolved() -> nn.Module:
    return nn.Sequential(nn.Unflatten(1, (1, 2, 3)), nn.Conv2d(1, 4, 2), nn.ReLU(), nn.Flatten(), nn.Linear(8, 3))


BUILDS = {"batch_norm": normed, "convolution": convolved}
MODELS = {name: models.from_module(build=build) for name, build in BUILDS.items()}
MODELS["mlp"] = models.mlp(features=(6,), classes=3, hidden=(5,))
every_model = pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
every_build = pytest.mark.parametrize("build", BUILDS.values(), ids=BUILDS)


def taken(seed: int, size: int = 8) -> Batch:
    return DATA.take(rng.shuffle(torch.arange(size), 24, seed))


def step(state, batch, *, model, optimizer=None):
    optimizer = optimizer or optim.sgd(learning_rate=0.1, momentum=0.9)
    return training.train_step(state, batch, model=model, loss=cross_entropy, optimizer=optimizer)


def begun(seed: int, model, optimizer=None):
    return training.train_start(seed, model=model, optimizer=optimizer or optim.sgd(learning_rate=0.1, momentum=0.9))


@every_model
def test_a_model_in_float32_is_the_model_itself(model):
    assert mixed(model, "float32") is model


@every_model
@every_short
@given(seed=seeds)
def test_a_model_in_sixteen_bits_answers_in_float32_what_it_answers_in_float32_to_their_rounding(model, short, seed):
    params, buffers = model.init(seed)
    x, brief = taken(seed).x, mixed(model, short)
    for exact, found in (
        (model.apply({**params, **buffers}, x), brief.apply({**params, **buffers}, x)),
        (model.train(params, buffers, x, PLACE)[0], brief.train(params, buffers, x, PLACE)[0]),
    ):
        assert found.dtype == torch.float32
        error = (found - exact).abs().max() / exact.abs().max().clamp(min=1)
        assert error <= 40 * STEP[short]
    products = brief.apply({**params, **buffers}, x)
    assert torch.equal(products, products.to(getattr(torch, short)).float())  # the last product was in sixteen bits


@every_build
@every_short
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_model_in_sixteen_bits_is_the_module_under_autocast(build, short, seed):
    model, x = mixed(models.from_module(build=build), short), taken(seed).x
    params, buffers = model.init(seed)
    net = build()
    net.load_state_dict(params | buffers)
    with torch.autocast("cpu", dtype=getattr(torch, short)), torch.no_grad():
        evaluated, trained = net.eval()(x), net.train()(x)
    assert torch.equal(model.apply(params | buffers, x), evaluated.float())
    outputs, after = model.train(params, buffers, x, PLACE)
    torch.testing.assert_close(outputs, trained.float(), rtol=4 * STEP[short], atol=4 * STEP[short])
    assert_close(after, dict(net.named_buffers()), rtol=1e-6, atol=1e-6)


@every_model
@every_short
def test_training_in_sixteen_bits_keeps_the_dtypes_of_states_and_is_close_to_training_in_float32(model, short):
    state = exact = begun(0, model)
    kinds = [(name, leaf.shape, leaf.dtype) for name, leaf in tree.named(state).items()]
    for seed in range(5):
        state = step(state, taken(seed), model=mixed(model, short))
        exact = step(exact, taken(seed), model=model)
        assert [(name, leaf.shape, leaf.dtype) for name, leaf in tree.named(state).items()] == kinds
        assert training.finite(state, state)
    assert_close(state.params, exact.params, rtol=0, atol=0.1)
    assert not tree.equal(state.params, exact.params)


@every_short
def test_buffers_that_a_model_computes_in_sixteen_bits_come_back_in_their_own_type(short):
    def train(params, buffers, x, place):
        outputs = MODELS["mlp"].apply(params, x)
        return outputs, {"last": outputs.mean(0), "seen": buffers["seen"] + len(x)}

    model = mixed(MODELS["mlp"]._replace(train=train), short)
    buffers = {"last": torch.zeros(3), "seen": torch.zeros((), dtype=torch.int64)}
    outputs, after = model.train(MODELS["mlp"].init(0)[0], buffers, taken(0).x, PLACE)
    assert after["last"].dtype == torch.float32 and after["seen"].dtype == torch.int64 and after["seen"] == 8
    torch.testing.assert_close(after["last"], outputs.mean(0), rtol=8 * STEP[short], atol=8 * STEP[short])


@every_build
def test_the_gradients_of_a_step_in_bfloat16_are_those_of_the_module_under_autocast(build):
    model = models.from_module(build=build)
    plain = optim.sgd(learning_rate=1.0)
    state, batch = begun(1, model, plain), taken(1)
    net = build()
    net.load_state_dict(training.variables(state))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outputs = net(batch.x)
    nn.functional.cross_entropy(outputs.float(), batch.y).backward()
    after = step(state, batch, model=mixed(model, "bfloat16"), optimizer=plain)
    right = {name: state.params[name] - leaf.grad for name, leaf in net.named_parameters()}
    assert_close(after.params, right, rtol=0, atol=2e-3)
    assert not tree.equal(after.params, state.params)


@every_model
@every_short
def test_steps_in_sixteen_bits_mapped_and_traced_are_those_of_each_member_to_their_rounding(model, short):
    brief = mixed(model, short)
    states = tree.stack([begun(seed, model) for seed in range(3)])
    batches = [tree.stack([taken(3 * turn + seed) for seed in range(3)]) for turn in range(3)]
    one = lambda varying, state, batch: step(state, batch, model=brief)  # noqa: E731
    traced = fold.together(one, {}, states, batches[0])
    mapped, ours, alone = states, states, list(tree.apart(states))
    for batch in batches:
        mapped, ours = vmap(one)({}, mapped, batch), traced({}, ours, batch)
        assert tree.equal(mapped, ours)
        alone = [one({}, state, own) for state, own in zip(alone, tree.apart(batch), strict=True)]
    assert_close(ours, tree.stack(alone), rtol=0, atol=32 * STEP[short])
    assert not tree.equal(ours.params, states.params)


@every_short
def test_one_member_traced_in_sixteen_bits_has_the_bits_of_the_step(short):
    brief = mixed(MODELS["batch_norm"], short)
    states, batch = tree.stack([begun(0, brief)]), tree.stack([taken(0)])
    one = lambda varying, state, batch: step(state, batch, model=brief)  # noqa: E731
    traced = fold.together(one, {}, states, batch)
    assert tree.equal(traced({}, states, batch), tree.stack([step(begun(0, brief), taken(0), model=brief)]))


START = {"w": numbers(4), "b": numbers(2, 2, seed=1)}


def gradients(seed: int, bad: bool, dtype=torch.float64) -> Params:
    grads = {name: numbers(*leaf.shape, seed=seed).to(dtype) for name, leaf in START.items()}
    if bad:
        grads["b"][0, seed % 2] = [torch.inf, -torch.inf, torch.nan][seed % 3]
    return grads


def of_scaler(bad: list[bool], interval: int) -> tuple[list[float], Params]:
    """The rule in torch's documentation of GradScaler: the scales after each update, and the parameters at the end."""
    scale, good, scales = 65536.0, 0, []
    params = {name: leaf.clone().requires_grad_() for name, leaf in START.items()}
    optimizer = torch.optim.Adam(params.values(), lr=0.1)
    for seed, skipped in enumerate(bad):
        if skipped:
            scale, good = scale * 0.5, 0
        else:
            for name, grad in gradients(seed, bad=False).items():
                params[name].grad = grad
            optimizer.step()
            good += 1
            if good == interval:
                scale, good = scale * 2.0, 0
        scales.append(scale)
    return scales, {name: leaf.detach() for name, leaf in params.items()}


def scaled_run(optimizer: Optimizer, bad: list[bool]) -> tuple[list[float], Params]:
    params, state, scales = START, optimizer.init(START), []
    for seed, skipped in enumerate(bad):
        grads = {name: optimizer.scale(state) * leaf for name, leaf in gradients(seed, skipped).items()}
        params, state = optimizer.update(grads, state, params)
        scales.append(float(optimizer.scale(state)))
    return scales, params


@given(st.lists(st.booleans(), min_size=1, max_size=40))
def test_scales_and_parameters_are_those_of_the_rule_of_gradscaler(bad):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(precision, "INTERVAL", 3)
        scales, params = scaled_run(loss_scaled(optim.adam(learning_rate=0.1)), bad)
    right, theirs = of_scaler(bad, interval=3)
    assert scales == right
    assert_close(params, theirs)


def test_scales_are_those_of_gradscaler_itself():
    """Of torch's own, on the losses that give these gradients."""
    bad = [False, True, False, False, True, True, False, False, False, False]
    scaler = torch.amp.GradScaler("cpu", growth_interval=2)
    weight = torch.zeros(1, requires_grad=True)
    descent, found = torch.optim.SGD([weight], lr=1e-3), []
    for skipped in bad:
        descent.zero_grad()
        scaler.scale((weight * (torch.inf if skipped else 1.0)).sum()).backward()
        scaler.step(descent)
        scaler.update()
        found.append(scaler.get_scale())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(precision, "INTERVAL", 2)
        assert scaled_run(loss_scaled(optim.sgd(learning_rate=1e-3)), bad)[0] == found


def test_the_scale_starts_and_grows_as_that_of_gradscaler_does_by_default():
    scaler = torch.amp.GradScaler("cpu")
    rule = precision.FIRST, precision.GROWTH, precision.BACKOFF, precision.INTERVAL
    theirs = scaler.get_scale(), scaler.get_growth_factor(), scaler.get_backoff_factor(), scaler.get_growth_interval()
    assert rule == theirs
    optimizer = loss_scaled(optim.sgd(learning_rate=0.0))
    state = optimizer.init(START)
    assert optimizer.scale(state) == 2**16
    for update in range(2 * 2000):
        grads = {name: torch.zeros_like(leaf) for name, leaf in START.items()}
        _, state = optimizer.update(grads, state, START)
        assert state.scale == 2.0 ** (16 + (update + 1) // 2000)


@pytest.mark.parametrize("wrong", [torch.inf, -torch.inf, torch.nan])
@given(seed=seeds)
def test_where_a_gradient_is_not_finite_nothing_moves_and_the_scale_is_halved(wrong, seed):
    optimizer = loss_scaled(optim.adam(learning_rate=0.1))
    params, state = optimizer.update(gradients(seed, bad=False), optimizer.init(START), START)
    grads = gradients(seed, bad=False)
    grads["w"][seed % 4] = wrong
    after, hurt = optimizer.update(grads, state, params)
    assert tree.equal(after, params) and tree.equal(hurt.inner, state.inner)
    assert hurt.scale == state.scale / 2 and hurt.good == 0 and state.good == 1


def test_a_scale_never_becomes_0_or_infinite_so_that_it_can_come_back():
    optimizer = loss_scaled(optim.sgd(learning_rate=0.1))
    state = optimizer.init(START)
    for _ in range(400):
        _, state = optimizer.update(gradients(0, bad=True), state, START)
    assert state.scale > 0
    params, _ = optimizer.update({name: state.scale * leaf for name, leaf in START.items()}, state, START)
    assert_close(params, {name: 0.9 * leaf for name, leaf in START.items()})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(precision, "INTERVAL", 1)
        for _ in range(400):
            _, state = optimizer.update({name: 0 * leaf for name, leaf in START.items()}, state, START)
    assert state.scale.isfinite()


def test_members_with_scales_mapped_are_those_of_each_alone():
    """One of three meets a gradient that is not finite."""
    optimizer = loss_scaled(optim.adam(learning_rate=0.1))
    hurt = [gradients(seed, bad=seed == 1, dtype=torch.float32) for seed in range(3)]
    params = [{name: leaf.float() for name, leaf in START.items()}] * 3
    states = [optimizer.init(own) for own in params]
    mapped = vmap(optimizer.update)(tree.stack(hurt), tree.stack(states), tree.stack(params))
    looped = tree.stack([optimizer.update(*own) for own in zip(hurt, states, params, strict=True)])
    assert_close(mapped, looped, rtol=1e-6, atol=1e-7)
    assert mapped[1].scale.tolist() == [2.0**16, 2.0**15, 2.0**16]


@every_model
@pytest.mark.parametrize("size", [8, 7])
@pytest.mark.parametrize("route", ["eager", "traced"])
def test_a_step_whose_loss_is_scaled_gives_the_bits_of_the_step_whose_loss_is_not(model, size, route):
    """In float32 a power of two changes no digit."""
    plain = optim.adam(learning_rate=0.01)
    scaled = loss_scaled(plain)
    both = {"plain": plain, "scaled": scaled}
    states = {name: tree.stack([begun(0, model, own)]) for name, own in both.items()}
    batch = tree.stack([taken(0, size)])
    for name, own in both.items():
        one = lambda varying, state, batch, own=own: step(state, batch, model=model, optimizer=own)  # noqa: E731
        move = fold.together(one, {}, states[name], batch) if route == "traced" else partial(fold.in_turn, one)
        for turn in range(5):
            states[name] = move({}, states[name], tree.stack([taken(turn, size)]))
    found, right = states["scaled"], states["plain"]
    assert tree.equal(found._replace(optimizer=found.optimizer.inner), right)
    assert found.optimizer.good.tolist() == [5]


def test_gradients_too_small_for_float16_are_lost_without_a_scale_and_kept_with_one():
    """A weight whose gradient is 1e-8, below the least number of float16, 6e-8."""

    def product(params: Params, x: Tensor) -> Tensor:
        return nn.functional.linear(x, params["w"])

    model = models.mlp(features=(1,), classes=1, hidden=())._replace(
        init=lambda seed: ({"w": torch.ones(1, 1)}, {}),
        apply=product,
        train=lambda params, buffers, x, place: (product(params, x), buffers),
    )
    batch = Batch(x=torch.ones(1, 1), y=torch.zeros(1), id=torch.zeros(1, dtype=torch.int64))
    ended = {}
    for name, optimizer in {"plain": optim.sgd(learning_rate=1e7), "scaled": None}.items():
        optimizer = optimizer or loss_scaled(optim.sgd(learning_rate=1e7))
        state = training.train_start(0, model=model, optimizer=optimizer)
        small = lambda outputs, y: 1e-8 * outputs[:, 0]  # noqa: E731
        brief = mixed(model, "float16")
        ended[name] = training.train_step(state, batch, model=brief, loss=small, optimizer=optimizer).params["w"]
    assert ended["plain"].item() == 1.0
    assert ended["scaled"].item() == pytest.approx(0.9, abs=1e-4)


def test_a_scaled_optimizer_hears_a_metric_for_the_one_inside():
    inner = optim.plateau(optimizer=optim.sgd(learning_rate=0.1), factor=0.5, patience=1)
    optimizer = loss_scaled(inner)
    state = optimizer.init(START)
    for _ in range(3):
        state = optimizer.advance(state, torch.tensor(1.0))
    assert state.inner.factor == 0.5 and state.scale == 2**16
