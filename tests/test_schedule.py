"""A schedule is a function of its config, and a key changes with what a result depends on, and with nothing else."""

import copy
import json
import random
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small import CONFIG

from fcurr.errors import BadInput
from fcurr.study import history, outlook, planning, provenance
from fcurr.study.members import override
from fcurr.study.outlook import Known
from fcurr.study.planning import plan
from fcurr.study.provenance import Leakage
from fcurr.study.schedule import Command, Schedule, canonical, fingerprint, needed, readers, scheduled
from fcurr.study.trainings import Facts

STUDY = CONFIG | {"sweep": {"optimizer.learning_rate": [0.1, 0.05], "curriculum.pace.initial_size": [0.2, 0.5]}}


def _keys(config: dict[str, Any], facts: Facts = Facts()) -> dict[str, str]:  # noqa: B008
    return {name: command.key for name, command in plan(config, facts, ["mine"]).commands.items()}


def _shuffled(value: Any, chance: random.Random) -> Any:
    """The same tables, written in another order."""
    if not isinstance(value, dict):
        return value
    items = [(key, _shuffled(inner, chance)) for key, inner in value.items()]
    chance.shuffle(items)
    return dict(items)


@given(st.randoms())
def test_a_plan_has_the_same_keys_however_the_tables_of_its_config_are_ordered(chance):
    config = copy.deepcopy(STUDY)
    shuffled = {
        key: value if key in ("sweep", "members", "arms") else _shuffled(value, chance) for key, value in config.items()
    }
    assert _keys(_shuffled(shuffled, random.Random(0)) | {k: config[k] for k in ("sweep", "arms")}) == _keys(config)


def test_a_study_is_prepared_scored_trained_judged_and_reported_in_this_order():
    schedule = plan(STUDY, Facts())
    place = {name: number for number, name in enumerate(schedule.commands)}
    for name, command in schedule.commands.items():
        assert all(place[other] < place[name] for names in command.inputs.values() for other in names)
    functions = [command.function for command in schedule.commands.values()]
    counts = {function: functions.count(function) for function in functions}
    assert counts == {"prepare": 1, "score": 2, "train": 16, "evaluate": 16, "predict": 16, "report": 1}
    trained = [command for command in schedule.commands.values() if command.function == "train"]
    assert len({command.together for command in trained}) == 1  # one program


def test_every_training_is_written_as_a_config_that_a_person_could_run():
    from fcurr.study.config import read

    for command in plan(STUDY, Facts()).commands.values():
        if command.function == "train":
            (member,) = read(command.config).members
            assert member.seed == command.label["seed"]
            rate = command.label["optimizer.learning_rate"]
            assert member.optimizer.fixed["learning_rate"] == rate


CHANGES = {  # what is changed -> the functions whose commands have other keys then
    "optimizer.learning_rate": {"score", "train", "evaluate", "predict", "validate", "report"},
    "fit.iterations": {"score", "train", "evaluate", "predict", "report"},
    "training.total_iterations": {"train", "evaluate", "predict", "report"},
    "split.test": {"prepare", "score", "train", "evaluate", "predict", "report"},
    "training.save_every": set(),
    "training.device": set(),
    "name": set(),
}


@pytest.mark.parametrize("key", CHANGES)
def test_a_change_gives_other_keys_to_what_depends_on_it_and_to_nothing_else(key):
    value = {"name": "other", "training.device": "cpu", "split.test": 0.2, "optimizer.learning_rate": 0.07}.get(key, 30)
    before = {command.name: command for command in plan(CONFIG, Facts()).commands.values()}
    after = {command.key for command in plan(override(CONFIG, key, value), Facts()).commands.values()}
    changed = {command.function for command in before.values() if command.key not in after}
    assert changed == CHANGES[key] & {command.function for command in before.values()}
    if key == "fit.iterations":  # who takes samples at random has no score
        plain = [c for name, c in before.items() if name.startswith("train/plain")]
        assert plain and all(command.key in after for command in plain)


def test_a_value_added_to_a_sweep_changes_no_training_that_was_there():
    more = override(STUDY, "sweep", STUDY["sweep"] | {"optimizer.learning_rate": [0.1, 0.05, 0.02]})
    old = {key for name, key in _keys(STUDY).items() if name != "report"}
    assert old < set(_keys(more).values())


def test_what_is_the_same_in_two_arms_or_points_is_one_command_with_two_names():
    config = copy.deepcopy(CONFIG) | {"arms": {"one": {}, "two": {}}}
    schedule = plan(config, Facts())
    keys = [command.key for command in schedule.commands.values() if command.function == "train"]
    assert len(keys) == 4 and len(set(keys)) == 2


