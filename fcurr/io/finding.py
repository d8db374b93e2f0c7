"""What to train with, measured on the run itself: `fcurr find`. Nothing is written."""

import copy
import math
import statistics
import time
from collections.abc import Collection, Mapping
from itertools import islice
from typing import Annotated, Any, NamedTuple

import torch
from annotated_types import Ge, Lt
from torch import Tensor

from fcurr import finding, rng, tree
from fcurr.autodiff import losses_and_grad
from fcurr.errors import BadInput
from fcurr.finding import GAIN, Multiple, Noise
from fcurr.io import memory, runner
from fcurr.study.bind import required, resolve
from fcurr.study.config import Experiment, read
from fcurr.study.members import override
from fcurr.study.near import near
from fcurr.study.prepare import Prepared
from fcurr.study.program import chosen, train_program
from fcurr.study.sections import SECTIONS
from fcurr.training import TrainState
from fcurr.types import Batch, Decay, Iterations, Params, Positive, Samples, Unit

Bytes = Annotated[int, Ge(1), Lt(2**63), Unit("number of bytes")]
FINDING = 3  # a stream of a run's seed that is not a component's own
LONG, FEW, LOOKED = 0.3, 3, 50  # seconds, and steps, that are timed at least and at most
SMALL, PARTS, DRAWS = 16, 32, 10  # small batches of the noise scale, how many a large one has, how many of these
SHOWN = 16  # lines of a curve


class Found(NamedTuple):
    lines: list[str]  # to print
    table: dict[str, Any]  # the same as JSON takes it


def learning_rate(
    config: Mapping[str, Any],
    plugins: Collection[str] = (),
    *,
    low: Positive = 1e-6,
    high: Positive = 10.0,
    iterations: Iterations = 200,
    decay: Decay = 0.9,
    multiple: Multiple = 4.0,
) -> Found:
    """The learning-rate range test of a config: its optimizer, model, loss and data, all samples in play, without arms;
    the mean over the seeds of its members."""
    if low >= high:
        raise BadInput(f"the rate grows from low = {low:g} to high = {high:g}: low has to be less")
    plain, told = _plain(config, plugins)
    rate = {"fn": "fcurr.finding:geometric", "low": low, "high": high, "iterations": iterations}
    plain = override(plain, path := _rate(plain.get("optimizer")), rate)
    plain["training"] = _table(plain, "training") | {"total_iterations": iterations, "clock": "step"}
    experiment = read(plain, plugins)
    losses = (state.loss.double().mean() for state in memory.states(experiment, runner.load(experiment)))
    found = finding.range_test(losses, low=low, high=high, iterations=iterations, decay=decay, multiple=multiple)
    best = finding.suggested(found, decay=decay)
    shown = range(0, len(found.rates), max(1, math.ceil(len(found.rates) / SHOWN)))
    curve = [f"{float(found.rates[n]):>12.3g}  {float(found.smoothed[n]):>10.4g}" for n in shown]
    members = len(experiment.members)
    lines = [
        f"{path}: {len(found.rates):,} steps from {low:g} upwards, {members} {'member' if members == 1 else 'members'}",
        *told,
        "        rate  smoothed loss",
        *curve,
        f"ended because {found.ended}",
    ]
    if math.isnan(best.steepest):
        lines.append("no suggestion: the loss did not fall; try a smaller low, a larger high or more iterations")
    else:
        lines += [
            f"{best.tenth:.3g}: a tenth of {best.lowest:.3g}, where the loss is lowest (fastai's lr_find: minimum)",
            f"{best.steepest:.3g}: where the smoothed loss falls fastest (fastai's lr_find: steep)",
            f"{best.lowest:.3g}: no more than that for the upper end of a cyclical rate (Smith 2017, section 3.3)",
        ]
    numbers = {name: getattr(found, name).tolist() for name in ("rates", "losses", "smoothed")}
    suggestions = {name: None if math.isnan(value) else value for name, value in best._asdict().items()}
    return Found(lines, {"key": path, **numbers, "ended": found.ended, **suggestions})


