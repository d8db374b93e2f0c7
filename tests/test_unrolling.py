"""Hypergradients through inner steps, against reverse mode by plain autograd and the optimizers' formulas by hand."""

import math
import weakref
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.autograd import gradcheck
from torch.func import vmap
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from worlds import assert_close, blobs, double, looped, numbers, seeds, whole

from fcurr import models, optim, schedules, tree
from fcurr.bilevel.checking import exact
from fcurr.bilevel.problem import Descent, Weighted, at_rest, descend, total
from fcurr.bilevel.unrolling import adjoint, truncated, unrolled
from fcurr.losses import cross_entropy
from fcurr.precision import loss_scaled
from fcurr.tracing import traced
from fcurr.types import Batch, Model, Optimizer, Params

PLACE = (torch.tensor(0), torch.tensor(0))


# the reference: plain autograd, and updates as torch.optim writes them down


def sgd(p, g, memory, number, meta, *, rate: Any = 0.1, momentum: Any = 0, nesterov=False, decay: float = 0):
    moved, velocity = {}, {}
    for name in p:
        d = g[name] + decay * p[name]
        velocity[name] = momentum * memory[name] + d if memory else d
        d = d + momentum * velocity[name] if nesterov else velocity[name]
        moved[name] = p[name] - (rate(number, meta) if callable(rate) else rate) * d
    return moved, velocity if callable(momentum) or momentum else {}


def adam(p, g, memory, number, meta, *, rate: float = 0.01, coupled: float = 0, decoupled: float = 0):
    moved, after = {}, {}
    for name in p:
        d = g[name] + coupled * p[name]
        first, second = memory.get(name, (0, 0))
        first, second = 0.9 * first + 0.1 * d, 0.999 * second + 0.001 * d**2
        size = torch.where(second > 0, second, 1) / (1 - 0.999 ** (number + 1))
        root = torch.where(second > 0, size.sqrt(), 0)
        start = p[name] - rate * decoupled * p[name]
        moved[name] = start - rate * (first / (1 - 0.9 ** (number + 1))) / (root + 1e-8)
        after[name] = first, second
    return moved, after


def cut(p, g, memory, number, meta, *, rule: Callable, most: float):
    norm = torch.cat([leaf.flatten() for leaf in g.values()]).square().sum().sqrt()
    if norm > most:
        g = {name: most * leaf / norm for name, leaf in g.items()}
    return rule(p, g, memory, number, meta)


def by_hand(outer, inner, params: Params, meta: Any, batches, rule: Callable, *, early: int = 0) -> Any:
    """The derivative by the meta parameters, through all steps but the first `early`."""
    names = tree.named(meta, "")
    leaves = [leaf.detach().clone().requires_grad_() for leaf in names.values()]
    meta = tree.flatten(meta)[1](leaves)
    p, memory = {name: leaf.detach().clone().requires_grad_() for name, leaf in params.items()}, {}
    for number, batch in enumerate(batches):
        now = tree.map(torch.detach, meta) if number < early else meta
        found = torch.autograd.grad(inner(p, now, batch), [*p.values()], create_graph=True, allow_unused=True)
        g = {n: torch.zeros_like(p[n]) if leaf is None else leaf for n, leaf in zip(p, found, strict=True)}
        p, memory = rule(p, g, memory, number, now)
        if number < early:
            p = {name: leaf.detach().requires_grad_() for name, leaf in p.items()}
            memory = tree.map(torch.detach, memory)
    slopes = torch.autograd.grad(outer(p, meta), leaves, allow_unused=True)
    return tree.flatten(meta)[1]([torch.zeros_like(a) if b is None else b for a, b in zip(leaves, slopes, strict=True)])


def error(found: Any, right: Any) -> float:
    """|found - right| / |right|, over all leaves."""
    ours, theirs = tree.named(found, ""), tree.named(right, "")
    assert ours.keys() == theirs.keys()
    a, b = (torch.cat([one[name].flatten().double() for name in theirs]) for one in (ours, theirs))
    assert b.norm() > 1e-12 and a.isfinite().all()
    return float((a - b).norm() / b.norm())


