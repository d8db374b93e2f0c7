"""What a forward pass draws, as a function of (key, iteration, how-manyth draw, position)."""

from functools import partial
from itertools import pairwise, product
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.func import grad, jvp, vmap
from worlds import keys, numbers

from fcurr import keyed, tree
from fcurr.fold import traced
from fcurr.keyed import Keyed

iterations = st.integers(0, 2**31 - 1)


def drawn(function, *inputs, key: Any = 1, iteration: Any = 0):
    """What the function gives where numbers are drawn by the key."""
    place = tuple(part if isinstance(part, Tensor) else torch.tensor(part) for part in (key, iteration))
    with Keyed(place):  # type: ignore[arg-type]
        return function(*inputs)


HEADS = nn.MultiheadAttention(4, 2, dropout=0.4, batch_first=True).double()
DRAWS = {  # of a float64 [3, 4, 4, 4]
    "dropout": lambda x: F.dropout(x, 0.3),
    "dropout in place": lambda x: F.dropout(x.clone(), 0.3, inplace=True),
    "torch.dropout": lambda x: torch.dropout(x, 0.3, True),
    "torch.dropout_": lambda x: torch.dropout_(x.clone(), 0.3, True),
    "dropout1d": lambda x: F.dropout1d(x[0], 0.3),
    "dropout2d": lambda x: F.dropout2d(x, 0.3),
    "dropout3d": lambda x: F.dropout3d(x.reshape(3, 16, 2, 2, 1), 0.3),
    "alpha_dropout": lambda x: F.alpha_dropout(x, 0.3, training=True),
    "feature_alpha_dropout": lambda x: F.feature_alpha_dropout(x, 0.3, training=True),
    "rrelu": lambda x: F.rrelu(x, training=True),
    "rrelu in place": lambda x: F.rrelu(x.clone(), 0.1, 0.2, True, True),
    "attention": lambda x: F.scaled_dot_product_attention(x, x, x, dropout_p=0.3),
    "heads": lambda x: HEADS(x[0], x[0], x[0])[0],
    "heads and weights": lambda x: HEADS(x[0], x[0], x[0], need_weights=True)[1],
    "gumbel_softmax": lambda x: F.gumbel_softmax(x),
    "gumbel_softmax hard": lambda x: F.gumbel_softmax(x, hard=True),
    "fractional_max_pool2d": lambda x: F.fractional_max_pool2d(x.reshape(1, 2, 4, 24), 2, output_size=(2, 10)),
    "bernoulli": lambda x: torch.bernoulli(x.sigmoid()),
    "bernoulli p": lambda x: torch.bernoulli(x, 0.3) + x.bernoulli(0.6),
    "bernoulli_": lambda x: x + torch.empty(4).bernoulli_(0.4),
    "bernoulli_ chances": lambda x: x + x.new_empty(4).bernoulli_(torch.tensor(0.3)),
    "uniform_": lambda x: x + torch.empty_like(x).uniform_(-1, 2),
    "normal_": lambda x: x + x.new_empty(3, 4, 4, 4).normal_(1, 2),
    "exponential_": lambda x: x + torch.empty_like(x).exponential_(2),
    "rand": lambda x: x + torch.rand(3, 4, 4, 4, dtype=x.dtype),
    "randn": lambda x: x + torch.randn((4,)),
    "rand_like": lambda x: x + torch.rand_like(x),
    "randn_like": lambda x: x + torch.randn_like(x, dtype=torch.float32),
    "normal": lambda x: torch.normal(x, 2.0) + torch.normal(0.0, 1.0, (4,)),
    "a distribution": lambda x: torch.distributions.Normal(x, 1.0, validate_args=False).rsample(),
}
every_draw = pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS.keys())
X = numbers(3, 4, 4, 4)


