"""Data reweighting: Meta-Weight-Net in a loop of one's own, three seeds as one mapped program.

    python examples/bilevel_reweighting.py

The digits of scikit-learn, 40 % of whose training labels are wrong, and 100 clean samples. Shows that wrong labels end
with hardly any weight, and what that is worth on test samples.
"""

import torch
from torch.func import vmap

from fcurr import losses, models, optim, reweighting, rng, training, tree
from fcurr.bilevel import clean, methods
from fcurr.bilevel.learned_weights import Recipe
from fcurr.data import labels, splits
from fcurr.io import datasets
from fcurr.tracing import traced

SEEDS, WRONG, CLEAN, STEPS, BATCH = (0, 1, 2), 0.4, 100, 800, 128

DIGITS = datasets.digits()
PARTS = splits.stratified(DIGITS.y, seed=0, validation=CLEAN / 1797, test=0.25)
TRUE = DIGITS.y[PARTS.train]
TRAIN = DIGITS.part(PARTS.train)._replace(y=labels.symmetric(TRUE, share=WRONG, classes=10, seed=0))
KNOWN, TEST = DIGITS.part(PARTS.validation), DIGITS.take(PARTS.test)
MODEL = models.mlp(features=DIGITS.features, classes=10, hidden=(256,))
OPTIMIZER = optim.sgd(learning_rate=0.1, momentum=0.9)
METHOD = methods.meta_weight_net()
RECIPE = Recipe(
    model=MODEL,
    loss=losses.cross_entropy,
    optimizer=OPTIMIZER,
    clean=clean.shuffled(KNOWN, batch_size=CLEAN),
    route="ghost",
)


def begin(seed):
    state = training.train_start(seed, model=MODEL, optimizer=OPTIMIZER)
    return state._replace(weighing=reweighting.begun(METHOD.init(seed, state.params)))


def learned_step(state, batch):
    return METHOD.step(state, batch, recipe=RECIPE)


def plain_step(state, batch):
    return training.train_step(state, batch, model=MODEL, loss=losses.cross_entropy, optimizer=OPTIMIZER)


def batches(iteration):
    """One a seed: pass after pass over the training samples, each in an order of its own."""
    visit = iteration * BATCH + torch.arange(BATCH)
    keys = rng.fold(torch.tensor(SEEDS), 9).unsqueeze(1)
    size = len(TRAIN.y)
    return TRAIN.take(rng.shuffle(visit % size, size, rng.fold(keys, visit // size)))


def trained(step):
    states = tree.stack([begin(seed) for seed in SEEDS])
    program = traced(vmap(step), states, batches(0))
    for iteration in range(STEPS):
        states = program(states, batches(iteration))
    return states


def accuracy(params):
    return 100 * (MODEL.apply(params, TEST.x).argmax(1) == TEST.y).double().mean()


def weights(state):
    """Of all training samples."""
    everything = TRAIN.take(torch.arange(len(TRAIN.y)))
    each = losses.cross_entropy(MODEL.apply(state.params, everything.x), everything.y)
    return METHOD.weigh(state, each, everything, recipe=RECIPE)


def main():
    learned, plain = trained(learned_step), trained(plain_step)
    found, before = (vmap(accuracy)(states.params) for states in (learned, plain))
    wrong = TRAIN.y != TRUE
    shares = [float(own[wrong].sum() / own.sum()) for own in vmap(weights)(learned)]
    print(f"learned weights: test accuracy {', '.join(f'{x:.1f}' for x in found)} %")
    print(f"all weights 1:   test accuracy {', '.join(f'{x:.1f}' for x in before)} %")
    part, weight = 100 * wrong.double().mean(), 100 * max(shares)
    print(f"wrong labels are {part:.0f} % of the samples and carry {weight:.0f} % of the weight")
    assert bool((found > before + 10).all()) and max(shares) < 0.1


if __name__ == "__main__":
    main()
