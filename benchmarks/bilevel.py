"""One step of Meta-Weight-Net, in plain training steps, beside Betty's: python benchmarks/bilevel.py [mlp|cnn|resnet]

Betty: pip install --ignore-requires-python --no-deps betty-ml==0.2.1; without it its row is left out."""

import copy
import importlib.util
import logging
import sys
from functools import partial

import torch
from interleave import most, quiet, ratios, show
from step import folding
from torch import nn
from torch.func import vmap

from fcurr import losses, models, optim, reweighting, tracing, training, tree
from fcurr.bilevel import methods
from fcurr.bilevel.learned_weights import Recipe
from fcurr.types import Batch

RATE, MOMENTUM, META = 1e-4, 0.9, 1e-5  # so small that nothing underflows however long it is repeated


class Block(nn.Module):
    """Two convolutions with group normalisation, and the input added."""

    def __init__(self, into: int, out: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(into, out, 3, stride=stride, padding=1, bias=False)
        self.second = nn.Conv2d(out, out, 3, padding=1, bias=False)
        self.norms = nn.ModuleList([nn.GroupNorm(8, out), nn.GroupNorm(8, out)])
        self.short = nn.Conv2d(into, out, 1, stride=stride, bias=False) if stride > 1 else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        change = self.norms[1](self.second(torch.relu(self.norms[0](self.first(x)))))
        return torch.relu(change + self.short(x))


def mlp() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 10))


def cnn() -> nn.Module:
    into = nn.Conv2d(1, 32, 3, padding=1)
    rest = [nn.Conv2d(32, 64, 3, stride=2, padding=1), nn.ReLU(), nn.Conv2d(64, 64, 3, stride=2, padding=1), nn.ReLU()]
    return nn.Sequential(into, nn.ReLU(), *rest, nn.Flatten(), nn.Linear(256, 10))


def resnet() -> nn.Module:
    stem = [nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.GroupNorm(8, 16), nn.ReLU()]
    blocks = [Block(16, 16, 1), Block(16, 32, 2), Block(32, 64, 2)]
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))


NETS = {"mlp": (mlp, (64,), 128, 100), "cnn": (cnn, (1, 8, 8), 128, 100), "resnet": (resnet, (3, 32, 32), 64, 50)}


class Weights(nn.Module):
    """The weight network, as Betty's example has it."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(1, 100), nn.ReLU(), nn.Linear(100, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.sigmoid(self.net(x))


def plain(net: nn.Module, batch: Batch, weights=None, clean: Batch | None = None):
    """A training step as everybody writes it; the floor: weighted, and a pass over clean samples."""
    optimizer = torch.optim.SGD(net.parameters(), lr=RATE, momentum=MOMENTUM)
    unreduced = nn.CrossEntropyLoss(reduction="none")

    def step() -> None:
        optimizer.zero_grad()
        each = unreduced(net(batch.x), batch.y)
        loss = each.mean() if weights is None else (weights(each.detach()[:, None])[:, 0].detach() * each).mean()
        loss.backward()
        optimizer.step()
        if clean is not None:
            torch.autograd.grad(unreduced(net(clean.x), clean.y).mean(), list(net.parameters()))

    return step


def betty(net: nn.Module, batch: Batch, clean: Batch, kind: str):
    """Betty's own step: an inner step, and one of the weights by its approximation of the hypergradient."""
    from betty.configs import Config, EngineConfig
    from betty.engine import Engine
    from betty.problems import ImplicitProblem

    logging.disable(logging.INFO)
    unreduced = nn.CrossEntropyLoss(reduction="none")

    class Outer(ImplicitProblem):
        def training_step(self, given):
            return unreduced(self.inner(given[0]), given[1]).mean()

    class Inner(ImplicitProblem):
        def training_step(self, given):
            each = unreduced(self.module(given[0]), given[1])
            return (self.outer(each.detach()[:, None])[:, 0] * each).mean()

    weights = Weights()
    outer = Outer(
        name="outer",
        module=weights,
        optimizer=torch.optim.Adam(weights.parameters(), lr=META),
        train_data_loader=[(clean.x, clean.y)],
        config=Config(type="darts", retain_graph=True),
    )
    inner = Inner(
        name="inner",
        module=net,
        optimizer=torch.optim.SGD(net.parameters(), lr=RATE, momentum=MOMENTUM),
        train_data_loader=[(batch.x, batch.y)],
        config=Config(type=kind, unroll_steps=1),
    )
    config = EngineConfig(train_iters=10**9, valid_step=10**9, strategy="cpu")
    engine = Engine(
        config=config, problems=[outer, inner], dependencies={"u2l": {outer: [inner]}, "l2u": {inner: [outer]}}
    )

    def step() -> None:
        engine.global_step += 1
        engine.train_step()

    return step


