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
