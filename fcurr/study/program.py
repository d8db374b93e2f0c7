"""From what is prepared to the programs that are run: one trains the models that score, one trains the members."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.func import vmap

from fcurr import rng, sampler, training, tree
from fcurr.errors import BadInput
from fcurr.study.bind import Call, build, guarded, replaced
from fcurr.study.config import Experiment
from fcurr.study.members import Member
from fcurr.study.prepare import Prepared, tried
from fcurr.training import Program, Run, TrainState
from fcurr.types import Batch, Dataset, Loss, Optimizer, Pace, Params

SCORING, DRAWING = 1, 2  # streams of a run's seed that are not a component's own


def plan(experiment: Experiment, prepared: Prepared) -> list[str]:
    """What would run, a line each; BadInput where a score has no sense or a pace leaves its bounds."""
    lines, settings = [], experiment.training
    if "score" in experiment.components:
        call = experiment.components["score"]
        tried(call, prepared)
        steps = f"models trained for {experiment.fit.iterations:,} steps"
        lines.append(f"score {len(prepared.train.y):,} samples by {call.name}, {steps}")
    rows = lessons(experiment, prepared, None)
    longest, size = int(_steps(experiment, rows).max()), settings.batch_size
    lines.append(f"train {len(experiment.members)} members as one program of {longest:,} steps, batches of {size}")
    lines.append(f"compare {', '.join(dict.fromkeys(member.arm for member in experiment.members))}")
    return lines


def fit_program(experiment: Experiment, prepared: Prepared, data: Dataset, seen: Tensor) -> tuple[Program, Run]:
    """The program that trains the models that score, and its first run."""
    settings = experiment.fit
    if not bool(seen.any(1).all()):
        raise BadInput(f"of {len(data.y)} samples none is left to train a model of the score on", "score")
    entries = {**prepared.entries, "total_iterations": settings.iterations, "dataset_size": len(data.y)}
    optimizer = build(experiment.components["optimizer"], entries)
    method = training.gradient_descent(model=prepared.model, loss=entries["loss"], optimizer=optimizer)
    seeds = rng.fold(experiment.seed, SCORING, torch.arange(len(seen))) & 0x7FFFFFFF
    states = tree.stack([method.init(int(seed)) for seed in seeds])
    program = training.seen_program(
        data,
        seen,
        step=lambda varying, state, batch: method.step(state, batch),
        key=rng.fold(experiment.seed, SCORING),
        batch_size=settings.batch_size,
        total_iterations=settings.iterations,
    )
    return _ready(program, states, experiment.training.compile)


def train_program(experiment: Experiment, prepared: Prepared, scores: Tensor | None) -> tuple[Program, Run]:
    """The program that trains the members, and its first run."""
    settings, members = experiment.training, experiment.members
    rows = lessons(experiment, prepared, scores)
    steps = _steps(experiment, rows)
    varying = {path: torch.tensor(values) for path, values in experiment.varying.items()} | {"total_iterations": steps}

    def recipe(own: Params) -> tuple[Loss, Optimizer]:
        calls = {"loss": members[0].loss, "optimizer": members[0].optimizer}
        entries = {**prepared.entries, "total_iterations": own["total_iterations"]}  # a schedule counts updates
        for path, value in own.items():
            role, _, inner = path.partition(".")
            if inner:
                calls[role] = replaced(calls[role], inner, value)
        return build(calls["loss"], entries), build(calls["optimizer"], entries)

    def step(own: Params, state: TrainState, batch: Batch) -> TrainState:
        loss, optimizer = recipe(own)
        return training.train_step(state, batch, model=prepared.model, loss=loss, optimizer=optimizer)

    optimizer = recipe({path: values[0] for path, values in varying.items()})[1]
    starts = {m.seed: training.train_start(m.seed, model=prepared.model, optimizer=optimizer) for m in members}
    program = Program(
        step=step,
        varying=varying,
        data=prepared.train,
        lessons=rows,
        batch_size=settings.batch_size,
        clock=settings.clock,
        total_iterations=settings.total_iterations,
    )
    return _ready(program, tree.stack([starts[m.seed] for m in members]), settings.compile)


def _ready(program: Program, states: TrainState, compiled: bool) -> tuple[Program, Run]:
    """The program with its step mapped and traced, and its first run."""
    run = training.begin(program, states)
    members = len(program.lessons.key)
    batch = program.data.take(torch.zeros(members, program.batch_size, dtype=torch.int64))
    try:
        step = training.together(program.step, program.varying, states, batch, compiled=compiled)
    except Exception as wrong:  # in a stranger's model, loss or schedule
        first = (str(wrong).splitlines() or [""])[0]
        raise BadInput(f"a training step fails: {type(wrong).__name__}: {first}", "training") from wrong
    return program._replace(step=step), run


def _steps(experiment: Experiment, rows: sampler.Lessons) -> Tensor:
    """[member] int64: the steps of each member."""
    settings = experiment.training
    total, size, clock = settings.total_iterations, settings.batch_size, settings.clock
    return sampler.steps(rows, total_iterations=total, batch_size=size, clock=clock)


def lessons(experiment: Experiment, prepared: Prepared, scores: Tensor | None) -> sampler.Lessons:
    """Orders and sizes, each once however many members share it."""
    orders: dict[str, Tensor] = {}
    sizes: dict[str, Tensor] = {}
    rows: list[tuple[int, int]] = []
    ranked = torch.zeros(len(prepared.train.y)) if scores is None else scores
    for member in experiment.members:
        own = member.curriculum
        entries = {**prepared.entries, "seed": member.seed}
        order_key, pace_key = repr((own.order, own.sampling, member.seed)), repr((own.pace, member.seed))
        if order_key not in orders:
            orders[order_key] = _order(member, entries, ranked, prepared.train.y)
        if pace_key not in sizes:
            sizes[pace_key] = _sizes(own.pace, entries)
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
