"""Laws of paces, scores and weightings, for the tests of people's own: `assert_pace_laws(my_pace)` in a test file is
enough.

Hyperparameters are drawn from their annotated types and shrunk: the simplest case that breaks a law is reported. The
names of roles (`total_iterations`, `dataset_size`, `initial_size`, `final_iteration`) need no annotation.
"""

import contextlib
import inspect
from collections.abc import Callable, Iterator
from functools import partial
from math import isfinite
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import torch
from annotated_types import Le
from hypothesis import find, settings
from hypothesis import strategies as st
from hypothesis.errors import Flaky, NoSuchExample
from torch import Tensor
from torch.func import vmap

from fcurr import losses, models, tree
from fcurr.types import Batch, Classes, Iterations, Model, Past, Portion, Samples, Sense, Share

_Function = Callable[..., Any]
_Names = dict[str, Any]
_ROLES = {"dataset_size": Samples, "total_iterations": Iterations, "initial_size": Share, "final_iteration": Portion}
_QUICK: Any = {kind: Annotated[kind, Le(most)] for kind, most in ((Iterations, 60), (Samples, 300), (Classes, 9))}


def hyperparameters(function: _Function) -> st.SearchStrategy[_Names]:
    """Draws every keyword-only argument from its annotated type, but for those a `functools.partial` has bound.

    Numbers, truths and choices are drawn; any other argument keeps its default. TypeError if it has
    none, as a Model has: bind it.
    """
    plain, bound = _unwrapped(function)
    hints = get_type_hints(plain, include_extras=True)
    drawn: dict[str, st.SearchStrategy[Any]] = {}
    for name, parameter in inspect.signature(plain).parameters.items():
        if parameter.kind is not parameter.KEYWORD_ONLY or name in bound:
            continue
        hint = hints.get(name)
        values = _values(_ROLES.get(name, hint) if hint in (None, int, float) else hint)
        if values is not None:
            drawn[name] = values
        elif parameter.default is parameter.empty:
            raise TypeError(f"{plain.__name__}: values of {name} cannot be drawn; bind it with functools.partial")
    return st.fixed_dictionaries(drawn)


def assert_pace_laws(pace: _Function, *, state: Any = (), max_examples: int = 50, **given: Any) -> None:
    """AssertionError unless every size of `pace(state, iteration, *, ...)` is an integer in [1, dataset_size], never
    falls, is the same when asked again, and is the same mapped over iterations.

    Iterations up to total_iterations are tried (60 if the pace does not take it), and some far beyond. What is `given`
    is held fixed instead of drawn; a pace that does not take dataset_size wants it given.
    """
    plain, bound = _unwrapped(pace)
    asked = inspect.signature(plain).parameters.keys()
    if "dataset_size" not in {*asked, *bound, *given}:
        raise TypeError(f"{plain.__name__} takes no dataset_size: tell assert_pace_laws the most there can be in play")
    pace = partial(pace, **{name: value for name, value in given.items() if name in asked})
    known = {"total_iterations": 60, **bound, **given}
    _refute(pace, hyperparameters(pace), partial(_pace_faults, pace, state, known), max_examples)


def assert_ramp_laws(pace: _Function, *, state: Any = (), max_examples: int = 50) -> None:
    """AssertionError unless a pace with an `initial_size` and a `final_iteration` (a share of `total_iterations`)
    starts with the one, has everything in play from the other on, and keeps the laws of every pace."""
    assert_pace_laws(pace, state=state, max_examples=max_examples)
    _refute(pace, hyperparameters(pace), partial(_ramp_faults, pace, state, _unwrapped(pace)[1]), max_examples)


def assert_score_laws(score: _Function, *, model: Model | None = None, max_examples: int = 25) -> None:
    """AssertionError unless `score(params, batch, *, ...)` gives one finite number a sample, whatever its neighbours,
    the same mapped over members, leaves its arguments as they are, and says which way it points.

    A score that asks for a `model` or a `loss` is given one. A model of your own takes 5 features, for 3 classes.
    """
    plain, bound = _unwrapped(score)
    if not any(isinstance(note, Sense) for note in get_args(get_type_hints(plain, include_extras=True).get("return"))):
        raise AssertionError(f"{plain.__name__}: its return type does not say which way it points: Harder or Easier")
    net: Model = bound.get("model") or model or models.mlp(features=(5,), classes=3, hidden=(4,))
    roles = {"model": net, "loss": bound.get("loss", losses.cross_entropy)}
    score = partial(score, **{name: roles[name] for name in inspect.signature(score).parameters if name in roles})
    batches = st.fixed_dictionaries({"cut at": st.integers(1, 4), "random batch": st.integers(0, 2**31 - 2)})
    worlds = st.tuples(hyperparameters(score), batches).map(lambda parts: parts[0] | parts[1])
    _refute(score, worlds, partial(_score_faults, score, net), max_examples)