@every_draw
def test_a_draw_is_a_function_of_key_and_iteration(draw):
    one = drawn(draw, X, key=5, iteration=7)
    assert torch.equal(one, drawn(draw, X, key=5, iteration=7))
    assert not torch.equal(one, drawn(draw, X, key=6, iteration=7))
    assert not torch.equal(one, drawn(draw, X, key=5, iteration=8))


@every_draw
def test_the_global_generator_of_torch_is_neither_read_nor_moved(draw):
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    one = drawn(draw, X)
    assert torch.equal(before, torch.random.get_rng_state())
    torch.manual_seed(2)
    assert torch.equal(one, drawn(draw, X))


@every_draw
def test_a_second_draw_of_a_pass_is_another(draw):
    one, other = drawn(lambda x: (draw(x), draw(x)), X)
    assert not torch.equal(one, other) and torch.equal(one, drawn(draw, X))


@every_draw
def test_members_draw_as_each_would_alone_whether_they_share_the_input_or_not(draw):
    key, iteration = torch.tensor([1, 2, 3]), torch.tensor([4, 4, 5])
    several = numbers(3, 3, 4, 4, 4, seed=1)
    written = draw in (DRAWS[name] for name in DRAWS if name.endswith(("in place", "dropout_", "hard")))
    for x, axis in ((several, 0), (X, None))[: 1 if written else 2]:
        mapped = vmap(lambda x, *at: drawn(draw, x, key=at[0], iteration=at[1]), in_dims=(axis, 0, 0))
        alone = [drawn(draw, x if axis is None else x[i], key=key[i], iteration=iteration[i]) for i in range(3)]
        torch.testing.assert_close(mapped(x, key, iteration), torch.stack(alone), rtol=1e-12, atol=1e-12)


@every_draw
def test_a_traced_draw_has_the_same_bits_and_goes_on_following_its_place(draw):
    function = lambda x, key, iteration: drawn(draw, x, key=key, iteration=iteration)  # noqa: E731
    graph = traced(function, X, torch.tensor(1), torch.tensor(0))
    for key, iteration in product((1, 2), (0, 9)):
        at = (torch.tensor(key), torch.tensor(iteration))
        assert torch.equal(graph(X, *at), function(X, *at))


SMOOTH = {
    name: draw
    for name, draw in DRAWS.items()
    if name not in ("gumbel_softmax hard", "fractional_max_pool2d", "bernoulli") and name[-1] != "p"
}


@pytest.mark.parametrize("draw", SMOOTH.values(), ids=SMOOTH.keys())
def test_derivatives_forward_and_backward_are_those_of_a_function_without_chance(draw):
    end, aim = lambda x: (drawn(draw, x) * numbers(*drawn(draw, X).shape, seed=2)).sum(), numbers(*X.shape, seed=3)
    slope = (end(X + 1e-6 * aim) - end(X - 1e-6 * aim)) / 2e-6
    assert (grad(end)(X) * aim).sum().item() == pytest.approx(slope.item(), rel=1e-5, abs=1e-7)
    assert jvp(end, (X,), (aim,))[1].item() == pytest.approx(slope.item(), rel=1e-5, abs=1e-7)


@pytest.mark.long
@pytest.mark.parametrize("name", ["dropout", "dropout in place", "dropout2d", "attention", "rand", "uniform_"])
def test_a_compiled_draw_is_the_same(name):
    function = lambda x, key, iteration: drawn(DRAWS[name], x, key=key, iteration=iteration)  # noqa: E731
    at = (X, torch.tensor(123456789123456789), torch.tensor(3))
    torch.testing.assert_close(torch.compile(function, fullgraph=True)(*at), function(*at))


MANY = torch.ones(400, 500, dtype=torch.float64)


def within(mean: float, right: float, deviation: float, count: int = MANY.numel()) -> bool:
    """Whether a mean of numbers with this standard deviation is within 5 standard errors."""
    return abs(mean - right) < 5 * deviation / count**0.5