def batch_size(
    config: Mapping[str, Any],
    plugins: Collection[str] = (),
    *,
    limit: Bytes | None = None,
    most: Samples | None = None,
    warm: Iterations = 100,
) -> Found:
    """What batches of a config fit, how fast they are and how noisy their gradients are.

    `limit`: bytes that may be taken; if left out, what an accelerator has, and half of what is free of a processor's.
    `most`: the largest batch that is tried; all training samples if left out. `warm`: the plain steps after which the
    noise is measured again.
    """
    own = {key: value for key, value in config.items() if key not in (*SECTIONS, "loggers", "observers")}
    experiment = read(own, plugins)
    settings = experiment.training
    total = max(settings.total_iterations, 200 if settings.clock == "step" else 10_000)
    own["training"] = _table(own, "training") | {"total_iterations": total, "clock": "step"}
    experiment = read(own, plugins)
    prepared = memory.loaded(experiment)
    unit, device = settings.accumulate, chosen(settings.device)
    most = min(most or memory.MOST, len(prepared.train.y), memory.MOST) // unit
    if most < 1:
        raise BadInput(f"there are fewer samples than the {unit} parts of a batch", "training.accumulate")
    first = min(max(1, 8 // unit), most)
    if device.type == "cpu":
        fit = memory.on_processor(experiment, plugins, unit, first, most, limit)
    else:
        fit = memory.on_accelerator(experiment, prepared, unit, first, most, limit)
    if not fit.parts:
        raise BadInput(f"not even a batch of {first * unit} fits: {fit.why}", "training.batch_size")
    sizes, speed = _speeds(experiment, prepared, [n * unit for n in _doubled(first, fit.parts)])
    best, largest = finding.knee(sizes, speed), fit.parts * unit
    noise = _noises(own, plugins, warm)
    lines = ["   batch   samples/s   steps/s      memory"]
    several = len(experiment.members)
    for size, rate in zip(sizes, speed, strict=True):
        lines.append(f"{size:>8,}{rate:>12,.0f}{rate / (several * size):>10,.1f}{fit.memory(size) / 2**20:>8,.0f} MiB")
    lines.append(f"largest that fits: {largest:,} ({fit.why})")
    for steps, one in noise.items():
        lines.append(f"noise scale {_when(steps)}: {_samples(one)}")
    lines.append(f"suggestion: {best:,}, {_reason(best, largest, sizes, noise[warm])}")
    rows = [
        {"batch_size": size, "samples_per_second": rate, "memory": fit.memory(size)}
        for size, rate in zip(sizes, speed, strict=True)
    ]
    scales = [
        {"steps": steps} | {name: None if math.isnan(x) else x for name, x in one._asdict().items()}
        for steps, one in noise.items()
    ]
    return Found(lines, {"rows": rows, "largest": largest, "why": fit.why, "noise": scales, "suggestion": best})


def _reason(best: int, largest: int, sizes: list[int], noise: Noise) -> str:
    words = f"after which doubling gains less than {GAIN:.0%} of the samples a second"
    if best == sizes[-1]:
        words = "the largest that was tried; throughput still grows" if best < largest else "the largest that fits"
    if math.isnan(noise.scale):
        return f"{words}; the gradient is lost in its noise, so larger batches cost speed alone"
    if noise.scale >= best:
        return f"{words}; up to about {noise.scale:,.0f} a larger batch still saves steps, at the same time a sample"
    return f"{words}; the noise scale is smaller: a smaller batch needs fewer samples and more time"


def _when(steps: int) -> str:
    return f"after {steps:,} steps" if steps else "at the start"


def _samples(noise: Noise) -> str:
    if math.isnan(noise.scale):
        return f"no gradient is told from a variance of {noise.variance:.3g} a sample"
    return f"{noise.scale:,.0f} samples (variance {noise.variance:.3g} a sample, squared gradient {noise.gradient:.3g})"


def _plain(config: Mapping[str, Any], plugins: Collection[str]) -> tuple[dict[str, Any], list[str]]:
    """The config without what members differ in, but for their seeds; and what should be told of that."""
    gone = (*SECTIONS, "arms", "members", "score", "curriculum", "samples", "loggers", "observers")
    plain, told = {key: copy.deepcopy(value) for key, value in config.items() if key not in gone}, []
    members = config.get("members")
    seeds = members.get("seed") if isinstance(members, Mapping) else None
    if isinstance(seeds, list):
        plain["members"] = {"seed": seeds}
    if "reweighting" in plain:
        plain["controls"] = False
    if "weighting" in plain and "irreducible" in required(
        resolve(plain["weighting"], "weighting", "weighting", plugins).function
    ):
        del plain["weighting"]
        told.append("without its weighting, which asks for a model of its own")
    return plain, told


def _rate(optimizer: Any) -> str:
    """The dotted key of the learning rate, also of an optimizer within another."""
    path, table = "optimizer", optimizer
    while isinstance(table, Mapping):
        if "learning_rate" in table:
            return f"{path}.learning_rate"
        path, table = f"{path}.optimizer", table.get("optimizer")
    hint = near("learning_rate", optimizer) if isinstance(optimizer, Mapping) else ""
    raise BadInput(f"there is no `learning_rate` to be found in [optimizer]{hint}", "optimizer")


def _table(config: Mapping[str, Any], key: str) -> dict[str, Any]:
    """A section, or nothing where `read` will say what is wrong with it."""
    table = config.get(key)
    return dict(table) if isinstance(table, Mapping) else {}


def _doubled(first: int, last: int) -> list[int]:
    """first, twice that, and so on up to last."""
    return [first << power for power in range(max(last // first, 1).bit_length()) if first << power <= last]


def _speeds(experiment: Experiment, prepared: Prepared, sizes: list[int]) -> tuple[list[int], list[float]]:
    """(sizes, samples a second of all members): until neither of two doublings pays."""
    speed: list[float] = []
    for place, size in enumerate(sizes):
        speed.append(len(experiment.members) * size / _seconds(experiment, prepared, size))
        if finding.knee(sizes[: place + 1], speed) in sizes[: max(place - 1, 0)]:
            break
    return sizes[: len(speed)], speed


def _seconds(experiment: Experiment, prepared: Prepared, size: int) -> float:
    """The median time of a step, after the first ones."""
    times: list[float] = []
    steps = memory.of_size(experiment, prepared, size)
    for state in islice(steps, 2):
        memory.wait(state)
    before = began = time.perf_counter()
    for state in islice(steps, LOOKED):
        memory.wait(state)
        times.append((now := time.perf_counter()) - before)
        before = now
        if len(times) >= FEW and now - began > LONG:
            break
    return statistics.median(times)


def _noises(config: Mapping[str, Any], plugins: Collection[str], warm: int) -> dict[int, Noise]:
    """The noise scale of plain training at the start and after `warm` steps, of the first seed."""
    plain, _ = _plain(config, plugins)
    plain.pop("members", None)
    experiment = read(plain, plugins)
    prepared = runner.load(experiment)
    _, run = train_program(experiment, prepared, None)
    start = run.train
    last = next(islice(memory.states(experiment, prepared), warm - 1, None))
    return {steps: _noise(experiment, prepared, tree.member(state, 0)) for steps, state in ((0, start), (warm, last))}


def _noise(experiment: Experiment, prepared: Prepared, state: TrainState) -> Noise:
    """Of batches drawn with replacement, so that draws are independent."""
    data, model, loss, device = prepared.train, prepared.model, prepared.entries["loss"], state.loss.device

    def gradient(batch: Batch) -> Params:
        def losses(params: Params) -> tuple[Tensor, Params]:
            outputs, buffers = model.train(params, state.buffers, batch.x, (state.key, state.iteration))
            return loss(outputs, batch.y), buffers

        each = torch.full((len(batch.id),), 1 / len(batch.id), dtype=state.loss.dtype, device=device)
        return losses_and_grad(losses, state.params, each)[2]

    def batches(draw: int) -> list[Batch]:
        places = torch.arange(SMALL * PARTS)
        ids = (rng.uniform(rng.fold(experiment.seed, FINDING, draw), places).double() * len(data.y)).long()
        place = (rng.fold(state.key, FINDING, draw), state.iteration)
        drawn = [prepared.augment(data.take(part), place) for part in ids.split(SMALL)]
        return [tree.map(lambda leaf: leaf.to(device), batch) for batch in drawn]

    pairs = [finding.norms(gradient, batches(draw)) for draw in range(DRAWS)]
    return finding.noise_scale(pairs, small=SMALL, large=SMALL * PARTS)
