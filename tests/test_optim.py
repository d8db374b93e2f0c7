"""How gradients move parameters: equal to torch.optim, in float64."""

from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.func import vmap
from worlds import assert_close, copied, numbers, seeds

from fcurr import optim, schedules, tree
from fcurr.testing import hyperparameters
from fcurr.types import Decay, Rate

amounts = st.floats(-1e3, 1e3, allow_subnormal=False)
gradients = st.lists(st.lists(amounts, min_size=5, max_size=5), min_size=1, max_size=6)  # [step, number]
rates = st.floats(0, 2)
decays = st.floats(0, 0.999)
penalties = st.floats(0, 1)


def parts(line) -> dict[str, torch.Tensor]:
    line = torch.as_tensor(line, dtype=torch.float64)
    return {"b": line[:2], "a": line[2:].reshape(3, 1)}


START = parts(numbers(5))


def ours(optimizer, grads, start=None):
    params = START if start is None else start
    state = optimizer.init(params)
    for line in grads:
        params, state = optimizer.update(parts(line), state, params)
    return params


def theirs(make, grads, scheduler=None):
    params = {name: leaf.clone().requires_grad_() for name, leaf in START.items()}
    optimizer = make(params.values())
    schedule = scheduler(optimizer) if scheduler else None
    for line in grads:
        for name, grad in parts(line).items():
            params[name].grad = grad.clone()
        optimizer.step()
        if schedule:
            schedule.step()
    return {name: leaf.detach() for name, leaf in params.items()}


@given(gradients, rates, decays, penalties, st.booleans())
def test_sgd_is_the_sgd_of_torch(grads, rate, momentum, penalty, nesterov):
    nesterov = nesterov and momentum > 0
    names = {"momentum": momentum, "weight_decay": penalty, "nesterov": nesterov}
    assert_close(
        ours(optim.sgd(learning_rate=rate, **names), grads),
        theirs(lambda params: torch.optim.SGD(params, lr=rate, **names), grads),
    )


@pytest.mark.parametrize("ours_is, theirs_is", [(optim.adam, torch.optim.Adam), (optim.adamw, torch.optim.AdamW)])
@given(grads=gradients, rate=rates, beta1=decays, beta2=decays, penalty=penalties, epsilon=st.floats(1e-10, 1e-2))
def test_adam_and_adamw_are_those_of_torch(ours_is, theirs_is, grads, rate, beta1, beta2, penalty, epsilon):
    names = {"weight_decay": penalty}
    assert_close(
        ours(ours_is(learning_rate=rate, beta1=beta1, beta2=beta2, epsilon=epsilon, **names), grads),
        theirs(lambda params: theirs_is(params, lr=rate, betas=(beta1, beta2), eps=epsilon, **names), grads),
    )


@pytest.mark.parametrize("ours_is, theirs_is", [(optim.adam, torch.optim.Adam), (optim.adamw, torch.optim.AdamW)])
def test_adam_and_adamw_have_the_defaults_of_torch(ours_is, theirs_is):
    grads = numbers(20, 5, seed=3)
    right = theirs(lambda params: theirs_is(params, lr=0.1), grads)
    assert_close(ours(ours_is(learning_rate=0.1), grads), right)


@given(gradients, st.floats(0.1, 1e3))
def test_clipping_is_that_of_torch_to_the_millionth_it_adds_to_a_norm(grads, max_norm):
    def clip_and_step(params):
        def clip(*_):
            torch.nn.utils.clip_grad_norm_(params, max_norm)

        optimizer = torch.optim.SGD(params, lr=1.0)
        optimizer.register_step_pre_hook(clip)
        return optimizer

    clipped = optim.clipped(optimizer=optim.sgd(learning_rate=1.0), max_norm=max_norm)
    right = theirs(lambda params: clip_and_step(list(params)), grads)
    assert_close(ours(clipped, grads), right, rtol=0, atol=1e-6 * (1 + len(grads)))


@given(gradients, st.floats(1e-3, 1e3))
def test_a_clipped_gradient_has_the_smaller_norm_and_the_same_direction(grads, max_norm):
    clipped = optim.clipped(optimizer=optim.sgd(learning_rate=1.0), max_norm=max_norm)
    zero = parts(torch.zeros(5))
    for line in grads:
        moved = ours(clipped, [line], start=zero)
        norm = float(tree.norm(parts(line)))
        assert float(tree.norm(moved)) == pytest.approx(min(norm, max_norm), rel=1e-9)
        assert -tree.dot(moved, parts(line)) == pytest.approx(min(norm, max_norm) * norm, rel=1e-9)


@given(rate=rates, every=st.integers(1, 7), factor=decays)
def test_step_is_the_step_schedule_of_torch(rate, every, factor):
    right = theirs_schedule(rate, lambda o: torch.optim.lr_scheduler.StepLR(o, step_size=every, gamma=factor))
    assert_rates(partial(schedules.step, learning_rate=rate, every=every, factor=factor), right)


