"""What a config says: its sections.

`read` checks a whole config and gives an Experiment; nothing is computed and nothing is touched. A config is a table of
tables as tomllib gives it; every key is dotted in messages.
"""

from collections.abc import Collection, Mapping
from typing import Annotated, Any, NamedTuple

from annotated_types import Ge, Le, MinLen

from fcurr.errors import BadInput
from fcurr.sampler import Clock
from fcurr.study import units
from fcurr.study.bind import Call, arguments, resolve
from fcurr.study.members import Member, differing, expand
from fcurr.study.near import near
from fcurr.types import Iterations, Seed, Unit

BatchSize = Annotated[int, Ge(1), Le(2**20), Unit("number of samples in a batch")]
Name = Annotated[str, MinLen(1), Unit("name")]


class Training(NamedTuple):
    """How long, how much at a time, and when to look."""

    total_iterations: Iterations
    batch_size: BatchSize = 64
    clock: Clock = "step"
    evaluate_every: Iterations = 50
    save_every: Iterations = 500
    compile: bool = False


class Fit(NamedTuple):
    """How the models that score are trained."""

    iterations: Iterations = 300
    batch_size: BatchSize = 64


class Experiment(NamedTuple):
    name: str
    seed: int
    training: Training
    fit: Fit
    components: dict[str, Call]  # data, split, model, and noise, imbalance, score where given
    members: list[Member]
    varying: dict[str, list[float]]  # "optimizer.learning_rate" -> one number a member, where they differ
    config: dict[str, Any]  # as given


ROLE_KEYS = ("data", "split", "noise", "imbalance", "model", "loss", "optimizer", "score")
RECORDS = {"training": Training, "fit": Fit}
KEYS = ("name", "seed", *ROLE_KEYS, *RECORDS, "curriculum", "members", "arms")
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
    config = {"loss": "cross_entropy", **config}
    seed = units.checked(config.get("seed", 0), Seed, "seed")
    components = {key: resolve(config[key], key, key, plugins) for key in ROLE_KEYS if key in config}
    members = expand(config, plugins)
    return Experiment(
        name=_name(config.get("name", "run")),
        seed=seed,
        training=_record(config, "training", Training),
        fit=_record(config, "fit", Fit),
        components=components,
        members=members,
        varying=differing(members),
        config=given,
    )


def _name(value: Any) -> str:
    """A run's name is the name of its folder."""
    name = units.checked(value, Name, "name")
    if name in (".", "..") or any(mark in name for mark in "/\\\0"):
        raise BadInput(f"{units.written(name)} is not the name of a folder: no / and no \\, and not . or ..", "name")
    return name


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
