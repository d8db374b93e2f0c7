"""Implicit MAML on waves: features, and a start for the last layer, with which ten samples of a new wave are enough.

    python examples/bilevel_implicit_maml.py

A task is a sine of its own amplitude and phase. On the inner level the last layer goes down the loss of ten samples,
held near its start; on the outer level start and features go down the loss of other samples, by the derivative of that
minimum (conjugate gradients). Rajeswaran et al. (2019), Meta-learning with implicit gradients; only the last layer
adapts, as in Raghu et al. (2020), Rapid learning or feature reuse? The hypergradients of all tasks are one function,
mapped. Shows that they are near the derivative of the minimum in closed form, and that what is learned is better on new
waves than what is learned without adaptation.
"""

from functools import partial

import torch
import torch.nn.functional as F
from torch.func import grad, vmap

from fcurr import optim, rng, tree
from fcurr.bilevel.implicit import conjugate_gradient
from fcurr.bilevel.problem import Descent, descend
from fcurr.tracing import traced
from fcurr.types import Batch

TASKS, SHOTS, WIDTH = 16, 10, 32
META_STEPS, INNER_STEPS, NEARNESS = 60, 20, 0.05
INNER = optim.sgd(learning_rate=0.5, momentum=0.8)
OUTER = optim.adam(learning_rate=0.01)
IMPLICIT = partial(conjugate_gradient, iterations=6)


def begin(seed):
    """Two layers of features, and the last layer's start."""
    stream = rng.generator(seed)
    normal = partial(torch.randn, generator=stream)
    return {
        "in": normal(1, WIDTH),
        "shift": 3 * normal(WIDTH),
        "on": normal(WIDTH, WIDTH) / WIDTH**0.5,
        "on shift": normal(WIDTH),
        "last": normal(WIDTH, 1),
    }


def start(meta):
    """The parameters of a task, before it is seen."""
    return {"last": meta["last"]}


def seen(meta, x):
    """[batch, WIDTH]"""
    x = torch.tanh(x @ meta["in"] + meta["shift"])
    return torch.tanh(x @ meta["on"] + meta["on shift"]) / WIDTH**0.5


def error(params, meta, batch):
    return F.mse_loss(seen(meta, batch.x) @ params["last"], batch.y)


def inner(params, meta, batch):
    """The error of a task, near the start."""
    away = params["last"] - meta["last"]
    return error(params, meta, batch) + NEARNESS * away.square().sum() / 2


def samples(key, number):
    """Of the wave of a key."""
    amplitude, phase = 1 + 3 * rng.uniform(key, 0), 3.14159 * rng.uniform(key, 1)
    x = 10 * rng.uniform(key, 2, torch.arange(number)).unsqueeze(1) - 5
    return Batch(x=x, y=amplitude * torch.sin(x + phase), id=torch.arange(number))


def task(key):
    """Ten samples to learn from, and twenty to be judged by."""
    both = samples(key, 3 * SHOTS)
    return tree.map(lambda leaf: leaf[:SHOTS], both), tree.map(lambda leaf: leaf[SHOTS:], both)


def descent(meta, support):
    return Descent(optimizer=INNER, memory=INNER.init(start(meta)), batches=[support] * INNER_STEPS)


def hypergradient(meta, key):
    """Of one task."""
    support, query = task(key)
    outer = lambda params, meta: error(params, meta, query)  # noqa: E731
    return IMPLICIT(outer, inner, start(meta), meta, descent(meta, support))


def closed_form(meta, support):
    """The minimum of the inner loss."""
    features, first = seen(meta, support.x), meta["last"]
    bent = 2 * features.T @ features / SHOTS + NEARNESS * torch.eye(WIDTH)
    return {"last": first + torch.linalg.solve(bent, 2 * features.T @ (support.y - features @ first) / SHOTS)}


def with_adaptation(meta, keys):
    """The mean hypergradient of tasks, all at once."""
    return tree.map(lambda leaf: leaf.mean(0), vmap(hypergradient, in_dims=(None, 0))(meta, keys))


def without(meta, keys):
    """The gradient of the mean error of the start itself."""
    return grad(lambda meta: vmap(lambda key: error(start(meta), meta, samples(key, 3 * SHOTS)))(keys).mean())(meta)


def learned(gradient):
    def step(meta, memory, keys):
        return OUTER.update(gradient(meta, keys), memory, meta)

    meta = begin(0)
    memory = OUTER.init(meta)
    step = traced(step, meta, memory, torch.arange(TASKS))
    for number in range(META_STEPS):
        meta, memory = step(meta, memory, rng.fold(0, number, torch.arange(TASKS)))
    return meta


def judged(meta, keys):
    """The error on new waves, after adaptation to ten samples of each."""

    def one(key):
        support, query = task(key)
        return error(descend(inner, start(meta), meta, descent(meta, support))[0], meta, query)

    return float(vmap(one)(keys).mean())


def through_closed_form(meta, key):
    support, query = task(key)
    return grad(lambda meta: error(closed_form(meta, support), meta, query))(meta)


def main():
    new = rng.fold(1, torch.arange(200))
    found = {"nothing": begin(0), "the mean wave": learned(without), "adaptation": learned(with_adaptation)}
    errors = {name: judged(meta, new) for name, meta in found.items()}
    assert errors["adaptation"] < 0.3 * errors["the mean wave"] < errors["nothing"], errors

    meta, alone = found["adaptation"], new[:4]
    mapped = vmap(hypergradient, in_dims=(None, 0))(meta, alone)
    each = tree.stack([hypergradient(meta, key) for key in alone])
    apart = distance(mapped, each)
    assert apart < 1e-2, apart
    exact = tree.map(lambda leaf: leaf.mean(0), vmap(through_closed_form, in_dims=(None, 0))(meta, new))
    missed = distance(with_adaptation(meta, new), exact)
    assert missed < 0.3, missed

    for name, value in errors.items():
        print(f"learned from: {name:13}  error on new waves {value:.3f}")
    print(f"of {len(alone)} tasks mapped, against one after another: {apart:.0e}")
    print(f"of {INNER_STEPS} inner steps, against the minimum in closed form: {missed:.0%}")


def distance(found, right):
    return float(tree.norm(tree.map(torch.sub, found, right)) / tree.norm(right))


if __name__ == "__main__":
    main()
