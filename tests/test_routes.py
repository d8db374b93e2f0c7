"""Which route the derivatives of losses take, why, and that all routes lead to the same numbers."""

from functools import partial
from typing import Any, get_args

import pytest
import torch
import torch.nn.functional as F
from test_ghost import SEEN, Called, X, directions, fresh, of, one_by_one
from test_unrolling import NETS, error, of_net
from torch import Tensor, nn
from torch.func import vmap
from worlds import assert_close, double, numbers

from fcurr import routes, tree
from fcurr.errors import BadInput
from fcurr.routes import Choice, Route, chosen, near
from fcurr.tracing import traced

ROUTES = get_args(Route)
BATCH_NORM = "BatchNorm in training makes samples see each other"


def found_by(route: Route, function: Any, params: Any) -> Any:
    """Losses, what a weighted sum's gradient is, and what a direction does to the losses."""
    here = near(function, params, route)
    return here.losses, here.pulled(weights_of(here.losses)), here.along(like(params))


def weights_of(losses: Tensor) -> Tensor:
    return torch.cos(torch.arange(len(losses))).to(losses)


def like(params: Any) -> Any:
    return {n: torch.sin(torch.arange(leaf.numel())).reshape(leaf.shape).to(leaf) for n, leaf in params.items()}


def right(function: Any, params: Any) -> Any:
    each, direction = one_by_one(function, params), like(params)
    losses = function(params)[0].detach()
    parts = [tree.map(partial(torch.mul, w), one) for w, one in zip(weights_of(losses), each, strict=True)]
    return losses, tree.sum_of(parts), torch.stack([tree.dot(one, direction) for one in each])


WHY: dict[str, Choice] = {
    "mlp": Choice("ghost", ""),
    "cnn": Choice("ghost", ""),
    "resnet": Choice("forward", BATCH_NORM),
    "transformer": Choice("ghost", ""),
    "encoder": Choice("forward", SEEN),
    "group norm": Choice("ghost", ""),
    "embedding": Choice("ghost", ""),
}


@pytest.mark.parametrize("name", NETS)
def test_every_net_takes_the_cheapest_route_that_is_right_and_all_that_are_right_agree(name):
    made, batches = of_net(name)
    function = lambda params: (made.inner.losses(params, batches[0]), {})  # noqa: E731
    assert chosen(function, made.params) == WHY[name]
    truth = right(function, made.params)
    for route in ROUTES:
        if (route == "ghost" and WHY[name].route != "ghost") or (route, name) == ("reverse", "encoder"):
            continue  # the fused kernel of attention has no second derivative
        for one, other in zip(found_by(route, function, made.params), truth, strict=True):
            assert error(one, other) <= 1e-10
        small = tree.map(Tensor.float, made.params)
        wide = right(function, double(small))
        for one, other in zip(found_by(route, function, small), wide, strict=True):
            assert error(one, other) <= 1e-5
    single = tree.map(Tensor.float, made.params)
    assert chosen(function, single) == WHY[name]


CASES: dict[str, tuple[Any, Tensor, Choice]] = {
    "factor": (
        lambda: Called(lambda n, x: n.a(x * n.w), w=nn.Parameter(torch.ones(4)), a=nn.Linear(4, 2)),
        X,
        Choice("forward", "the parameter 'w' is used by mul"),
    ),
    "padding": (
        lambda: nn.Embedding(5, 4, padding_idx=1),
        torch.tensor([[1, 0], [2, 4]]),
        Choice("ghost", ""),
    ),
    "padding, normed": (
        lambda: Called(lambda n, x: (lambda h: torch.tanh(h - h.mean(0)))(n.e(x)), e=nn.Embedding(5, 4, padding_idx=1)),
        torch.tensor([[1, 0], [2, 4]]),
        Choice("reverse", f"{SEEN}; the forward derivative is not that of the backward pass"),
    ),
    "samples that see each other": (
        lambda: Called(lambda n, x: (lambda h: torch.tanh(h - h.mean(0)))(n.a(x)), a=nn.Linear(4, 3)),
        X,
        Choice("forward", SEEN),
    ),
    "inputs centred by the batch": (
        lambda: Called(lambda n, x: torch.tanh(n.a(x - x.mean(0))), a=nn.Linear(4, 3)),
        X,
        Choice("ghost", ""),
    ),
    "changed in place": (
        lambda: Called(lambda n, x: n.b(n.a(x).relu_()), a=nn.Linear(4, 3), b=nn.Linear(3, 2)),
        X,
        Choice("ghost", ""),
    ),
    "batch norm": (
        lambda: nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3, track_running_stats=False)),
        X,
        Choice("forward", BATCH_NORM),
    ),
    "no forward derivative": (
        lambda: Called(
            lambda n, x: n.b(Halved.apply(n.a(x))) * n.w,
            w=nn.Parameter(torch.ones(2)),
            a=nn.Linear(4, 3),
            b=nn.Linear(3, 2),
        ),
        X,
        Choice("reverse", "the parameter 'w' is used by mul; no forward derivative of a custom autograd.Function"),
    ),
}


