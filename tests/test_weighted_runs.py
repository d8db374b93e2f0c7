"""Runs that weight their samples: controls, clean samples, resuming, processes that share, bad input."""

import copy
import json
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest
import torch
from small import CONFIG, fcurr, written
from test_parallel import together

from fcurr import fold, tree
from fcurr.bilevel.label_correction import targets
from fcurr.io import checkpoint, runner, store
from fcurr.study import config as configs
from fcurr.study import counting
from fcurr.study.drawing import lessons
from fcurr.study.drawing import together as everything
from fcurr.study.prepare import prepare
from fcurr.study.program import train_program
from fcurr.types import Batch

CONTROLS = ["plain", "random_weights", "trimmed", "clean_only", "clean_too"]


def _config(**changes: Any) -> dict[str, Any]:
    config = copy.deepcopy(CONFIG) | {
        "clean": {"fn": "balanced", "size": 20},
        "reweighting": {"fn": "meta_weight_net", "hidden": 8, "warm_up": 5},
    }
    for key in ("score", "curriculum", "arms", "fit"):
        config.pop(key)
    config["training"] |= {"clean_batch_size": 20}
    return config | changes


def _run(folder: Path, config: dict[str, Any]):
    found = fcurr("run", written(folder, config), "--out", folder / "runs")
    assert found.exit_code == 0, found.output
    return folder / "runs/small"


def _said(folder: Path, config: dict[str, Any]) -> str:
    found = fcurr("check", written(folder, config))
    assert found.exit_code == 2 and "Traceback" not in found.output
    return " ".join(found.output.split())


def _program(config: dict[str, Any]):
    experiment = configs.read(config)
    prepared = runner.load(experiment)
    return experiment, prepared, *train_program(experiment, prepared, None)


@pytest.fixture(scope="module")
def learned(tmp_path_factory):
    return _run(tmp_path_factory.mktemp("learned"), _config())


def test_a_run_that_learns_weights_ships_its_controls(learned):
    table = json.loads((learned / store.RESULTS).read_text())["table"]
    assert [row["arm"] for row in table] == ["meta_weight_net", *CONTROLS]
    assert all(row["last_mean"] is not None and row["best_mean"] is not None for row in table)


def test_its_metrics_show_the_effective_sample_size_and_how_sure_the_hypergradient_is(learned):
    rows = store.metrics(learned)
    mine, plain = ([row for row in rows if row["arm"] == arm] for arm in ("meta_weight_net", "plain"))
    assert all(0 < row["effective_sample_size"] <= 1 + 1e-6 for row in rows)
    assert all(row["effective_sample_size"] == pytest.approx(1) and row["weight"] == 1 for row in plain)
    assert all(row["hypergradient_snr"] > 0 for row in mine) and 0 < mine[-1]["weight"] < 1


def test_its_table_of_weights_has_a_row_a_member_and_training_sample(learned):
    table = pyarrow.parquet.read_table(learned / store.WEIGHTS)
    members = len(json.loads((learned / store.RESULTS).read_text())["members"])
    samples = len(set(table["id"].to_pylist()))
    assert table.num_rows == members * samples
    plain = table.filter(pyarrow.compute.equal(table["arm"], "plain"))
    assert set(plain["weight"].to_pylist()) == {1.0}


def test_controls_can_be_left_out(tmp_path):
    assert [m.arm for m in configs.read(_config(controls=False)).members] == ["meta_weight_net"] * 2


def test_an_arm_of_ones_own_stands_beside_the_controls_and_may_take_the_name_of_one():
    arms = {"mine": {}, "superloss": {"weighting": {"fn": "superloss", "threshold": "running_mean"}}, "plain": {}}
    found = [member.arm for member in configs.read(_config(arms=arms, members={"seed": [0]})).members]
    assert found == ["mine", "superloss", "plain", *CONTROLS[1:]]


def test_clean_samples_are_balanced_right_and_not_trained_on():
    experiment = configs.read(_config())
    prepared = runner.load(experiment)
    clean, train = prepared.id["clean"], prepared.id["train"]
    assert prepared.clean is not None and torch.bincount(prepared.clean.y).tolist() == [2] * 10
    assert not set(clean.tolist()) & set(train.tolist())
    assert int((prepared.train.y != prepared.true).sum()) == round(0.4 * len(train))
    whole = everything(prepared)
    assert torch.equal(whole.y, torch.cat([prepared.train.y, prepared.clean.y]))


