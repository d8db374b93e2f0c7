"""What a config says: its sections.

`read` checks a whole config and gives an Experiment; nothing is computed and nothing is touched. A config is a table of
tables as tomllib gives it; every key is dotted in messages.
"""

from collections.abc import Collection, Mapping
from typing import Annotated, Any, Literal, NamedTuple

from annotated_types import Ge, Le, Lt, MinLen

from fcurr.errors import BadInput
from fcurr.precision import Precision
from fcurr.sampler import Clock
from fcurr.study import units
from fcurr.study.bind import Call, arguments, required, resolve
from fcurr.study.members import LOSS, Member, differing, expand, weightings
from fcurr.study.near import near
from fcurr.types import Iterations, Seed, Times, Unit

BatchSize = Annotated[int, Ge(1), Le(2**20), Unit("number of samples in a batch")]
Name = Annotated[str, MinLen(1), Unit("name")]
Device = Annotated[str, MinLen(1), Unit("device")]
Patience = Annotated[int, Ge(0), Lt(2**31), Unit("number of evaluations")]
NonFinite = Literal["stop", "skip", "rewind"]


class Training(NamedTuple):
    """How long, how much at a time, where, and when to look. What the clock counts is steps, or passes over the samples
    in play; `total_iterations`, `evaluate_every` and `save_every` are in its units."""

    total_iterations: Iterations
    batch_size: BatchSize = 64
    clock: Clock = "step"
    evaluate_every: Iterations = 50
    save_every: Iterations = 500
    inference_batch_size: BatchSize = 4096
    clean_batch_size: BatchSize = 100
    accumulate: Times = 1
    precision: Precision = "float32"
    device: Device = "auto"
    patience: Patience = 0
    on_nonfinite: NonFinite = "stop"
    compile: bool = False


class Fit(NamedTuple):
    """How the models that score are trained."""

    iterations: Iterations = 300
    batch_size: BatchSize = 64


class Outputs(NamedTuple):
    """Of which samples the answers are written down at the end."""

    train: bool = True
    validation: bool = True
    test: bool = True


class Experiment(NamedTuple):
    name: str
    seed: int
    training: Training
    fit: Fit
    outputs: Outputs
    components: dict[str, Call]  # data, split, model, and whatever else is given
    lists: dict[str, list[Call]]  # metrics, augment, observers, loggers
    members: list[Member]
    varying: dict[str, list[float]]  # "optimizer.learning_rate" -> one number a member, where they differ
    config: dict[str, Any]  # as given


ROLE_KEYS = (
    *("data", "split", "clean", "noise", "imbalance", "scaling", "model", "loss", "optimizer", "score"),
    *("weighting", "reweighting"),
)
LISTS = {"augment": "augmentation", "metrics": "metric", "observers": "observer", "loggers": "logger"}
RECORDS = {"training": Training, "fit": Fit, "outputs": Outputs}
KEYS = ("name", "seed", *ROLE_KEYS, *LISTS, *RECORDS, "curriculum", "members", "arms", "controls", "samples")
NEEDED = ("data", "split", "model", "optimizer", "training")


def read(config: Mapping[str, Any], plugins: Collection[str] = ()) -> Experiment:
    """The experiment that a config describes, or BadInput with the key that is wrong."""
    given = dict(config)
    for key in config:
        if key not in KEYS:
            raise BadInput(f"there is no section `{key}`{near(key, KEYS)}; there are {', '.join(KEYS)}", key)
    for key in NEEDED:
        if key not in config:
            raise BadInput(f"a config needs a section [{key}]", key)
    config = {"loss": LOSS, **config}
    seed = units.checked(config.get("seed", 0), Seed, "seed")
    if "reweighting" in config and "weighting" in config:
        words = "weights are learned, or in closed form: to compare them, give the closed form to an arm"
        raise BadInput(words, "weighting")
    if "reweighting" in config and "clean" not in config:  # before controls ask for the same
        raise BadInput("weights are learned from clean samples: add a section [clean]", "reweighting")
    components = {key: resolve(config[key], key, key, plugins) for key in ROLE_KEYS if key in config}
    lists = {key: _list(config.get(key, []), role, key, plugins) for key, role in LISTS.items()}
    members = expand(config, plugins)
    _learning(members, config)
    for call in weightings(members):
        if "irreducible" in required(call.function) and "clean" not in config:
            raise BadInput(f"{call.name} compares with a model of clean samples: add a section [clean]", call.where)
    return Experiment(
        name=_name(config.get("name", "run")),
        seed=seed,
        training=_trained(config),
        fit=_record(config, "fit", Fit),
        outputs=_record(config, "outputs", Outputs),
        components=components,
        lists=lists,
        members=members,
        varying=differing(members),
        config=given,
    )


def _learning(members: list[Member], config: Mapping[str, Any]) -> None:
    """BadInput where weights cannot be learned, or nobody learns them."""
    if all(member.reweighting is None for member in members):
        return
    if "clean" not in config:
        raise BadInput("weights are learned from clean samples: add a section [clean]", "reweighting")
    learning = [member for member in members if member.weighting is None and member.reweighting is not None]
    if not learning:
        raise BadInput("no arm learns weights: each has a weighting of its own", "reweighting")
    if any(member.samples != "train" for member in learning):
        raise BadInput("weights are learned for the training samples: an arm that learns trains on these", "samples")


def _name(value: Any) -> str:
    """A run's name is the name of its folder."""
    name = units.checked(value, Name, "name")
    if name in (".", "..") or any(mark in name for mark in "/\\\0"):
        raise BadInput(f"{units.written(name)} is not the name of a folder: no / and no \\, and not . or ..", "name")
    return name


def _list(written: Any, role: str, where: str, plugins: Collection[str]) -> list[Call]:
    """Components in their order; one alone may stand without brackets."""
    parts = written if isinstance(written, list) else [written]
    return [
        resolve(part, role, f"{where}[{number}]" if len(parts) > 1 else where, plugins)
        for number, part in enumerate(parts)
    ]


def _trained(config: Mapping[str, Any]) -> Training:
    """[training], whose defaults in steps mean one pass where passes are counted."""
    found: Training = _record(config, "training", Training)
    if found.clock == "epoch":
        every = {key: 1 for key in ("evaluate_every", "save_every") if key not in config["training"]}
        found = found._replace(**every)
    if found.batch_size % found.accumulate:
        raise BadInput(
            f"a batch of {found.batch_size} does not come in {found.accumulate} equal parts", "training.accumulate"
        )
    return found


def _record(config: Mapping[str, Any], key: str, record: Any) -> Any:
    table = config.get(key, {})
    if not isinstance(table, Mapping):
        raise BadInput(f"{units.written(table)} is not a table", key)
    fixed = arguments(record, f"[{key}]", table, key)
    missing = [name for name in record._fields if name not in fixed and name not in record._field_defaults]
    if missing:
        kind = units.meaning(record.__annotations__[missing[0]])
        raise BadInput(f"[{key}] needs `{missing[0]}`, {kind}", key)
    return record(**fixed)