@given(key=keys, iteration=iterations, p=st.floats(0.01, 0.99))
def test_dropout_keeps_with_probability_1_minus_p_and_has_mean_1(key, iteration, p):
    out = drawn(lambda x: F.dropout(x, p), MANY, key=key, iteration=iteration)
    kept = out != 0
    assert within(kept.double().mean().item(), 1 - p, (p * (1 - p)) ** 0.5)
    torch.testing.assert_close(out[kept], MANY[kept] / (1 - p), rtol=1e-12, atol=0)
    assert within(out.mean().item(), 1, (p / (1 - p)) ** 0.5)


def test_dropout_of_nothing_is_the_identity_and_of_everything_is_zero():
    for layer in (F.dropout, F.dropout2d, F.alpha_dropout, F.feature_alpha_dropout):
        assert torch.equal(drawn(lambda x, f=layer: f(x, 0.0, True), X), X)
        assert torch.equal(drawn(lambda x, f=layer: f(x, 1.0, True), X), 0 * X)
        assert torch.equal(drawn(lambda x, f=layer: f(x, 0.5, False), X), X)
        with pytest.raises(ValueError, match="dropout probability has to be between 0 and 1"):
            drawn(lambda x, f=layer: f(x, 1.5, True), X)


@given(key=keys, iteration=iterations)
def test_masks_of_keys_iterations_draws_rows_and_neighbours_are_independent(key, iteration):
    two = lambda x: torch.stack([F.dropout(x) - 1, F.dropout(x) - 1])  # noqa: E731
    places = [(key, iteration), (key, iteration + 1), (key ^ 1, iteration), (key ^ (1 << 40), iteration)]
    signs = torch.cat([drawn(two, MANY, key=key, iteration=at) for key, at in places])  # [mask, ...], 1 or -1
    for one, other in pairwise([*signs, signs[0]]):
        assert within((one * other).mean().item(), 0, 1)
    assert within((signs[0] * signs[3]).mean().item(), 0, 1)
    for lag in (1, 2, 64, 500):
        flat = signs[0].flatten()
        assert within((flat[lag:] * flat[:-lag]).mean().item(), 0, 1, len(flat) - lag)


def test_patterns_of_ten_neighbours_are_equally_frequent():
    mask = (drawn(lambda x: F.dropout(x), torch.ones(2_000_000)) > 0).view(-1, 10).long()
    counts = torch.bincount((mask << torch.arange(10)).sum(1), minlength=1024).double()
    right = len(mask) / 1024
    assert abs(((counts - right).square() / right).sum().item() - 1023) < 5 * (2 * 1023) ** 0.5


@pytest.mark.parametrize(
    "layer, shape", [(F.dropout1d, (300, 200, 3)), (F.dropout2d, (300, 200, 2, 3)), (F.dropout3d, (300, 200, 2, 1, 2))]
)
def test_channels_are_kept_or_dropped_whole(layer, shape):
    out = drawn(lambda x: layer(x, 0.3), torch.ones(shape, dtype=torch.float64)).flatten(2)
    assert (out == out[..., :1]).all() and sorted(out.unique().tolist()) == pytest.approx([0, 1 / 0.7])
    assert within((out[..., 0] == 0).double().mean().item(), 0.3, 0.21**0.5, 60_000)


@pytest.mark.parametrize("layer", [F.alpha_dropout, F.feature_alpha_dropout])
def test_alpha_dropout_keeps_mean_and_variance_and_puts_what_torch_puts(layer):
    x = numbers(500, 400, seed=1)
    out = drawn(lambda x: layer(x, 0.2, training=True), x)
    assert within(out.mean().item(), 0, 1) and within(out.square().mean().item(), 1, 4)
    ours, torchs = (
        f(torch.ones(50, 40), 0.2, training=True) for f in (lambda *a, **k: drawn(partial(layer, **k), *a), layer)
    )
    torch.testing.assert_close(ours.unique(), torchs.unique())