def test_each_arm_draws_from_the_samples_it_is_said_to():
    experiment = configs.read(_config(members={"seed": [0]}))
    prepared = runner.load(experiment)
    rows = lessons(experiment, prepared, None)
    train, clean = len(prepared.train.y), len(prepared.id["clean"])
    sizes = {m.arm: int(rows.sizes[p, 0]) for m, p in zip(experiment.members, rows.pace, strict=True)}
    assert sizes == {
        **dict.fromkeys(["meta_weight_net", *CONTROLS[:3]], train),
        "clean_only": clean,
        "clean_too": train + clean,
    }
    for member, order in zip(experiment.members, rows.order, strict=True):
        drawn = set(rows.orders[order][: sizes[member.arm]].tolist())
        wanted = {"clean_only": range(train, train + clean), "clean_too": range(train + clean)}
        assert drawn == set(wanted.get(member.arm, range(train)))


def test_a_control_is_the_run_it_stands_for():
    """The plain arm of a reweighting run is the plain run, to rounding."""
    _, _, program, run = _program(_config(members={"seed": [0]}))
    alone = _config(members={"seed": [0]})
    alone.pop("reweighting")
    _, _, other, begun = _program(alone)
    with_controls, plain = fold.finish(program, run), fold.finish(other, begun)
    found = tree.member(with_controls.train.params, 1)
    for name, leaf in tree.member(plain.train.params, 0).items():
        torch.testing.assert_close(found[name], leaf, rtol=1e-3, atol=1e-4)


def test_the_step_of_members_is_the_step_of_each_alone():
    _, _, program, run = _program(_config())
    after = fold.finish(program, run)
    single = _config(members={"seed": [1]}, controls=False)
    _, _, own, begun = _program(single)
    for name, leaf in tree.member(fold.finish(own, begun).train.params, 0).items():
        torch.testing.assert_close(after.train.params[name][1], leaf, rtol=1e-3, atol=1e-4)


def test_numbers_of_a_reweighting_may_differ_between_members():
    config = _config(members={"reweighting": {"learning_rate": [0.001, 0.1]}}, controls=False)
    _, _, program, run = _program(config)
    learned = fold.finish(program, run).train.weighing.learned.params["network"]
    assert not torch.equal(learned[0], learned[1])


@pytest.mark.parametrize("cut", [1, 17, 39])
def test_a_run_cut_anywhere_goes_on_bit_for_bit(cut):
    """Model, optimizer, weight network, its optimizer, sampler: all of it is one tree."""
    _, _, program, run = _program(_config())
    states = list(fold.proceed(program, run))
    at = states[cut - 1]
    again = tree.fill(run, tree.map(torch.clone, tree.named(at)))
    assert tree.equal(fold.finish(program, again), states[-1])


@pytest.mark.long
def test_two_processes_learn_the_weights_that_one_does_to_rounding(tmp_path):
    config = _config(controls=False)
    found = together(tmp_path, config)
    assert found.returncode == 0, found.stderr
    (tmp_path / "alone").mkdir()
    _run(tmp_path / "alone", config)
    two, one = (
        checkpoint.read(checkpoint.listed(folder / "runs/small" / store.CHECKPOINTS)[-1])
        for folder in (tmp_path, tmp_path / "alone")
    )
    assert two.keys() == one.keys() and any("weighing" in name for name in one)
    for name, leaf in one.items():
        torch.testing.assert_close(
            two[name], leaf, rtol=5e-3, atol=5e-4, msg=lambda words, name=name: f"{name}: {words}"
        )


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_weights_are_learned_in_sixteen_bits_as_well(precision):
    config = _config(members={"seed": [0]}, controls=False)
    config["training"] |= {"precision": precision}
    _, _, program, run = _program(config)
    found = fold.finish(program, run).train
    config["training"] |= {"precision": "float32"}
    _, _, program, run = _program(config)
    whole = fold.finish(program, run).train
    near = torch.nn.functional.cosine_similarity
    learned, right = (state.weighing.learned.params["network"] - 0 for state in (found, whole))
    assert learned.isfinite().all() and float(near(learned, right)) > 0.99


@pytest.mark.parametrize(
    "fn", ["class_aware_meta_weight_net", "sample_weights", "label_correction", "learning_to_reweight"]
)
def test_every_method_runs_from_a_config_and_says_what_samples_count(fn, tmp_path):
    folder = _run(tmp_path, _config(reweighting={"fn": fn, "warm_up": 5}, members={"seed": [0]}))
    table = pyarrow.parquet.read_table(folder / store.WEIGHTS)
    weights = table.filter(pyarrow.compute.equal(table["arm"], fn))["weight"].to_numpy()
    assert len(weights) and (weights >= 0).all() and weights.std() > 0


