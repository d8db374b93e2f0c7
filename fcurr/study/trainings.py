"""The commands of one config: prepare, score, train, evaluate, predict for each of its members."""

from collections.abc import Collection, Iterator, Mapping
from typing import Any, NamedTuple

from fcurr.curriculum import random
from fcurr.errors import BadInput
from fcurr.study import beginnings, members, units
from fcurr.study.bind import numbers, required, shape
from fcurr.study.config import read
from fcurr.study.members import Member
from fcurr.study.schedule import Command, canonical, fingerprint
from fcurr.study.sections import Study, inner_folds
from fcurr.study.sweeping import applied, origin

SAMPLES = ("seed", "data", "tasks", "split", "clean", "noise", "imbalance")  # what says which samples there are
MODEL = (*SAMPLES, "scaling", "model", "loss", "augment")
SCORE = (*MODEL, "optimizer", "score", "fit")
OF_A_MEMBER = ("optimizer", "curriculum", "weighting", "reweighting", "samples", "members")
TRAIN = (*MODEL, "start", *OF_A_MEMBER, "metrics", "training")
NO_NUMBER = ("save_every", "device")  # of [training]: they change no number


class Facts(NamedTuple):
    """What a plan has to know that is not in the config."""

    code: dict[str, str] = {}  # routine or "module:function" -> hash of the code it calls  # noqa: RUF012
    modules: dict[str, str] = {}  # module that the config may name functions of -> its hash  # noqa: RUF012
    files: dict[str, str] = {}  # path that the config names -> hash of what is there  # noqa: RUF012
    configs: dict[str, dict[str, Any]] = {}  # path of a config that is trained first -> what it says  # noqa: RUF012


class Point(NamedTuple):
    """One config of a study."""

    axes: dict[str, Any]  # dotted key -> value, from [sweep] and [cross_validation]
    config: dict[str, Any]  # without the sections of a study
    trial: int | None = None  # of a search


class One(NamedTuple):
    """One training, and what it is made of."""

    member: Member
    own: dict[str, Any]  # its config
    prepare: Command
    score: Command | None
    label: dict[str, Any]
    irreducible: Command | None = None  # what a model of the clean samples loses, if its weighting asks for that
    before: tuple[Command, ...] = ()  # what a config comes to that is trained first
    start: Command | None = None  # the one of these trainings that it goes on from


def of_point(point: Point, study: Study, facts: Facts, plugins: Collection[str]) -> Iterator[Command]:
    """Everything that a config comes to."""
    for one in _ones(point, study, facts, plugins):
        train = _train(one, study, facts)
        yield from _made(one, train)
        if point.trial is not None:
            yield _judged("validate", train, one, study, facts)
        yield _judged("evaluate", train, one, study, facts)
        yield _judged("predict", train, one, study, facts)


def nested(points: list[Point], study: Study, facts: Facts, plugins: Collection[str]) -> Iterator[Command]:
    """Everything that the points of a sweep come to in one outer fold: each is trained in every inner fold, the best on
    average is chosen, trained on all of them and judged by the outer one, which no choice has seen."""
    _choosable(points, study)
    named = any(key in points[0].config for key in ("arms", "reweighting"))  # else an arm is a swept order, say
    chosen: dict[str, list[tuple[Point, One]]] = {}  # arm and seed -> the trainings to choose among
    judged: dict[str, list[tuple[str, str]]] = {}  # arm -> (point, command that judges it)
    arms: dict[str, str] = {}  # what an arm is called
    for point in points:
        refit = Point(point.axes, _whole(point.config, study))
        for one in _ones(refit, study, facts, plugins):
            yield from _made(one)
            arm = one.member.arm if named else ""
            arms[arm] = one.member.arm if arms.get(arm, one.member.arm) == one.member.arm else "chosen"
            chosen.setdefault(canonical([arm, one.member.axes]), []).append((point, one))
        for fold in inner_folds(study):
            inner = Point({**point.axes, **fold}, applied(_unshared(point.config), fold))
            for one in _ones(inner, study, facts, plugins):
                train = _train(one, study, facts)
                yield from _made(one, train)
                validate = _judged("validate", train, one, study, facts)
                judged.setdefault(one.member.arm if named else "", []).append((_text(point), validate.name))
                yield validate
    for arm, found in judged.items():
        reads = {"validations": tuple(name for _, name in found)}
        title = titled({"split.fold": points[0].axes["split.fold"]})
        told_of = {"points": [text for text, _ in found]}
        select = Command(f"select/{arms[arm]}{title}", "select", told_of, reads, ("choice",))
        yield select
        for several in chosen.values():
            if not named or several[0][1].member.arm == arm:
                train = _refit(several, arms[arm], select, study, facts)
                yield train
                one = several[0][1]._replace(own=train.config, label=train.label)
                yield _judged("evaluate", train, one, study, facts)
                yield _judged("predict", train, one, study, facts)


