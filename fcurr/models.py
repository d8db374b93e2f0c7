"""Networks as functions: `Model(init, apply, train)`, side by side.

Parameters are a flat dict, named as torch would name them. `apply` reads parameters and buffers from one dict; `train`
returns new buffers instead of changing old ones.
"""

import copy
from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from annotated_types import Ge, Lt
from torch import Tensor, nn
from torch.func import functional_call

from fcurr import rng
from fcurr.keyed import RECURRENT, Keyed
from fcurr.networks import ResNet
from fcurr.types import Buffers, Classes, Model, Params, Place, Shape, Side, Unit, Widths

Depth = Annotated[int, Ge(8), Lt(2**31), Unit("number of layers")]


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


def resnet(*, features: Shape, classes: Classes, depth: Depth = 20) -> Model:
    """The residual network for small images: `depth` = 6 n + 2 layers of 16, 32 and 64 channels, with BatchNorm.

    Shortcuts are the identity, padded with zeros where channels are added (option A), so that the depths 20, 32, 44, 56
    and 110 have 0.27, 0.46, 0.66, 0.85 and 1.7 million parameters. He et al. (2016), Deep residual learning for image
    recognition, section 4.2.
    """
    if len(features) != 3:
        raise ValueError(f"resnet wants images [channel, height, width], not samples of shape {list(features)}")
    if (depth - 2) % 6:
        below = depth - (depth - 2) % 6
        raise ValueError(f"resnet is 6 n + 2 layers deep: {below} or {below + 6}, not {depth}")
    return from_module(build=partial(ResNet, planes=features[0], classes=classes, blocks=(depth - 2) // 6))


def from_module(*, build: Callable[[], nn.Module]) -> Model:
    """Any nn.Module, taken apart: `build()` makes one, so a class is a `build`, and so is `lambda: my_trained_net`.

    `init(seed)` builds it with torch's global generator seeded, and puts the generator back. Parameters with
    `requires_grad=False` are frozen: they travel with the buffers. A tensor under two names is one, and goes by the
    first. BatchNorm's running statistics are returned by `train`, never changed.

    What a forward pass draws by torch functions (dropout of every kind, RReLU, attention's dropout, torch.rand and its
    kin) is, in training, a function of the place: of key, iteration, how-manyth draw and position (fcurr.keyed).
    `apply` has no place and refuses to draw. A draw that has no such form is refused where it happens (ValueError).
    Not seen is what torch functions do not do: numpy, Python's random, scripted modules, kernels of one's own, and
    what torch.utils.checkpoint computes again. Nor is memory outside parameters and buffers: attributes that
    `forward` assigns.
    """
    with torch.random.fork_rng([]):
        plain = build()
    _check(plain)
    training = _hollow(plain).train()
    for layer in training.modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm) and layer.momentum is None and layer.track_running_stats:
            layer.__dict__["forward"] = partial(_cumulative_norm, layer)
    writes = any(getattr(layer, "inplace", False) for layer in plain.modules())
    return Model(
        init=partial(_from_module_init, build=build),
        apply=partial(_from_module_apply, module=_hollow(plain).eval(), writes=writes),
        train=partial(_from_module_train, module=training, writes=writes),
    )


def state_dict(variables: Params, *, build: Callable[[], nn.Module]) -> dict[str, Tensor]:
    """What `build().load_state_dict` takes, strictly, of parameters and buffers in one dict (`training.variables`).

    Tensors with two names stand under both, buffers that are not persistent under none. The tensors are copies. A model
    starts from a state dict if its `build` loads it. KeyError if a variable is missing.
    """
    with torch.random.fork_rng([]):
        module = build()
    names = {id(leaf): name for name, leaf in (*module.named_buffers(), *module.named_parameters())}
    found = module.state_dict(keep_vars=True)
    return {
        name: variables[names[id(leaf)]].detach().clone() if isinstance(leaf, Tensor) else leaf
        for name, leaf in found.items()
    }


def _check(module: nn.Module) -> None:
    for name, leaf in (*module.named_parameters(), *module.named_buffers()):
        if nn.parameter.is_lazy(leaf):
            raise ValueError(f"{name!r} has no shape before it has seen data: give its layer all its sizes")
    for name, layer in module.named_modules():
        if isinstance(layer, nn.RNNBase) and layer.dropout > 0 and layer.num_layers > 1:
            raise ValueError(
                RECURRENT.format(f"layer {name!r}, {type(layer).__name__} with dropout = {layer.dropout},")
            )


def _hollow(module: nn.Module) -> nn.Module:
    """A copy whose parameters and buffers hold no numbers; what was one tensor stays one."""
    hollow: dict[int, Any] = {id(leaf): leaf.detach().to("meta") for leaf in module.buffers()}
    for leaf in module.parameters():
        hollow[id(leaf)] = nn.Parameter(leaf.detach().to("meta"), requires_grad=leaf.requires_grad)
    try:
        return copy.deepcopy(module, hollow)
    except RuntimeError as wrong:
        raise ValueError(
            f"{type(module).__name__} keeps a tensor that is neither parameter nor buffer and was computed from one: "
            "register it as a buffer, or compute it in forward (torch.nn.utils.parametrizations does)"
        ) from wrong


def _cumulative_norm(layer: Any, x: Tensor) -> Tensor:
    """BatchNorm with momentum=None: running statistics are means over all batches. torch's own reads the count of
    batches as a Python number, which no transform can."""
    layer._check_input_dim(x)
    layer.num_batches_tracked.add_(1)
    mean, variance = torch.zeros_like(layer.running_mean), torch.zeros_like(layer.running_var)
    outputs = F.batch_norm(x, mean, variance, layer.weight, layer.bias, training=True, momentum=1.0, eps=layer.eps)
    count = layer.num_batches_tracked.to(mean.dtype)
    layer.running_mean.add_((mean - layer.running_mean) / count)
    layer.running_var.add_((variance - layer.running_var) / count)
    return outputs


def _from_module_init(seed: int, *, build: Callable[[], nn.Module]) -> tuple[Params, Buffers]:
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        module = build()
    learned = {name: leaf.detach().clone() for name, leaf in module.named_parameters() if leaf.requires_grad}
    frozen = {name: leaf.detach().clone() for name, leaf in module.named_parameters() if not leaf.requires_grad}
    return learned, frozen | {name: leaf.detach().clone() for name, leaf in module.named_buffers()}


def _from_module_apply(variables: Params, x: Tensor, *, module: nn.Module, writes: bool) -> Tensor:
    with Keyed(None):
        return functional_call(module, variables, (x.clone() if writes else x,))


def _from_module_train(
    params: Params, buffers: Buffers, x: Tensor, place: Place, *, module: nn.Module, writes: bool
) -> tuple[Tensor, Buffers]:
    fresh = {name: leaf.clone() for name, leaf in buffers.items()}  # written to by the call, then returned
    with Keyed(place):
        return functional_call(module, {**params, **fresh}, (x.clone() if writes else x,)), fresh


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