def test_the_slopes_of_rrelu_are_uniform_between_its_bounds():
    slopes = -drawn(lambda x: F.rrelu(x, 0.1, 0.5, training=True), -MANY).flatten()
    assert uniformity((slopes - 0.1) / 0.4) < 2.2 and torch.equal(
        drawn(lambda x: F.rrelu(x, training=True), MANY), MANY
    )
    assert torch.equal(drawn(F.rrelu, -MANY), F.rrelu(-MANY))


def uniformity(numbers: Tensor) -> float:
    """Kolmogorov's statistic: greater than 2.2 with probability 0.0001."""
    ordered, count = numbers.double().flatten().sort().values, numbers.numel()
    return float((ordered - torch.arange(count) / count).abs().max() * count**0.5)


BOUNDS: Any = {"from": -1.0, "to": 3.0}
NORMAL = torch.distributions.Normal(0.0, 1.0)
CONTINUOUS = {  # name: (draw, distribution function)
    "rand": (lambda: torch.rand(400, 500), lambda u: u),
    "rand float64": (lambda: torch.rand(400, 500, dtype=torch.float64), lambda u: u),
    "uniform_": (lambda: torch.empty(400, 500).uniform_(-1, 3), lambda u: (u + 1) / 4),
    "uniform_ by name": (lambda: torch.empty(400, 500).uniform_(**BOUNDS), lambda u: (u + 1) / 4),
    "randn": (lambda: torch.randn(400, 500), NORMAL.cdf),
    "normal_": (lambda: torch.empty(400, 500).normal_(2, 3), lambda z: NORMAL.cdf((z - 2) / 3)),
    "normal": (lambda: torch.normal(torch.full((400, 500), 2.0), 3.0), lambda z: NORMAL.cdf((z - 2) / 3)),
    "exponential_": (lambda: torch.empty(400, 500).exponential_(2), lambda t: 1 - torch.exp(-2 * t)),
}


@pytest.mark.parametrize("draw, distribution", CONTINUOUS.values(), ids=CONTINUOUS.keys())
def test_numbers_are_distributed_as_they_should_be(draw, distribution):
    found = drawn(draw)
    assert found.isfinite().all() and uniformity(distribution(found)) < 2.2


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_numbers_of_every_type_stay_in_range(dtype):
    u = drawn(lambda: torch.rand(100_000, dtype=dtype))
    assert u.dtype == dtype and u.min() >= 0 and u.max() < 1
    t = drawn(lambda: torch.empty(100_000, dtype=dtype).exponential_())
    assert t.dtype == dtype and t.isfinite().all() and (t > 0).all()


def test_bernoulli_is_one_as_often_as_it_should_be():
    for draw in (lambda: torch.bernoulli(0.3 * MANY), lambda: MANY.bernoulli(0.3), lambda: 0 * MANY.clone().bernoulli_(0.3 * MANY) + torch.bernoulli(MANY, 0.3)):  # fmt: skip  # noqa: E501
        found = drawn(draw)
        assert set(found.unique().tolist()) == {0, 1} and within(found.mean().item(), 0.3, 0.21**0.5)
    assert drawn(lambda: MANY.bernoulli(0.0)).sum() == 0 and drawn(lambda: MANY.bernoulli(1.0)).mean() == 1
    assert drawn(lambda: torch.ones(5, dtype=torch.bool).bernoulli_(0.5)).dtype == torch.bool


def test_gumbel_softmax_picks_with_the_probabilities_of_its_logits():
    logits = torch.tensor([0.0, 1.0, 2.0]).log_softmax(0)
    picked = drawn(lambda: F.gumbel_softmax(logits.expand(100_000, 3), hard=True)).mean(0)
    for share, right in zip(picked.tolist(), logits.exp().tolist(), strict=True):
        assert within(share, right, (right * (1 - right)) ** 0.5, 100_000)


