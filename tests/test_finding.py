"""What to train with, measured: the learning-rate range test, what fits, throughput, and the noise of the gradient."""

import copy
import itertools
import json
import math
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small import CONFIG
from torch import Tensor
from worlds import numbers

from fcurr import finding, losses, optim, training
from fcurr.errors import BadInput
from fcurr.io import finding as edge
from fcurr.io import memory
from fcurr.study.config import read
from fcurr.types import Batch, Model, Params

# a rate that grows


@given(st.floats(1e-8, 1e-2), st.floats(1.5, 1e6), st.integers(2, 300))
def test_a_rate_grows_from_low_to_high_by_one_factor(low, factor, iterations):
    rates = finding.geometric(torch.arange(iterations), low=low, high=low * factor, iterations=iterations)
    assert math.isclose(float(rates[0]), low) and math.isclose(float(rates[-1]), low * factor, rel_tol=1e-9)
    torch.testing.assert_close(rates[1:] / rates[:-1], torch.full_like(rates[1:], factor ** (1 / (iterations - 1))))


def straight(features: int) -> Model:
    """y = x w, float64, from w = 1."""

    def init(seed: int) -> tuple[Params, Params]:
        return {"w": torch.ones(features, dtype=torch.float64)}, {}

    def apply(params: Params, x: Tensor) -> Tensor:
        return (x @ params["w"]).unsqueeze(-1)

    return Model(init=init, apply=apply, train=lambda params, buffers, x, place: (apply(params, x), buffers))


def fold(state, batch, *, model, loss, optimizer) -> Iterator[Tensor]:
    while True:
        state = training.train_step(state, batch, model=model, loss=loss, optimizer=optimizer)
        yield state.loss


SLOPES = torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64)  # of a quadratic; steps are stable up to a rate of 1 / 8


def quadratic(iterations: int, low: float, high: float) -> Iterator[Tensor]:
    """The losses of gradient descent on sum(slopes * w^2) / 3 * 3 / 2, whose Hessian is diag(slopes^2)."""
    x, y = SLOPES.diag(), torch.zeros(3, 1, dtype=torch.float64)
    batch, model = Batch(x, y, torch.arange(3)), straight(3)
    rate = lambda t: finding.geometric(t, low=low, high=high, iterations=iterations)  # noqa: E731
    optimizer = optim.sgd(learning_rate=rate)
    state = training.train_start(0, model=model, optimizer=optimizer)
    yield from fold(
        state._replace(loss=state.loss.double()),
        batch,
        model=model,
        loss=losses.squared_error,
        optimizer=optimizer,
    )


def test_a_range_test_is_the_fold_of_training_steps_whose_rate_grows():
    low, high, iterations, decay = 1e-3, 10.0, 120, 0.9
    found = finding.range_test(quadratic(iterations, low, high), low=low, high=high, iterations=iterations, decay=decay)
    w, mean, best = torch.ones(3, dtype=torch.float64), 0.0, math.inf
    hessian = None
    for step in range(len(found.rates)):
        rate = low * (high / low) ** (step / (iterations - 1))
        x = SLOPES * w
        loss = float(losses.squared_error(x.unsqueeze(-1), torch.zeros(3, 1, dtype=torch.float64)).mean())
        if hessian is None:  # the mean over three samples of a loss that is its error squared, or half of that
            hessian = 2 * loss / float((SLOPES * w).square().sum()) * SLOPES.square()
        mean = decay * mean + (1 - decay) * loss
        smooth = mean / (1 - decay ** (step + 1))
        assert math.isclose(float(found.rates[step]), rate, rel_tol=1e-12)
        assert math.isclose(float(found.losses[step]), loss, rel_tol=1e-9, abs_tol=1e-300)
        assert math.isclose(float(found.smoothed[step]), smooth, rel_tol=1e-9)
        assert (smooth > 4 * best) == (step == len(found.rates) - 1)
        best, w = min(best, smooth), w - rate * hessian * w
    assert found.ended == "the loss exceeded 4 times its lowest" and hessian is not None
    stable = 2 / float(hessian.max())
    rates = finding.suggested(found, decay=decay)
    assert rates.tenth == rates.lowest / 10 and low < rates.steepest <= rates.lowest
    assert rates.steepest < stable < float(found.rates[-1])


