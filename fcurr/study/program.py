"""From what is prepared to the programs that are run: one trains the models that score, one trains the members."""

from functools import partial

import torch
from torch import Tensor
from torch.func import vmap

from fcurr import fold, rng, routes, sampler, training, tree
from fcurr.errors import BadInput
from fcurr.fold import InPlay, Program, Run
from fcurr.precision import loss_scaled
from fcurr.study import counting
from fcurr.study.bind import Call, build, numbers, replaced, required
from fcurr.study.config import Experiment, Training
from fcurr.study.drawing import Scores, lessons, steps_of, together
from fcurr.study.prepare import Prepared, tried
from fcurr.training import ALONE, Team, TrainState, apart
from fcurr.types import Batch, Dataset, Optimizer, Params

SCORING = 1  # a stream of a run's seed that is not a component's own


def plan(experiment: Experiment, prepared: Prepared) -> list[str]:
    """What would run, a line each; BadInput where a score has no sense or a pace leaves its bounds."""
    lines, settings = [], experiment.training
    chosen(settings.device)
    if "score" in experiment.components:
        call = experiment.components["score"]
        tried(call, prepared)
        steps = f"models trained for {experiment.fit.iterations:,} steps"
        lines.append(f"score {len(prepared.train.y):,} samples by {call.name}, {steps}")
    rows = lessons(experiment, prepared, None)
    longest, size = int(steps_of(experiment, rows).max()), settings.batch_size
    lines.append(f"train {len(experiment.members)} members as one program of {longest:,} steps, batches of {size}")
    found = counting.counting(experiment.members, prepared, size)
    _in_time(experiment, found, int(steps_of(experiment, rows).min()))
    if (route := found.route) is not None:
        note = f" ({route.why})" if route.why else ""
        lines.append(
            f"learn weights from {len(prepared.id['clean']):,} clean samples, {routes.TOLD[route.route]}{note}"
        )
    lines.append(f"compare {', '.join(dict.fromkeys(member.arm for member in experiment.members))}")
    return lines


def fit_program(
    experiment: Experiment, prepared: Prepared, data: Dataset, seen: Tensor, team: Team = ALONE
) -> tuple[Program, Run]:
    """The program that trains the models that score, and its first run."""
    settings = experiment.fit
    divided(settings.batch_size, team.world, 1, "fit.batch_size")
    if not bool(seen.any(1).all()):
        raise BadInput(f"of {len(data.y)} samples none is left to train a model of the score on", "score")
    entries = {**prepared.entries, "total_iterations": settings.iterations, "dataset_size": len(data.y)}
    optimizer = _scaled(build(experiment.components["optimizer"], entries), experiment.training)
    method = training.gradient_descent(
        model=apart(prepared.scratch, team),
        loss=entries["loss"],
        optimizer=optimizer,
        augment=prepared.augment,
        shared=team.shared,
    )
    seeds = rng.fold(experiment.seed, SCORING, torch.arange(len(seen))) & 0x7FFFFFFF
    states = tree.stack([method.init(int(seed)) for seed in seeds])
    program = fold.seen_program(
        data,
        seen,
        step=lambda varying, state, batch: method.step(state, batch),
        key=rng.fold(experiment.seed, SCORING),
        batch_size=settings.batch_size,
        total_iterations=settings.iterations,
    )
    return _ready(program, states, experiment.training, team)


def train_program(
    experiment: Experiment, prepared: Prepared, scores: Scores, team: Team = ALONE
) -> tuple[Program, Run]:
    """The program that trains the members, and its first run. Members may be ranked by scores of their own."""
    settings, members = experiment.training, experiment.members
    divided(settings.batch_size, team.world, settings.accumulate, "training.batch_size")
    rows = lessons(experiment, prepared, scores)
    steps = steps_of(experiment, rows)
    varying = {path: torch.tensor(values) for path, values in experiment.varying.items()} | {"total_iterations": steps}
    found = counting.counting(members, prepared, settings.batch_size)
    _in_time(experiment, found, int(steps.min()))
    if len(found.table) > 1:
        varying[counting.WHICH] = found.which
    whole = together(prepared)
    table = _in_play([members[0].loss, *(call for call in found.table if call is not None)], prepared, whole, rows)
    if isinstance(table, InPlay):
        varying["counts"] = table.counts[:, -1]
    device = chosen(settings.device)
    batches = counting.clean_batches(prepared, settings.clean_batch_size, team, device)

    recipe = partial(_parts, experiment, prepared, team)

    def step(own: Params, state: TrainState, batch: Batch) -> TrainState:
        move = partial(
            counting.step,
            found=found,
            parts=recipe(own),
            prepared=prepared,
            clean_batch=batches,
            accumulate=settings.accumulate,
            team=team,
        )
        return training.skipping(state, batch, step=move) if settings.on_nonfinite == "skip" else move(state, batch)

    def advance(own: Params, state: TrainState, metric: Tensor) -> TrainState:
        return training.heard(state, metric, optimizer=recipe(own).optimizer)

    parts = recipe({path: values[0] for path, values in varying.items()})
    starts = {}
    for seed in dict.fromkeys(member.seed for member in members):
        state = training.train_start(seed, model=prepared.model, optimizer=parts.optimizer)
        starts[seed] = state._replace(weighing=counting.begun(found, parts.reweighting, seed, state.params))
    optimizer = parts.optimizer
    program = Program(
        step=step,
        varying=varying,
        data=whole,
        lessons=rows,
        batch_size=settings.batch_size,
        clock=settings.clock,
        total_iterations=settings.total_iterations,
        in_play=table,
        advance=vmap(advance) if optimizer.advance is not Optimizer._field_defaults["advance"] else None,
    )
    return _ready(program, tree.stack([starts[m.seed] for m in members]), settings, team)