def weights_of(**fixed) -> tuple[Tensor, Tensor]:
    """Attention's weights with dropout and without."""
    q, k, eye = (
        numbers(5, 3, 20, 4),
        numbers(5, 3, 30, 4, seed=1),
        torch.eye(30, dtype=torch.float64).expand(5, 3, 30, 30),
    )
    attend = partial(F.scaled_dot_product_attention, q, k, eye, **fixed)
    return drawn(lambda: attend(dropout_p=0.25)), attend()


@pytest.mark.parametrize(
    "fixed",
    [{}, {"is_causal": True}, {"scale": 0.1}, {"attn_mask": numbers(20, 30) > -1}, {"attn_mask": numbers(3, 20, 30)}],
    ids=["plain", "causal", "scale", "mask", "bias"],
)
def test_attention_drops_weights_after_the_softmax_independently(fixed):
    dropped, whole = weights_of(**fixed)
    kept = dropped != 0
    torch.testing.assert_close(dropped, kept * whole / 0.75, rtol=1e-9, atol=1e-12)
    seen = whole > 0
    assert within(kept[seen].double().mean().item(), 0.75, 0.1875**0.5, int(seen.sum()))
    assert not torch.equal(kept[0, 0], kept[0, 1]) and not torch.equal(kept[0, 0], kept[1, 0])


def test_what_may_attend_to_nothing_gets_zeros_and_no_gradient():
    mask = torch.tensor([[True, False], [False, False]])
    attend = lambda x: drawn(lambda: F.scaled_dot_product_attention(x, x, x, mask, dropout_p=0.1)).sum()  # noqa: E731
    x = numbers(2, 4)
    assert grad(attend)(x).isfinite().all()
    assert torch.equal(drawn(lambda: F.scaled_dot_product_attention(x, x, x, mask, dropout_p=0.1))[1], 0 * x[1])


@pytest.mark.parametrize("fixed", [{}, {"is_causal": True}, {"attn_mask": numbers(4, 4) > -1}, {"scale": 0.1}])
def test_attention_differentiated_forward_is_that_of_torch(fixed):
    attend = lambda x: drawn(lambda: F.scaled_dot_product_attention(x, x, x, **fixed))  # noqa: E731
    torch.testing.assert_close(jvp(attend, (X,), (X,))[0], attend(X), rtol=1e-10, atol=1e-12)


def test_attention_of_grouped_heads_has_a_mask_a_head():
    q, k, eye = numbers(1, 4, 9, 4), numbers(1, 2, 9, 4), torch.eye(9, dtype=torch.float64).expand(1, 2, 9, 9)
    attend = partial(F.scaled_dot_product_attention, q, k, eye, enable_gqa=True)
    dropped = drawn(lambda: attend(dropout_p=0.25))
    torch.testing.assert_close(dropped, (dropped != 0) * attend() / 0.75)
    assert not torch.equal(dropped[0, 0] != 0, dropped[0, 1] != 0)


def test_without_dropout_nothing_is_drawn_and_the_bits_are_those_without_a_key():
    mode = Keyed((torch.tensor(1), torch.tensor(2)))
    functions = [lambda x: F.scaled_dot_product_attention(x, x, x), F.relu, F.gelu, lambda x: F.dropout(x, 0.5, False)]
    for function in functions:
        with mode:
            assert torch.equal(function(X), function(X))
        torch.testing.assert_close(drawn(function, X), function(X), rtol=0, atol=0)
    assert mode.stream is None


