"""What members draw from: all samples of a run, and the lessons (orders and sizes) that their curricula come to."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.func import vmap

from fcurr import rng, sampler
from fcurr.errors import BadInput
from fcurr.study.bind import Call, build, guarded
from fcurr.study.config import Experiment
from fcurr.study.members import Member
from fcurr.study.prepare import Prepared
from fcurr.types import Chosen, Dataset, Pace

DRAWING = 2  # a stream of a run's seed that is not a component's own


def together(prepared: Prepared) -> Dataset:
    """What can be drawn: the training samples, and after them the clean ones."""
    train, clean = prepared.train, prepared.clean
    if clean is None:
        return train
    y = torch.cat([train.y, clean.y])
    if isinstance(train.x, Tensor) and isinstance(clean.x, Tensor):
        return train._replace(x=torch.cat([train.x, clean.x]), y=y)
    assert isinstance(train.x, Chosen) and isinstance(clean.x, Chosen)
    return train._replace(x=Chosen(train.x.rows, torch.cat([train.x.ids, clean.x.ids])), y=y)


def steps_of(experiment: Experiment, rows: sampler.Lessons) -> Tensor:
    """[member] int64: the steps of each member."""
    settings = experiment.training
    total, size, clock = settings.total_iterations, settings.batch_size, settings.clock
    return sampler.steps(rows, total_iterations=total, batch_size=size, clock=clock)


Scores = Tensor | None | Sequence[Tensor | None]  # [train] for all members, or such a tensor a member


def lessons(experiment: Experiment, prepared: Prepared, scores: Scores) -> sampler.Lessons:
    """Orders and sizes, each once however many members share it. Where passes are counted, one over the clean samples
    alone is as many as there are training samples: a control that takes its steps as well."""
    orders: dict[str, Tensor] = {}
    sizes: dict[str, Tensor] = {}
    rows: list[tuple[int, int]] = []
    unranked = torch.zeros(len(prepared.train.y))
    each = [scores] * len(experiment.members) if isinstance(scores, Tensor | None) else scores
    clean = len(prepared.train.y) + torch.arange(0 if prepared.clean is None else len(prepared.clean.y))
    again = max(1, len(prepared.train.y) // max(1, len(clean))) if experiment.training.clock == "epoch" else 1
    for member, ranks in zip(experiment.members, each, strict=True):
        ranked = unranked if ranks is None else ranks
        own, also = member.curriculum, member.samples == "both"
        entries = {**prepared.entries, "seed": member.seed}
        order_key = repr((own.order, own.sampling, member.seed, also, id(ranked)))
        pace_key = repr((own.pace, member.seed, also))
        if member.samples == "clean":
            order_key, pace_key = "clean", "clean"
        if order_key not in orders:
            everything = torch.arange(len(prepared.train.y))
            drawn = everything if member.samples == "clean" else _order(member, entries, ranked, prepared.train.y)
            first = clean.repeat(again) if member.samples == "clean" else clean
            whole = torch.cat([drawn, clean] if member.samples == "train" else [first, drawn])
            orders[order_key] = whole[: len(drawn) + len(clean)]
        if pace_key not in sizes:
            none = torch.zeros(entries["total_iterations"] + 1, dtype=torch.int64)
            drawn = none if member.samples == "clean" else _sizes(own.pace, entries)
            more = {"train": 0, "both": len(clean), "clean": again * len(clean)}[member.samples]
            sizes[pace_key] = drawn + more
        rows.append((list(orders).index(order_key), list(sizes).index(pace_key)))
    seeds = torch.tensor([member.seed for member in experiment.members])
    return sampler.Lessons(
        orders=torch.stack(list(orders.values())),
        sizes=torch.stack(list(sizes.values())),
        order=torch.tensor([row[0] for row in rows]),
        pace=torch.tensor([row[1] for row in rows]),
        key=rng.fold(experiment.seed, DRAWING, seeds),
    )


def _order(member: Member, entries: Mapping[str, Any], scores: Tensor, y: Tensor) -> Tensor:
    own = member.curriculum
    order = guarded(own.order, build(own.order, entries), scores)
    order = guarded(own.sampling, build(own.sampling, entries), order, y)
    if not isinstance(order, Tensor) or not torch.equal(order.sort().values, torch.arange(len(y))):
        raise BadInput(f"{own.order.name} and {own.sampling.name} do not give every sample once", own.order.where)
    return order


def _sizes(call: Call, entries: Mapping[str, Any]) -> Tensor:
    """The sizes of a pace at every iteration; BadInput, with the first iteration, where it leaves its bounds."""
    pace: Pace = build(call, entries)
    total, whole = entries["total_iterations"], entries["dataset_size"]

    def one(iteration: Tensor) -> Tensor:
        size = pace((), iteration)
        if not isinstance(size, Tensor | int):
            raise BadInput(f"{call.name} gives {size!r}: a pace is one whole number")
        return torch.as_tensor(size)

    try:
        sizes = vmap(one)(torch.arange(total + 1))
    except Exception:  # it decides by Python's `if`, say: then one by one
        sizes = torch.stack([guarded(call, one, torch.tensor(iteration)) for iteration in range(total + 1)])
    if sizes.dtype.is_floating_point or sizes.ndim != 1:
        raise BadInput(
            f"{call.name} gives {sizes.dtype} {list(sizes.shape[1:])}: a pace is one whole number", call.where
        )
    outside = (sizes < 1) | (sizes > whole)
    if bool(outside.any()):
        first = int(outside.nonzero()[0])
        raise BadInput(
            f"{call.name} puts {int(sizes[first])} samples in play at iteration {first}; there are 1 to {whole}",
            call.where,
        )
    return sizes.long()
