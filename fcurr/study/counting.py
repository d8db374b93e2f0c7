"""How much samples count in the members of a run: from their calls to one step for all.

Members share a step, so where they differ in how they weight, every closed form among them is computed and each member
takes its own: closed forms cost nothing beside a network. Where weights are learned, members that do not learn are
controls; they go through the same step and come out with the weights of their own.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fcurr import reweighting, routes, training
from fcurr.bilevel import clean
from fcurr.bilevel.learned_weights import Recipe
from fcurr.bilevel.methods import Reweighting, label_correction
from fcurr.errors import BadInput
from fcurr.routes import Choice
from fcurr.study.bind import Call, build, guarded, required
from fcurr.study.members import Member
from fcurr.study.prepare import Prepared
from fcurr.training import Team, TrainState
from fcurr.types import Batch, Loss, Model, Optimizer, Params, Past, Place, State, Weigh

WHICH = "weighting"  # the name, among what varies, of a member's place in the table


class Counting(NamedTuple):
    """The ways of weighting in a run."""

    table: list[Call | None]  # None: learned, or all 1
    which: Tensor  # [member] int64, places in `table`
    route: Choice | None  # of hypergradients, where weights are learned


def counting(members: list[Member], prepared: Prepared, batch_size: int) -> Counting:
    """What the members do; the route of hypergradients is tried here, on samples of the run."""
    table: list[Call | None] = []
    places = []
    for member in members:
        if member.weighting not in table:
            table.append(member.weighting)
        places.append(table.index(member.weighting))
    for call in table:
        if call is not None and "irreducible" not in required(call.function):
            _tried(call, prepared)
    call = members[0].reweighting
    learned = call is not None and None in table
    if learned and call is not None and call.function is label_correction:
        _takes_shares(prepared)
    route = _route(prepared, members[0], batch_size) if learned else None
    return Counting(table, torch.tensor(places), route)


def _takes_shares(prepared: Prepared) -> None:
    """BadInput where labels are to be corrected and the loss does not take shares of classes."""
    if prepared.train.task != "classification":
        return
    classes = len(prepared.train.classes)
    outputs, shares = torch.zeros(2, classes), torch.full((2, classes), 1 / classes)
    try:
        assert prepared.entries["loss"](outputs, shares).shape == (2,)
    except Exception as wrong:
        words = "label_correction learns shares of classes, and the loss takes classes only: cross_entropy takes both"
        raise BadInput(words, "reweighting") from wrong


def _tried(call: Call, prepared: Prepared) -> None:
    """BadInput where a weighting does not give a number a sample that is not negative."""
    few = prepared.train.take(torch.arange(min(6, len(prepared.train.y))))
    losses = torch.linspace(0.05, 8.0, len(few.y))
    past = Past(key=torch.tensor(0), iteration=torch.tensor(0), loss=torch.tensor(1.0))
    found = guarded(call, build(call, prepared.entries), past, losses, few)
    if not isinstance(found, Tensor) or found.shape != losses.shape:
        raise BadInput(f"{call.name} does not give one weight a sample", call.where)
    wrong = ~(found.isfinite() & (found >= 0))
    if bool(wrong.any()):
        place = int(wrong.nonzero()[0])
        words = f"{call.name} gives the weight {float(found[place]):.3g} to a sample of loss {float(losses[place]):.3g}"
        raise BadInput(f"{words}: weights are finite and not negative", call.where)


def _route(prepared: Prepared, member: Member, batch_size: int) -> Choice:
    params, buffers = prepared.model.init(member.seed)
    few = prepared.train.take(torch.arange(min(batch_size, 8, len(prepared.train.y))))
    place = (torch.tensor(0), torch.tensor(0))
    loss = prepared.entries["loss"]

    def losses(params):
        outputs, after = prepared.model.train(params, buffers, few.x, place)
        return loss(outputs, few.y), after

    return routes.chosen(losses, params)


def weigher(found: Counting, entries: Mapping[str, Any], which: Tensor) -> Weigh:
    """The weights of the member at `which` [] int64 of the table; None in it stands for weights of 1."""
    forms = [_ones if call is None else build(call, entries) for call in found.table]

    def weigh(past: Past, losses: Tensor, batch: Batch) -> Tensor:
        return _taken([form(past, losses, batch) for form in forms], which)

    return weigh


def settled(found: Counting, entries: Mapping[str, Any], which: Tensor) -> Callable[..., Tensor]:
    """The same where None stands for the learned weights."""
    forms = [None if call is None else build(call, entries) for call in found.table]

    def settle(weights: Tensor, past: Past, losses: Tensor, batch: Batch) -> Tensor:
        return _taken([weights if form is None else form(past, losses, batch) for form in forms], which)

    return settle


def _taken(ways: list[Tensor], which: Tensor) -> Tensor:
    """One of several [batch], by a place that may differ by member."""
    if len(ways) == 1:
        return ways[0]
    stacked = torch.stack([way.to(ways[0].dtype) for way in ways])
    return stacked.gather(0, which.reshape(1, 1).expand(1, stacked.shape[1])).squeeze(0)


def _ones(past: Past, losses: Tensor, batch: Batch) -> Tensor:
    return torch.ones_like(losses)


class Parts(NamedTuple):
    """What a step of one member is made of."""

    model: Model
    loss: Loss
    optimizer: Optimizer
    reweighting: Reweighting | None
    entries: Mapping[str, Any]  # what a weighting may ask for
    which: Tensor  # [] int64, its place in the table


def step(
    state: TrainState,
    batch: Batch,
    *,
    found: Counting,
    parts: Parts,
    prepared: Prepared,
    clean_batch: Callable[[Place], Batch] | None,
    accumulate: int,
    team: Team,
) -> TrainState:
    """A step of a member, as the run weights."""
    shared: dict[str, Any] = {
        "model": parts.model,
        "loss": parts.loss,
        "optimizer": parts.optimizer,
        "augment": prepared.augment,
        "accumulate": accumulate,
        "shared": team.shared,
    }
    if found.route is not None:
        assert parts.reweighting is not None and clean_batch is not None
        settle = settled(found, parts.entries, parts.which)
        learns = (parts.which == found.table.index(None)).float()
        recipe = Recipe(clean=clean_batch, route=found.route.route, settle=settle, learns=learns, **shared)
        return parts.reweighting.step(state, batch, recipe=recipe)
    if found.table != [None]:
        return reweighting.weighted_step(state, batch, weigh=weigher(found, parts.entries, parts.which), **shared)
    return training.train_step(state, batch, **shared)


def weights(
    state: TrainState,
    losses: Tensor,
    batch: Batch,
    found: Counting,
    parts: Parts,
    clean_batch: Callable[[Place], Batch] | None,
) -> Tensor:
    """[batch] how much samples of these losses count for a member's state."""
    past = reweighting.past(state)
    if found.route is None:
        return weigher(found, parts.entries, parts.which)(past, losses, batch)
    assert parts.reweighting is not None and clean_batch is not None
    recipe = Recipe(parts.model, parts.loss, parts.optimizer, clean_batch, found.route.route)
    own = parts.reweighting.weigh(state, losses, batch, recipe=recipe)
    return settled(found, parts.entries, parts.which)(own, past, losses, batch)


def begun(found: Counting, method: Reweighting | None, seed: int, params: Params) -> State:
    """What a member remembers of its weights, before the first step."""
    if found.route is not None and method is not None:
        return reweighting.begun(method.init(seed, params))
    return () if found.table == [None] else reweighting.begun()


def clean_batches(prepared: Prepared, size: int, team: Team, device: torch.device) -> Callable[[Place], Batch] | None:
    """The clean samples, in memory, a batch at a time."""
    if prepared.clean is None:
        return None
    data = prepared.clean
    everything = data.take(torch.arange(len(data.y)))
    data = data._replace(x=everything.x.to(device), y=everything.y.to(device))
    return clean.shuffled(data, batch_size=size, rank=team.rank, world=team.world)