UNKNOWN = {
    "multinomial": lambda: torch.multinomial(torch.ones(3), 2),
    "poisson": lambda: torch.poisson(torch.ones(3)),
    "randint": lambda: torch.randint(3, (2,)),
    "randperm": lambda: torch.randperm(3),
    "random_": lambda: torch.empty(3).random_(),
    "cauchy_": lambda: torch.empty(3).cauchy_(),
    "_standard_gamma": lambda: torch.distributions.Gamma(torch.ones(1), 1.0, validate_args=False).rsample(),
    "native_dropout": lambda: torch.native_dropout(torch.ones(3), 0.5, True),
    "normal_": lambda: nn.init.normal_(torch.empty(3)),
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_a_draw_that_is_not_known_is_refused_by_its_name(name):
    with pytest.raises(ValueError) as raised:
        drawn(UNKNOWN[name])
    assert str(raised.value) == (
        f"{name} draws at random in a way that is not known as a function of a key: make it of torch.rand, "
        "torch.randn, torch.bernoulli or a dropout layer"
    )


def test_a_generator_of_ones_own_and_bare_operators_are_refused():
    with pytest.raises(ValueError, match="rand with generator= or out= is not a function of a key: leave them out"):
        drawn(lambda: torch.rand(3, generator=torch.Generator()))
    with pytest.raises(ValueError, match="bernoulli with generator= or out= is not"):
        drawn(lambda: torch.bernoulli(torch.ones(3), out=torch.ones(3)))
    for operator in (torch.ops.aten.dropout, torch.ops.aten.dropout.default):
        with pytest.raises(ValueError, match=r"torch.ops.aten.dropout draws at random: call it as torch.dropout"):
            drawn(lambda f=operator: f(torch.ones(3), 0.5, True))


def test_writing_random_numbers_into_what_members_share_is_refused():
    with pytest.raises(ValueError, match=r"bernoulli_ writes numbers that differ by member into a tensor that members"):
        vmap(lambda key: drawn(lambda: torch.zeros(3).bernoulli_(0.5), key=key))(torch.arange(3))
    with pytest.raises(ValueError, match=r"dropout writes numbers that differ by member into a tensor that members"):
        vmap(lambda key: drawn(lambda: F.dropout(X.clone(), inplace=True), key=key))(torch.arange(3))


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN, partial(nn.RNN, nonlinearity="relu")])
def test_recurrent_kernels_are_refused_where_they_draw_and_only_there(kind):
    x = torch.ones(2, 3, 4)
    packed = nn.utils.rnn.pack_sequence([x[0]])
    for inputs in (x, packed):
        with pytest.raises(
            ValueError, match=r"with dropout = 0.5 draws at random inside its kernel: set its dropout to 0"
        ):
            drawn(kind(4, 5, 2, dropout=0.5, batch_first=True), inputs)
        drawn(kind(4, 5, 2, dropout=0.5, batch_first=True).eval(), inputs)
        drawn(kind(4, 5, 2, batch_first=True), inputs)


def test_without_a_place_nothing_may_be_drawn():
    with Keyed(None):
        assert torch.equal(F.dropout(X, 0.5, False), X) and torch.empty(2).shape == (2,)
        for name, draw in (("dropout", lambda: F.dropout(X)), ("randn", lambda: torch.randn(2))):
            with pytest.raises(ValueError, match=f"{name} draws at random in evaluation, where there is no key"):
                draw()


KERNELS = (
    "attention",
    "rnn",
    "lstm_mps",
    "fused_sdp",
    "nested",
    "_fill_mem",
    "functional",
    "random",
)  # inside of others


def test_every_operator_that_torch_says_draws_is_known_or_refused():
    drawing = set()
    for full in torch._C._dispatch_get_all_op_names():
        space, _, rest = full.partition("::")
        name, _, overload = rest.partition(".")
        if (
            space == "aten"
            and torch.Tag.nondeterministic_seeded in getattr(getattr(torch.ops.aten, name), overload or "default").tags
        ):
            drawing.add(name)
    known = {keyed._name(rule) for rule in keyed._RULES}
    reachable = {name for name in drawing if hasattr(torch, name) or hasattr(Tensor, name) or hasattr(F, name)}
    missing = {name for name in reachable - known if not any(kernel in name for kernel in KERNELS)}
    assert len(drawing) > 50 and missing == set()


def test_a_pass_in_float32_and_in_float64_drops_the_same():
    masks = [drawn(lambda x: F.dropout(x) != 0, MANY.to(dtype)) for dtype in (torch.float32, torch.float64)]
    assert tree.equal(*masks)
