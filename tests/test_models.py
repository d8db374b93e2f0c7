"""Networks as functions, against the same nn.Module."""

from functools import partial
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.func import functional_call, vmap
from worlds import assert_close, copied, double, numbers, seeds

from fcurr import models, optim, tree
from fcurr.losses import cross_entropy
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


def normed() -> nn.Module:
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


@pytest.mark.parametrize("layer", [nn.Dropout(0.1), nn.Dropout2d(0.1), nn.AlphaDropout(0.1)])
def test_dropout_is_refused(layer):
    with pytest.raises(ValueError) as raised:
        models.from_module(build=lambda: nn.Sequential(nn.Linear(2, 2), layer))
    assert str(raised.value) == "layer '1' draws at random, and not as a function of a key: set its dropout to 0"


def test_dropout_of_nothing_is_accepted():
    model = models.from_module(build=lambda: nn.Sequential(nn.Dropout(0.0), nn.Linear(2, 2)))
    params, buffers = model.init(0)
    assert model.train(params, buffers, torch.ones(3, 2), PLACE)[0].shape == (3, 2)
