"""What a forward pass draws at random, made a function of a key.

`with Keyed(place):` everything that torch would draw from its global generator is hashed from (key, iteration,
how-manyth draw of this pass, position of the element in its tensor). The global generator is neither read nor moved.
The numbers are tensor arithmetic: the same in a loop, under vmap, differentiated and traced, on any device.

torch.compile (2.13) hides some functions from every mode: torch.rand_like, randn_like, normal and dropout_. Inside vmap
it then refuses to draw; fcurr.tracing.compiled compiles what was traced with them. Dropout layers, attention,
torch.rand, bernoulli and the in-place methods of a tensor are seen.
"""

from collections.abc import Callable
from functools import partial
from types import FunctionType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._C import _nn  # pyright: ignore[reportAttributeAccessIssue]
from torch._C._functorch import TransformType, get_interpreter_stack  # pyright: ignore[reportMissingImports]
from torch._ops import OpOverload, OpOverloadPacket
from torch.func import vjp
from torch.overrides import TorchFunctionMode

from fcurr import rng
from fcurr.types import Place

_GOLDEN = -0x61C8864680B583EB  # 2**64 / golden ratio: from one element to the next
_STRIDE = -0x6B2FB644ECCEEE15  # from one draw to the next
_MIXER = -0x40A7B892E31B1A47  # the first multiplier of SplitMix64 (Steele, Lea and Flood, 2014)
_DIGITS = {torch.float64: 53, torch.float16: 11, torch.bfloat16: 8}  # of a number in [0, 1); 24 otherwise
_SELU = 1.7580993408473766  # minus the limit of SELU at -infinity, where alpha dropout puts what it drops

Rule = Callable[..., Any]  # (mode, function, *arguments of the function) -> what the function gives


class Keyed(TorchFunctionMode):
    """The draws of one forward pass, as a function of a place. Without a place nothing may be drawn: ValueError."""

    def __init__(self, place: Place | None) -> None:
        super().__init__()
        self.place = place
        self.stream: Tensor | None = None  # [] int64, the key of the last draw

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        rule = _RULES.get(func)
        if rule is None:
            return _operator(func)(*args, **kwargs)
        if kwargs.get("generator") is not None or kwargs.get("out") is not None:
            raise ValueError(f"{_name(func)} with generator= or out= is not a function of a key: leave them out")
        return rule(self, func, *args, **kwargs)

    def key(self, func: Any) -> Tensor:
        """[] int64: the key of the next draw."""
        if self.place is None:
            raise ValueError(f"{_name(func)} draws at random in evaluation, where there is no key to draw by")
        self.stream = rng.fold(*self.place) if self.stream is None else self.stream + _STRIDE
        return self.stream


def _name(func: Any) -> str:
    return getattr(func, "__name__", str(func)).split(".")[0]


def _operator(func: Any) -> Any:
    """The function itself, unless it is an operator of torch.ops that draws."""
    if isinstance(func, OpOverload | OpOverloadPacket) and _name(func) in _DRAWING:
        raise ValueError(f"torch.ops.aten.{_name(func)} draws at random: call it as torch.{_name(func)}")
    return func


def _positions(shape: tuple[int, ...], device: torch.device) -> Tensor:
    return torch.arange(torch.Size(shape).numel(), device=device).reshape(shape)


def _kept(key: Tensor, shape: tuple[int, ...], p: float, device: torch.device) -> Tensor:
    """Bool, true with probability 1 - p. One mixing will do: the key is mixed well, and the first bits decide."""
    bits = (_positions(shape, device) + key) * _GOLDEN
    bits = (bits ^ ((bits >> 32) & 0xFFFFFFFF)) * _MIXER
    return (bits >> 40).float() >= round(p * 2**24) - 2**23  # a whole number of 24 bits each, as floats hold exactly


