"""Three levels: how much each source of data counts in pretraining, learned for what is tuned on few samples after it.

    python examples/bilevel_three_levels.py

`pretrained` goes down the weighted loss of four sources of digits, of which one is like the target, one is upside down
and two have wrong labels; `tuned` goes down the loss of 40 target samples, held near where `pretrained` has come to;
`weights`, a number a source, go down the loss of 100 other target samples where `tuned` has come to. Their gradient has
one way: from `tuned` down to `pretrained`, and from there to the weights. Shows that it is the slope of the whole step,
that the one good source is found, and what that is worth on test samples.
"""

from functools import partial

import torch
from torch.func import vmap

from fcurr import losses, optim, rng, tree
from fcurr.bilevel.graph import Dependencies
from fcurr.bilevel.levels import Level, parameters
from fcurr.bilevel.programs import program
from fcurr.data import splits
from fcurr.io import datasets
from fcurr.types import Batch

SEEDS, STEPS, EACH, NEARNESS = (0, 1), 25, 64, 0.1
SOURCES = ("like the target", "upside down", "labels moved by 3", "labels at random")

DIGITS = datasets.digits()
PARTS = splits.stratified(DIGITS.y, seed=0, validation=0.3, test=0.3)
TARGET, OTHERS, TEST = (DIGITS.take(ids) for ids in (PARTS.validation[:40], PARTS.validation[40:140], PARTS.test))
SOURCE = DIGITS.take(PARTS.train)


def sources(place):
    """Samples of every source, drawn at random: x [source, batch, ...], y [source, batch]."""
    ids = (rng.uniform(*place, torch.arange(4 * EACH)) * len(SOURCE.y)).long().reshape(4, EACH)
    x, y = SOURCE.x[ids], SOURCE.y[ids]
    any_label = (10 * rng.uniform(*place, 1, torch.arange(EACH))).long()
    y = torch.stack([y[0], y[1], (y[2] + 3) % 10, any_label])
    return Batch(x=torch.stack([x[0], x[1].flip(-2), x[2], x[3]]), y=y, id=ids)


def likelihood(params, batch):
    """[batch] of a linear model."""
    x = batch.x.flatten(1).to(params["weight"].dtype)
    return losses.cross_entropy(x @ params["weight"] + params["bias"], batch.y)


def weighted(held, batch):
    """The mean over sources, each counting as much as learned."""
    found = torch.stack([likelihood(held["pretrained"], Batch(*part)).mean() for part in zip(*batch, strict=True)])
    return (held["weights"]["log"].softmax(0) * found).sum()


def near(held, batch):
    away = tree.map(torch.sub, held["tuned"], held["pretrained"])
    return likelihood(held["tuned"], batch).mean() + NEARNESS * tree.dot(away, away) / 2


def judged(held, batch):
    return likelihood(held["tuned"], batch).mean()


def linear(seed, *, dtype):
    return {"weight": torch.zeros(64, 10, dtype=dtype), "bias": torch.zeros(10, dtype=dtype)}


def equally(seed, *, dtype):
    return {"log": torch.zeros(4, dtype=dtype)}


STILL, MOVING = optim.sgd(learning_rate=0.0), optim.sgd(learning_rate=0.5, momentum=0.9)


def made(optimizer, pretraining=MOVING, dtype=torch.float32):
    """The program, with the optimizer of the weights."""
    model = Level(loss=weighted, init=partial(linear, dtype=dtype), optimizer=MOVING, batches=sources, unroll=3)
    return program(
        {
            "pretrained": model._replace(optimizer=pretraining),
            "tuned": model._replace(loss=near, batches=lambda place: TARGET),
            "weights": Level(
                loss=judged, init=partial(equally, dtype=dtype), optimizer=optimizer, batches=lambda place: OTHERS
            ),
        },
        Dependencies(
            low_to_up={"pretrained": ["tuned"], "tuned": ["weights"]},
            up_to_low={"weights": ["pretrained"]},
        ),
    )


def after(made, steps=STEPS):
    """The levels' parameters, of all seeds at once."""
    states = tree.stack([made.init(seed) for seed in SEEDS])
    step = vmap(made.step)
    for _ in range(steps):
        states = step(states)
    return parameters(states)


def accuracy(held):
    """[seed]"""
    outputs = TEST.x.flatten(1) @ held["tuned"]["weight"] + held["tuned"]["bias"].unsqueeze(1)
    return (outputs.argmax(-1) == TEST.y).double().mean(-1)


def slope_and_difference(along):
    """The slope along a direction of the loss after a whole step: as the program goes down, and by a difference."""
    exact = made(optim.sgd(learning_rate=1.0), dtype=torch.float64)
    state = exact.step(exact.init(0))

    def moved(size):
        log = state["weights"].params["log"] + size * along
        return state | {"weights": state["weights"]._replace(params={"log": log})}

    gradient = state["weights"].params["log"] - exact.step(state)["weights"].params["log"]
    ahead, behind = (exact.step(moved(size))["weights"].loss for size in (1e-5, -1e-5))
    return float(gradient @ along), float((ahead - behind) / 2e-5)


def main():
    slope, difference = slope_and_difference(torch.tensor([1.0, -0.5, 0.3, 0.8], dtype=torch.float64))
    assert abs(slope - difference) < 1e-6 * abs(slope), (slope, difference)
    runs = {
        "without pretraining": after(made(STILL, pretraining=STILL)),
        "all sources alike": after(made(STILL)),
        "as learned": after(made(optim.adam(learning_rate=0.2))),
    }
    found = {name: accuracy(held) for name, held in runs.items()}
    weights = runs["as learned"]["weights"]["log"].softmax(-1)
    assert (weights[:, 0] > 0.9).all(), weights
    assert all((found["as learned"] > found[name] + 0.05).all() for name in [*found][:2]), found

    print(f"slope of a whole step along a direction {slope:.8f}, by a difference {difference:.8f}")
    for name, weight in zip(SOURCES, weights.mean(0), strict=True):
        print(f"source: {name:18} weight {weight:.3f}")
    for name, values in found.items():
        print(f"{name:19}  test accuracy {' '.join(f'{value:.1%}' for value in values)}")


if __name__ == "__main__":
    main()