@given(rate=rates, total=st.integers(1, 30), final=rates)
def test_cosine_is_the_cosine_schedule_of_torch_and_stays_at_its_end(rate, total, final):
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR
    right = theirs_schedule(rate, lambda o: cosine(o, T_max=total, eta_min=final))[: total + 1]
    schedule = partial(schedules.cosine, learning_rate=rate, total_iterations=total, final_rate=final)
    assert_rates(schedule, right, atol=1e-9)
    assert schedule(torch.tensor(10 * total)).item() == pytest.approx(final, rel=1e-12)


@given(rate=rates, iterations=st.integers(1, 30))
def test_a_warm_up_rises_in_a_straight_line_to_what_it_warms_up(rate, iterations):
    right = [rate * min(1, (t + 1) / iterations) for t in range(40)]
    assert_rates(partial(schedules.warm_up, learning_rate=rate, iterations=iterations), right)
    falling = partial(schedules.step, learning_rate=rate, every=3)
    right = [rate * 0.1 ** (t // 3) * min(1, (t + 1) / iterations) for t in range(40)]
    assert_rates(partial(schedules.warm_up, learning_rate=falling, iterations=iterations), right)


@given(rate=rates)
def test_a_constant_schedule_is_the_number_itself(rate):
    assert_rates(partial(schedules.constant, learning_rate=rate), [rate] * 40)


def theirs_schedule(rate: float, schedule) -> list[float]:
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=rate)
    scheduler = schedule(optimizer)
    found = []
    for _ in range(40):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return found


def assert_rates(schedule, right, atol: float = 1e-15) -> None:
    """At each iteration by itself, and mapped over iterations."""
    iterations = torch.arange(len(right))
    right = torch.tensor(right, dtype=torch.float64)
    one_by_one = torch.stack([schedule(iteration).double() for iteration in iterations])
    torch.testing.assert_close(one_by_one, right, rtol=1e-12, atol=atol)
    torch.testing.assert_close(vmap(schedule)(iterations).double(), right, rtol=1e-12, atol=atol)


@given(gradients, rates)
def test_an_optimizer_asks_its_schedule_for_the_rate_of_the_updates_already_made(grads, rate):
    schedule = partial(schedules.step, learning_rate=rate, every=2, factor=0.5)
    scheduler = partial(torch.optim.lr_scheduler.StepLR, step_size=2, gamma=0.5)
    right = theirs(lambda params: torch.optim.SGD(params, lr=rate, momentum=0.9), grads, scheduler)
    assert_close(ours(optim.sgd(learning_rate=schedule, momentum=0.9), grads), right)
    right = theirs(lambda params: torch.optim.AdamW(params, lr=rate), grads, scheduler)
    assert_close(ours(optim.adamw(learning_rate=schedule), grads), right)


OPTIMIZERS = {
    "sgd": optim.sgd,
    "momentum": partial(optim.sgd, momentum=0.9, weight_decay=0.01),
    "nesterov": partial(optim.sgd, momentum=0.9, nesterov=True),
    "adam": partial(optim.adam, weight_decay=0.01),
    "adamw": optim.adamw,
    "clipped": lambda learning_rate: optim.clipped(optimizer=optim.adam(learning_rate=learning_rate), max_norm=1.0),
    "plateau": lambda learning_rate: optim.plateau(optimizer=optim.adam(learning_rate=learning_rate), patience=1),
}
every_optimizer = pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)


@every_optimizer
@given(seed=seeds)
def test_an_update_writes_to_none_of_its_arguments_and_keeps_names_shapes_and_dtypes(make, seed):
    for dtype in (torch.float32, torch.float64):
        params, grads = ({n: leaf.to(dtype) for n, leaf in parts(numbers(5, seed=s)).items()} for s in (seed, seed + 1))
        optimizer = make(learning_rate=0.1)
        state = optimizer.update(grads, optimizer.init(params), params)[1]
        before = tree.map(torch.clone, (grads, state, params))
        after = optimizer.update(grads, state, params)
        assert tree.equal((grads, state, params), before)
        kinds = [(name, leaf.shape, leaf.dtype) for name, leaf in tree.named((params, state)).items()]
        assert [(name, leaf.shape, leaf.dtype) for name, leaf in tree.named(after).items()] == kinds


@every_optimizer
def test_a_fresh_state_shares_no_memory_with_itself_or_the_parameters(make):
    params = copied(START)
    places = [leaf.data_ptr() for leaf in tree.leaves((params, make(learning_rate=0.1).init(params)))]
    assert len(set(places)) == len(places)


