"""Networks as functions, against the same nn.Module."""

from functools import partial
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.func import functional_call, grad, vmap
from torch.nn.utils import parametrizations
from worlds import assert_close, copied, double, numbers, seeds

from fcurr import models, optim, tree
from fcurr.fold import traced
from fcurr.losses import cross_entropy
from fcurr.networks import Block, ResNet
from fcurr.study.roles import names
from fcurr.training import train_start, train_step, variables
from fcurr.types import Batch

PLACE = (torch.tensor(0), torch.tensor(0))


def as_layers(params, names) -> dict[str, torch.Tensor]:
    """Parameters of a Sequential, from parameters named by `names` in order."""
    return {f"{layer}.{kind}": params[f"{name}.{kind}"] for layer, name in names.items() for kind in ("weight", "bias")}


@given(seed=seeds, hidden=st.lists(st.integers(1, 6), max_size=3).map(tuple), batch=st.integers(1, 4))
def test_mlp_is_the_sequential_of_torch(seed, hidden, batch):
    model = models.mlp(features=(2, 3), classes=4, hidden=hidden)
    params, buffers = double(model.init(seed))
    widths = [6, *hidden, 4]
    layers: list[nn.Module] = [nn.Flatten()]
    for into, out in pairwise(widths):
        layers += [nn.Linear(into, out), nn.ReLU()]
    net = nn.Sequential(*layers[:-1]).double()
    net.load_state_dict(as_layers(params, {2 * i + 1: i for i in range(len(widths) - 1)}))
    x = numbers(batch, 2, 3, seed=seed)
    assert buffers == {}
    torch.testing.assert_close(model.apply(params, x), net(x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kernel", [1, 3, 5])
@pytest.mark.parametrize("channels, side", [((2,), (7, 5)), ((3, 2), (8, 9)), ((), (2, 3))])
def test_convnet_is_the_sequential_of_torch(kernel, channels, side):
    model = models.convnet(features=(2, *side), classes=3, channels=channels, kernel=kernel)
    params, buffers = double(model.init(1))
    layers, planes = [], 2
    for out in channels:
        layers += [nn.Conv2d(planes, out, kernel, padding=kernel // 2), nn.ReLU(), nn.MaxPool2d(2)]
        planes = out
    left = planes * (side[0] >> len(channels)) * (side[1] >> len(channels))
    net = nn.Sequential(*layers, nn.Flatten(), nn.Linear(left, 3)).double()
    names = {3 * i: i for i in range(len(channels))} | {3 * len(channels) + 1: "head"}
    net.load_state_dict(as_layers(params, names))
    x = numbers(4, 2, *side)
    assert buffers == {}
    torch.testing.assert_close(model.apply(params, x), net(x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "model",
    [models.mlp(features=(3, 4, 4), classes=2), models.convnet(features=(3, 4, 4), classes=2, channels=(4,))],
    ids=["mlp", "convnet"],
)
def test_a_model_is_initialised_by_its_seed_uniformly_in_the_inverse_root_of_its_fan_in(model):
    (one, _), (same, _), (other, _) = (model.init(seed) for seed in (1, 1, 2))
    assert tree.equal(one, same)
    for name, leaf in one.items():
        fan_in = one[name.replace("bias", "weight")][0].numel()
        assert leaf.abs().max() <= fan_in**-0.5
        assert not torch.equal(leaf, other[name])
    large = torch.cat([leaf.flatten() * leaf[0].numel() ** 0.5 for leaf in one.values() if leaf.ndim > 1])
    assert abs(large.mean()) < 4 * (1 / 3 / len(large)) ** 0.5
    assert abs(large.square().mean() - 1 / 3) < 4 * (4 / 45 / len(large)) ** 0.5


def test_layers_of_one_shape_do_not_start_alike():
    params, _ = models.mlp(features=(5,), classes=5, hidden=(5, 5)).init(0)
    assert not torch.equal(params["0.weight"], params["1.weight"])


def test_a_convnet_says_what_it_wants():
    with pytest.raises(
        ValueError, match=r"convnet wants images \[channel, height, width\], not samples of shape \[64\]"
    ):
        models.convnet(features=(64,), classes=2)
    with pytest.raises(ValueError, match="3 stages halve a side of 4 to nothing"):
        models.convnet(features=(1, 4, 9), classes=2, channels=(2, 2, 2))


def normed() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 3))


def frozen() -> nn.Module:
    net = normed()
    net[0].requires_grad_(False)
    return net


def steps_of_torch(net: nn.Module, batches, rate: float) -> dict[str, torch.Tensor]:
    """All that the module holds after SGD over the batches."""
    net.train()
    optimizer = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], lr=rate, momentum=0.9)
    for x, y in batches:
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()
        optimizer.step()
    return dict(net.state_dict())


BATCHES = [(numbers(6, 4, seed=step) + step, torch.arange(6) % 3) for step in range(5)]


def trained(model, state, batch_list, rate: float):
    step = partial(train_step, model=model, loss=cross_entropy, optimizer=optim.sgd(learning_rate=rate, momentum=0.9))
    for x, y in batch_list:
        state = step(state, Batch(x=x, y=y, id=torch.arange(len(y))))
    return state


def begun(model, seed: int):
    return double(train_start(seed, model=model, optimizer=optim.sgd(learning_rate=0.1, momentum=0.9)))


def loaded(build, state) -> nn.Module:
    net = build().double()
    net.load_state_dict(variables(state))
    return net


@pytest.mark.parametrize("build", [normed, frozen])
def test_running_statistics_and_parameters_are_the_modules_own_after_training(build):
    model = models.from_module(build=build)
    state = begun(model, 3)
    right = steps_of_torch(loaded(build, state), BATCHES, 0.1)
    found = variables(trained(model, state, BATCHES, 0.1))
    assert found.keys() == right.keys() and found["1.num_batches_tracked"] == 5
    assert_close(found, dict(right))


def test_running_statistics_of_mapped_members_are_those_of_each_member_alone():
    model = models.from_module(build=normed)
    states = [begun(model, seed) for seed in (1, 2, 3)]
    mapped = vmap(lambda state: trained(model, state, BATCHES, 0.1))(tree.stack(states))
    for index, state in enumerate(states):
        right = steps_of_torch(loaded(normed, state), BATCHES, 0.1)
        assert_close(variables(tree.member(mapped, index)), dict(right))


def test_a_model_trains_by_batch_statistics_and_evaluates_by_running_ones():
    model = models.from_module(build=normed)
    state = trained(model, begun(model, 3), BATCHES, 0.1)
    net, x = loaded(normed, state), numbers(6, 4, seed=9)
    torch.testing.assert_close(model.apply(variables(state), x), net.eval()(x), rtol=1e-12, atol=1e-12)
    before = copied(state.buffers)
    outputs, buffers = model.train(state.params, state.buffers, x, PLACE)
    torch.testing.assert_close(outputs, net.train()(x), rtol=1e-12, atol=1e-12)
    assert tree.equal(before, state.buffers) and not tree.equal(before, buffers)


def test_frozen_parameters_travel_with_the_buffers_and_never_change():
    model = models.from_module(build=frozen)
    state = begun(model, 0)
    assert set(state.params) == {"1.weight", "1.bias", "3.weight", "3.bias"}
    assert {"0.weight", "0.bias"} < set(state.buffers)
    after = trained(model, state, BATCHES, 0.1)
    assert all(torch.equal(state.buffers[name], after.buffers[name]) for name in ("0.weight", "0.bias"))
    assert not torch.equal(state.params["1.weight"], after.params["1.weight"])


def test_init_is_a_function_of_the_seed_and_leaves_the_global_generator_of_torch_where_it_was():
    model = models.from_module(build=normed)
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    one = model.init(1)
    assert torch.equal(before, torch.random.get_rng_state())
    torch.manual_seed(6)
    assert tree.equal(one, model.init(1)) and not tree.equal(one, model.init(2))


def test_taking_a_module_apart_leaves_the_global_generator_of_torch_where_it_was():
    before = torch.random.get_rng_state()
    models.from_module(build=normed)
    assert torch.equal(before, torch.random.get_rng_state())


def test_a_trained_net_is_taken_apart_with_its_own_weights_and_is_not_written_to():
    net = normed()
    weights = {name: leaf.clone() for name, leaf in net.state_dict().items()}
    model = models.from_module(build=lambda: net)
    params, buffers = model.init(0)
    assert tree.equal(params | buffers, weights)
    x = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    model.train(params, buffers, x, PLACE)
    for leaf in (*params.values(), *buffers.values()):
        leaf.add_(1)
    assert tree.equal(dict(net.state_dict()), weights) and net.training
    torch.testing.assert_close(model.apply(weights, x), functional_call(net.eval(), weights, (x,)))


SIDE = numbers(4, 3, 8, 8)
FLAT = numbers(4, 4)
TOKENS = torch.arange(28).reshape(4, 7) % 11
CLASSES = torch.tensor([0, 1, 2, 0])


def mlp(p: float) -> nn.Module:
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Dropout(p), nn.Linear(6, 5), nn.Dropout(p), nn.Linear(5, 3))