# optimizers: ours, and the formula


RATE = partial(schedules.cosine, learning_rate=0.2, total_iterations=6)
OPTIMIZERS: dict[str, tuple[Optimizer, Callable]] = {
    "sgd": (optim.sgd(learning_rate=0.1), sgd),
    "weight decay": (optim.sgd(learning_rate=0.1, weight_decay=0.3), partial(sgd, decay=0.3)),
    "momentum": (optim.sgd(learning_rate=0.1, momentum=0.9), partial(sgd, momentum=0.9)),
    "momentum, decay": (
        optim.sgd(learning_rate=0.1, momentum=0.9, weight_decay=0.3),
        partial(sgd, momentum=0.9, decay=0.3),
    ),
    "Nesterov": (
        optim.sgd(learning_rate=0.1, momentum=0.9, nesterov=True, weight_decay=0.1),
        partial(sgd, momentum=0.9, nesterov=True, decay=0.1),
    ),
    "Adam": (optim.adam(learning_rate=0.01), adam),
    "Adam, decay": (optim.adam(learning_rate=0.01, weight_decay=0.3), partial(adam, coupled=0.3)),
    "AdamW": (optim.adamw(learning_rate=0.01, weight_decay=0.3), partial(adam, decoupled=0.3)),
    "clipped": (
        optim.clipped(optimizer=optim.sgd(learning_rate=0.1, momentum=0.9), max_norm=0.05),
        partial(cut, rule=partial(sgd, momentum=0.9), most=0.05),
    ),
    "clipped, too far to act": (
        optim.clipped(optimizer=optim.sgd(learning_rate=0.1, momentum=0.9), max_norm=50.0),
        partial(sgd, momentum=0.9),
    ),
    "clipped Adam": (
        optim.clipped(optimizer=optim.adam(learning_rate=0.01), max_norm=0.05),
        partial(cut, rule=adam, most=0.05),
    ),
    "schedule": (
        optim.sgd(learning_rate=RATE, momentum=0.9),
        partial(sgd, momentum=0.9, rate=lambda t, meta: 0.1 * (1 + math.cos(math.pi * t / 6))),
    ),
}
every_optimizer = pytest.mark.parametrize("optimizer, rule", OPTIMIZERS.values(), ids=OPTIMIZERS.keys())


# problems


class Problem(NamedTuple):
    outer: Any
    inner: Any
    params: Params
    meta: Any


def weight_net(seed: int = 5, hidden: int = 4) -> Params:
    shapes = {"a": (hidden,), "b": (hidden,), "c": (hidden,), "d": ()}
    return {name: numbers(*shape, seed=seed + place) for place, (name, shape) in enumerate(shapes.items())}


def weigh(meta: Params, losses: Tensor) -> Tensor:
    units = torch.tanh(losses.unsqueeze(-1) * meta["a"] + meta["b"])
    return torch.sigmoid(units @ meta["c"] + meta["d"])


def stopped(meta: Params, losses: Tensor, batch: Batch) -> Tensor:
    return (weigh(meta, losses.detach()) * losses).mean()


def through(meta: Params, losses: Tensor, batch: Batch) -> Tensor:
    return (weigh(meta, losses) * losses).mean()


def normalised(meta: Params, losses: Tensor, batch: Batch) -> Tensor:
    weights = weigh(meta, losses.detach())
    return (weights / weights.mean() * losses).mean()


def normalised_through(meta: Params, losses: Tensor, batch: Batch) -> Tensor:
    weights = weigh(meta, losses)
    return (weights / weights.sum() * losses).sum()


def tabled(meta: Params, losses: Tensor, batch: Batch) -> Tensor:
    return (torch.sigmoid(meta["a"][batch.id % len(meta["a"])] + meta["d"]) * losses).mean()


