"""Sixteen trainings as one program, against sixteen imperative ones after each other: python benchmarks/members.py"""

import torch
from interleave import imperative, quiet, ratios, show
from step import RATE, folding, method
from torch.func import vmap

from fcurr import optim, tracing, tree
from fcurr.types import Batch

MEMBERS = 16


def products(states, batches):
    """The matrix products that no program of 16 members can do without."""
    x, wide, narrow = batches.x, torch.randn(MEMBERS, 128, 256), torch.randn(MEMBERS, 128, 10)
    into, out = states.params["0.weight"], states.params["1.weight"]

    def go():
        torch.bmm(x, into.mT), torch.bmm(wide, out.mT)  # forward
        torch.bmm(narrow, out), torch.bmm(narrow.mT, wide), torch.bmm(wide.mT, x)  # backward

    return go


def main() -> None:
    quiet()
    torch.manual_seed(0)
    x, y = torch.randn(128, 64), torch.randint(0, 10, (128,))
    plain = method(optim.sgd(learning_rate=RATE, momentum=0.9))
    states = tree.stack([plain.init(seed) for seed in range(MEMBERS)])
    batches = Batch(
        x=x.expand(MEMBERS, 128, 64).contiguous(),
        y=y.expand(MEMBERS, 128).contiguous(),
        id=torch.arange(128).expand(MEMBERS, 128).contiguous(),
    )
    mapped = vmap(plain.step)
    traced, whole = tracing.traced(mapped, states, batches), torch.compile(mapped, fullgraph=True)
    graph = tracing.compiled(traced)
    wrapped = torch.compile(mapped, fullgraph=True, options={"cpp_wrapper": True})
    assert tree.equal(traced(states, batches), mapped(states, batches)), "traced and mapped steps differ"
    options = {"lr": RATE, "momentum": 0.9}
    found = ratios(
        {
            "16 imperative, fused torch.optim.SGD": imperative(x, y, MEMBERS, torch.optim.SGD, fused=True, **options),
            "16 imperative, torch.optim.SGD as it comes": imperative(x, y, MEMBERS, torch.optim.SGD, **options),
            "fcurr, vmap(train_step)": folding(mapped, states, batches),
            "fcurr, vmap(train_step) traced (what a run does)": folding(traced, states, batches),
            "fcurr, vmap(train_step) compiled": folding(whole, states, batches),
            "fcurr, the traced step compiled": folding(graph, states, batches),
            "fcurr, vmap(train_step) compiled, C++ wrapper": folding(wrapped, states, batches),
            "the five batched products of such a step, alone": products(states, batches),
        }
    )
    show("16 members (targets: throughput at least 2.0, compiled at least 3.5)", found)


if __name__ == "__main__":
    main()
