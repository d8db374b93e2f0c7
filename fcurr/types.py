"""The vocabulary: what flows between functions, what functions are called, and the units of what is fixed.

A hyperparameter carries its bounds and its meaning in its type, once. The reader, the type checker, the message about a
bad config, `fcurr explain`, the JSON Schema and the property-based tests all read them from there.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Annotated, Any, Literal, NamedTuple, Protocol

import torch
from annotated_types import Ge, Gt, Le, Lt, MinLen
from torch import Tensor

Params = dict[str, Tensor]  # as nn.Module.named_parameters names them
Buffers = dict[str, Tensor]  # what a model carries and does not learn by gradient: running statistics, frozen parts
Place = tuple[Tensor, Tensor]  # (key, iteration): where in a stream of randomness a step stands
State = Any  # NamedTuples and dicts of tensors; () if nothing is remembered


class Batch(NamedTuple):
    """Samples seen together."""

    x: Tensor  # [batch, ...]
    y: Tensor  # [batch] int64, a class each; or [batch, label] bool; or [batch, target or class] floating
    id: Tensor  # [batch] int64, position in the data set


Task = Literal["classification", "multi-label", "regression"]
Joint = Literal["joint"]  # several tasks, trained as one


class Rows(Protocol):
    """Samples that are not in memory, indexed as a tensor would be."""

    @property
    def shape(self) -> tuple[int, ...]: ...  # [sample, ...]
    @property
    def dtype(self) -> torch.dtype: ...  # of what indexing gives
    @property
    def identity(self) -> str: ...  # changes when the samples do: names, sizes and times of files
    def __getitem__(self, ids: Tensor, /) -> Tensor: ...  # [..., *features] of int64 ids [...]


def _rows(x: Tensor | Rows, ids: Tensor) -> Tensor:
    """x[ids]; of a tensor by index_select, which takes a third of the time for pictures."""
    if not isinstance(x, Tensor):
        return x[ids]
    return x.index_select(0, ids.reshape(-1)).reshape(*ids.shape, *x.shape[1:])


@dataclass(frozen=True)
class Chosen:
    """Some rows of others, in an order of their own."""

    rows: Rows
    ids: Tensor  # [sample] int64, places in `rows`

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self.ids), *self.rows.shape[1:])

    @property
    def dtype(self) -> torch.dtype:
        return self.rows.dtype

    @property
    def identity(self) -> str:
        return self.rows.identity

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, ids: Tensor, /) -> Tensor:
        return self.rows[self.ids[ids.to(self.ids.device)]].to(ids.device)


class Head(NamedTuple):
    """One of several tasks that are trained jointly: which labels and which outputs are its own."""

    name: str
    task: Task
    classes: tuple[str, ...]  # names of its classes, or of its targets
    columns: tuple[int, int]  # of labels [sample, column]: its first, and the one after its last
    outputs: tuple[int, int]  # of outputs [sample, output], likewise
    first: int  # the place of its first sample, in the data set as it was joined
    weight: float  # how much its mean loss counts

    def there(self, y: Tensor) -> Tensor:
        """[sample] bool: which have a label of this task."""
        return ~y[..., self.columns[0]].isnan()

    def labels(self, y: Tensor) -> Tensor:
        """[sample, ...] as the task alone has them; 0 where there is none."""
        own = y[..., slice(*self.columns)].nan_to_num()
        return {"classification": own[..., 0].long(), "multi-label": own.bool(), "regression": own}[self.task]

    def of(self, outputs: Tensor) -> Tensor:
        """[..., own output]."""
        return outputs[..., slice(*self.outputs)]


class Dataset(NamedTuple):
    """All samples. What a label is says the task: a class each, a set of classes each, or numbers. With several tasks,
    labels are [sample, column] floating: a task's own columns, nan where a sample has no label of it (fcurr.joint)."""

    x: Tensor | Rows  # [sample, ...]
    y: Tensor  # [sample] int64 in [0, len(classes)); or [sample, class] bool; or [sample, target] float32
    classes: tuple[str, ...]  # names of the classes, or of the targets
    groups: Tensor | tuple[()] = ()  # [sample] int64, what must not be parted: a speaker, a patient; () if nothing
    heads: tuple[Head, ...] = ()  # several tasks; () if it is one

    @property
    def features(self) -> "Shape":
        """The shape of one sample."""
        return tuple(self.x.shape[1:])

    @property
    def task(self) -> Task | Joint:
        if self.heads:
            return "joint"
        if self.y.dtype == torch.bool:
            return "multi-label"
        return "regression" if self.y.dtype.is_floating_point else "classification"

    def take(self, ids: Tensor) -> Batch:
        """The samples of these ids, seen together; the ids' axes come first."""
        return Batch(x=_rows(self.x, ids), y=_rows(self.y, ids), id=ids)

    def part(self, ids: Tensor) -> "Dataset":
        """These samples as a data set of their own, numbered anew."""
        x = self.x[ids] if isinstance(self.x, Tensor) else Chosen(self.x, ids)
        groups = self.groups[ids] if isinstance(self.groups, Tensor) else ()
        return self._replace(x=x, y=self.y[ids], groups=groups)


Fetch = Callable[[Callable[[Tensor], Batch], Iterable[Tensor]], Iterable[Batch]]  # take, ids a batch -> the batches


class Unit(NamedTuple):
    """What a number counts, in the words of an error message: "1.5 is not a <meaning>"."""

    meaning: str


class Sense(NamedTuple):
    """Which way a score points."""

    harder: bool  # larger is harder (True) or larger is easier (False)


class Direction(NamedTuple):
    """Which way a metric points."""

    higher: bool  # higher is better (True) or lower is better (False)