def test_no_loss_is_asked_for_after_the_end():
    asked = []

    def given_losses(values: list[float]) -> Iterator[float]:
        for value in values:
            asked.append(value)
            yield value

    for values, count, ended in [
        ([1.0, 0.5, math.nan, 3.0], 2, "the loss became nan"),
        ([1.0, math.inf, 3.0], 1, "the loss became inf"),
        ([1.0, 1.0, 500.0, 3.0], 3, "the loss exceeded 4 times its lowest"),
        ([-1.0, -1.2, 500.0, 3.0], 3, "the loss exceeded 4 times its lowest"),
        ([1.0, 0.9, 0.8, 0.7], 4, "all 4 steps were taken"),
        ([math.nan], 0, "the loss became nan"),
    ]:
        asked.clear()
        found = finding.range_test(given_losses(values), low=0.1, high=1.0, iterations=4)
        assert (found.ended, len(found.rates), len(found.losses)) == (ended, count, count)
        assert len(asked) == min(count + (ended[-3:] in ("nan", "inf")), len(values))


def test_suggestions_are_where_a_known_curve_falls_fastest_and_a_tenth_of_where_it_is_lowest():
    places = torch.linspace(-6, 1, 141, dtype=torch.float64)  # of log10(rate)
    curve = 2 - torch.sigmoid(4 * (places + 2)) + (places + 0.5).clamp(min=0).square()
    found = finding.RangeTest(10**places, curve, curve, "")
    rates = finding.suggested(found)
    assert abs(math.log10(rates.steepest) + 2) < 0.06
    assert rates.lowest == float(found.rates[curve.argmin()]) and rates.tenth == rates.lowest / 10


def test_a_loss_that_does_not_fall_suggests_nothing():
    rising = torch.linspace(1, 2, 50, dtype=torch.float64)
    for curve in (rising, rising[:5], rising[:0]):
        found = finding.RangeTest(10.0 ** torch.arange(len(curve)).double(), curve, curve, "")
        assert all(math.isnan(one) for one in finding.suggested(found))


# what fits


@given(st.integers(0, 5000), st.integers(1, 64), st.integers(1, 4000), st.sampled_from([0.0, 1 / 16, 0.5]))
def test_the_largest_that_fits_is_found_in_a_few_tries(limit, first, most, within):
    tried = []

    def fits(size: int) -> bool:
        tried.append(size)
        return size <= limit

    found = finding.largest(fits, first=first, most=most, within=within)
    start = min(first, most)
    if limit < start:
        assert found == 0 and tried == [start]
        return
    right = min(limit, most)
    assert found <= right <= found + max(0, int(within * found)) and found in tried and max(tried) <= most
    assert len(tried) <= 2 * math.log2(max(right / start, 1)) + 3 + math.log2(start) and len(set(tried)) == len(tried)


@given(st.floats(-5, 5), st.floats(-5, 5), st.lists(st.integers(1, 100), min_size=2, max_size=5, unique=True))
def test_a_line_through_points_of_a_line_is_the_line(start, slope, sizes):
    found = finding.line(sizes, [start + slope * size for size in sizes])
    assert math.isclose(found[0], start, abs_tol=1e-6) and math.isclose(found[1], slope, abs_tol=1e-6)


def test_the_knee_is_where_doubling_no_longer_pays():
    sizes = [8, 16, 32, 64, 128]
    for speed, right in [
        ([100, 200, 400, 800, 1600], 128),
        ([100, 200, 210, 215, 216], 16),
        ([100, 90, 80, 70, 60], 8),
        ([100, 101, 200, 400, 401], 64),  # one slow measurement ends nothing
        ([100, 112, 125, 140, 141], 64),
        ([100, 109, 118, 128, 139], 8),
    ]:
        assert finding.knee(sizes, speed) == right, speed
    assert finding.knee([8], [3.0]) == 8
    assert finding.knee([8, 12], [100.0, 104.0]) == 8 and finding.knee([8, 12], [100.0, 108.0]) == 12  # 1.1^0.58


@pytest.mark.parametrize("words", ["CUDA out of memory. Tried", "CUBLAS_STATUS_ALLOC_FAILED when calling", "other"])
def test_an_error_that_comes_from_a_lack_of_memory_is_known(words):
    try:
        try:
            raise RuntimeError(words)
        except RuntimeError as inner:
            raise BadInput("a training step fails: RuntimeError", "training") from inner
    except BadInput as wrong:
        assert memory._of_memory(wrong) == (words != "other")
    assert memory._of_memory(torch.OutOfMemoryError("none left"))


# the noise of the gradient


def gradient_of(batch: Batch, w: Tensor) -> Params:
    """Of half the mean squared error of a straight line, in closed form."""
    wrong = batch.x @ w - batch.y
    return {"w": (wrong.unsqueeze(-1) * batch.x).mean(0)}