OBJECTIVES = {f.__name__: f for f in (stopped, through, normalised, normalised_through, tabled)}
every_objective = pytest.mark.parametrize("objective", OBJECTIVES.values(), ids=OBJECTIVES.keys())


def problem(model: Model, clean: Batch, objective: Callable = stopped, seed: int = 0) -> Problem:
    """Losses of a model in training; the outer loss is that of clean samples."""
    params, buffers = double(model.init(seed))

    def losses(params: Params, batch: Batch) -> Tensor:
        like = next(iter(params.values()))
        own = lambda leaf: leaf.to(like.dtype) if leaf.is_floating_point() else leaf  # noqa: E731
        return cross_entropy(model.train(params, tree.map(own, buffers), own(batch.x), PLACE)[0], batch.y)

    outer = lambda params, meta: losses(params, clean).mean()  # noqa: E731
    return Problem(outer, Weighted(losses, objective), params, weight_net())


def batches_of(data, size: int, count: int) -> list[Batch]:
    ids = torch.arange(size * count) % len(data.y)
    return [data.take(ids[k * size : (k + 1) * size]) for k in range(count)]


def small(objective: Callable = stopped, seed: int = 0) -> tuple[Problem, list[Batch]]:
    data = blobs(40)
    model = models.mlp(features=(6,), classes=3, hidden=(5,))
    return problem(model, whole(blobs(9, seed=3)), objective, seed), batches_of(data, 8, 5)


def single(given: Any) -> Any:
    """The tree in float32."""
    return tree.map(lambda leaf: leaf.float() if leaf.is_floating_point() else leaf, given)