def assert_weighting_laws(weigh: _Function, *, max_examples: int = 50) -> None:
    """AssertionError unless `weigh(past, losses, batch, *, ...)` gives one finite number a sample, never negative, the
    same when asked again and mapped over members, permuted with the samples and equal for equal samples of equal
    losses, leaves its arguments as they are, and keeps the dtype of the losses.

    Samples have 5 features and a label of 3 classes; some losses are equal, some 0. A weighting that asks for the
    `counts` of the classes or for a number `irreducible` a sample is given them.
    """
    roles = {"counts": torch.tensor([40, 1, 7]), "irreducible": (torch.arange(9) * 5 % 7) / 8}
    plain, bound = _unwrapped(weigh)
    asked = inspect.signature(plain).parameters.keys() - bound.keys()
    weigh = partial(weigh, **{name: value for name, value in roles.items() if name in asked})
    eighths = st.lists(st.integers(0, 24), min_size=1, max_size=8)
    batches = {"eighths": eighths, "first step": st.booleans(), "random batch": st.integers(0, 2**31 - 2)}
    worlds = st.tuples(hyperparameters(weigh), st.fixed_dictionaries(batches)).map(lambda parts: parts[0] | parts[1])
    _refute(weigh, worlds, partial(_weighting_faults, weigh), max_examples)


def _pace_faults(pace: _Function, state: Any, known: _Names, drawn: _Names) -> Iterator[str]:
    whole, tried, sizes = (known | drawn)["dataset_size"], _tried((known | drawn)["total_iterations"]), [1]
    for iteration in tried:
        size, again = (_attempt(partial(pace, **drawn), state, torch.tensor(iteration)) for _ in range(2))
        if not (isinstance(size, Tensor) and size.dtype == torch.int64 and size.ndim == 0):
            yield f"a size is a 0-d int64 tensor: at iteration {iteration} it is {size!r}"
            return
        if not 1 <= size <= whole:
            yield f"a size is in [1, dataset_size]: at iteration {iteration} it is {size}, right is 1 to {whole}"
        if size < sizes[-1]:
            yield f"a size never falls: at iteration {iteration} it is {size}, right is {sizes[-1]} or more, as before"
        if size != again:
            yield f"asked again, a pace gives the same size: at iteration {iteration} it is {size}, then {again}"
        sizes.append(int(size))
    mapped = _attempt(lambda: vmap(lambda iteration: pace(state, iteration, **drawn))(torch.tensor(tried)).tolist())
    each = mapped if isinstance(mapped, list) else [mapped] * len(tried)
    for iteration, size, it in zip(tried, sizes[1:], each, strict=True):
        if it != size:
            yield f"mapped over iterations, a pace is the same: at iteration {iteration} it is {it}, right is {size}"


def _ramp_faults(pace: _Function, state: Any, known: _Names, drawn: _Names) -> Iterator[str]:
    whole, total, share, part = ((known | drawn)[name] for name in _ROLES)
    low, high = (max(1, int(min(1, share * slack) * whole)) for slack in (1 - 1e-9, 1 + 1e-9))
    for iteration in _tried(total):
        size = pace(state, torch.tensor(iteration), **drawn)
        if iteration == 0 < part and not low <= size <= high:  # 0.7 * 45000 is 31499.999999999996, and 31500 is meant
            yield f"a ramp starts at initial_size: at iteration 0 it is {size}, right is {high}"
        if iteration >= part * total and size != whole:
            yield f"from final_iteration on all is in play: at iteration {iteration} it is {size}, right is {whole}"


def _score_faults(score: _Function, model: Model, world: _Names) -> Iterator[str]:
    few, seed = (world := dict(world)).pop("cut at"), world.pop("random batch")
    score, stream, samples = partial(score, **world), torch.Generator().manual_seed(seed), few + 3
    x = torch.randn((samples, 5), generator=stream, dtype=torch.float64)
    batch = Batch(x=x, y=torch.randint(3, (samples,), generator=stream), id=torch.arange(samples))
    double = lambda leaf: leaf.double() if leaf.is_floating_point() else leaf  # noqa: E731
    members = [tree.map(double, params | buffers) for params, buffers in map(model.init, (seed, seed + 1))]
    before = tree.map(torch.clone, (members[0], batch))
    scores = _attempt(score, members[0], batch)
    if not tree.equal(before, (members[0], batch)):
        yield "a score leaves its arguments as they are: params or batch have changed"
    elif not (isinstance(scores, Tensor) and scores.shape == (samples,)):
        yield f"there is one number a sample: right is a tensor [{samples}], it is {getattr(scores, 'shape', scores)}"
    elif not scores.isfinite().all():
        sample = int(scores.isfinite().long().argmin())
        yield f"a score is a finite number: of sample {sample} it is {scores[sample].item()}"
    else:
        part = lambda ids: score(members[0], tree.map(lambda leaf: leaf[ids], batch))  # noqa: E731
        others = {
            "a score ignores its neighbours": lambda: torch.cat([part(batch.id[:few]), part(batch.id[few:])]),
            "permuted samples have permuted scores": lambda: part(batch.id.flip(0)).flip(0),
            "mapped over members, a score is the same": lambda: vmap(score, (0, None))(tree.stack(members), batch)[0],
        }
        yield from _differing(scores, others)


