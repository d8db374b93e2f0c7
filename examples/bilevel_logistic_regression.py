"""Logistic regression with a penalty of its own on every weight, all of them tuned at once on validation samples.

    python examples/bilevel_logistic_regression.py

Two levels: `weights` go down the penalised loss of few training samples, `penalties` down the validation loss of where
the weights end, by the derivative of that minimum (conjugate gradient). Shows that it is the derivative, that features
which are noise are found, and that the tuned model is better on test samples than one penalty for all, tuned as well.
"""

from functools import partial

import torch
import torch.nn.functional as F

from fcurr import optim, rng
from fcurr.bilevel.graph import Dependencies
from fcurr.bilevel.implicit import conjugate_gradient
from fcurr.bilevel.levels import Level, parameters
from fcurr.bilevel.programs import program
from fcurr.types import Batch

FEATURES, TELLING = 30, 6  # the other features say nothing of the class
STEPS, UNROLL = 60, 10


def samples(number, seed):
    """Two classes, told apart by the first features, in all others noise."""
    stream = rng.generator(seed)
    x = torch.randn(number, FEATURES, generator=stream, dtype=torch.float64)
    chance = torch.sigmoid(2 * x[:, :TELLING].sum(1))
    y = (torch.rand(number, generator=stream, dtype=torch.float64) < chance).double()
    return Batch(x=x, y=y, id=torch.arange(number))


TRAIN, VALIDATION, TEST = samples(80, 1), samples(300, 2), samples(5000, 3)


def fit(held, batch):
    """The loss of a batch."""
    return F.binary_cross_entropy_with_logits(batch.x @ held["weights"]["w"], batch.y)


def penalties(held):
    """Between 0 and 2: more than that is as good as leaving the feature out."""
    return 2 * torch.sigmoid(held["penalties"]["raw"])


def penalised(held, batch):
    return fit(held, batch) + (penalties(held) * held["weights"]["w"].square()).sum() / 2


def accuracy(held, batch):
    return ((batch.x @ held["weights"]["w"] > 0) == (batch.y > 0.5)).double().mean()


def constant(seed, *, name, size, value):
    return {name: torch.full((size,), value, dtype=torch.float64)}


def tuned(hypergradient, unroll=UNROLL, penalties=FEATURES):
    """The program; one penalty is shared by all weights."""
    return program(
        {
            "weights": Level(
                loss=penalised,
                init=partial(constant, name="w", size=FEATURES, value=0.0),
                optimizer=optim.sgd(learning_rate=0.5, momentum=0.9),
                batches=lambda place: TRAIN,
                unroll=unroll,
                hypergradient=hypergradient,
            ),
            "penalties": Level(
                loss=fit,
                init=partial(constant, name="raw", size=penalties, value=-5.0),
                optimizer=optim.adam(learning_rate=0.1),
                batches=lambda place: VALIDATION,
            ),
        },
        Dependencies(low_to_up={"weights": ["penalties"]}, up_to_low={"penalties": ["weights"]}),
    )


def after(made, steps):
    state = made.init(0)
    for _ in range(steps):
        state = made.step(state)
    return parameters(state)


def main():
    implicit = partial(conjugate_gradient, iterations=12)

    # One step from the same state, by the minimum and by 300 steps to it; Adam then remembers a tenth of the gradient.
    by = {name: tuned(method, unroll=300) for name, method in (("implicit", implicit), ("as taken", None))}
    first = {name: made.step(made.init(0))["penalties"].memory.first["raw"] for name, made in by.items()}
    error = (first["implicit"] - first["as taken"]).norm() / first["as taken"].norm()
    assert error < 1e-3, error

    found = {
        "nearly none": after(tuned(implicit), 1),
        "one for all": after(tuned(implicit, penalties=1), STEPS),
        "one a weight": after(tuned(implicit), STEPS),
    }
    loss = {name: float(fit(held, TEST)) for name, held in found.items()}
    assert loss["one a weight"] < loss["one for all"] < loss["nearly none"], loss
    telling, noise = penalties(found["one a weight"]).split([TELLING, FEATURES - TELLING])
    assert noise.median() > 10 * telling.median()

    for name, held in found.items():
        print(f"penalties: {name:12}  test loss {loss[name]:.3f}, accuracy {accuracy(held, TEST):.1%}")
    print(f"penalties of features that tell {telling.median():.3f}, of noise {noise.median():.3f} (medians)")
    print(f"the derivative of the minimum, against that of 300 steps to it: relative error {error:.0e}")


if __name__ == "__main__":
    main()