def test_code_and_files_are_in_the_keys_of_what_names_them():
    config = copy.deepcopy(CONFIG) | {"data": {"fn": "csv", "path": "a.csv"}}
    bare = _keys(config)
    content = _keys(config, Facts(files={"a.csv": "1"}))
    assert all(content[name] != bare[name] for name in bare)
    assert content == _keys(config, Facts(files={"a.csv": "1", "b.csv": "2"}))
    coded = _keys(config, Facts(code={"train": "1"}))
    assert {name.partition("/")[0] for name in bare if coded[name] != bare[name]} == {
        *("train", "evaluate", "predict", "report")
    }


def _command(name: str, *reads: str, **more: Any) -> Command:
    return Command(name, "m:f", {}, {"all": reads} if reads else {}, ("value",), **more)


def test_commands_that_wait_for_one_another_are_named():
    with pytest.raises(BadInput, match=r"^commands wait for one another: a reads c reads b reads a$"):
        scheduled([_command("a", "c"), _command("b", "a"), _command("c", "b")], {})


def test_a_command_that_there_is_not_and_a_name_that_is_used_twice_are_named():
    with pytest.raises(BadInput, match=r"^there is no command `trian` \(did you mean `train`\?\)$"):
        scheduled([_command("train"), _command("b", "trian")], {})
    with pytest.raises(BadInput, match=r"^two commands are called a$"):
        scheduled([_command("a"), _command("a")], {})


@st.composite
def graphs(draw: st.DrawFn) -> Schedule:
    """Commands that read some of those before them."""
    commands = []
    for number in range(draw(st.integers(1, 12))):
        reads = draw(st.lists(st.integers(0, max(number - 1, 0)), max_size=3, unique=True)) if number else []
        commands.append(_command(f"c{number}", *(f"c{other}" for other in reads))._replace(parameters={"n": number}))
    return scheduled(draw(st.permutations(commands)), {})


@given(graphs(), st.data())
def test_what_is_needed_is_closed_and_what_reads_is_all_that_comes_after(schedule, data):
    name = data.draw(st.sampled_from(sorted(schedule.commands)))
    own = needed(schedule, [name])
    for command in own.commands.values():
        assert all(other in own.commands for names in command.inputs.values() for other in names)
    late = readers(schedule, [name])
    for other in schedule.commands:
        assert (other in late) == (name in needed(schedule, [other]).commands and other != name)


@given(graphs(), st.data())
def test_a_changed_command_changes_the_keys_of_its_readers_and_of_no_other(schedule, data):
    name = data.draw(st.sampled_from(sorted(schedule.commands)))
    listed = [c._replace(parameters={"n": -1}) if c.name == name else c for c in schedule.commands.values()]
    other = scheduled(listed, {})
    changed = {own for own, command in schedule.commands.items() if other.commands[own].key != command.key}
    assert changed == readers(schedule, [name]) | {name}


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(JSON)
def test_canonical_text_is_the_value_again(value):
    assert json.loads(canonical(value)) == value
    assert len(fingerprint(value)) == 16


LINES = st.lists(
    st.tuples(st.integers(0, 4), st.sampled_from(history.EVENTS), st.integers(0, 9)).map(
        lambda drawn: history.line(f"{drawn[0]:016x}", drawn[1], name="x", step=drawn[2]).rstrip().encode()
    )
)


@given(LINES, LINES)
def test_the_journal_is_a_fold(first, second):
    assert history.latest(first + second) == history.latest(second, history.latest(first))


@given(LINES, st.data())
def test_a_line_that_was_cut_short_is_nothing(lines, data):
    if lines:
        cut = data.draw(st.integers(0, len(lines[-1]) - 1))
        at = data.draw(st.integers(0, len(lines)))
        torn = [*lines[:at], lines[-1][:cut], *lines[at:]]
        assert history.latest(torn) == history.latest(lines)


def test_a_retired_command_is_not_in_a_studys_standing():
    lines = [history.line("0" * 16, "finished"), history.line("1" * 16, "started"), history.line("0" * 16, "retired")]
    assert list(history.standing(history.latest([line.strip().encode() for line in lines]))) == ["1" * 16]


IDS = st.sets(st.integers(0, 12)).map(lambda ids: torch.tensor(sorted(ids), dtype=torch.int64))