def known(samples: int = 4) -> tuple[Batch, Tensor, float, float]:
    """Samples, parameters, |G|^2 and tr(Sigma) over these samples."""
    batch, w = Batch(numbers(samples, 3), numbers(samples, seed=1), torch.arange(samples)), numbers(3, seed=2)
    each = (batch.x @ w - batch.y).unsqueeze(-1) * batch.x
    mean = each.mean(0)
    return batch, w, float(mean.square().sum()), float((each - mean).square().sum(1).mean())


def rows(batch: Batch, ids: tuple[int, ...]) -> Batch:
    return Batch(*(leaf[list(ids)] for leaf in batch))


@pytest.mark.parametrize(("small", "parts"), [(1, 2), (1, 3), (2, 2)])
def test_the_noise_scale_over_all_draws_is_the_closed_form(small, parts):
    """Every way to draw, each as likely as any other, so that the mean is the expectation and not an estimate."""
    batch, w, squared, variance = known()
    pairs = []
    for ids in itertools.product(range(4), repeat=small * parts):
        few = [rows(batch, ids[place : place + small]) for place in range(0, len(ids), small)]
        pairs.append(finding.norms(lambda part: gradient_of(part, w), few))
    found = finding.noise_scale(pairs, small=small, large=small * parts)
    assert math.isclose(found.gradient, squared, rel_tol=1e-9)
    assert math.isclose(found.variance, variance, rel_tol=1e-9)
    assert math.isclose(found.scale, variance / squared, rel_tol=1e-9)


def test_the_noise_scale_of_a_linear_model_with_known_noise_is_found_from_a_few_draws():
    """x normal, y = x v + noise: at w the gradient of all is w - v, and the variance (d + 1) |w - v|^2 + d noise^2."""
    features, noise, w = 5, 2.0, torch.full((5,), 0.6, dtype=torch.float64)

    def drawn(seed: int) -> Batch:
        x = numbers(32, features, seed=seed)
        return Batch(x, noise * numbers(32, seed=seed + 10**6), torch.arange(32))

    pairs = [
        finding.norms(lambda part: gradient_of(part, w), [drawn(64 * draw + part) for part in range(16)])
        for draw in range(64)
    ]
    found = finding.noise_scale(pairs, small=32, large=512)
    squared = float(w.square().sum())
    right = (features + 1) * squared + features * noise**2
    assert abs(found.gradient / squared - 1) < 0.05 and abs(found.variance / right - 1) < 0.05
    assert abs(found.scale / (right / squared) - 1) < 0.1


def test_the_norm_of_the_mean_of_small_gradients_is_that_of_the_gradient_of_all_together():
    batch, w, _, _ = known(12)
    few = [rows(batch, tuple(range(place, place + 3))) for place in range(0, 12, 3)]
    _, large = finding.norms(lambda part: gradient_of(part, w), few)
    assert math.isclose(large, float(gradient_of(batch, w)["w"].square().sum()), rel_tol=1e-12)


def test_a_gradient_that_is_lost_in_noise_has_no_scale():
    found = finding.noise_scale([(1.0, 0.01)], small=1, large=10)
    assert math.isnan(found.scale) and found.gradient < 0 < found.variance


# of a run


