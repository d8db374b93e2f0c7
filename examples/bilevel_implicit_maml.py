"""Implicit MAML on waves: a start from which ten samples of a new wave are enough.

    python examples/bilevel_implicit_maml.py

Each task is a sine of its own amplitude and phase. On the inner level a network goes down the loss of ten samples, held
near the common start; on the outer level the start goes down the loss of other samples at that minimum, by conjugate
gradients. Rajeswaran et al. (2019), Meta-learning with implicit gradients. The hypergradients of all tasks are one
function, mapped. Shows that they are those of one task after another, that they are near the derivative of the way to
the minimum, and that the learned start is better on new waves than a random one, and than one trained on all waves.
"""

from functools import partial

import torch
import torch.nn.functional as F
from torch.func import grad, vmap

from fcurr import optim, rng, tree
from fcurr.bilevel.implicit import conjugate_gradient
from fcurr.bilevel.problem import Descent, descend
from fcurr.bilevel.unrolling import adjoint
from fcurr.tracing import traced
from fcurr.types import Batch

TASKS, SHOTS, WIDTH = 16, 10, 32
META_STEPS, INNER_STEPS, NEARNESS = 400, 16, 0.3
INNER = optim.sgd(learning_rate=0.02, momentum=0.9)
OUTER = optim.adam(learning_rate=0.003)


def network(seed):
    stream = rng.generator(seed)
    sizes = {"1": (1, WIDTH), "2": (WIDTH, WIDTH), "3": (WIDTH, 1)}
    weights = {f"w{n}": torch.randn(size, generator=stream) / size[0] ** 0.5 for n, size in sizes.items()}
    return weights | {f"b{n}": torch.randn(size[1], generator=stream) for n, size in sizes.items()}


def wave(params, x):
    """[batch, 1]"""
    x = torch.tanh(x @ params["w1"] + params["b1"])
    return torch.tanh(x @ params["w2"] + params["b2"]) @ params["w3"] + params["b3"]


def error(params, batch):
    return F.mse_loss(wave(params, batch.x), batch.y)


def inner(params, start, batch):
    """The loss of a task, near the start."""
    away = tree.map(torch.sub, params, start)
    return error(params, batch) + NEARNESS * tree.dot(away, away) / 2


def drawn(key, samples):
    """Samples of the wave of a key."""
    amplitude, phase = 1 + 3 * rng.uniform(key, 0), 3.14159 * rng.uniform(key, 1)
    x = 10 * rng.uniform(key, 2, torch.arange(samples)).unsqueeze(1) - 5
    return Batch(x=x, y=amplitude * torch.sin(x + phase), id=torch.arange(samples))


def task(key):
    """Ten samples to learn from, and twenty to be judged by."""
    both = drawn(key, 3 * SHOTS)
    return tree.map(lambda leaf: leaf[:SHOTS], both), tree.map(lambda leaf: leaf[SHOTS:], both)


def descent(start, support):
    return Descent(optimizer=INNER, memory=INNER.init(start), batches=[support] * INNER_STEPS)


def adapted(start, support):
    return descend(inner, start, start, descent(start, support))[0]


def hypergradient(start, key, *, method):
    """Of one task."""
    support, query = task(key)
    return method(lambda params, start: error(params, query), inner, start, start, descent(start, support))


def implicit_step(start, memory, keys):
    """Down the mean hypergradient of tasks, all at once."""
    method = partial(conjugate_gradient, iterations=5)
    found = vmap(partial(hypergradient, method=method), in_dims=(None, 0))(start, keys)
    return OUTER.update(tree.map(lambda leaf: leaf.mean(0), found), memory, start)


def joint_step(start, memory, keys):
    """Down the mean loss of tasks, without any adaptation."""
    pooled = lambda start: vmap(lambda key: error(start, drawn(key, 3 * SHOTS)))(keys).mean()  # noqa: E731
    return OUTER.update(grad(pooled)(start), memory, start)


def learned(step):
    start = network(0)
    memory = OUTER.init(start)
    step = traced(step, start, memory, torch.arange(TASKS))
    for number in range(META_STEPS):
        start, memory = step(start, memory, rng.fold(0, number, torch.arange(TASKS)))
    return start


def judged(start, keys):
    """The error on new waves, after adaptation to ten samples of each."""

    def one(key):
        support, query = task(key)
        return error(adapted(start, support), query)

    return float(vmap(one)(keys).mean())


def main():
    starts = {"random": network(0), "joint": learned(joint_step), "implicit": learned(implicit_step)}
    new = rng.fold(1, torch.arange(200))
    errors = {name: judged(start, new) for name, start in starts.items()}

    start, keys = starts["implicit"], new[:8]
    method = partial(hypergradient, method=partial(conjugate_gradient, iterations=5))
    mapped = vmap(method, in_dims=(None, 0))(start, keys)
    apart = tree.stack([method(start, key) for key in keys])
    missed = tree.norm(tree.map(torch.sub, mapped, apart)) / tree.norm(apart)
    exact = tree.stack([hypergradient(start, key, method=adjoint) for key in keys])
    print(missed, errors, tree.dot(mapped,exact)/tree.norm(mapped)/tree.norm(exact))


if __name__ == "__main__":
    main()