@given(IDS, IDS, IDS, IDS)
def test_whoever_evaluates_looks_at_samples_that_were_not_used_before(fit, select, calibrate, evaluate):
    before = {"fit": {"d": fit}, "select": {"d": select}, "calibrate": {"d": calibrate}}
    found = provenance.overlaps(before, {"evaluate": {"d": evaluate}})
    used = {*fit.tolist(), *select.tolist(), *calibrate.tolist()}
    met = {sample for overlap in found for sample in overlap.samples.tolist()}
    assert met == used & set(evaluate.tolist())
    assert not provenance.overlaps(before, {"evaluate": {"other data": evaluate}})
    assert not provenance.overlaps(before, {"fit": {"d": evaluate}})


@given(IDS, IDS)
def test_whoever_selects_or_calibrates_looks_at_samples_that_were_not_fitted_on(fit, chosen):
    for use in ("select", "calibrate"):
        now = {"fit": {"d": fit}, use: {"d": chosen}}  # at once
        later = provenance.overlaps({"fit": {"d": fit}}, {use: {"d": chosen}})
        assert bool(provenance.overlaps({}, now)) == bool(later) == bool(set(fit.tolist()) & set(chosen.tolist()))


def test_a_leak_is_told_with_the_samples():
    found = provenance.overlaps({"fit": {"d": torch.arange(9)}}, {"evaluate": {"d": torch.tensor([2, 4, 6, 8, 99])}})
    with pytest.raises(Leakage) as wrong:
        provenance.refuse("evaluate/a", found)
    assert str(wrong.value) == (
        "evaluate/a would evaluate on 4 samples that what it reads was fitted on (2, 4, 6, ...); "
        'leakage = "record" in [study] goes on and writes it down'
    )


def _why(config: dict[str, Any], before: dict[str, Any], **known: Any) -> dict[str, str]:
    old, new = plan(before, Facts()), plan(config, Facts())
    there = {command.key for command in old.commands.values()}
    journal = {key: {"event": "finished"} for key in there}
    past = Known(there=there, journal=journal, before=old.commands, **known)
    return {name: f"{state.what}: {state.why}" for name, state in outlook.states(new, past, {}).items()}


def test_a_plan_says_why_a_command_runs():
    said = _why(override(CONFIG, "training.total_iterations", 80), CONFIG)
    assert said["train/plain[seed=0]"] == "to run: changed: training.total_iterations 40 -> 80"
    assert said["evaluate/plain[seed=0]"] == "to run: changed: what it reads"
    assert all(why == "done: " for name, why in said.items() if name.startswith(("prepare", "score")))
    assert set(_why(CONFIG, CONFIG).values()) == {"done: "}
    new = _why(override(CONFIG, "arms", CONFIG["arms"] | {"late": {"curriculum": {"order": "hard_first"}}}), CONFIG)
    assert new["train/late[seed=0]"] == "to run: new" and new["train/plain[seed=1]"] == "done: "


def test_a_key_that_is_swept_and_an_axis_of_members_is_refused():
    for swept, axes in (("seed", {"seed": [0, 1]}), ("optimizer", {"optimizer": {"learning_rate": [0.1]}})):
        config = CONFIG | {"sweep": {swept: [CONFIG.get(swept, 0)]}, "members": axes}
        with pytest.raises(BadInput, match=r"^`.*` is swept, and an axis of \[members\] as well: one of them$"):
            plan(config, Facts())
    alone = {key: value for key, value in CONFIG.items() if key != "members"} | {"sweep": {"seed": [3, 4]}}
    seeds = [c.config["members"] for c in plan(alone, Facts()).commands.values() if c.function == "train"]
    assert sorted(seed for one in seeds for seed in one["seed"]) == [3, 3, 4, 4]


def test_two_different_commands_are_not_called_the_same():
    """An arm may be named so that it meets an axis."""
    clash = {
        "arms": {"a": {}, "a[curriculum.sampling=balanced, seed=0]": {"curriculum": {"pace": "none"}}},
        "sweep": {"curriculum.sampling": ["balanced"]},
        "members": {"seed": [0]},
    }
    names = [*plan(CONFIG | clash, Facts()).commands]
    assert len(names) == len(set(names))
    same = [_command("x"), _command("x")._replace(parameters={"n": 1})]
    with pytest.raises(BadInput, match=r"^two different commands would be called x: give arms and axes other names$"):
        planning._once(same)
    assert list(planning._once([same[0], same[0]])) == ["x"]


RHO = CONFIG | {
    "clean": {"fn": "balanced", "size": 20},
    "weighting": "rho_loss",
    "arms": {"one": {"curriculum": {"order": "random"}}},
}