def images(p: float) -> nn.Module:
    stages = [nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Dropout2d(p), nn.AvgPool2d(2)]
    return nn.Sequential(*stages, nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4, momentum=None), nn.Flatten(), nn.Linear(4, 3))


class Transformer(nn.Module):
    def __init__(self, p: float) -> None:
        super().__init__()
        self.tokens = nn.Embedding(11, 8)
        layer = nn.TransformerEncoderLayer(8, 2, 16, p, activation="gelu", batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        return self.head(self.encoder(self.tokens(x)).mean(1))


class Recurrent(nn.Module):
    def __init__(self, p: float, kind: Any = nn.LSTM) -> None:
        super().__init__()
        self.tokens = nn.Embedding(11, 5)
        self.steps = kind(5, 6, 2, batch_first=True)
        self.drop = nn.Dropout(p)
        self.head = nn.Linear(6, 3)

    def forward(self, x):
        return self.head(self.drop(self.steps(self.tokens(x))[0][:, -1]))


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.into = nn.Linear(4, 4)
        self.out = nn.Linear(4, 4, bias=False)
        self.out.weight = self.into.weight
        self.register_buffer("scale", torch.tensor([1.0, 2.0, 3.0, 4.0]), persistent=False)

    def forward(self, x):
        return self.out(torch.tanh(self.scale * self.into(x)))


def resnet20() -> nn.Module:
    return ResNet(planes=3, classes=3, blocks=3)


def plain_norm() -> nn.Module:
    layers = [nn.BatchNorm1d(5, momentum=None), nn.BatchNorm1d(5, track_running_stats=False)]
    return nn.Sequential(nn.Linear(4, 5), *layers, nn.Tanh(), nn.Linear(5, 3))


def parametrized() -> nn.Module:
    return nn.Sequential(parametrizations.weight_norm(nn.Linear(4, 5)), nn.Tanh(), nn.Linear(5, 3))


STILL = {  # nets that draw nothing
    "mlp": (partial(mlp, 0.0), FLAT),
    "batch norm": (partial(images, 0.0), SIDE),
    "transformer": (partial(Transformer, 0.0), TOKENS),
    "lstm": (partial(Recurrent, 0.0), TOKENS),
    "gru": (partial(Recurrent, 0.0, nn.GRU), TOKENS),
    "resnet20": (resnet20, SIDE),
    "tied": (Tied, FLAT),
    "norms of other kinds": (plain_norm, FLAT),
    "weight norm": (parametrized, FLAT),
}
DRAWING = {
    "mlp, dropout": (partial(mlp, 0.3), FLAT),
    "batch norm, dropout": (partial(images, 0.3), SIDE),
    "transformer, dropout": (partial(Transformer, 0.1), TOKENS),
    "lstm, dropout": (partial(Recurrent, 0.3), TOKENS),
}
NETS = STILL | DRAWING
every_net = pytest.mark.parametrize("build, x", NETS.values(), ids=NETS.keys())


def stepped(model, state, x, rate=0.1, steps=3):
    return trained(model, state, [(x, CLASSES)] * steps, rate)


@pytest.mark.parametrize("build, x", STILL.values(), ids=STILL.keys())
def test_training_is_the_loop_of_torch_over_the_same_module(build, x):
    model = models.from_module(build=build)
    state = begun(model, 3)
    net = build().double()
    net.load_state_dict(models.state_dict(variables(state), build=build))
    right = steps_of_torch(net, [(x, CLASSES)] * 3, 0.1)
    found = stepped(model, state, x)
    assert_close(models.state_dict(variables(found), build=build), right)
    torch.testing.assert_close(model.apply(variables(found), x), net.eval()(x), rtol=1e-9, atol=1e-11)


@every_net
def test_mapped_members_train_and_answer_as_each_alone(build, x):
    model = models.from_module(build=build)
    states = [begun(model, seed) for seed in (1, 2, 3)]
    mapped = vmap(lambda state: stepped(model, state, x, steps=2))(tree.stack(states))
    alone = [stepped(model, state, x, steps=2) for state in states]
    assert_close(mapped, tree.stack(alone), rtol=1e-8, atol=1e-10)
    answers = vmap(lambda held: model.apply(held, x))(variables(mapped))
    right = torch.stack([model.apply(variables(state), x) for state in alone])
    torch.testing.assert_close(answers, right, rtol=1e-8, atol=1e-10)


@every_net
def test_a_traced_step_has_the_bits_of_an_eager_one_alone_and_mapped(build, x):
    model = models.from_module(build=build)
    states = [begun(model, seed) for seed in (1, 2)]
    one = lambda state: stepped(model, state, x, steps=1)  # noqa: E731
    for function, state in ((one, states[0]), (vmap(one), tree.stack(states))):
        graph = traced(function, state)
        after = function(state)
        assert tree.equal(graph(state), after) and tree.equal(graph(after), function(after))


ONCE = ("resnet20", "weight norm")  # ReLU has kinks; torch's second derivative of its fused weight norm is wrong (2.13)
TWICE = {name: net for name, net in NETS.items() if name not in ONCE}


@pytest.mark.parametrize("build, x", TWICE.values(), ids=TWICE.keys())
def test_the_loss_after_a_step_can_be_differentiated_by_parameters_and_learning_rate(build, x):
    model = models.from_module(build=build)
    state = begun(model, 3)
    aim = {name: numbers(*leaf.shape, seed=4) for name, leaf in state.params.items()}

    def end(rate, params):
        after = stepped(model, state._replace(params=params), x, rate, steps=1)
        outputs, _ = model.train(after.params, after.buffers, x, (after.key, after.iteration))
        return cross_entropy(outputs, CLASSES).mean()

    def along(nudge):  # in all directions at once
        return end(0.1 + nudge, {name: leaf + nudge * aim[name] for name, leaf in state.params.items()})

    by_rate, by_params = grad(end, argnums=(0, 1))(torch.tensor(0.1, dtype=torch.float64), state.params)
    found = by_rate + sum((by_params[name] * aim[name]).sum() for name in aim)
    slope = (along(1e-5) - along(-1e-5)) / 2e-5
    assert found.item() == pytest.approx(slope.item(), rel=1e-5, abs=1e-8)


@pytest.mark.parametrize("build, x", DRAWING.values(), ids=DRAWING.keys())
def test_dropout_is_a_function_of_the_place_and_absent_from_evaluation(build, x):
    model = models.from_module(build=build)
    params, buffers = model.init(1)
    x = x if x.dtype == torch.int64 else x.float()
    at = lambda key, iteration: (torch.tensor(key), torch.tensor(iteration))  # noqa: E731
    one = model.train(params, buffers, x, at(1, 1))[0]
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    assert torch.equal(one, model.train(params, buffers, x, at(1, 1))[0])
    assert torch.equal(before, torch.random.get_rng_state())
    assert not torch.equal(one, model.train(params, buffers, x, at(1, 2))[0])
    assert not torch.equal(one, model.train(params, buffers, x, at(2, 1))[0])
    net = build().eval()
    net.load_state_dict(models.state_dict(params | buffers, build=build))
    torch.testing.assert_close(model.apply(params | buffers, x), net(x))


def test_the_layers_of_a_net_draw_masks_of_their_own():
    model = models.from_module(build=lambda: nn.Sequential(nn.Dropout(0.5), nn.Dropout(0.5)))
    out = model.train({}, {}, torch.ones(100, 100), PLACE)[0]
    assert abs((out == 4).float().mean() - 0.25) < 5 * (3 / 16 / 10_000) ** 0.5


def test_a_first_layer_that_works_in_place_does_not_write_to_the_batch():
    model = models.from_module(build=lambda: nn.Sequential(nn.ReLU(inplace=True), nn.Dropout(0.5, inplace=True)))
    x = numbers(3, 4)
    before = x.clone()
    model.train({}, {}, x, PLACE)
    model.apply({}, x)
    assert torch.equal(x, before)


def test_drawing_in_evaluation_is_refused():
    class Noisy(nn.Module):
        def forward(self, x):
            return x + torch.randn_like(x)

    model = models.from_module(build=Noisy)
    assert not torch.equal(model.train({}, {}, FLAT, PLACE)[0], FLAT)
    with pytest.raises(ValueError, match="randn_like draws at random in evaluation, where there is no key to draw by"):
        model.apply({}, FLAT)


def test_recurrent_layers_that_draw_inside_are_refused():
    build = lambda: nn.ModuleDict({"steps": nn.LSTM(2, 2, 2, dropout=0.5)})  # noqa: E731
    with pytest.raises(ValueError) as raised:
        models.from_module(build=build)
    assert str(raised.value) == (
        "layer 'steps', LSTM with dropout = 0.5, draws at random inside its kernel: set its dropout to 0 and stack "
        "layers with nn.Dropout between them"
    )


def test_lazy_layers_are_refused():
    with pytest.raises(ValueError) as raised:
        models.from_module(build=lambda: nn.Sequential(nn.Linear(2, 2), nn.LazyLinear(2)))
    assert str(raised.value) == "'1.weight' has no shape before it has seen data: give its layer all its sizes"


def test_tensors_computed_from_parameters_and_kept_are_refused():
    class Keeps(nn.Linear):
        def __init__(self) -> None:
            super().__init__(2, 2)
            self.doubled = 2 * self.weight

    with pytest.raises(ValueError, match="Keeps keeps a tensor that is neither parameter nor buffer and was computed"):
        models.from_module(build=Keeps)


def test_plain_tensors_of_a_module_are_constants():
    class Scaled(nn.Linear):
        def __init__(self) -> None:
            super().__init__(4, 3)
            self.scale = torch.arange(3)

        def forward(self, input):
            return super().forward(input) * self.scale

    model = models.from_module(build=Scaled)
    params, _ = model.init(0)
    x = FLAT.float()
    torch.testing.assert_close(
        model.apply(params, x), (x @ params["weight"].T + params["bias"]) * torch.arange(3), rtol=1e-6, atol=1e-6
    )


def test_tied_weights_are_one_parameter_with_the_sum_of_their_gradients():
    model = models.from_module(build=Tied)
    params, buffers = double(model.init(0))
    assert params.keys() == {"into.weight", "into.bias"} and buffers.keys() == {"scale"}
    net = Tied().double()
    net.load_state_dict(models.state_dict(params | buffers, build=Tied))
    net(FLAT).square().sum().backward()
    found = grad(lambda params: model.train(params, buffers, FLAT, PLACE)[0].square().sum())(params)
    assert_close(found, {name: leaf.grad for name, leaf in net.named_parameters()})


def test_a_state_dict_has_tied_names_twice_no_passing_buffers_and_loads_strictly():
    model = models.from_module(build=Tied)
    held = variables(begun(model, 5))
    found = models.state_dict(held, build=Tied)
    assert found.keys() == Tied().state_dict().keys() == {"into.weight", "into.bias", "out.weight"}
    assert torch.equal(found["out.weight"], held["into.weight"])
    found["into.bias"].add_(1)
    assert not torch.equal(found["into.bias"], held["into.bias"])
    with pytest.raises(KeyError, match=r"into\.bias"):
        models.state_dict({"into.weight": held["into.weight"]}, build=Tied)


@every_net
def test_a_state_dict_goes_out_and_comes_in_again_with_the_same_bits(build, x):
    state = train_start(7, model=models.from_module(build=build), optimizer=optim.sgd(learning_rate=0.1))
    net = build()
    net.load_state_dict(models.state_dict(variables(state), build=build), strict=True)
    params, buffers = models.from_module(build=lambda: net).init(0)
    assert tree.equal(params | buffers, variables(state))


@pytest.mark.parametrize("depth, count", [(20, 269_722), (32, 464_154), (44, 658_586), (56, 853_018), (110, 1_727_962)])
def test_residual_networks_have_the_published_number_of_parameters(depth, count):
    params, buffers = models.resnet(features=(3, 32, 32), classes=10, depth=depth).init(0)
    assert sum(leaf.numel() for leaf in params.values()) == count
    layers = [leaf for leaf in params.values() if leaf.ndim > 1]
    assert len(layers) == depth and len(buffers) == 3 * (depth - 1)


def test_a_residual_network_sees_images_of_any_size_and_kind():
    for features in ((3, 32, 32), (1, 28, 28), (2, 5, 9)):
        model = models.resnet(features=features, classes=7, depth=32)
        params, buffers = model.init(1)
        assert model.apply(params | buffers, torch.ones(2, *features)).shape == (2, 7)


def test_the_shortcut_of_a_block_is_the_identity_thinned_out_and_padded_with_zeros():
    for into, out in ((4, 4), (4, 8)):
        block = Block(into, out).eval()
        nn.init.zeros_(block.second_norm.weight)
        x = torch.rand(2, into, 6, 5)
        right = torch.zeros(2, out, 3, 3) if out > into else x
        if out > into:
            right[:, 2:6] = x[:, :, ::2, ::2]
        assert torch.equal(block(x), right)


def test_a_residual_network_says_what_it_wants():
    with pytest.raises(ValueError, match=r"resnet wants images \[channel, height, width\], not samples of shape"):
        models.resnet(features=(64,), classes=2)
    with pytest.raises(ValueError, match=r"resnet is 6 n \+ 2 layers deep: 14 or 20, not 18"):
        models.resnet(features=(3, 8, 8), classes=2, depth=18)


def test_a_residual_network_is_a_component():
    assert "resnet" in names("model") and "state_dict" not in names("model")