Harder = Annotated[Tensor, Sense(harder=True)]  # [batch], larger is harder
Easier = Annotated[Tensor, Sense(harder=False)]  # [batch], larger is easier
Higher = Annotated[Tensor, Direction(higher=True)]  # [], higher is better
Lower = Annotated[Tensor, Direction(higher=False)]  # [], lower is better

Share = Annotated[float, Gt(0), Le(1), Unit("share of the data")]
Part = Annotated[float, Ge(0), Lt(1), Unit("part of the data")]
Portion = Annotated[float, Ge(0), Le(1), Unit("portion of the iterations")]
Iterations = Annotated[int, Ge(1), Lt(2**31), Unit("number of iterations")]
Samples = Annotated[int, Ge(1), Lt(2**31), Unit("number of samples")]
Many = Annotated[int, Ge(2), Lt(2**31), Unit("number of parts")]
Fold = Annotated[int, Ge(0), Lt(2**31), Unit("place of a fold, the first is 0")]
InnerFolds = Annotated[int, Ge(0), Lt(2**31), Unit("number of inner folds, 0 for none")]
Times = Annotated[int, Ge(1), Lt(2**31), Unit("number of times")]
Classes = Annotated[int, Ge(1), Lt(2**31), Unit("number of classes")]
Side = Annotated[int, Ge(1), Lt(2**31), Unit("number of units")]
Widths = Annotated[tuple[Side, ...], Unit("list of layer widths")]
Power = Annotated[float, Gt(0), Unit("power")]
Rate = Annotated[float, Ge(0), Le(1e38), Unit("learning rate")]
Decay = Annotated[float, Ge(0), Lt(1), Unit("decay")]
Penalty = Annotated[float, Ge(0), Le(1e38), Unit("penalty")]
Positive = Annotated[float, Gt(0), Le(1e38), Unit("positive number")]
Ratio = Annotated[float, Ge(1), Unit("ratio of the largest class to the smallest")]
Seed = Annotated[int, Ge(0), Lt(2**31), Unit("seed")]
Path = Annotated[str, MinLen(1), Unit("path")]
Shape = Annotated[tuple[Side, ...], Unit("shape of a sample")]


class Score(Protocol):
    """How hard each sample is; the sense stands in the return type, Harder or Easier."""

    def __call__(self, params: Params, batch: Batch, /) -> Tensor: ...  # [batch]


class Loss(Protocol):
    """What training makes small, a number a sample."""

    def __call__(self, outputs: Tensor, y: Tensor, /) -> Tensor: ...  # [batch]


class Metric(Protocol):
    """How good outputs are, over all samples at once; the direction stands in the return type, Higher or Lower."""

    def __call__(self, outputs: Tensor, y: Tensor, /) -> Tensor: ...  # []


class Augment(Protocol):
    """Samples changed at random, as a function of (key, iteration) and of their ids, not of their places in a batch."""

    def __call__(self, batch: Batch, place: Place, /) -> Batch: ...


class Pace(Protocol):
    """How many samples are in play."""

    def __call__(self, state: State, iteration: Tensor, /) -> Tensor: ...  # [] int64, 1 <= size <= dataset_size


class Order(Protocol):
    """The samples from first to last, given how hard each is (larger is harder)."""

    def __call__(self, scores: Tensor, /) -> Tensor: ...  # [sample] int64, a permutation


class Sampling(Protocol):
    """An order made aware of classes: whatever is cut off after `size` samples has the class balance asked for."""

    def __call__(self, order: Tensor, y: Tensor, /) -> Tensor: ...  # [sample] int64, a permutation


class Past(NamedTuple):
    """What a weighting may know beside the batch."""

    key: Tensor  # [] int64, its stream of randomness
    iteration: Tensor  # [] int64, steps taken
    loss: Tensor  # [] running mean of the losses, before this batch; nan at first


class Weigh(Protocol):
    """How much each sample counts, given its loss; the mean of weights times losses is made small."""

    def __call__(self, past: Past, losses: Tensor, batch: Batch, /) -> Tensor: ...  # [batch], never negative


class Schedule(Protocol):
    """A learning rate that changes with the number of updates already made."""

    def __call__(self, iteration: Tensor, /) -> Tensor: ...  # []


def _remembers_no_metric(state: State, metric: Tensor) -> State:
    return state


def _unscaled(state: State) -> float:
    return 1.0


class Optimizer(NamedTuple):
    """How gradients move parameters."""

    init: Callable[[Params], State]
    update: Callable[[Params, State, Params], tuple[Params, State]]  # grads, state, params -> params, state
    advance: Callable[[State, Tensor], State] = _remembers_no_metric  # state, metric (lower is better) -> state
    scale: Callable[[State], Tensor | float] = _unscaled  # state -> the factor that `update` expects gradients to have


class Model(NamedTuple):
    """A network taken apart into functions. `apply` evaluates, given parameters and buffers in one dict; `train` is the
    same function as it behaves in training: it takes the place of its randomness and returns new buffers."""

    init: Callable[[int], tuple[Params, Buffers]]  # seed -> parameters, buffers
    apply: Callable[[Params, Tensor], Tensor]  # params, x -> outputs [batch, ...]
    train: Callable[[Params, Buffers, Tensor, Place], tuple[Tensor, Buffers]]  # params, buffers, x, place


class Method(NamedTuple):
    """A way to train: a state, and how a batch moves it."""

    init: Callable[[int], State]  # seed -> state
    step: Callable[[State, Batch], State]  # train_step
    advance: Callable[[State, Tensor], State] = _remembers_no_metric  # state, metric (lower is better) -> state
