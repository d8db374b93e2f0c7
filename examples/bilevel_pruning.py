"""Data pruning by learned weights: the samples of least weight are left out, and a new model is trained on the others.

    python examples/bilevel_pruning.py

Two levels over the digits of scikit-learn, 40 % of whose training labels are wrong: a `model` goes down the weighted
loss of training samples, and the `weights`, a number a sample, go down the loss of 100 clean samples where the model
ends after two steps. Seeds are members of one mapped program. Shows that most wrong labels are found, and that pruning
by weight beats pruning at random, no pruning, and the clean samples alone, for every seed.
"""

import torch
from torch.func import vmap

from fcurr import losses, models, optim, rng, training, tree
from fcurr.bilevel.graph import Dependencies
from fcurr.bilevel.levels import Level
from fcurr.bilevel.programs import program
from fcurr.data import labels, splits
from fcurr.io import datasets
from fcurr.tracing import traced

SEEDS, WRONG, PRUNED, CLEAN = (0, 1, 2), 0.4, 0.4, 100
STEPS, BATCH, RETRAINING_STEPS = 300, 128, 400

DIGITS = datasets.digits()
PARTS = splits.stratified(DIGITS.y, seed=0, validation=CLEAN / 1797, test=0.25)
SIZE = len(PARTS.train)
TRUE = DIGITS.y[PARTS.train]
GIVEN = labels.symmetric(TRUE, share=WRONG, classes=10, seed=0)
TRAIN = DIGITS.part(PARTS.train)._replace(y=GIVEN)
CLEANED, TEST = (DIGITS.take(ids) for ids in (PARTS.validation, PARTS.test))
MODEL = models.mlp(features=DIGITS.features, classes=10, hidden=(64,))
OPTIMIZER = optim.sgd(learning_rate=0.1, momentum=0.9)


def likelihood(held, batch):
    """[batch]"""
    return losses.cross_entropy(MODEL.apply(held["model"], batch.x), batch.y)


def weighted(held, batch):
    weights = torch.sigmoid(held["weights"]["of"][batch.id])
    return (weights * likelihood(held, batch)).sum() / weights.sum()


def clean(held, batch):
    return likelihood(held, batch).mean()


def drawn(place):
    """Samples at random, a function of (key, iteration)."""
    key, iteration = place
    return TRAIN.take((rng.uniform(key, iteration, torch.arange(BATCH)) * SIZE).long())


def begin(seed):
    return MODEL.init(seed)[0]


LEARNING = program(
    {
        "model": Level(loss=weighted, init=begin, optimizer=OPTIMIZER, batches=drawn, unroll=2),
        "weights": Level(
            loss=clean,
            init=lambda seed: {"of": torch.zeros(SIZE)},
            optimizer=optim.adam(learning_rate=0.1),
            batches=lambda place: CLEANED,
        ),
    },
    Dependencies(low_to_up={"model": ["weights"]}, up_to_low={"weights": ["model"]}),
)
RETRAINING = training.gradient_descent(model=MODEL, loss=losses.cross_entropy, optimizer=OPTIMIZER)


def learned():
    """[seed, sample] the weights, of all seeds at once."""
    states = tree.stack([LEARNING.init(seed) for seed in SEEDS])
    step = traced(vmap(LEARNING.step), states)
    for _ in range(STEPS):
        states = step(states)
    return states["weights"].params["of"]


def judged(data, kept):
    """[seed] test accuracy of new models, each trained on its own samples; kept [seed, sample] int64."""
    states = tree.stack([RETRAINING.init(seed) for seed in SEEDS])
    step = traced(vmap(RETRAINING.step), states, data.take(kept[:, :1].expand(-1, BATCH)))
    for number in range(RETRAINING_STEPS):
        places = rng.uniform(7, number, torch.arange(BATCH)) * kept.shape[1]
        states = step(states, data.take(kept[:, places.long()]))
    outputs = vmap(MODEL.apply, in_dims=(0, None))(states.params, TEST.x)
    return (outputs.argmax(-1) == TEST.y).double().mean(-1)


def main():
    weights = learned()
    wrong, left_out = GIVEN != TRUE, round(PRUNED * SIZE)
    order = weights.argsort(-1)
    by_chance = rng.uniform(torch.tensor(SEEDS)[:, None], 9, torch.arange(SIZE)).argsort(-1)
    accuracy = {
        "nothing": judged(TRAIN, torch.arange(SIZE).expand_as(order)),
        "all but clean": judged(DIGITS, PARTS.validation.expand(len(SEEDS), -1)),
        "at random": judged(TRAIN, by_chance[:, left_out:]),
        "by weight": judged(TRAIN, order[:, left_out:]),
    }
    found = wrong[order[:, :left_out]].double().mean(-1)

    assert (found > 1.75 * WRONG).all(), found
    best = accuracy.pop("by weight")
    assert all((best > values).all() for values in accuracy.values()), (best, accuracy)
    assert (best > accuracy["at random"] + 0.05).all(), (best, accuracy)
    shown = lambda values: " ".join(f"{value:.1%}" for value in values)  # noqa: E731
    print(f"{SIZE} samples, {WRONG:.0%} of their labels wrong; {PRUNED:.0%} are left out; seeds {SEEDS}")
    print(f"of those of least weight {shown(found)} are wrong")
    for name, values in (accuracy | {"by weight": best}).items():
        print(f"left out: {name:13}  test accuracy {shown(values)}")


if __name__ == "__main__":
    main()
