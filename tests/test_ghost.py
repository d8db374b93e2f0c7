"""Inner products with gradients of samples, against those gradients one by one."""

from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.func import functional_call, grad, vjp, vmap
from worlds import assert_close, looped, numbers, seeds

from fcurr import ghost, tree
from fcurr.types import Params

Function = Callable[[Params], tuple[Tensor, dict[str, Tensor]]]


def of(net: nn.Module, x: Tensor, seed: int = 0, kind: torch.dtype = torch.float64) -> tuple[Function, Params]:
    """Losses of a net: its outputs, squashed and weighted, summed over all that belongs to a sample."""
    params = {name: leaf.detach().clone() for name, leaf in net.to(kind).named_parameters()}
    x = x.to(kind) if x.is_floating_point() else x

    def losses(params: Params) -> tuple[Tensor, dict[str, Tensor]]:
        out = functional_call(net, params, (x,)).flatten(1)
        return (torch.sin(out) * torch.cos(torch.arange(out.shape[1]) + seed % 9)).sum(1), {}

    return losses, params


def one_by_one(function: Function, params: Params) -> list[Params]:
    """The gradient of every sample's loss, by a backward pass each."""
    leaves = {name: leaf.detach().clone().requires_grad_() for name, leaf in params.items()}
    losses, _ = function(leaves)
    found = []
    for loss in losses:
        slopes = torch.autograd.grad(loss, [*leaves.values()], retain_graph=True, allow_unused=True)
        found.append({n: torch.zeros_like(params[n]) if g is None else g for n, g in zip(params, slopes, strict=True)})
    return found


def directions(params: Params, seed: int = 7) -> Params:
    return {name: numbers(*leaf.shape, seed=seed + place) for place, (name, leaf) in enumerate(params.items())}


def assert_right(function: Function, params: Params) -> None:
    """AssertionError unless everything that is found is that of gradients one by one, also under a transform."""
    assert ghost.refusal(function, params) == ""
    each, direction = one_by_one(function, params), directions(params)
    along = torch.stack([tree.dot(one, direction) for one in each])
    weights = numbers(len(each), seed=3)
    total = tree.sum_of([tree.map(lambda leaf: leaf * weight, one) for one, weight in zip(each, weights, strict=True)])  # noqa: B023

    def both(params: Params) -> Any:
        found = ghost.backprops(function, params)
        return found.losses, ghost.along(found, direction), ghost.weighted(found, weights)

    before = tree.map(torch.clone, params)
    plain = both(params)
    losses = function(params)[0].detach()
    for found in (plain, vmap(both)(tree.stack([params, params])), tree.map(torch.detach, both(fresh(params)))):
        found = found if found[0].ndim == 1 else tree.member(found, 1)
        assert_close(found, (losses, along, total), rtol=1e-10, atol=1e-11)
    assert tree.equal(before, params) and not any(leaf.requires_grad for leaf in tree.leaves(plain))


def fresh(params: Params) -> Params:
    return {name: leaf.clone().requires_grad_() for name, leaf in params.items()}


class Called(nn.Module):
    """Layers, and what is done with them."""

    def __init__(self, function: Callable[..., Tensor], **layers: Any) -> None:
        super().__init__()
        for name, layer in layers.items():
            setattr(self, name, layer)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


def tied() -> nn.Module:
    into, out = nn.Linear(4, 4), nn.Linear(4, 4, bias=False)
    out.weight = into.weight
    return Called(lambda n, x: n.out(torch.tanh(n.into(x))), into=into, out=out)