@every_optimizer
def test_updates_mapped_over_the_learning_rate_equal_the_loop(make):
    rates, grads = torch.tensor([0.0, 0.01, 0.3], dtype=torch.float64), numbers(4, 5, seed=5)
    mapped = vmap(lambda rate: ours(make(learning_rate=rate), grads))(rates)
    looped = tree.stack([ours(make(learning_rate=rate), grads) for rate in rates.tolist()])
    assert_close(mapped, looped)


metrics = st.lists(  # of evaluations; lower is better
    st.one_of(st.integers(0, 5).map(float), st.floats(-10, 10), st.sampled_from([torch.nan, torch.inf, -torch.inf])),
    min_size=1,
    max_size=25,
)
slowness = st.fixed_dictionaries(
    {
        "factor": st.floats(0, 0.99),
        "patience": st.integers(1, 4),
        "threshold": st.floats(1e-6, 2),
        "smallest": st.floats(0, 1),
    }
)


def number(value: float) -> torch.Tensor:
    return torch.tensor(value, dtype=torch.float64)


def of_torch(optimizer, rate: float, slow):
    """Nothing is too small a change for it, and its smallest rate is a rate."""
    rest = {name: slow[name] for name in ("factor", "patience", "threshold")}
    make = torch.optim.lr_scheduler.ReduceLROnPlateau
    return make(optimizer, threshold_mode="abs", min_lr=rate * slow["smallest"], eps=0.0, **rest)


@given(metrics, slowness, st.sampled_from([torch.float32, torch.float64]))
def test_the_factors_of_plateau_are_those_of_torch(values, slow, dtype):
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    scheduler = of_torch(optimizer, 1.0, slow)
    ours = optim.plateau(optimizer=optim.sgd(learning_rate=1.0), **slow)
    state = ours.init(START)
    for value in values:
        heard = torch.tensor(value, dtype=dtype)
        scheduler.step(float(heard))
        state = ours.advance(state, heard)
        assert state.factor.item() == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-12)
        assert state.best.item() == scheduler.best and state.waited.item() == scheduler.num_bad_epochs
        assert [leaf.dtype for leaf in tree.leaves(state)] == [leaf.dtype for leaf in tree.leaves(ours.init(START))]


def slowed(optimizer, grads, values):
    """Parameters after updates with an evaluation after each."""
    params, state = START, optimizer.init(START)
    for line, value in zip(grads, values, strict=True):
        params, state = optimizer.update(parts(line), state, params)
        state = optimizer.advance(state, value if isinstance(value, torch.Tensor) else number(value))
    return params


def slowed_by_torch(make, rate: float, grads, values, slow, max_norm: float = float("inf")):
    params = {name: leaf.clone().requires_grad_() for name, leaf in START.items()}
    optimizer = make(params.values(), lr=rate)
    scheduler = of_torch(optimizer, rate, slow)
    for line, value in zip(grads, values, strict=True):
        cut = min(1.0, max_norm / max(float(tree.norm(parts(line))), 1e-38))
        for name, grad in parts(line).items():
            params[name].grad = cut * grad
        optimizer.step()
        scheduler.step(value)
    return {name: leaf.detach() for name, leaf in params.items()}


PEERS = {
    "sgd": (partial(optim.sgd, weight_decay=0.1), partial(torch.optim.SGD, weight_decay=0.1)),
    "nesterov": (
        partial(optim.sgd, momentum=0.9, nesterov=True),
        partial(torch.optim.SGD, momentum=0.9, nesterov=True),
    ),
    "adam": (optim.adam, torch.optim.Adam),
    "adamw": (optim.adamw, torch.optim.AdamW),
}
every_peer = pytest.mark.parametrize("ours_is, theirs_is", PEERS.values(), ids=PEERS)


@every_peer
@given(seed=seeds, values=metrics, slow=slowness, rate=st.floats(0, 1))
def test_descent_that_slows_down_at_a_plateau_is_that_of_torch(ours_is, theirs_is, seed, values, slow, rate):
    grads = numbers(len(values), 5, seed=seed)
    ours_end = slowed(optim.plateau(optimizer=ours_is(learning_rate=rate), **slow), grads, values)
    assert_close(ours_end, slowed_by_torch(theirs_is, rate, grads, values, slow), rtol=1e-9, atol=1e-9)


@given(seed=seeds, values=metrics, slow=slowness)
def test_a_plateau_is_heard_inside_clipping_and_outside_it(seed, values, slow):
    grads = numbers(len(values), 5, seed=seed, scale=3.0)
    adam = optim.adam(learning_rate=0.1)
    inside = optim.clipped(optimizer=optim.plateau(optimizer=adam, **slow), max_norm=1.0)
    outside = optim.plateau(optimizer=optim.clipped(optimizer=adam, max_norm=1.0), **slow)
    right = slowed_by_torch(torch.optim.Adam, 0.1, grads, values, slow, max_norm=1.0)
    assert_close(slowed(inside, grads, values), right, rtol=1e-9, atol=1e-9)
    assert_close(slowed(outside, grads, values), right, rtol=1e-9, atol=1e-9)