def _uniform(key: Tensor, like: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Numbers in [0, 1), as many as `like` has, with all the digits of the type."""
    dtype = dtype or (like.dtype if like.dtype.is_floating_point else torch.float32)
    digits = _DIGITS.get(dtype, 24)
    bits = rng.fold(key, _positions(like.shape, like.device))
    return ((bits >> (64 - digits)) & (2**digits - 1)).to(dtype) * 2.0**-digits


def _wide(like: Tensor) -> torch.dtype:
    """The type to take a logarithm in."""
    return torch.float64 if like.dtype == torch.float64 else torch.float32


def _normal(mode: Keyed, func: Any, like: Tensor) -> Tensor:
    """Standard normal. Box and Muller (1958)."""
    radius, angle = (_uniform(mode.key(func), like, _wide(like)) for _ in range(2))
    return ((-2 * torch.log1p(-radius)).sqrt() * torch.cos(2 * torch.pi * angle)).to(like.dtype)


def _dropout(mode: Keyed, func: Any, input: Tensor, p: float, train: bool) -> Tensor:
    """input * keep / (1 - p), element by element."""
    return _dropped(mode, func, input, p, train, input.ndim)


def _feature_dropout(mode: Keyed, func: Any, input: Tensor, p: float, train: bool) -> Tensor:
    """Whole channels; [batch, channel, ...]."""
    return _dropped(mode, func, input, p, train, 2)


def _dropped(mode: Keyed, func: Any, input: Tensor, p: float, train: bool, axes: int) -> Tensor:
    if not train or p == 0:
        return input
    return input * (_noise(mode, func, input, p, axes) / (1 - p) if p < 1 else 0)


def _alpha_dropout(mode: Keyed, func: Any, input: Tensor, p: float, train: bool) -> Tensor:
    """Dropout that keeps mean and variance of standard normal input. Klambauer et al. (2017), section 2."""
    return _alpha_dropped(mode, func, input, p, train, input.ndim)


def _feature_alpha_dropout(mode: Keyed, func: Any, input: Tensor, p: float, train: bool) -> Tensor:
    """Whole channels; [batch, channel, ...]."""
    return _alpha_dropped(mode, func, input, p, train, 2)


def _alpha_dropped(mode: Keyed, func: Any, input: Tensor, p: float, train: bool, axes: int) -> Tensor:
    if not train or p == 0:
        return input
    if p == 1:
        return input * 0
    scale = ((_SELU**2 * p + 1) * (1 - p)) ** -0.5
    keep = _noise(mode, func, input, p, axes)
    return input * (keep * scale) + (keep - 1 + p) * (_SELU * scale)


def _noise(mode: Keyed, func: Any, input: Tensor, p: float, axes: int) -> Tensor:
    """1 where something is kept, 0 where it is dropped; alike along all axes but the first."""
    shape = (*input.shape[:axes], *[1] * (input.ndim - axes))
    return _kept(mode.key(func), shape, p, input.device).to(input.dtype)


def _rrelu(mode: Keyed, func: Any, input: Tensor, lower: float = 1 / 8, upper: float = 1 / 3, training=False) -> Tensor:
    if not training:
        return func(input, lower, upper, training)
    slope = lower + (upper - lower) * _uniform(mode.key(func), input)
    return torch.where(input <= 0, input * slope, input)


def _transforms() -> list[Any]:
    """The transforms of torch.func at work, from the outermost to the innermost."""
    stack = None if torch.compiler.is_compiling() else get_interpreter_stack()
    return [level.key() for level in stack or ()]


def _forward_or_twice() -> bool:
    """Whether there is a derivative forward, or of a derivative."""
    kinds = _transforms()
    return TransformType.Jvp in kinds or kinds.count(TransformType.Grad) > 1


def _attention(
    mode: Keyed, func: Any, query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, **fixed: Any
) -> Tensor:
    """By its definition if there is dropout, or a derivative that the fused kernels lack; else as it would be."""
    if dropout_p == 0 and not _forward_or_twice():
        return func(query, key, value, attn_mask, dropout_p, is_causal, **fixed)
    if fixed.get("enable_gqa"):
        groups = query.shape[-3] // key.shape[-3]
        key, value = key.repeat_interleave(groups, -3), value.repeat_interleave(groups, -3)
    scale = query.shape[-1] ** -0.5 if fixed.get("scale") is None else fixed["scale"]
    scores = query @ key.mT * scale  # [..., target, source]
    if is_causal:
        attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    if attn_mask is None:
        return _dropout(mode, func, scores.softmax(-1), dropout_p, True) @ value
    scores = scores.masked_fill(~attn_mask, -torch.inf) if attn_mask.dtype == torch.bool else scores + attn_mask
    blind = (scores == -torch.inf).all(-1, keepdim=True)  # what sees nothing gets zeros, and no gradient
    weights = scores.masked_fill(blind, 0).softmax(-1).masked_fill(blind, 0)
    return _dropout(mode, func, weights, dropout_p, True) @ value


def _bernoulli(mode: Keyed, func: Any, input: Tensor, p: float | Tensor | None = None) -> Tensor:
    chance = input if p is None else p
    if isinstance(chance, Tensor):
        return (_uniform(mode.key(func), input, _wide(chance)) < chance).to(input.dtype)
    return _kept(mode.key(func), input.shape, 1 - chance, input.device).to(input.dtype)


def _bernoulli_(mode: Keyed, func: Any, input: Tensor, p: float | Tensor = 0.5) -> Tensor:
    return _written(input, _bernoulli(mode, func, input, p), func)


def _uniform_(mode: Keyed, func: Any, input: Tensor, *bounds: float, to: float = 1.0, **begin: float) -> Tensor:
    low, high = (*bounds, *(begin.get("from", 0.0), to)[len(bounds) :])
    return _written(input, low + (high - low) * _uniform(mode.key(func), input), func)


def _normal_(mode: Keyed, func: Any, input: Tensor, mean: float = 0.0, std: float = 1.0) -> Tensor:
    return _written(input, mean + std * _normal(mode, func, input), func)


def _exponential_(mode: Keyed, func: Any, input: Tensor, lambd: float = 1.0) -> Tensor:
    tail = _uniform(mode.key(func), input, _wide(input)).clamp(
        min=2.0**-25
    )  # never 0, and never 1: a logarithm follows
    return _written(input, -tail.log() / lambd, func)


def _rand(mode: Keyed, func: Any, *size: Any, **kind: Any) -> Tensor:
    return _uniform(mode.key(func), torch.empty(*size, **kind))


def _randn(mode: Keyed, func: Any, *size: Any, **kind: Any) -> Tensor:
    return _normal(mode, func, torch.empty(*size, **kind))


def _rand_like(mode: Keyed, func: Any, input: Tensor, **kind: Any) -> Tensor:
    return _uniform(mode.key(func), torch.empty_like(input, **kind))


def _randn_like(mode: Keyed, func: Any, input: Tensor, **kind: Any) -> Tensor:
    return _normal(mode, func, torch.empty_like(input, **kind))


def _normal_of(mode: Keyed, func: Any, mean: Any, std: Any = 1.0, size: Any = (), **kind: Any) -> Tensor:
    spread = torch.empty(size, **kind) + mean + std
    return mean + std * _normal(mode, func, spread)


def _empty(mode: Keyed, func: Any, *arguments: Any, **kind: Any) -> Tensor:
    """As many as there are keys: what is written to it may differ by member of a mapped pass."""
    made = func(*arguments, **kind)
    if mode.place is None:
        return made
    return made + torch.zeros_like(mode.place[0], dtype=made.dtype, device=made.device)


def _recurrent(mode: Keyed, func: Any, *arguments: Any) -> Any:
    layers, dropout, train = arguments[4:7] if isinstance(arguments[3], bool) else arguments[5:8]
    if dropout > 0 and train and layers > 1:
        raise ValueError(RECURRENT.format(f"{_name(func)} with dropout = {dropout}"))
    if _transforms()[-1:] == [TransformType.Vmap]:  # has a rule only where it is differentiated
        return vjp(lambda input: func(input, *arguments[1:]), arguments[0])[0]  # pyright: ignore
    return func(*arguments)


RECURRENT = "{} draws at random inside its kernel: set its dropout to 0 and stack layers with nn.Dropout between them"


def _refused(mode: Keyed, func: Any, *arguments: Any, **named: Any) -> Any:
    raise ValueError(
        f"{_name(func)} draws at random in a way that is not known as a function of a key: make it of torch.rand, "
        "torch.randn, torch.bernoulli or a dropout layer"
    )


def _written(target: Tensor, value: Tensor, func: Any) -> Tensor:
    if value is target:
        return target
    try:
        return target.copy_(value)
    except RuntimeError as wrong:  # vmap: members share the target
        raise ValueError(
            f"{_name(func)} writes numbers that differ by member into a tensor that members share: "
            "draw a new one instead, with torch.rand_like, torch.bernoulli or inplace=False"
        ) from wrong


def _in_place(rule: Rule, mode: Keyed, func: Any, input: Tensor, *arguments: Any, **named: Any) -> Tensor:
    return _written(input, rule(mode, func, input, *arguments, **named), func)


def _entered(function: FunctionType) -> Rule:
    """A function written in Python, without the door at which a mode is asked and then left outside: a mode hears only
    of the outermost call, and this one draws by calls inside it."""
    shut = dict.fromkeys(("has_torch_function", "has_torch_function_unary", "has_torch_function_variadic"), _shut)
    body = FunctionType(function.__code__, {**function.__globals__, **shut}, function.__name__, function.__defaults__)
    body.__kwdefaults__ = function.__kwdefaults__

    def inside(mode: Keyed, func: Any, *arguments: Any, **named: Any) -> Any:
        with mode:
            return body(*arguments, **named)

    def layer(mode: Keyed, func: Any, input: Tensor, *arguments: Any, **named: Any) -> Tensor:
        *others, inplace = (*arguments, named.pop("inplace", False))[: count - 1]
        made = inside(mode, func, input, *others, **named)
        return _written(input, made, func) if inplace else made

    names = function.__code__.co_varnames[: (count := function.__code__.co_argcount)]
    return layer if names[-1] == "inplace" else inside


def _shut(*arguments: Any) -> bool:
    return False


_PLAIN: dict[str, Rule] = {
    "dropout": _dropout,
    "feature_dropout": _feature_dropout,
    "alpha_dropout": _alpha_dropout,
    "feature_alpha_dropout": _feature_alpha_dropout,
    "rrelu": _rrelu,
}
_ENTERED = """dropout dropout1d dropout2d dropout3d alpha_dropout feature_alpha_dropout rrelu gumbel_softmax
    multi_head_attention_forward fractional_max_pool2d_with_indices fractional_max_pool3d_with_indices"""
_RECURRENT = (torch.lstm, torch.gru, torch.rnn_tanh, torch.rnn_relu)
_UNKNOWN = """_cudnn_init_dropout_state _cudnn_rnn _fused_dropout _sample_dirichlet _standard_gamma binomial cauchy_
    geometric_ log_normal_ miopen_rnn multinomial native_dropout poisson randint randint_like random_ randperm"""
_RULES: dict[Any, Rule] = (
    {getattr(torch, name): rule for name, rule in _PLAIN.items()}
    | {getattr(torch, name + "_"): partial(_in_place, rule) for name, rule in _PLAIN.items()}
    | {getattr(F, name): _entered(getattr(F, name)) for name in _ENTERED.split()}
    | {
        getattr(F, name): _entered(getattr(F, "_" + name))
        for name in ("fractional_max_pool2d", "fractional_max_pool3d")
    }
    | {F.scaled_dot_product_attention: _attention}
    | {
        torch.bernoulli: _bernoulli,
        torch.rand: _rand,
        torch.randn: _randn,
        torch.rand_like: _rand_like,
        torch.randn_like: _randn_like,
        torch.normal: _normal_of,
        torch.empty: _empty,
        torch.empty_like: _empty,
        Tensor.new_empty: _empty,
        Tensor.bernoulli: _bernoulli,
        Tensor.bernoulli_: _bernoulli_,
        Tensor.uniform_: _uniform_,
        Tensor.normal_: _normal_,
        Tensor.exponential_: _exponential_,
    }
    | dict.fromkeys(_RECURRENT, _recurrent)
    | {getattr(home, name): _refused for name in _UNKNOWN.split() for home in (torch, Tensor) if hasattr(home, name)}
    | {getattr(_nn, name): _refused for name in ("rrelu_with_noise", "rrelu_with_noise_")}
    | dict.fromkeys((nn.init.uniform_, nn.init.normal_, nn.init.kaiming_uniform_), _refused)
)
_DRAWING = frozenset(_name(function) for function in _RULES) - {"empty", "empty_like", "new_empty"}