def test_the_range_test_of_a_run_says_what_it_suggests_and_writes_nothing(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    before = copy.deepcopy(CONFIG)
    found = edge.learning_rate(CONFIG, iterations=80, low=1e-5, high=10.0)
    assert before == CONFIG and not list(tmp_path.iterdir()) and capfd.readouterr() == ("", "")
    assert found.lines[0] == "optimizer.learning_rate: 80 steps from 1e-05 upwards, 2 members"
    table = json.loads(json.dumps(found.table, allow_nan=False))
    assert len(table["rates"]) == len(table["losses"]) and table["key"] == "optimizer.learning_rate"
    assert 0.01 < table["lowest"] < 10 and 0.001 < table["steepest"] < 5
    assert f"{table['tenth']:.3g}: a tenth of {table['lowest']:.3g}, where the loss is lowest" in "\n".join(found.lines)


def test_the_first_losses_of_a_range_test_are_those_of_the_run_itself():
    """At rates too small to move anything every batch is judged by the model as it was made."""
    still = {"fn": "sgd", "learning_rate": 1e-12}
    config = {**CONFIG, "optimizer": still, "members": {"seed": [0, 1]}}
    found = edge.learning_rate(config, iterations=5, low=1e-12, high=1e-11)
    for key in ("score", "curriculum", "arms"):
        config.pop(key)
    experiment = read(config)
    states = memory.states(experiment, memory.loaded(experiment))
    right = [float(state.loss.double().mean()) for state, _ in zip(states, range(5), strict=False)]
    assert found.table["losses"] == pytest.approx(right, rel=1e-6)


@pytest.mark.parametrize(
    ("optimizer", "key"),
    [
        ({"fn": "clipped", "max_norm": 1.0, "optimizer": {"fn": "adam", "learning_rate": 0.1}}, "optimizer.optimizer."),
        ({"fn": "adamw", "learning_rate": {"fn": "warm_up", "learning_rate": 0.1, "iterations": 9}}, "optimizer."),
    ],
)
def test_the_rate_of_an_optimizer_within_another_and_of_a_schedule_is_found(optimizer, key):
    config = {**CONFIG, "optimizer": optimizer}
    found = edge.learning_rate(config, iterations=40, low=1e-5, high=1.0)
    assert found.table["key"] == f"{key}learning_rate" and len(found.table["rates"]) > 20


def test_what_the_range_test_cannot_use_is_bad_input():
    with pytest.raises(BadInput, match="there is no `learning_rate` to be found") as told:
        edge.learning_rate({**CONFIG, "optimizer": {"fn": "sgd", "learning_rat": 0.1}})
    assert told.value.where == "optimizer" and "did you mean `learning_rat`?" in str(told.value)
    with pytest.raises(BadInput, match=r"grows from low = 1 to high = 0\.1: low has to be less"):
        edge.learning_rate(CONFIG, low=1.0, high=0.1)
    with pytest.raises(BadInput, match="there is no optimizer `sdg`"):
        edge.learning_rate({**CONFIG, "optimizer": {"fn": "sdg", "learning_rate": 0.1}})


def test_a_weighting_that_asks_for_a_model_of_its_own_is_left_out_and_that_is_told():
    config = {**CONFIG, "weighting": "rho_loss", "clean": {"fn": "drawn", "size": 50}}
    found = edge.learning_rate(config, iterations=20, low=1e-4, high=1.0)
    assert "without its weighting, which asks for a model of its own" in found.lines


@pytest.mark.long
def test_the_batch_sizes_of_a_run_are_measured_and_one_is_suggested_and_nothing_is_written(
    tmp_path, monkeypatch, capfd
):
    monkeypatch.chdir(tmp_path)
    config = {**copy.deepcopy(CONFIG), "training": {**CONFIG["training"], "accumulate": 2}, "sweep": {"seed": [1]}}
    found = edge.batch_size(config, most=64, warm=20)
    assert not list(tmp_path.iterdir()) and capfd.readouterr() == ("", "")
    table = json.loads(json.dumps(found.table, allow_nan=False))
    sizes = [row["batch_size"] for row in table["rows"]]
    assert sizes == [8 * 2**power for power in range(len(sizes))] and sizes[-1] <= 64 == table["largest"]
    assert table["suggestion"] in sizes and all(row["samples_per_second"] > 0 for row in table["rows"])
    assert [one["steps"] for one in table["noise"]] == [0, 20] and all(one["variance"] > 0 for one in table["noise"])
    assert found.lines[-1].startswith(f"suggestion: {table['suggestion']}, ")
    assert "predicted for" in table["why"] and "no larger one was asked for" in table["why"]


@pytest.mark.long
def test_what_is_predicted_to_fit_takes_about_what_was_predicted():
    """A network whose activations take most of the memory; the size that is predicted is then run."""
    config = {
        **{key: CONFIG[key] for key in ("name", "data", "split", "training")},
        "model": {"fn": "mlp", "hidden": [256, 256, 256]},
        "optimizer": {"fn": "sgd", "learning_rate": 0.1},
        "members": {"seed": [0, 1]},
    }
    limit = 2**30
    fit = memory.on_processor(read(config), (), 1, 64, 10**6, limit)
    assert 4096 < fit.parts < 10**6
    assert abs(memory._peak(read(config), (), fit.parts) / limit - 1) < 0.4  # the allocator gives back what it likes


@pytest.mark.long
def test_a_limit_that_not_even_a_small_batch_meets_is_said():
    with pytest.raises(BadInput, match=r"not even a batch of 8 fits: predicted for 0\.00 GiB") as told:
        edge.batch_size({**CONFIG, "training": {**CONFIG["training"], "device": "cpu"}}, limit=1000, most=16)
    assert told.value.where == "training.batch_size"
