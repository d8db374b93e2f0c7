"""One training step of a 64-256-10 perceptron, batch 128, against the imperative loop: python benchmarks/step.py"""

import torch
from interleave import imperative, quiet, ratios, show

from fcurr import autodiff, losses, models, optim, tracing, training, tree
from fcurr.types import Batch, Optimizer

RATE = 1e-4  # so small that nothing underflows however long it is repeated


def folding(step, state, batch):
    """A fold that keeps only its last state."""
    held = [state]

    def go():
        held[0] = step(held[0], batch)

    return go


def by_func(step):
    """The same step, its gradient taken by torch.func as under a transform."""

    def go(state, batch):
        own, autodiff.transformed = autodiff.transformed, lambda params: True
        try:
            return step(state, batch)
        finally:
            autodiff.transformed = own

    return go


def method(optimizer: Optimizer):
    model = models.mlp(features=(64,), classes=10, hidden=(256,))
    return training.gradient_descent(model=model, loss=losses.cross_entropy, optimizer=optimizer)


def main() -> None:
    quiet()
    torch.manual_seed(0)
    batch = Batch(x=torch.randn(128, 64), y=torch.randint(0, 10, (128,)), id=torch.arange(128))
    plain = method(optim.sgd(learning_rate=RATE, momentum=0.9))
    start = plain.init(0)
    before = tree.map(torch.clone, start)
    traced = tracing.traced(plain.step, start, batch)
    found = ratios(
        {
            "imperative, fused torch.optim.SGD": imperative(
                batch.x, batch.y, 1, torch.optim.SGD, lr=RATE, momentum=0.9, fused=True
            ),
            "imperative, torch.optim.SGD as it comes": imperative(
                batch.x, batch.y, 1, torch.optim.SGD, lr=RATE, momentum=0.9
            ),
            "fcurr train_step": folding(plain.step, start, batch),
            "fcurr train_step, its gradient by torch.func": folding(by_func(plain.step), start, batch),
            "fcurr train_step, traced": folding(traced, start, batch),
        }
    )
    assert tree.equal(start, before), "a step wrote to its arguments"
    assert tree.equal(traced(start, batch), plain.step(start, batch)), "traced and eager steps differ"
    show("One step, SGD with momentum (target: at most 0.95 of the first row)", found)

    adam = method(optim.adam(learning_rate=RATE))
    whole = torch.compile(adam.step, fullgraph=True)
    begin = adam.init(0)
    found = ratios(
        {
            "imperative, torch.optim.Adam(foreach=True)": imperative(
                batch.x, batch.y, 1, torch.optim.Adam, lr=RATE, foreach=True
            ),
            "imperative, torch.optim.Adam(fused=True)": imperative(
                batch.x, batch.y, 1, torch.optim.Adam, lr=RATE, fused=True
            ),
            "fcurr train_step": folding(adam.step, begin, batch),
            "fcurr train_step, compiled whole": folding(whole, begin, batch),
        }
    )
    show("One step, Adam (target: compiled at most 0.50 of the first row)", found)


if __name__ == "__main__":
    main()