def test_a_plateau_multiplies_the_rates_of_a_schedule():
    """Three evaluations of 1.0: with a patience of 1, the rate is halved after the third update."""
    schedule = partial(schedules.step, learning_rate=0.8, every=2, factor=0.5)
    slow = {"factor": 0.5, "patience": 1}
    optimizer = optim.plateau(optimizer=optim.sgd(learning_rate=schedule), **slow)
    ended = slowed(optimizer, [[1.0] * 5] * 6, [1.0] * 6)
    rates = [0.8, 0.8, 0.4, 0.4 / 2, 0.2 / 2, 0.2 / 4]
    assert_close(ended, {name: leaf - sum(rates) for name, leaf in START.items()})


def test_a_plateau_in_a_plateau_hears_the_metric_too():
    inner = optim.plateau(optimizer=optim.sgd(learning_rate=1.0), factor=0.5, patience=1)
    outer = optim.plateau(optimizer=inner, factor=0.5, patience=2)
    state = outer.init(START)
    for _ in range(4):
        state = outer.advance(state, number(1.0))
    assert state.factor == 0.5 and state.inner.factor == 0.5


@every_optimizer
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@given(seed=seeds)
def test_before_it_slows_down_a_plateau_gives_the_bits_of_the_optimizer_inside(make, dtype, seed):
    params, inner = {name: leaf.to(dtype) for name, leaf in START.items()}, make(learning_rate=0.1)
    outer = optim.plateau(optimizer=inner)
    theirs_at, ours_at = params, params
    theirs_state, state = inner.init(params), outer.init(params)
    for line in numbers(6, 5, seed=seed).to(dtype):
        grads = {"b": line[:2], "a": line[2:].reshape(3, 1)}
        theirs_at, theirs_state = inner.update(grads, theirs_state, theirs_at)
        ours_at, state = outer.update(grads, state, ours_at)
        assert tree.equal(theirs_at, ours_at) and tree.equal(theirs_state, state.inner)


@given(seed=seeds, values=metrics)
def test_plateaus_mapped_over_members_equal_the_loop(seed, values):
    """Members hear metrics of their own, and slow down by factors of their own."""
    grads, heard = numbers(len(values), 5, seed=seed), torch.tensor([values, values[::-1], [1.0] * len(values)])
    heard, factors = heard.double(), torch.tensor([0.5, 0.1, 0.9], dtype=torch.float64)

    def end(own, factor):
        inner = optim.adam(learning_rate=0.1)
        return slowed(optim.plateau(optimizer=inner, factor=factor, patience=1), grads, own)

    mapped = vmap(end)(heard, factors)
    assert_close(mapped, tree.stack([end(own, float(factor)) for own, factor in zip(heard, factors, strict=True)]))


def test_an_optimizer_that_does_not_listen_stays_as_it_is_when_a_metric_comes():
    optimizer = optim.adam(learning_rate=0.1)
    state = optimizer.init(START)
    assert optimizer.advance(state, number(1.0)) is state and optimizer.scale(state) == 1.0


def test_the_end_of_descent_can_be_differentiated_by_the_learning_rate():
    grads = numbers(3, 5, seed=5)
    end = lambda rate: tree.dot(*[ours(optim.sgd(learning_rate=rate, momentum=0.5), grads)] * 2)  # noqa: E731
    rate, step = torch.tensor(0.1, dtype=torch.float64), 1e-6
    slope = (end(rate + step) - end(rate - step)) / (2 * step)
    assert torch.func.grad(end)(rate).item() == pytest.approx(slope.item(), rel=1e-6)


def test_hyperparameters_of_an_optimizer_are_drawn_from_its_signature():
    def like_sgd(grads, *, learning_rate: Rate, momentum: Decay, nesterov: bool = False): ...

    @given(hyperparameters(like_sgd))
    def drawn(names):
        assert names["learning_rate"] >= 0 and 0 <= names["momentum"] < 1 and isinstance(names["nesterov"], bool)

    drawn()


@given(updates=st.integers(0, 500), size=st.integers(1, 300), batch=st.integers(1, 64))
def test_a_schedule_by_epoch_changes_where_epochs_begin_and_nowhere_else(updates, size, batch):
    inner = partial(schedules.cosine, learning_rate=0.1, total_iterations=500)
    epoch = -(-size // batch)
    found = schedules.by_epoch(torch.tensor(updates), learning_rate=inner, dataset_size=size, batch_size=batch)
    assert found == inner(torch.tensor(updates // epoch * epoch))
