"""What a config says: its sections.

`read` checks a whole config and gives an Experiment; nothing is computed and nothing is touched. A config is a table of
tables as tomllib gives it; every key is dotted in messages.
"""

from collections.abc import Collection, Mapping
from typing import Annotated, Any, Literal, NamedTuple

from annotated_types import Ge, Gt, Le, Lt, MinLen

from fcurr.errors import BadInput
from fcurr.precision import Precision
from fcurr.sampler import Clock
from fcurr.study import units
from fcurr.study.bind import Call, required, resolve, section
from fcurr.study.members import LOSS, Member, differing, expand, weightings
from fcurr.study.near import near
from fcurr.study.sections import SECTIONS
from fcurr.types import Iterations, Path, Seed, Times, Unit

BatchSize = Annotated[int, Ge(1), Le(2**20), Unit("number of samples in a batch")]
Name = Annotated[str, MinLen(1), Unit("name")]
Device = Annotated[str, MinLen(1), Unit("device")]
Patience = Annotated[int, Ge(0), Lt(2**31), Unit("number of evaluations")]
NonFinite = Literal["stop", "skip", "rewind", "leave"]
Place = Annotated[int, Ge(0), Lt(2**31), Unit("number of a member")]
Pattern = Annotated[str, MinLen(1), Unit("pattern of names")]
Weight = Annotated[float, Gt(0), Le(1e38), Unit("weight of a task")]
Patterns = Annotated[tuple[Pattern, ...], Unit("list of patterns of names")]


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


class Start(NamedTuple):
    """Where members' parameters come from: a file of tensors, or a member of another run. Of tensors, those are taken
    whose names match `only` (all, if there are none) and not `without`; parameters of the model that match `freeze`
    stay as they are."""

    weights: Path = ""
    run: Path = ""
    config: Path = ""  # trained first, in the same study
    member: Place | None = None
    which: Literal["best", "last"] = "best"
    only: Patterns = ()
    without: Patterns = ()
    freeze: Patterns = ()


class OneTask(NamedTuple):
    """One of several tasks that are trained jointly."""

    data: Call
    weight: float
    loss: Call
    metrics: list[Call]  # empty: those of its kind


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
    start: Start | None = None
    tasks: dict[str, OneTask] = {}  # noqa: RUF012  # several, by name; then there is no component `data`


ROLE_KEYS = (
    *("data", "split", "clean", "noise", "imbalance", "scaling", "model", "loss", "optimizer", "score"),
    *("weighting", "reweighting"),
)
LISTS = {"augment": "augmentation", "metrics": "metric", "observers": "observer", "loggers": "logger"}
RECORDS = {"training": Training, "fit": Fit, "outputs": Outputs, "start": Start}
KEYS = ("name", "seed", *ROLE_KEYS, *LISTS, *RECORDS, "curriculum", "members", "arms", "controls", "samples", "tasks")
JOINT_LOSS = "fcurr.joint:loss"
NEEDED = ("data", "split", "model", "optimizer", "training")


def read(config: Mapping[str, Any], plugins: Collection[str] = ()) -> Experiment:
    """The experiment that a config describes, or BadInput with the key that is wrong."""
    given = dict(config)
    for key in config:
        if key in SECTIONS:
            raise BadInput("this makes a config a study, and here it is to be one run", key)
        if key not in KEYS:
            hint, known = near(key, (*KEYS, *SECTIONS)), f"{', '.join(KEYS)}; and, of a study, {', '.join(SECTIONS)}"
            raise BadInput(f"there is no section `{key}`{hint}; there are {known}", key)
    for key in NEEDED:
        if key not in config and not (key == "data" and "tasks" in config):
            raise BadInput(f"a config needs a section [{key}]", key)
    tasks = _tasks(config, plugins) if "tasks" in config else {}
    config = {"loss": JOINT_LOSS if tasks else LOSS, **config}
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
        fit=section(config, "fit", Fit),
        outputs=section(config, "outputs", Outputs),
        components=components,
        lists=lists,
        members=members,
        varying=differing(members),
        config=given,
        start=_started(config),
        tasks=tasks,
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
    found: Training = section(config, "training", Training)
    if found.clock == "epoch":
        every = {key: 1 for key in ("evaluate_every", "save_every") if key not in config["training"]}
        found = found._replace(**every)
    if found.batch_size % found.accumulate:
        raise BadInput(
            f"a batch of {found.batch_size} does not come in {found.accumulate} equal parts", "training.accumulate"
        )
    return found


def _tasks(config: Mapping[str, Any], plugins: Collection[str]) -> dict[str, OneTask]:
    """[tasks.NAME], each with its data, and what it does not share with the others."""
    tables, found = config["tasks"], {}
    for key, words in {
        "data": "samples are in [data], or in the `data` of every task: one of the two",
        "loss": "with several tasks every one has its own: tasks.NAME.loss",
        "metrics": "with several tasks every one has its own: tasks.NAME.metrics",
    }.items():
        if key in config:
            raise BadInput(words, key)
    if not isinstance(tables, Mapping) or not tables:
        raise BadInput(f"{units.written(tables)} is not a table of tasks, each a table with `data`", "tasks")
    for name, table in tables.items():
        where = f"tasks.{name}"
        if not name or not isinstance(table, Mapping):
            raise BadInput(f"{units.written(table)} is not a table with `data`" if name else "a task has a name", where)
        for key in table:
            if key not in OneTask._fields:
                words = f"a task takes no `{key}`{near(key, OneTask._fields)}; it takes {', '.join(OneTask._fields)}"
                raise BadInput(words, f"{where}.{key}")
        if "data" not in table:
            raise BadInput("a task needs `data`, a component", where)
        found[name] = OneTask(
            data=resolve(table["data"], "data", f"{where}.data", plugins),
            weight=units.checked(table.get("weight", 1.0), Weight, f"{where}.weight"),
            loss=resolve(table.get("loss", LOSS), "loss", f"{where}.loss", plugins),
            metrics=_list(table.get("metrics", []), "metric", f"{where}.metrics", plugins),
        )
    return found


def _started(config: Mapping[str, Any]) -> Start | None:
    """[start], which names a file or a run."""
    if "start" not in config:
        return None
    found: Start = section(config, "start", Start)
    if sum(map(bool, (found.weights, found.run, found.config))) != 1:
        words = "from `weights`, a file; from `run`, the folder of a run; or from `config`, which is trained first"
        raise BadInput(f"tensors come {words}: one of them", "start")
    for key in ("member", "which"):
        if found.weights and key in config["start"]:
            raise BadInput(f"a file has no members: `{key}` belongs to `run` and `config`", f"start.{key}")
    return found