X, IMAGE, TOKENS = numbers(3, 4), numbers(3, 2, 5, 5), torch.tensor([[1, 0, 4], [4, 4, 2], [3, 1, 1]])
HELD: dict[str, tuple[Callable[[], nn.Module], Tensor]] = {
    "linear": (lambda: nn.Linear(4, 3), X),
    "linear without bias": (lambda: nn.Linear(4, 3, bias=False), X),
    "linear over positions": (lambda: nn.Linear(4, 3), numbers(3, 5, 4)),
    "linear over positions of positions": (lambda: nn.Linear(4, 3), numbers(3, 2, 5, 4)),
    "linear over samples and positions in one axis": (
        lambda: Called(lambda n, x: n.a(x.flatten(0, 1)).reshape(3, -1), a=nn.Linear(4, 3)),
        numbers(3, 5, 4),
    ),
    "as many positions as samples": (lambda: nn.Linear(4, 3), numbers(3, 3, 4)),
    "convolution over time": (lambda: nn.Conv1d(2, 4, 3, padding=1), numbers(3, 2, 6)),
    "convolution": (lambda: nn.Conv2d(2, 4, 3), IMAGE),
    "convolution with groups": (lambda: nn.Conv2d(2, 4, 3, groups=2, stride=2, padding=1), IMAGE),
    "convolution, padding same": (lambda: nn.Conv2d(2, 4, 3, padding="same", dilation=2), IMAGE),
    "convolution, padding same, even kernel": (lambda: nn.Conv2d(2, 4, (2, 3), padding="same"), IMAGE),
    "convolution, padding valid": (lambda: nn.Conv2d(2, 4, 3, padding="valid", bias=False), IMAGE),
    "convolution, padding circular": (lambda: nn.Conv2d(2, 4, 3, padding=1, padding_mode="circular"), IMAGE),
    "convolution in space": (lambda: nn.Conv3d(1, 2, 2), numbers(3, 1, 3, 4, 3)),
    "convolution transposed": (lambda: nn.ConvTranspose2d(2, 3, 3, stride=2), IMAGE),
    "layer norm": (lambda: nn.LayerNorm(4), X),
    "group norm": (lambda: nn.GroupNorm(2, 4), numbers(3, 4, 5)),
    "root mean square norm": (lambda: nn.RMSNorm(4), X),
    "embedding": (lambda: nn.Embedding(5, 4), TOKENS),
    "embedding with padding": (lambda: nn.Embedding(5, 4, padding_idx=1), TOKENS),
    "embedding with padding, from the end": (
        lambda: Called(lambda n, x: F.embedding(x, n.e.weight, -1), e=nn.Embedding(5, 4)),
        TOKENS,
    ),
    "tied": (tied, X),
    "used twice": (lambda: Called(lambda n, x: n.a(torch.tanh(n.a(x))), a=nn.Linear(4, 4)), X),
    "changed in place": (lambda: nn.Sequential(nn.Linear(4, 5), nn.ReLU(inplace=True), nn.Linear(5, 2)), X),
    "a head that is not used": (
        lambda: Called(lambda n, x: (n.aux(n.a(x)), n.a(x))[1], a=nn.Linear(4, 3), aux=nn.Linear(3, 2)),
        X,
    ),
    "a parameter that is not used": (lambda: Called(lambda n, x: n.a(x), a=nn.Linear(4, 3), b=nn.Linear(2, 2)), X),
    "a gradient that is stopped": (
        lambda: Called(lambda n, x: n.b(torch.tanh(n.a(x)).detach()), a=nn.Linear(4, 3), b=nn.Linear(3, 2)),
        X,
    ),
    "batch norm in evaluation": (
        lambda: nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3, affine=False).eval(), nn.Linear(3, 2)),
        X,
    ),
    "one sample": (lambda: nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2)), X[:1]),
}


@pytest.mark.parametrize("build, x", HELD.values(), ids=HELD.keys())
def test_inner_products_and_weighted_sums_are_those_of_gradients_one_by_one(build, x):
    assert_right(*of(build(), x))


def test_layers_that_compute_without_a_gradient_have_none():
    def quiet(net, x):
        with torch.no_grad():
            hidden = torch.tanh(net.a(x))
        return net.b(hidden)

    assert_right(*of(Called(quiet, a=nn.Linear(4, 3), b=nn.Linear(3, 2)), X))


def test_losses_that_use_no_layer_have_gradients_of_zero():
    function = lambda params: (X.sum(1) + 0 * params["w"].shape[0], {})  # noqa: E731
    params = {"w": numbers(2)}
    found = ghost.backprops(function, params)
    assert torch.equal(ghost.along(found, params), torch.zeros(3).double())
    assert tree.equal(ghost.weighted(found, torch.ones(3)), {"w": torch.zeros(2).double()})