def learned(build, batch: Batch, clean: Batch, order: methods.Order, route: str):
    """(method step, its first state)."""
    model = models.mlp(features=(64,), classes=10) if build is mlp else models.from_module(build=build)
    optimizer = optim.sgd(learning_rate=RATE, momentum=MOMENTUM)
    method = methods.meta_weight_net(learning_rate=META, warm_up=0, clean_weight=0.0, order=order)
    recipe = Recipe(model, losses.cross_entropy, optimizer, lambda place: clean, route)  # type: ignore[arg-type]
    start = training.train_start(0, model=model, optimizer=optimizer)
    return partial(method.step, recipe=recipe), start._replace(weighing=reweighting.begun(method.init(0, start.params)))


def one(name: str) -> None:
    build, shape, size, few = NETS[name]
    torch.manual_seed(0)
    batch = Batch(torch.randn(size, *shape), torch.randint(0, 10, (size,)), torch.arange(size))
    clean = Batch(torch.randn(few, *shape), torch.randint(0, 10, (few,)), torch.arange(few))
    net, weights = build(), Weights()
    candidates = {
        "plain training step": plain(copy.deepcopy(net), batch),
        "floor: a weighted step and a clean pass": plain(copy.deepcopy(net), batch, weights, clean),
    }
    if importlib.util.find_spec("betty"):
        candidates["Betty 0.2.1, darts (not exact)"] = betty(copy.deepcopy(net), batch, clean, "darts")
    rows: tuple[tuple[methods.Order, str], ...] = (
        ("model first", "ghost"),
        ("model first", "forward"),
        ("weights first", "ghost"),
    )
    for order, route in rows:
        step, start = learned(build, batch, clean, order, route)
        traced = tracing.traced(step, start, batch)
        if order == "model first":
            candidates[f"exact by {route}"] = folding(step, start, batch)
        words = ", in the paper's order" if order == "weights first" else ""
        candidates[f"exact by {route}{words}, traced (what a run does)"] = folding(traced, start, batch)
        if route == "ghost" and order == "model first" and name == "mlp":
            candidates[f"exact by {route}, compiled"] = folding(tracing.compiled(traced), start, batch)
    show(f"One step of Meta-Weight-Net, {name}", ratios(candidates, 21 if name == "resnet" else 31))
    print("\n| candidate | most given out in a step, MiB above what was there |\n|---|---|")
    for told, candidate in candidates.items():
        print(f"| {told} | {most(candidate) / 2**20:.1f} |")


def members(count: int = 8) -> None:
    """Reweighting runs as one program, against one after another."""
    build, shape, size, few = NETS["mlp"]
    torch.manual_seed(0)
    batch = Batch(torch.randn(size, *shape), torch.randint(0, 10, (size,)), torch.arange(size))
    clean = Batch(torch.randn(few, *shape), torch.randint(0, 10, (few,)), torch.arange(few))
    step, start = learned(build, batch, clean, "model first", "ghost")
    states, batches = tree.stack([start] * count), tree.stack([batch] * count)
    alone, mapped = tracing.traced(step, start, batch), tracing.traced(vmap(step), states, batches)

    def in_turn() -> None:
        for _ in range(count):
            alone(start, batch)

    found = {f"{count} traced steps after each other": in_turn, "one mapped step": folding(mapped, states, batches)}
    show(f"{count} reweighting runs as one program", ratios(found))


def main() -> None:
    quiet()
    for name in sys.argv[1:] or NETS:
        one(name)
    members()


if __name__ == "__main__":
    main()