@pytest.mark.parametrize(
    "weighting",
    [
        {"fn": "self_paced_linear", "threshold": {"fn": "quantile", "share": 0.6}},
        {"fn": "superloss", "threshold": "running_mean"},
        "focal",
        "class_balanced",
        {"fn": "rho_loss", "share": 0.5},
    ],
)
def test_closed_forms_run_from_a_config_without_a_reweighting(weighting, tmp_path):
    config = _config(weighting=weighting, members={"seed": [0]}, fit={"iterations": 20})
    config.pop("reweighting")
    folder = _run(tmp_path, config)
    assert (folder / store.WEIGHTS).exists()
    assert "hypergradient_snr" not in store.metrics(folder)[-1]


def test_regression_learns_weights(tmp_path):
    config = _config(data={"fn": "diabetes"}, split="shuffled", clean={"fn": "drawn", "size": 20}, noise=None)
    config.pop("noise")
    config["split"] = {"fn": "shuffled", "validation": 0.1, "test": 0.1}
    config["scaling"], config["optimizer"] = "standard", {"fn": "adam", "learning_rate": 0.01}
    folder = _run(tmp_path, config)
    assert (folder / store.WEIGHTS).exists()


def test_batchnorm_takes_the_forward_route_and_check_says_so(tmp_path):
    config = _config(model={"fn": "resnet", "depth": 8}, data={"fn": "digits"})
    found = fcurr("check", written(tmp_path, config))
    words = " ".join(found.output.split())
    assert found.exit_code == 0, found.output
    assert (
        "learn weights from 20 clean samples, hypergradients by forward derivatives "
        "(BatchNorm in training makes samples see each other)" in words
    )


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "weights that are learned from nothing": (
        {"clean": None},
        "reweighting: weights are learned from clean samples: add a section [clean]",
    ),
    "no clean samples": (
        {"clean": {"fn": "balanced", "size": 0}},
        "clean.size: 0 is not a number of samples: a whole number, at least 1",
    ),
    "more clean samples than there are": (
        {"clean": {"fn": "balanced", "size": 1400}},
        "samples to train on, and 140 are to be clean",
    ),
    "fewer clean samples than classes": (
        {"clean": {"fn": "balanced", "size": 9}},
        "clean: 9 clean samples cannot show 10 classes: at least one each",
    ),
    "clean samples that are nobody's": (
        {"clean": None, "reweighting": None, "samples": "clean"},
        "samples: there are no clean samples: add a section [clean]",
    ),
    "samples of another kind": ({"samples": "all"}, 'samples: "all" is not "train", "clean" or "both"'),
    "weights of both kinds": (
        {"weighting": "focal"},
        "weighting: weights are learned, or in closed form: to compare them, give the closed form to an arm",
    ),
    "a warm-up as long as the run": (
        {"reweighting": {"fn": "meta_weight_net", "warm_up": 40}},
        "reweighting.warm_up: nothing is learned: all 40 steps are warm-up",
    ),
    "weights learned in an arm from nothing": (
        {"clean": None, "reweighting": None, "arms": {"a": {"reweighting": {"fn": "meta_weight_net", "warm_up": 5}}}},
        "reweighting: weights are learned from clean samples: add a section [clean]",
    ),
    "nobody who learns": (
        {"arms": {"a": {"weighting": "focal"}}},
        "reweighting: no arm learns weights: each has a weighting of its own",
    ),
    "clean samples among those that weights are learned for": (
        {"arms": {"a": {"samples": "both"}}},
        "samples: weights are learned for the training samples: an arm that learns trains on these",
    ),
    "an axis over what controls have of their own": (
        {"members": {"samples": ["train", "both"]}},
        "members.samples: controls have their own: make arms of these, or leave the controls out (controls = false)",
    ),
    "members whose weight networks differ in size": (
        {"members": {"reweighting": {"hidden": [8, 16]}}},
        "reweighting.hidden: members may differ in learning_rate, weight_decay, warm_up, power, trust, not in hidden",
    ),
    "a clean sample that is not there": (
        {"clean": {"fn": "listed", "ids": [3, 2000]}},
        "clean: there is no sample 2000: the data has 1797, counted from 0",
    ),
    "a weighting that needs clean samples": (
        {"clean": None, "reweighting": None, "weighting": "rho_loss"},
        "weighting: rho_loss compares with a model of clean samples: add a section [clean]",
    ),
    "controls that are no truth value": ({"controls": "no"}, 'controls: "no" is neither true nor false'),
}