def _choosable(points: list[Point], study: Study) -> None:
    """BadInput where the points of a sweep cannot be chosen among by one number."""
    for key in points[0].axes:
        if key == "tasks" or (key.startswith("tasks.") and key.endswith("weight")):
            words = f"`{key}` changes what trainings are chosen by, the joint loss: it cannot be chosen itself"
            raise BadInput(words, f"sweep.{key}")


def _made(one: One, *more: Command) -> Iterator[Command]:
    """The commands that a training consists of."""
    yield from one.before
    yield from (command for command in (one.prepare, one.score, one.irreducible, *more) if command is not None)


def _whole(config: Mapping[str, Any], study: Study) -> dict[str, Any]:
    """A config whose split has a validation part for whoever is trained on all inner folds: as many as one fold has, if
    the split does not say."""
    split = config["split"]
    said = isinstance(split, Mapping) and "validation" in split
    return dict(config) if said else applied(config, {"split.validation": 1 / study.inner_folds})


def _unshared(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config whose inner folds are what is validated on."""
    split = config["split"]
    split = {key: value for key, value in split.items() if key != "validation"} if isinstance(split, Mapping) else split
    return {**config, "split": split}


def _ones(point: Point, study: Study, facts: Facts, plugins: Collection[str]) -> Iterator[One]:
    try:
        experiment = read(point.config, plugins)
    except BadInput as wrong:
        where = origin(wrong.where, point.axes)
        folds = where.startswith(("sweep.split.fold", "sweep.split.inner_fold")) and study.folds
        raise BadInput(str(wrong), "cross_validation" if folds else where) from None
    for member, own in zip(experiment.members, members.trainings(point.config), strict=True):
        _apart(member.axes, point.axes)
        base = {**own, **{key: point.config[key] for key in SCORE if key in point.config}}
        prepare = _prepare(own, study, facts)
        ranked = member.curriculum.order.function is not random
        score = _score(base, prepare, study, facts) if ranked else None
        asked = member.weighting is not None and "irreducible" in required(member.weighting.function)
        irreducible = _irreducible(base, prepare, study, facts) if asked else None
        trial = {} if point.trial is None else {"trial": point.trial}
        label = {"arm": member.arm, **trial, **point.axes, **member.axes}
        before = _first(own, study, facts, plugins)
        start = beginnings.chosen(own, before) if before else None
        yield One(member, own, prepare, score, label, irreducible, before, start)


def _apart(axes: Mapping[str, Any], swept: Mapping[str, Any]) -> None:
    """BadInput where an axis of the members is swept, in whole or in part."""
    for key in axes:
        for other in swept:
            if f"{key}.".startswith(f"{other}.") or f"{other}.".startswith(f"{key}."):
                raise BadInput(f"`{key}` is swept, and an axis of [members] as well: one of them", f"members.{key}")


def _first(own: Mapping[str, Any], study: Study, facts: Facts, plugins: Collection[str]) -> tuple[Command, ...]:
    """What the config that [start] names comes to, up to its trainings, with its name in theirs."""
    found = beginnings.config(own, facts.configs)
    if found is None:
        return ()
    commands: list[Command] = []
    for one in _ones(Point({}, found), study, facts, plugins):
        train = _train(one, study, facts)
        rest = train.name.partition("/")[2]
        path = own["start"]["config"].removesuffix(".toml")
        commands += _made(one, train._replace(name=f"train/{path}/{rest}"))
    return tuple(commands)


def _prepare(own: Mapping[str, Any], study: Study, facts: Facts) -> Command:
    parameters = told(own, SAMPLES, facts) | hooked(study, "prepare", facts)
    name = f"prepare/{_data(own)}-{fingerprint(parameters)[:8]}"
    return Command(name, "prepare", parameters, outputs=("samples",), config=_part(own, SAMPLES))


def _part(own: Mapping[str, Any], keys: tuple[str, ...]) -> dict[str, Any]:
    """A config that says these things, and what every config has to."""
    return {key: own[key] for key in (*keys, "model", "optimizer", "training", "name") if key in own}


def _data(own: Mapping[str, Any]) -> str:
    """What the samples are called."""
    if "tasks" in own:
        return "+".join(own["tasks"])
    return own["data"] if isinstance(own["data"], str) else own["data"]["fn"]


def _score(base: Mapping[str, Any], prepare: Command, study: Study, facts: Facts) -> Command:
    written = base["score"]
    kind = written if isinstance(written, str) else written["fn"]
    return _fitted(f"score/{kind}", "score", SCORE, "scores", "train", base, prepare, study, facts)


def _irreducible(base: Mapping[str, Any], prepare: Command, study: Study, facts: Facts) -> Command:
    keys = tuple(key for key in SCORE if key != "score")
    name = f"irreducible/{_data(base)}"
    return _fitted(name, "irreducible", keys, "irreducible", "clean", base, prepare, study, facts)


def _fitted(
    name: str,
    function: str,
    keys: tuple[str, ...],
    output: str,
    part: str,
    base: Mapping[str, Any],
    prepare: Command,
    study: Study,
    facts: Facts,
) -> Command:
    """What models say of samples that are trained on the way, on a part of them."""
    parameters = told(base, keys, facts) | hooked(study, function, facts)
    parameters["precision"] = base["training"].get("precision", "float32")
    return Command(
        name=f"{name}-{fingerprint(parameters)[:8]}",
        function=function,
        parameters=parameters,
        inputs={"samples": (prepare.name,)},
        outputs=(output,),
        uses={"fit": part},
        config=_part(base, keys),
    )


def _train(one: One, study: Study, facts: Facts) -> Command:
    parameters = training(one, facts) | hooked(study, "train", facts)
    shared = {key: value for key, value in parameters["config"].items() if key not in (*OF_A_MEMBER, "score", "fit")}
    learned = one.member.reweighting if "reweighting" in one.own else None
    kinds = [None if call is None else shape(call) for call in (one.member.optimizer, learned)]
    rates = {} if learned is None else numbers(learned)
    same = {key: value for key, value in rates.items() if key not in members.RATES}
    return Command(
        name=f"train/{one.member.arm}{titled(one.label)}",
        function="train",
        parameters=parameters,
        inputs=_inputs(one),
        outputs=("model", "metrics"),
        uses={"fit": "train and clean" if "clean" in one.own else "train", "select": "validation"},
        together=fingerprint(
            [
                {**parameters, "config": shared},
                kinds,
                same,
                one.start and one.start.name,
                one.irreducible and one.irreducible.name,
            ]
        ),
        label=one.label,
        config=one.own,
    )


def _inputs(one: One) -> dict[str, tuple[str, ...]]:
    found = {"samples": one.prepare, "scores": one.score, "irreducible": one.irreducible, "start": one.start}
    return {role: (command.name,) for role, command in found.items() if command is not None}


def training(one: One, facts: Facts) -> dict[str, Any]:
    """What a training depends on."""
    keys = TRAIN if one.score is None else (*TRAIN, "score", "fit")
    own = dict(one.own)
    if isinstance(own.get("metrics"), list):
        own["metrics"] = own["metrics"][:1]  # the one that is tracked
    rewinds = own["training"].get("on_nonfinite") == "rewind"  # to a checkpoint that was due
    left = ("device",) if rewinds else NO_NUMBER
    own["training"] = {key: value for key, value in own["training"].items() if key not in left}
    return told(own, keys, facts)


def _refit(several: list[tuple[Point, One]], arm: str, select: Command, study: Study, facts: Facts) -> Command:
    """The training of whichever point is chosen; all of them are written down."""
    one = several[0][1]
    for role in ("prepare", "start", "irreducible"):
        if len({command and command.name for _, own in several for command in [getattr(own, role)]}) > 1:
            words = (
                "a choice is among trainings on the same samples, from the same beginning and beside the same models"
            )
            raise BadInput(f"{words}: what is swept changes these", "cross_validation.inner_folds")
    label = {"arm": arm, "split.fold": several[0][0].axes["split.fold"], **one.member.axes}
    scores = {own.score.name: place for place, (_, own) in enumerate(several) if own.score is not None}
    among = {_text(point): training(own, facts) for point, own in several}
    inputs = {**_inputs(one._replace(score=None)), "choice": (select.name,)}
    configs = {
        _text(point): {"config": own.own, "scores": None if own.score is None else own.score.name}
        for point, own in several
    }
    return Command(
        name=f"train/{arm}{titled(label)}, chosen",
        function="train",
        parameters={"among": among} | hooked(study, "train", facts),
        inputs=inputs | ({"scores": tuple(scores)} if scores else {}),
        outputs=("model", "metrics"),
        uses={"fit": "train and clean" if "clean" in one.own else "train", "select": "validation"},
        label=label,
        config={**one.own, "among": configs},
    )


def _judged(function: str, train: Command, one: One, study: Study, facts: Facts) -> Command:
    """What is found out about a trained model: evaluate it on the test samples, validate on those it was chosen by, or
    predict."""
    asked = {key: one.own[key] for key in (("outputs",) if function == "predict" else ("metrics",)) if key in one.own}
    outputs = {"evaluate": "evaluation", "validate": "validation", "predict": "predictions"}[function]
    return Command(
        name=f"{function}/{train.name.partition('/')[2]}",
        function=function,
        parameters=asked | hooked(study, function, facts),
        inputs={role: train.inputs[role] for role in ("samples", "choice") if role in train.inputs}
        | {"model": (train.name,)},
        outputs=(outputs,),
        uses={"evaluate": {"evaluate": "test"}, "validate": {"select": "validation"}, "predict": {}}[function],
        together=train.together,
        label=train.label,
        config=train.config,
    )


def told(config: Mapping[str, Any], keys: tuple[str, ...], facts: Facts) -> dict[str, Any]:
    """A part of a config, with the hashes of the files and of the code from outside fcurr that it names."""
    part = {key: config[key] for key in keys if key in config}
    if isinstance(part.get("tasks"), Mapping):  # in their order, without what only judges
        part["tasks"] = [
            [name, {k: v for k, v in task.items() if k != "metrics"}] for name, task in part["tasks"].items()
        ]
    words = set(texts(part))
    modules = {word.partition(":")[0] for word in words if ":" in word}
    found: dict[str, Any] = {"config": part}
    if files := {word: facts.files[word] for word in sorted(words & facts.files.keys())}:
        found["files"] = files
    if known := {module: facts.modules[module] for module in sorted(modules & facts.modules.keys())}:
        found["modules"] = known
    return found


def hooked(study: Study, function: str, facts: Facts) -> dict[str, Any]:
    """The hooks of a routine, with the hashes of their code."""
    moments = {moment: study.hooks.get(f"{function}.{moment}", ()) for moment in ("before", "after")}
    names = {moment: several for moment, several in moments.items() if several}
    if not names:
        return {}
    modules = sorted({name.partition(":")[0] for several in names.values() for name in several})
    return {"hooks": names, "code of hooks": {module: facts.modules.get(module, "") for module in modules}}


def texts(value: Any) -> Iterator[str]:
    """Every text in a value of a config."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for inner in value.values():
            yield from texts(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from texts(inner)


def titled(axes: Mapping[str, Any]) -> str:
    """[seed=3, curriculum.pace=root(power=2.0)]: axes in a name."""
    shown = [f"{key}={short(value)}" for key, value in axes.items() if key != "arm"]
    return f"[{', '.join(shown)}]" if shown else ""


def short(value: Any) -> str:
    """A value of a config in few words, none left out."""
    if isinstance(value, Mapping) and isinstance(value.get("fn"), str):
        rest = ", ".join(f"{key}={short(inner)}" for key, inner in value.items() if key != "fn")
        return f"{value['fn']}({rest})" if rest else value["fn"]
    if isinstance(value, str):
        return value
    return canonical(value) if isinstance(value, Mapping | list) else units.written(value)


def _text(point: Point) -> str:
    return titled({key: value for key, value in point.axes.items() if not key.startswith("split.")})