class Halved(torch.autograd.Function):
    """Half of something, with a derivative of the backward pass alone."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x / 2

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> Tensor:  # pyright: ignore
        return slope / 2


@pytest.mark.parametrize("build, x, choice", CASES.values(), ids=CASES.keys())
def test_a_route_is_chosen_and_it_is_said_why(build, x, choice):
    function, params = of(build(), x)
    assert chosen(function, params) == choice
    for one, other in zip(found_by(choice.route, function, params), right(function, params), strict=True):
        assert error(one, other) <= 1e-10


class Recurrent(nn.Module):
    def __init__(self, kind: Any) -> None:
        super().__init__()
        self.steps, self.head = kind(4, 5, batch_first=True), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.steps(x)[0][:, -1])


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_recurrent_nets_go_forward_and_a_fused_one_in_reverse(kind):
    net, x = Recurrent(kind), numbers(3, 6, 4)
    name = {nn.LSTM: "lstm", nn.GRU: "gru", nn.RNN: "rnn_tanh"}[kind]
    used = f"the parameter 'steps.weight_ih_l0' is used by {name}"
    plain, params = of(net, x)
    assert chosen(plain, params) == Choice("forward", used)
    truth = right(plain, params)
    for route in ("forward", "reverse"):
        for one, other in zip(found_by(route, plain, params), truth, strict=True):
            assert error(one, other) <= 1e-10
    function, params = of(net, x, kind=torch.float32)
    choice = chosen(function, params)
    if choice.route == "reverse":  # where torch has fused kernels for the CPU
        assert choice.why == f"{used}; no forward derivative of mkldnn_rnn_layer"
    else:
        assert choice == Choice("forward", used)
    plain, wide = of(net.double(), x)
    for one, other in zip(found_by(choice.route, function, params), right(plain, wide), strict=True):
        assert error(one, other) <= 1e-5


def test_outputs_go_forward():
    net = nn.Linear(4, 3).double()
    params = {name: leaf.detach() for name, leaf in net.named_parameters()}
    function = lambda params: (F.linear(X, params["weight"], params["bias"]), {})  # noqa: E731
    assert chosen(function, params) == Choice("forward", "meta parameters see outputs, more than a number a sample")
    here, weights = near(function, params, "forward"), numbers(3, 3, seed=2)
    direction = directions(params)
    assert_close(here.along(direction), X @ direction["weight"].T + direction["bias"])
    assert_close(here.pulled(weights), {"bias": weights.sum(0), "weight": weights.T @ X})


def test_an_operation_with_neither_derivative_is_named():
    net = Called(lambda n, x: torch.cdist(n.a(x), n.a(x)), a=nn.Linear(4, 4))
    with pytest.raises(BadInput) as wrong:
        chosen(*of(net, X))
    assert wrong.value.where == "model"
    assert str(wrong.value) == (
        f"no exact hypergradient: {SEEN}; no forward derivative of _cdist_forward; "
        "no reverse derivative of _cdist_backward"
    )


def test_every_route_says_what_it_is():
    assert {*routes.TOLD} == {*ROUTES} and len({*routes.TOLD.values()}) == 3


@pytest.mark.parametrize("route", ROUTES)
def test_mapped_differentiated_and_traced_a_route_gives_the_same(route):
    made, batches = of_net("mlp")
    function = lambda params: (made.inner.losses(params, batches[0]), {})  # noqa: E731
    one = partial(found_by, route, function)
    before = tree.map(torch.clone, made.params)
    plain = one(made.params)
    assert tree.equal(before, made.params)
    other = tree.map(lambda leaf: 1.1 * leaf, made.params)
    mapped = vmap(one)(tree.stack([made.params, other]))
    assert_close(mapped, tree.stack([plain, one(other)]))
    assert_close(tree.map(torch.detach, one(fresh(made.params))), plain)
    graph = traced(one, made.params)
    assert_close(graph(made.params), plain)
    assert_close(graph(other), one(other))


def test_the_example_that_is_tried_is_not_changed():
    function, params = of(nn.Linear(4, 2), X)
    before = tree.map(torch.clone, params)
    chosen(function, params)
    assert tree.equal(before, params) and not any(leaf.requires_grad for leaf in params.values())
