"""Networks as functions: `Model(init, apply, train)`, side by side.

Parameters are a flat dict, named as torch would name them. `apply` reads parameters and buffers from one dict; `train`
returns new buffers instead of changing old ones.
"""

import copy
from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from fcurr import rng
from fcurr.types import Buffers, Classes, Model, Params, Place, Shape, Side, Widths


def mlp(*, features: Shape, classes: Classes, hidden: Widths = (256,)) -> Model:
    """A multilayer perceptron: linear layers with ReLU between them, over flattened inputs.

    Initialised as torch.nn.Linear: uniform in +-1/sqrt(fan_in).
    """
    widths = (torch.Size(features).numel(), *hidden, classes)
    shapes = {f"{i}": (out, into) for i, (into, out) in enumerate(pairwise(widths))}
    return _stateless(partial(_initial, shapes=shapes), partial(_mlp, layers=len(shapes)))


def _mlp(params: Params, x: Tensor, *, layers: int) -> Tensor:
    x = x.flatten(1)
    for layer in range(layers - 1):
        x = F.relu(F.linear(x, params[f"{layer}.weight"], params[f"{layer}.bias"]), inplace=True)
    return F.linear(x, params[f"{layers - 1}.weight"], params[f"{layers - 1}.bias"])


def convnet(*, features: Shape, classes: Classes, channels: Widths = (16, 32), kernel: Side = 3) -> Model:
    """A small convolution network: (convolution, ReLU, 2 x 2 maximum) a width in `channels`, then a linear layer.

    Takes images [batch, channel, height, width]; a side is halved at each stage and must not vanish.
    """
    if len(features) != 3:
        raise ValueError(f"convnet wants images [channel, height, width], not samples of shape {list(features)}")
    planes, height, width = features
    if min(height, width) >> len(channels) == 0:
        raise ValueError(f"{len(channels)} stages halve a side of {min(height, width)} to nothing")
    shapes: dict[str, Shape] = {}
    for stage, out in enumerate(channels):
        shapes[f"{stage}"] = (out, planes, kernel, kernel)
        planes = out
    side = (height >> len(channels)) * (width >> len(channels))
    shapes["head"] = (classes, planes * side)
    return _stateless(partial(_initial, shapes=shapes), partial(_convnet, stages=len(channels)))


def _convnet(params: Params, x: Tensor, *, stages: int) -> Tensor:
    for stage in range(stages):
        x = F.conv2d(x, params[f"{stage}.weight"], params[f"{stage}.bias"], padding="same")
        x = F.max_pool2d(F.relu(x), 2)
    return F.linear(x.flatten(1), params["head.weight"], params["head.bias"])


def from_module(*, build: Callable[[], nn.Module]) -> Model:
    """Any nn.Module, taken apart: `build()` makes one, so a class is a `build`, and so is `lambda: my_trained_net`.

    `init(seed)` builds it with torch's global generator seeded, and puts the generator back. Parameters with
    `requires_grad=False` are frozen: they travel with the buffers. BatchNorm's running statistics are returned by
    `train`, never changed. Layers that draw from torch's global generator (dropout, RReLU) are refused; what
    `forward` draws by itself cannot be seen, and would not be repeated by a run that is continued.
    """
    with torch.random.fork_rng([]):
        plain = build()
    for name, layer in plain.named_modules():
        drops = layer.p if isinstance(layer, nn.modules.dropout._DropoutNd) else getattr(layer, "dropout", 0.0)
        if isinstance(layer, nn.RReLU) or (isinstance(drops, float) and drops > 0):
            raise ValueError(f"layer {name!r} draws at random, and not as a function of a key: set its dropout to 0")
    evaluating, training = (copy.deepcopy(plain).to("meta").train(mode) for mode in (False, True))
    return Model(
        init=partial(_from_module_init, build=build),
        apply=lambda variables, x: functional_call(evaluating, variables, (x,)),
        train=partial(_from_module_train, module=training),
    )


def _from_module_init(seed: int, *, build: Callable[[], nn.Module]) -> tuple[Params, Buffers]:
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        module = build()
    learned = {name: leaf.detach().clone() for name, leaf in module.named_parameters() if leaf.requires_grad}
    frozen = {name: leaf.detach().clone() for name, leaf in module.named_parameters() if not leaf.requires_grad}
    return learned, frozen | {name: leaf.detach().clone() for name, leaf in module.named_buffers()}


def _from_module_train(
    params: Params, buffers: Buffers, x: Tensor, place: Place, *, module: nn.Module
) -> tuple[Tensor, Buffers]:
    fresh = {name: leaf.clone() for name, leaf in buffers.items()}  # written to by the call, then returned
    return functional_call(module, {**params, **fresh}, (x,)), fresh


def _stateless(init: Callable[[int], Params], apply: Callable[[Params, Tensor], Tensor]) -> Model:
    """A model without buffers that is the same in training and in evaluation."""
    return Model(
        init=lambda seed: (init(seed), {}),
        apply=apply,
        train=lambda params, buffers, x, place: (apply(params, x), buffers),
    )


def _initial(seed: int, *, shapes: dict[str, Shape]) -> Params:
    """Weights and biases, uniform in +-1/sqrt(fan_in)."""

    def layers() -> Iterator[tuple[str, Tensor]]:
        for place, (name, shape) in enumerate(shapes.items()):
            stream = rng.generator(seed, place)
            bound = torch.Size(shape[1:]).numel() ** -0.5
            yield f"{name}.weight", bound * (2 * torch.rand(shape, generator=stream) - 1)
            yield f"{name}.bias", bound * (2 * torch.rand(shape[:1], generator=stream) - 1)

    return dict(layers())