def _weighting_faults(weigh: _Function, world: _Names) -> Iterator[str]:
    eighths, first, seed = ((world := dict(world)).pop(name) for name in ("eighths", "first step", "random batch"))
    weigh, stream, samples = partial(weigh, **world), torch.Generator().manual_seed(seed), len(eighths)
    ids = torch.tensor([*range(samples), 0])  # the first sample is there twice
    x, y = torch.randn((samples, 5), generator=stream).double(), torch.randint(3, (samples,), generator=stream)
    batch = Batch(x=x[ids], y=y[ids], id=ids)
    losses = torch.tensor(eighths, dtype=torch.float64)[ids] / 8  # sums of eighths are exact in any order
    past = Past(*map(torch.tensor, (seed, 0 if first else seed, torch.nan if first else 1.5)))
    before = tree.map(torch.clone, (past, losses, batch))
    weights = _attempt(weigh, past, losses, batch)
    if not tree.equal(before, (past, losses, batch)):
        yield "a weighting leaves its arguments as they are: past, losses or batch have changed"
    elif not (isinstance(weights, Tensor) and weights.shape == losses.shape and weights.dtype == losses.dtype):
        kind = f"{weights.dtype} {[*weights.shape]}" if isinstance(weights, Tensor) else weights
        yield f"there is one number a sample, of its loss's dtype: right is torch.float64 [{samples + 1}], it is {kind}"
    elif not (right := weights.isfinite() & (weights >= 0)).all():
        sample = int(right.long().argmin())
        yield f"a weight is a finite number, never negative: of sample {sample} it is {weights[sample].item()}"
    else:
        turned = tree.map(lambda leaf: leaf.flip(0), (losses, batch))
        swapped = torch.tensor([samples, *range(1, samples), 0])
        another = (past._replace(key=past.key + 1, iteration=past.iteration + 1), 2 * losses, turned[1])
        members = tree.stack([(past, losses, batch), another])
        laws = {
            "asked again, a weighting gives the same weights": lambda: weigh(past, losses, batch),
            "permuted samples have permuted weights": lambda: weigh(past, *turned).flip(0),
            "equal samples of equal losses weigh equally": lambda: weights[swapped],
            "mapped over members, a weighting is the same": lambda: vmap(weigh)(*members)[0],
        }
        yield from _differing(weights, laws)


def _differing(values: Tensor, others: dict[str, Callable[[], Tensor]]) -> Iterator[str]:
    """The laws by which there should be the same value a sample, and is not."""
    for law, other in others.items():
        right = _attempt(other)
        if not isinstance(right, Tensor):
            yield f"{law}: it is {right}"
        elif not (same := torch.isclose(values, right, rtol=1e-6, atol=1e-9)).all():
            sample = int(same.long().argmin())
            yield f"{law}: of sample {sample} it is {values[sample]:.6g}, then {right[sample]:.6g}"


def _refute(function: _Function, examples: Any, faults: Callable[..., Iterator[str]], max_examples: int) -> None:
    """AssertionError with the first fault of the simplest example that has one."""
    simplest: list[str] = []

    def broken(example: _Names) -> bool:
        fault = next(faults(example), None)
        words = ", ".join(f"{name}={value!r}" for name, value in example.items()) or "all bound"
        simplest[:] = [f"{_unwrapped(function)[0].__name__}: {fault} (with {words})"] if fault else simplest
        return fault is not None

    quiet = settings(max_examples=max_examples, deadline=None, database=None, derandomize=True)
    with contextlib.suppress(NoSuchExample, Flaky):  # Flaky: it answers at random, and the fault was seen
        find(examples, broken, settings=quiet)
    if simplest:
        raise AssertionError(simplest[-1])


def _values(hint: Any) -> st.SearchStrategy[Any] | None:
    if get_origin(hint) in (Union, UnionType):
        return next((values for values in map(_values, get_args(hint)) if values is not None), None)
    bare = get_args(hint)[0] if get_origin(hint) is Annotated else hint
    if bare in (int, float):
        return st.from_type(_QUICK.get(hint, hint)).filter(isfinite)
    return st.from_type(bare) if bare is bool or get_origin(bare) is Literal else None


def _unwrapped(function: _Function) -> tuple[_Function, _Names]:
    bound: _Names = {}  # by any of the partials around it
    while isinstance(function, partial):
        function, bound = function.func, {**function.keywords, **bound}
    return function, bound


def _tried(total: int) -> list[int]:
    """Iterations: every one (of many, a thousand and then every so-manieth), and some far beyond."""
    return sorted({*range(min(total, 1000) + 1), *range(0, total, total // 1000 + 1), total, total + 1, 10**6 * total})


def _attempt(function: _Function, *arguments: Any) -> Any:
    try:
        return function(*arguments)
    except Exception as error:
        return f"{type(error).__name__}: {error}".split(". ")[0]