@settings(max_examples=25)
@given(
    seed=seeds.map(lambda seed: seed // 2),
    axes=st.integers(1, 3),
    groups=st.integers(1, 2),
    kernel=st.integers(1, 3),
    stride=st.integers(1, 3),
    padding=st.integers(0, 2) | st.sampled_from(["same", "valid"]),
    dilation=st.integers(1, 2),
    size=st.integers(1, 3),
    bias=st.booleans(),
)
def test_any_convolution_is_right(seed, axes, groups, kernel, stride, padding, dilation, size, bias):
    assume(padding != "same" or stride == 1)
    kind = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[axes - 1]
    net = kind(2, 2 * groups, kernel, stride, padding, dilation, groups, bias)  # pyright: ignore
    assert_right(*of(net, numbers(size, 2, *[5] * axes, seed=seed), seed))


@settings(max_examples=15)
@given(seed=seeds.map(lambda seed: seed // 2), size=st.integers(1, 4), widths=st.lists(st.integers(1, 5), min_size=2))
def test_any_depth_is_right(seed, size, widths):
    layers = []
    for into, out in pairwise(widths[:5]):
        layers += [nn.Linear(into, out), nn.Tanh()]
    assert_right(*of(nn.Sequential(*layers), numbers(size, widths[0], seed=seed), seed))


def test_weights_that_come_later_can_be_differentiated_under_a_transform():
    function, params = of(nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2)), X)
    direction = directions(params)

    def ahead(params: Params, weights: Tensor) -> Tensor:
        return tree.dot(ghost.weighted(ghost.backprops(function, params), weights), direction)

    def plain(params: Params, weights: Tensor) -> Tensor:
        return tree.dot(vjp(lambda params: function(params)[0], params)[1](weights)[0], direction)  # pyright: ignore

    given = (params, numbers(3, seed=3))
    assert_close(grad(ahead, argnums=(0, 1))(*given), grad(plain, argnums=(0, 1))(*given))
    members = tree.stack([given, (params, numbers(3, seed=4))])
    assert_close(vmap(grad(ahead))(*members), looped(grad(ahead), *members))


SEEN = "what belongs to one sample cannot be told from what belongs to others"
REFUSED: dict[str, tuple[Callable[[], nn.Module], Tensor, str]] = {
    "batch norm": (
        lambda: nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3, affine=False, track_running_stats=False)),
        X,
        "BatchNorm in training makes samples see each other",
    ),
    "product": (
        lambda: Called(lambda n, x: x * n.w, w=nn.Parameter(torch.ones(4))),
        X,
        "the parameter 'w' is used by mul",
    ),
    "transpose": (
        lambda: Called(lambda n, x: x @ n.w.T, w=nn.Parameter(torch.ones(3, 4))),
        X,
        "the parameter 'w' is used by T",
    ),
    "matrix product": (
        lambda: Called(lambda n, x: x @ n.w, w=nn.Parameter(torch.ones(4, 3))),
        X,
        "the parameter 'w' is used by matmul",
    ),
    "parameter as input": (
        lambda: Called(lambda n, x: F.linear(n.w * 1, x), w=nn.Parameter(torch.ones(4))),
        X,
        "the parameter 'w' is used by mul",
    ),
    "parameter as a layer's input": (
        lambda: Called(lambda n, x: F.linear(n.w, x).T, w=nn.Parameter(torch.ones(2, 4))),
        X,
        "the parameter 'w' is used by linear",
    ),
    "bilinear": (
        lambda: Called(lambda n, x: n.b(x, x), b=nn.Bilinear(4, 4, 2)),
        X,
        "the parameter 'b.weight' is used by bilinear",
    ),
    "mean of the batch": (
        lambda: Called(lambda n, x: (lambda h: torch.tanh(h - h.mean(0)))(n.a(x)), a=nn.Linear(4, 3)),
        X,
        SEEN,
    ),
    "samples in turn": (
        lambda: Called(lambda n, x: n.a(torch.tanh(n.a(x)).roll(1, 0)), a=nn.Linear(4, 4)),
        X,
        SEEN,
    ),
    "embedding of places": (
        lambda: Called(
            lambda n, x: n.e(x) * n.p(torch.arange(4)[:, None]).mean(), e=nn.Embedding(5, 4), p=nn.Embedding(4, 4)
        ),
        TOKENS,
        "the parameter 'p.weight' is not used sample by sample",
    ),
    "a layer of what is no sample": (
        lambda: Called(lambda n, x: n.a(x) * n.g(torch.ones(2).to(x)), a=nn.Linear(4, 4), g=nn.Linear(2, 4)),
        X,
        "the parameter 'g.weight' is not used sample by sample",
    ),
    "positions before samples": (
        lambda: Called(lambda n, x: n.a(x.transpose(0, 1)).transpose(0, 1), a=nn.Linear(4, 3)),
        numbers(3, 5, 4),
        "the parameter 'a.weight' is not used sample by sample",
    ),
    "positions before samples, as many": (
        lambda: Called(lambda n, x: n.a(x.transpose(0, 1)).transpose(0, 1), a=nn.Linear(4, 3)),
        numbers(3, 3, 4),
        SEEN,
    ),
    "positions before samples, twice as many, in one axis": (
        lambda: Called(
            lambda n, x: n.a(x.transpose(0, 1).flatten(0, 1)).reshape(6, 3, 3).transpose(0, 1), a=nn.Linear(4, 3)
        ),
        numbers(3, 6, 4),
        SEEN,
    ),
    "gradients divided by how often a token is there": (
        lambda: nn.Embedding(5, 4, scale_grad_by_freq=True),
        TOKENS,
        SEEN,
    ),
}