def _in_time(experiment: Experiment, found: counting.Counting, steps: int) -> None:
    """BadInput where a run is over before weights are learned."""
    call = experiment.members[0].reweighting
    warm_up = numbers(call).get("warm_up", 0) if call is not None and found.route is not None else 0
    if warm_up >= steps:
        raise BadInput(f"nothing is learned: all {steps:,} steps are warm-up", "reweighting.warm_up")


def _parts(experiment: Experiment, prepared: Prepared, team: Team, own: Params) -> counting.Parts:
    """What a step of one member is made of; `own` are its numbers."""
    calls = {role: getattr(experiment.members[0], role) for role in ("loss", "optimizer", "reweighting")}
    flowing = {key: value for key, value in own.items() if key in ("total_iterations", "counts")}
    entries = {**prepared.entries, **flowing}  # a schedule counts updates
    for path, value in own.items():
        role, _, inner = path.partition(".")
        if inner:
            calls[role] = replaced(calls[role], inner, value)
    return counting.Parts(
        model=apart(prepared.model, team),
        loss=build(calls["loss"], entries),
        optimizer=_scaled(build(calls["optimizer"], entries), experiment.training),
        reweighting=None if calls["reweighting"] is None else build(calls["reweighting"], entries),
        entries=entries,
        which=own.get(counting.WHICH, torch.zeros((), dtype=torch.int64)),
    )


def weights(
    experiment: Experiment, prepared: Prepared, varying: Params, states: TrainState, losses: Tensor
) -> Tensor | None:
    """[member, sample] how much each training sample counts for the states of members, given its losses [member,
    sample]; None if samples are not weighted."""
    settings = experiment.training
    found = counting.counting(experiment.members, prepared, settings.batch_size)
    if found.table == [None] and found.route is None:
        return None
    device = losses.device
    batches = counting.clean_batches(prepared, settings.clean_batch_size, ALONE, device)
    rows = []
    for place, state in enumerate(tree.apart(states)):
        parts = _parts(experiment, prepared, ALONE, tree.member(varying, place))
        chunks = torch.arange(losses.shape[1], device=device).split(settings.inference_batch_size)
        own = [
            counting.weights(state, losses[place, ids], _there(prepared, ids), found, parts, batches) for ids in chunks
        ]
        rows.append(torch.cat(own))
    return torch.stack(rows)


def _there(prepared: Prepared, ids: Tensor) -> Batch:
    """These training samples, where the ids are."""
    return tree.map(lambda leaf: leaf.to(ids.device), prepared.train.take(ids.cpu()))


def _scaled(optimizer: Optimizer, settings: Training) -> Optimizer:
    return loss_scaled(optimizer) if settings.precision == "float16" else optimizer


def _ready(program: Program, states: TrainState, settings: Training, team: Team) -> tuple[Program, Run]:
    """The program on its device, with its step mapped and traced, and its first run."""
    device = chosen(settings.device)
    data = placed(program.data, device)
    there = partial(tree.map, lambda leaf: leaf.to(device))
    program = program._replace(data=data, varying=there(program.varying), lessons=there(program.lessons))
    if isinstance(program.in_play, InPlay):
        program = program._replace(in_play=there(program.in_play))
    run = fold.begin(program, there(states))
    ids = torch.zeros(len(program.lessons.key), program.batch_size // team.world, dtype=torch.int64)
    batch = there(data.take(ids.to(data.y.device)))
    try:
        step = fold.together(program.step, program.varying, run.train, batch, compiled=settings.compile)
    except Exception as wrong:  # in a stranger's model, loss or schedule
        first = (str(wrong).splitlines() or [""])[0]
        raise BadInput(f"a training step fails: {type(wrong).__name__}: {first}", "training") from wrong
    return program._replace(step=step), run


def divided(size: int, world: int, parts: int, where: str) -> None:
    """BadInput if a batch does not come in equal parts."""
    if size % (world * parts):
        words = f"a batch of {size} does not come in equal parts for {world} processes"
        raise BadInput(f"{words}{f', {parts} each' if parts > 1 else ''}", where)


def placed(data: Dataset, device: torch.device) -> Dataset:
    """The data on a device, if it is in memory; what is not is read by the host, and moved a batch at a time."""
    return data._replace(x=data.x.to(device), y=data.y.to(device)) if isinstance(data.x, Tensor) else data


def chosen(device: str) -> torch.device:
    """The device of a name; "auto" is the first accelerator that there is, or the processor."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.device(device)
        float(torch.zeros(1, device=found))
    except Exception as wrong:
        first = str(wrong).splitlines()[0]
        raise BadInput(
            f'there is no device {device} here ({first}); "auto" takes what there is', "training.device"
        ) from None
    return found


def _in_play(calls: list[Call], prepared: Prepared, whole: Dataset, rows: sampler.Lessons) -> InPlay | tuple[()]:
    """The classes in play, if the loss or a weighting asks for their counts."""
    asking = [call for call in calls if "counts" in required(call.function)]
    if not asking:
        return ()
    if prepared.train.task != "classification":
        raise BadInput(f"{asking[0].name} wants a class a sample", asking[0].where)
    return fold.in_play(rows, whole.y, len(whole.classes))