class Attention(nn.Module):
    """One head, samples first."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.q, self.k, self.v, self.out = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        shares = torch.softmax(self.q(x) @ self.k(x).mT / x.shape[-1] ** 0.5, -1)
        return self.out(shares @ self.v(x))


class Transformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(7, 6), nn.Embedding(5, 6)
        self.attention, self.norm = Attention(6), nn.LayerNorm(6)
        self.feed = nn.Sequential(nn.Linear(6, 8), nn.GELU(), nn.Linear(8, 6))
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.tokens(x) + self.places(torch.arange(x.shape[1]).expand_as(x))
        h = self.norm(h + self.attention(h))
        return self.head((h + self.feed(h)).mean(1))


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(6, 2, 8, 0.0, batch_first=True)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(x).mean(1))


class Grouped(nn.Sequential):
    def __init__(self) -> None:
        layers = [nn.Conv2d(2, 4, 3, padding=1), nn.GroupNorm(2, 4), nn.Tanh(), nn.Conv2d(4, 4, 3, stride=2)]
        super().__init__(*layers, nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(16, 3))


class Embedded(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.hidden, self.head = nn.Embedding(7, 6), nn.Linear(6, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.hidden(self.tokens(x).mean(1))))


TOKENS = (torch.arange(80).reshape(16, 5) * torch.arange(3, 19).unsqueeze(1)) % 7
NETS: dict[str, tuple[Model, Tensor]] = {
    "mlp": (models.mlp(features=(6,), classes=3, hidden=(5, 4)), numbers(16, 6)),
    "cnn": (models.convnet(features=(2, 6, 6), classes=3, channels=(3, 4)), numbers(16, 2, 6, 6)),
    "resnet": (models.resnet(features=(2, 8, 8), classes=3, depth=8), numbers(16, 2, 8, 8)),
    "transformer": (models.from_module(build=Transformer), TOKENS),
    "encoder": (models.from_module(build=Encoder), numbers(16, 5, 6)),
    "group norm": (models.from_module(build=Grouped), numbers(16, 2, 6, 6)),
    "embedding": (models.from_module(build=Embedded), TOKENS),
}
every_net = pytest.mark.parametrize("name", NETS)


def of_net(name: str, objective: Callable = stopped, size: int = 5) -> tuple[Problem, list[Batch]]:
    """A problem, and three batches; the last sample of the sixteen is the clean one."""
    model, x = NETS[name]
    seen = Batch(x=x, y=torch.arange(16) * 7 % 3, id=torch.arange(16))
    part = lambda start, stop: tree.map(lambda leaf: leaf[start:stop], seen)  # noqa: E731
    return problem(model, part(12, 16), objective), [part(k, k + size) for k in (0, 4, 7)]


WAYS = {
    "unrolled": unrolled,
    "adjoint": adjoint,
    "truncated": lambda *given: truncated(*given, last=len(given[-1].batches)),
}
every_way = pytest.mark.parametrize("way", WAYS.values(), ids=WAYS.keys())


@every_way
@every_optimizer
def test_every_exact_way_is_reverse_mode_by_hand_through_every_optimizer(way, optimizer, rule):
    made, batches = small()
    for steps in (1, 2, 3, 5):
        descent = Descent(optimizer, optimizer.init(made.params), batches[:steps])
        right = by_hand(*made, batches[:steps], rule)
        assert error(way(*made, descent), right) <= first_steps(optimizer, steps, 1e-8, 1e-10)


def first_steps(optimizer: Optimizer, steps: int, first: float, others: float) -> float:
    """Adam's first step is almost the sign of the gradient: its derivative is a difference of numbers about a million
    times larger, so rounding counts as much more."""
    return first if steps == 1 and hasattr(optimizer.init({}), "second") else others


def rounded(way: Callable, made: Problem, optimizer: Optimizer, batches: list[Batch], early: int) -> float:
    """The relative error of a way in float32 after some early steps, against float64 from the same numbers."""
    start = Descent(optimizer, optimizer.init(made.params), batches[:early])
    params, memory, meta = single((*descend(*made[1:], start), made.meta))
    found = way(*made[:2], params, meta, Descent(optimizer, memory, batches[early:]))
    params, memory, meta = double((params, memory, meta))
    return error(found, unrolled(*made[:2], params, meta, Descent(optimizer, memory, batches[early:])))


@every_way
@every_optimizer
def test_every_exact_way_is_the_one_of_float64_in_float32(way, optimizer, rule):
    made, batches = small()
    for early in (0, 5):
        if early == 0 and "Adam" in type(optimizer.init({})).__name__:
            continue  # its first steps amplify rounding: see first_steps
        for steps in (1, 2, 3, 5):
            assert rounded(way, made, optimizer, (2 * batches)[: early + steps], early) <= 1e-5


@every_net
def test_every_exact_way_is_reverse_mode_by_hand_for_every_net(name):
    made, batches = of_net(name)
    with sdpa_kernel(SDPBackend.MATH):  # the fused kernel of attention has no second derivative
        for optimizer, rule in (OPTIMIZERS["momentum, decay"], OPTIMIZERS["clipped Adam"]):
            descent = Descent(optimizer, optimizer.init(made.params), batches[1:])
            right = by_hand(*made, batches[1:], rule)
            for way in WAYS.values():
                assert error(way(*made, descent), right) <= 1e-10
        for kind in ("momentum, decay", "Adam, decay"):
            assert rounded(adjoint, made, OPTIMIZERS[kind][0], (3 * batches)[:7], 5) <= 1e-5


@every_way
@every_objective
def test_a_weights_own_input_is_differentiated_or_not_as_the_objective_says(way, objective):
    made, batches = small(objective)
    optimizer, rule = OPTIMIZERS["Nesterov"]
    descent = Descent(optimizer, optimizer.init(made.params), batches[:3])
    right = by_hand(*made, batches[:3], rule)
    assert error(way(*made, descent), right) <= 1e-10
    assert error(exact(*made, descent), right) <= 1e-10
    if objective is through:  # it does make a difference
        held, _ = small(stopped)
        assert error(way(*held, descent), right) > 0.01


@pytest.mark.parametrize("last", [1, 2, 3])
@pytest.mark.parametrize("kind", ["momentum", "AdamW"])
def test_truncated_is_reverse_mode_with_the_meta_parameters_held_back_in_early_steps(last, kind):
    made, batches = small()
    optimizer, rule = OPTIMIZERS[kind]
    descent = Descent(optimizer, optimizer.init(made.params), batches)
    found = truncated(*made, descent, last=last)
    assert error(found, by_hand(*made, batches, rule, early=5 - last)) <= 1e-10
    assert error(found, by_hand(*made, batches, rule)) > 1e-3
    assert tree.equal(truncated(*made, descent, last=9), adjoint(*made, descent))


@every_optimizer
def test_a_descent_goes_on_from_what_the_optimizer_remembers(optimizer, rule):
    made, batches = small()
    start = Descent(optimizer, optimizer.init(made.params), batches[:2])
    params, memory = descend(made.inner, made.params, made.meta, start)
    right = by_hand(*made, batches, rule, early=2)
    for way in WAYS.values():
        found = way(made.outer, made.inner, params, made.meta, Descent(optimizer, memory, batches[2:]))
        assert error(found, right) <= 1e-10


def test_meta_parameters_that_the_outer_loss_reads_itself_have_both_derivatives():
    made, batches = small()
    optimizer, rule = OPTIMIZERS["momentum"]
    own = lambda params, meta: made.outer(params, meta) * meta["a"].exp().sum()  # noqa: E731
    descent = Descent(optimizer, optimizer.init(made.params), batches[:2])
    right = by_hand(own, *made[1:], batches[:2], rule)
    for way in WAYS.values():
        assert error(way(own, *made[1:], descent), right) <= 1e-10
    for still in (descent._replace(batches=[]), at_rest(batches[:2])):
        for way in (unrolled, adjoint):
            found = way(own, *made[1:], still)
            assert torch.equal(found["a"], made.outer(made.params, made.meta) * made.meta["a"].exp())


def test_learning_rates_momentum_and_penalties_can_be_the_meta_parameters():
    made, batches = small()
    meta = {"rate": torch.tensor(-2.0).double(), "momentum": torch.tensor(0.5).double()}
    meta |= {"penalty": {name: 0.1 * numbers(*leaf.shape, seed=4) for name, leaf in made.params.items()}}

    def inner(params, meta, batch):
        penalties = [(meta["penalty"][name].exp() * leaf.square()).sum() for name, leaf in params.items()]
        return made.inner.losses(params, batch).mean() + 0.01 * torch.stack(penalties).sum()

    def optimizer(meta):
        momentum = torch.sigmoid(meta["momentum"])
        return optim.sgd(learning_rate=meta["rate"].exp(), momentum=momentum, nesterov=True)  # pyright: ignore

    def rule(p, g, memory, number, meta):
        own = {"rate": lambda number, meta: meta["rate"].exp(), "momentum": torch.sigmoid(meta["momentum"])}
        velocity = {n: own["momentum"] * memory[n] + g[n] if memory else g[n] for n in g}
        moved = {n: p[n] - meta["rate"].exp() * (g[n] + own["momentum"] * velocity[n]) for n in p}
        return moved, velocity

    for steps in (1, 2, 3, 5):
        right = by_hand(made.outer, inner, made.params, meta, batches[:steps], rule)
        descent = Descent(optimizer, optimizer(meta).init(made.params), batches[:steps])
        for way in WAYS.values():
            found = way(made.outer, inner, made.params, meta, descent)
            assert error(found, right) <= 1e-10
            assert error(found["rate"], right["rate"]) <= 1e-10
            assert steps == 1 or error(found["momentum"], right["momentum"]) <= 1e-10


def test_labels_can_be_the_meta_parameters():
    made, batches = small()
    model = models.mlp(features=(6,), classes=3, hidden=(5,))

    def inner(params, meta, batch):
        outputs = model.apply(params, batch.x)
        return -(torch.softmax(meta[batch.id % len(meta)], -1) * F.log_softmax(outputs, -1)).sum(-1).mean()

    meta = numbers(20, 3, seed=8)
    optimizer, rule = OPTIMIZERS["AdamW"]
    descent = Descent(optimizer, optimizer.init(made.params), batches[:3])
    right = by_hand(made.outer, inner, made.params, meta, batches[:3], rule)
    for way in WAYS.values():
        assert error(way(made.outer, inner, made.params, meta, descent), right) <= 1e-10


@every_optimizer
def test_a_step_accumulated_over_parts_has_the_hypergradient_of_the_whole_batch(optimizer, rule):
    made, batches = small()

    def parts(params, meta, batch):
        return total(
            made.inner, params, meta, [Batch(*part) for part in zip(*(leaf.chunk(4) for leaf in batch), strict=True)]
        )

    descent = Descent(optimizer, optimizer.init(made.params), batches[:2])
    right = by_hand(*made, batches[:2], rule)
    for way in WAYS.values():
        assert error(way(made.outer, parts, *made[2:], descent), right) <= 1e-10


@every_optimizer
def test_a_scale_of_the_loss_changes_nothing(optimizer, rule):
    made, batches = small()
    scaled = loss_scaled(optimizer)
    memory = scaled.init(made.params)._replace(good=torch.tensor(1999))  # the scale is doubled after the first step
    right = by_hand(*made, batches[:3], rule)
    for way in WAYS.values():
        assert error(way(*made, Descent(scaled, memory, batches[:3])), right) <= 1e-10


@pytest.mark.parametrize("kind", ["momentum, decay", "Adam", "clipped"])
def test_hypergradients_can_be_differentiated_again(kind):
    data = blobs(12, features=(3,))
    net = models.from_module(build=lambda: nn.Sequential(nn.Linear(3, 3), nn.Tanh()))
    made = problem(net, whole(blobs(4, (3,))), through)  # a difference sees through detach
    made, batches = made._replace(meta=weight_net(hidden=2)), batches_of(data, 4, 3)
    optimizer, _ = OPTIMIZERS[kind]
    start = Descent(optimizer, optimizer.init(made.params), batches[:1])
    params, memory = descend(made.inner, made.params, made.meta, start)
    descent = Descent(optimizer, memory, batches[1:])
    leaves, build = tree.flatten((params, made.meta))
    fresh = tuple(leaf.detach().requires_grad_() for leaf in leaves)

    def reached(*leaves: Tensor) -> Tensor:
        params, meta = build([*leaves])
        return made.outer(descend(made.inner, params, meta, descent)[0], meta)

    assert gradcheck(reached, fresh, fast_mode=True)
    for way in (unrolled, adjoint):

        def found(*leaves: Tensor, way: Any = way) -> tuple[Tensor, ...]:
            params, meta = build([*leaves])
            return tuple(tree.leaves(way(made.outer, made.inner, params, meta, descent)))

        assert gradcheck(found, fresh, fast_mode=True, atol=1e-6)


@settings(max_examples=12)
@given(
    seed=seeds,
    features=st.integers(1, 4),
    classes=st.integers(2, 4),
    hidden=st.lists(st.integers(1, 4), max_size=2).map(tuple),
    size=st.integers(2, 5),  # of one sample, normalised weights are 1
    steps=st.integers(1, 4),
    rate=st.floats(1e-3, 0.5),
    momentum=st.floats(0, 0.99),
    decay=st.floats(0, 1),
    kind=st.sampled_from(["sgd", "adam", "adamw", "clipped"]),
    objective=st.sampled_from([*OBJECTIVES.values()]),
)
def test_any_small_problem_has_the_hypergradient_by_hand(
    seed, features, classes, hidden, size, steps, rate, momentum, decay, kind, objective
):
    layers: list[nn.Module] = []
    for into, out in zip((features, *hidden), (*hidden, classes), strict=True):
        layers += [nn.Linear(into, out), nn.Tanh()]
    model = models.from_module(build=lambda: nn.Sequential(*layers))
    data = blobs(size * (steps + 2), (features,), classes, seed % 2**30)
    made = problem(model, whole(blobs(4, (features,), classes, seed % 2**30 + 1)), objective)
    batches = batches_of(data, size, steps + 2)
    plain = optim.sgd(learning_rate=rate, momentum=momentum, weight_decay=decay)
    by_sgd = partial(sgd, rate=rate, momentum=momentum, decay=decay)
    optimizer, rule = {
        "sgd": (plain, by_sgd),
        "adam": (optim.adam(learning_rate=rate, weight_decay=decay), partial(adam, rate=rate, coupled=decay)),
        "adamw": (optim.adamw(learning_rate=rate, weight_decay=decay), partial(adam, rate=rate, decoupled=decay)),
        "clipped": (optim.clipped(optimizer=plain, max_norm=0.1), partial(cut, rule=by_sgd, most=0.1)),
    }[kind]
    start = Descent(optimizer, optimizer.init(made.params), batches[:2])
    params, memory = descend(made.inner, made.params, made.meta, start)
    descent = Descent(optimizer, memory, batches[2:])
    right = by_hand(*made, batches, rule, early=2)
    size_of = max(float(leaf.abs().max()) for leaf in tree.leaves(right))
    for way in WAYS.values():
        assert_close(
            way(made.outer, made.inner, params, made.meta, descent), right, rtol=1e-9, atol=1e-10 * size_of + 1e-14
        )


@every_way
def test_members_are_mapped_as_in_a_loop(way):
    made, batches = small()
    optimizer, _ = OPTIMIZERS["clipped Adam"]
    members = tree.stack([(small(seed=k)[0].params, weight_net(seed=9 * k)) for k in range(3)])
    memory = optimizer.init(made.params)
    one = lambda params, meta: way(made.outer, made.inner, params, meta, Descent(optimizer, memory, batches[:2]))  # noqa: E731
    assert_close(vmap(one)(*members), looped(one, *members))


@every_way
def test_traced_it_has_the_bits_of_an_eager_call_and_arguments_stay_as_they_are(way):
    made, batches = small(through)
    for kind in ("schedule", "clipped Adam"):
        optimizer, _ = OPTIMIZERS[kind]
        given = (made.params, made.meta, optimizer.init(made.params), batches[:2])
        one = lambda params, meta, memory, batches: way(  # noqa: E731
            made.outer,
            made.inner,
            params,
            meta,
            Descent(optimizer, memory, batches),  # noqa: B023
        )
        before = tree.map(torch.clone, given)
        found = one(*given)
        assert tree.equal(before, given)
        graph = traced(one, *given)
        assert tree.equal(graph(*given), found)
        other = (small(seed=3)[0].params, weight_net(seed=77), *given[2:])
        assert tree.equal(graph(*other), one(*other)) and not tree.equal(one(*other), found)


class Alive(TorchDispatchMode):
    """How many numbers are alive at a time, at most."""

    def __init__(self) -> None:
        super().__init__()
        self.now, self.most = 0, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        if isinstance(found, Tensor) and found._base is None:
            self.now += found.numel()
            weakref.finalize(found, self.gone, found.numel())
            self.most = max(self.most, self.now)
        return found

    def gone(self, size: int) -> None:
        self.now -= size


def test_the_adjoint_keeps_parameters_of_every_step_and_the_graph_of_one():
    data = blobs(256)
    made = problem(models.mlp(features=(6,), classes=3, hidden=(5,)), whole(data))
    optimizer, _ = OPTIMIZERS["momentum"]

    def most(way: Callable, steps: int) -> int:
        with Alive() as alive:
            way(*made, Descent(optimizer, optimizer.init(made.params), [whole(data)] * steps))
        return alive.most

    size = sum(leaf.numel() for leaf in made.params.values())
    assert most(adjoint, 12) - most(adjoint, 2) <= 10 * (2 * size + 1)  # parameters and momentum
    assert most(unrolled, 12) > 4 * most(unrolled, 2)