@pytest.mark.parametrize("build, x, words", REFUSED.values(), ids=REFUSED.keys())
@pytest.mark.parametrize("kind", [torch.float64, torch.float32])
def test_where_they_do_not_hold_it_is_said_why(build, x, words, kind):
    assert ghost.refusal(*of(build(), x, kind=kind)) == words


def test_outputs_are_more_than_a_number_a_sample():
    net = nn.Linear(4, 3)
    params = {name: leaf.detach() for name, leaf in net.named_parameters()}
    function = lambda params: (functional_call(net, params, (X.float(),)), {})  # noqa: E731
    assert ghost.refusal(function, params) == "meta parameters see outputs, more than a number a sample"


def autocast(dtype: torch.dtype) -> tuple[Function, Params]:
    net = nn.Sequential(nn.Conv2d(2, 3, 3), nn.GroupNorm(1, 3), nn.ReLU(), nn.Flatten(), nn.Linear(27, 4))
    params = {name: leaf.detach() for name, leaf in net.named_parameters()}

    def losses(params: Params) -> tuple[Tensor, dict[str, Tensor]]:
        with torch.autocast("cpu", dtype=dtype, cache_enabled=False):
            out = functional_call(net, params, (IMAGE.float(),)).float()
        return torch.sin(out).sum(1), {}

    return losses, params


def test_under_bfloat16_they_hold_to_its_precision_and_under_float16_they_are_refused():
    torch.manual_seed(0)
    function, params = autocast(torch.bfloat16)
    assert ghost.refusal(function, params) == ""
    each, direction = one_by_one(function, params), tree.map(Tensor.float, directions(params))
    found = ghost.backprops(function, params)
    along, right = ghost.along(found, direction), torch.stack([tree.dot(one, direction) for one in each])
    assert along.dtype == torch.float32
    assert (along - right).norm() < 0.02 * right.norm()
    weights = numbers(3).float()
    total = ghost.weighted(found, weights)
    plain = tree.sum_of([tree.map(partial(torch.mul, w), one) for w, one in zip(weights, each, strict=True)])
    assert (torch.cat([(total[n] - plain[n]).flatten() for n in plain])).norm() < 0.02 * tree.norm(plain)
    assert {name: leaf.dtype for name, leaf in total.items()} == dict.fromkeys(params, torch.float32)
    assert ghost.refusal(*autocast(torch.float16)) == "gradients in float16 want their scale from the start"


def test_a_head_of_zeros_does_not_hide_samples_that_see_each_other():
    """Nothing comes back through zeros: so it is tried where they are not."""
    x = numbers(4, 3)

    def coupled(params: Params) -> tuple[Tensor, dict[str, Tensor]]:
        z = F.linear(x, params["first"])
        return F.linear(z - z.mean(0), params["head"]).square().sum(1) + z.sum(1), {}

    params = {"first": numbers(5, 3, seed=1), "head": torch.zeros(2, 5, dtype=torch.float64)}
    assert ghost.refusal(coupled, params) == "what belongs to one sample cannot be told from what belongs to others"


def test_layers_called_by_keyword_are_known():
    x, image = numbers(3, 4), numbers(3, 2, 5, 5)
    linear = {"w": numbers(2, 4, seed=1), "b": numbers(2, seed=2)}
    assert_right(lambda p: (F.linear(input=x, weight=p["w"], bias=p["b"]).sin().sum(1), {}), linear)
    kernel = {"w": numbers(3, 2, 2, 2, seed=1)}
    assert_right(lambda p: (F.conv2d(image, weight=p["w"], stride=2).sin().flatten(1).sum(1), {}), kernel)