def test_what_a_model_of_clean_samples_loses_is_a_command_that_trainings_read():
    schedule = plan(RHO, Facts())
    (command,) = [c for c in schedule.commands.values() if c.function == "irreducible"]
    assert command.uses == {"fit": "clean"}
    keys = {c.key for c in schedule.commands.values() if c.function == "train"}
    longer = plan(override(RHO, "fit.iterations", 33), Facts())
    assert not keys & {c.key for c in longer.commands.values() if c.function == "train"}
    rates = plan(RHO | {"sweep": {"optimizer.learning_rate": [0.1, 0.2]}}, Facts())
    trained = [c for c in rates.commands.values() if c.function == "train"]
    assert len({c.inputs["irreducible"] for c in trained}) == len({c.together for c in trained}) == 2


def test_somebodys_own_code_has_the_names_and_the_order_of_what_it_reads_in_its_key():
    def key(config: dict[str, Any], name: str) -> str:
        return _keys(config)[name]

    own = CONFIG | {"commands": {"mine": {"function": "mine:f", "inputs": ["train/plain*", "train/easy*"]}}}
    turned = override(own, "commands", {"mine": {"function": "mine:f", "inputs": ["train/easy*", "train/plain*"]}})
    assert key(own, "mine") != key(turned, "mine")
    renamed = own | {"arms": {"plain": CONFIG["arms"]["plain"], "easy_one": CONFIG["arms"]["easy_first"]}}
    assert key(own, "mine") != key(renamed, "mine")
    hooked = CONFIG | {"hooks": {"evaluate": {"after": "mine:f"}}}
    arms = {"other": CONFIG["arms"]["plain"], "easy_first": {}}
    assert key(CONFIG, "evaluate/plain[seed=0]") == key(CONFIG | {"arms": arms}, "evaluate/other[seed=0]")
    assert key(hooked, "evaluate/plain[seed=0]") != key(hooked | {"arms": arms}, "evaluate/other[seed=0]")


def test_a_run_that_rewinds_depends_on_when_it_saves():
    for policy, differs in (("rewind", True), ("stop", False)):
        config = override(CONFIG, "training.on_nonfinite", policy)
        other = override(config, "training.save_every", 5)
        name = "train/plain[seed=0]"
        assert (_keys(config)[name] != _keys(other)[name]) is differs


def test_the_order_of_tasks_is_in_the_keys_and_their_metrics_are_not():
    tasks = {"a": {"data": "digits"}, "b": {"data": {"fn": "npz", "path": "b.npz"}}}
    config = {key: value for key, value in CONFIG.items() if key not in ("data", "noise", "score", "arms")}
    config |= {"curriculum": {"order": "random", "pace": "none"}, "tasks": tasks}
    turned = config | {"tasks": dict(reversed(tasks.items()))}
    assert not {*_keys(config).values()} & {*_keys(turned).values()}
    measured = config | {"tasks": {**tasks, "a": {"data": "digits", "metrics": ["balanced_accuracy"]}}}
    same = {n for n, key in _keys(config).items() if _keys(measured).get(n) == key}
    assert {name.partition("/")[0] for name in same} >= {"prepare", "train"}


NESTED = {
    **{key: CONFIG[key] for key in ("data", "model", "optimizer", "training")},
    "split": {"fn": "stratified_k_fold"},
    "cross_validation": {"folds": 2, "inner_folds": 2},
}


def test_inner_folds_choose_among_orders_as_among_anything_else():
    config = NESTED | {"score": CONFIG["score"], "sweep": {"curriculum.order": ["easy_first", "random"]}}
    chosen = [c for c in plan(config, Facts()).commands.values() if "choice" in c.inputs and c.function == "train"]
    assert [command.name for command in chosen] == [
        "train/chosen[split.fold=0], chosen",
        "train/chosen[split.fold=1], chosen",
    ]
    assert all(len(command.config["among"]) == 2 for command in chosen)


def test_inner_folds_refuse_a_choice_among_different_samples_or_by_a_number_that_is_swept():
    with pytest.raises(BadInput) as wrong:
        plan(NESTED | {"sweep": {"data": ["digits", "iris"]}}, Facts())
    assert str(wrong.value) == (
        "a choice is among trainings on the same samples, from the same beginning and beside the same models: what is "
        "swept changes these"
    )
    tasks = {"tasks": {"a": {"data": "digits"}}, "sweep": {"tasks.a.weight": [1.0, 2.0]}}
    with pytest.raises(BadInput) as wrong:
        plan({key: value for key, value in NESTED.items() if key != "data"} | tasks, Facts())
    assert (str(wrong.value), wrong.value.where) == (
        "`tasks.a.weight` changes what trainings are chosen by, the joint loss: it cannot be chosen itself",
        "sweep.tasks.a.weight",
    )