@pytest.mark.parametrize("case", WRONG)
def test_bad_input_is_told_at_the_door(case, tmp_path):
    change, words = WRONG[case]
    config = {key: value for key, value in _config(**change).items() if value is not None}
    assert words in _said(tmp_path, config)


def test_members_share_a_step_whatever_they_weight_by():
    arms = {"a": {"weighting": "focal"}, "b": {"weighting": "uniform"}, "c": {"weighting": "focal"}}
    plain = {key: value for key, value in _config(arms=arms, members={"seed": [0]}).items() if key != "reweighting"}
    experiment = configs.read(plain)
    found = counting.counting(experiment.members, prepare(experiment, _digits()), 16)
    assert found.which.tolist() == [0, 1, 0] and found.route is None


def _digits():
    from fcurr.io.datasets import digits

    return digits()


def test_listed_clean_samples_are_taken_from_whatever_part_they_were_in():
    ids = [5, 17, 1000, 1700]
    prepared = runner.load(configs.read(_config(clean={"fn": "listed", "ids": ids})))
    assert prepared.id["clean"].tolist() == ids
    assert not {*ids} & {int(i) for name in ("train", "validation", "test") for i in prepared.id[name]}


def test_a_weighting_of_ones_own_that_gives_negative_weights_is_told(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text("def below(past, losses, batch):\n    return 1 - losses\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    config = _config(arms={"a": {"weighting": {"fn": "mine:below"}}, "b": {}})
    found = fcurr("check", written(tmp_path, config), "--plugin", "mine")
    words = " ".join(found.output.split())
    assert found.exit_code == 2
    assert "mine:below gives the weight -0.64 to a sample of loss 1.64: weights are finite and not negative" in words


def test_labels_are_not_corrected_under_a_loss_that_takes_classes_only(tmp_path, monkeypatch):
    (tmp_path / "hard.py").write_text("def loss(outputs, y):\n    return -outputs.gather(1, y[:, None])[:, 0]\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    config = _config(reweighting={"fn": "label_correction", "warm_up": 5}, loss={"fn": "hard:loss"})
    found = fcurr("check", written(tmp_path, config), "--plugin", "hard")
    words = (
        "reweighting: label_correction learns shares of classes, and the loss takes classes only: cross_entropy takes"
    )
    assert found.exit_code == 2 and words in " ".join(found.output.split())


def test_where_passes_are_counted_the_clean_samples_alone_are_trained_on_for_as_many_steps():
    config = _config()
    config["training"] |= {"clock": "epoch", "total_iterations": 2, "evaluate_every": 1, "save_every": 1}
    experiment, _, program, _ = _program(config)
    lengths = dict(zip([m.arm for m in experiment.members], fold.lengths(program).tolist(), strict=True))
    assert lengths["clean_only"] == pytest.approx(lengths["plain"], rel=0.02)


@pytest.mark.long
def test_a_compiled_run_learns_the_same_weights_to_rounding():
    config = _config(controls=False, members={"seed": [0]})
    config["training"] |= {"total_iterations": 8}
    _, _, program, run = _program(config)
    config["training"] |= {"compile": True}
    _, _, fused, begun = _program(config)
    one, two = (
        fold.finish(*pair).train.weighing.learned.params["network"] for pair in ((program, run), (fused, begun))
    )
    torch.testing.assert_close(two, one, rtol=1e-3, atol=1e-4)


def test_corrected_labels_of_mixed_samples_are_shares():
    params = {"labels": torch.randn(5, 3, generator=torch.Generator().manual_seed(0))}
    mixed = torch.tensor([[0.7, 0.3, 0.0], [0.0, 0.0, 1.0]])
    batch = Batch(x=torch.zeros(2, 1), y=mixed, id=torch.tensor([1, 4]))
    found = targets(params, batch, 4.0, False)
    assert torch.allclose(found, (params["labels"][[1, 4]] + 4 * mixed).softmax(-1))
    hard = batch._replace(y=torch.tensor([0, 2]))
    whole = batch._replace(y=torch.eye(3)[[0, 2]])
    assert torch.equal(targets(params, hard, 4.0, False), targets(params, whole, 4.0, False))
