"""Several tasks trained as one: their losses, their heads, their numbers."""

import copy
import json
from functools import partial
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from sklearn import datasets
from small import CONFIG, fcurr, written
from worlds import numbers, seeds

from fcurr import joint, losses, tree
from fcurr.errors import BadInput
from fcurr.io import checkpoint, store
from fcurr.io.datasets import mapped
from fcurr.types import Dataset

KINDS = ("classification", "multi-label", "regression")
DIGITS: Any = datasets.load_digits()
NATURAL = {kind: partial(losses.likelihood, task=kind) for kind in KINDS}
kinds = st.lists(st.sampled_from(KINDS), min_size=1, max_size=4)
weighings = st.lists(st.floats(0.01, 100), min_size=4, max_size=4)


def one(kind, samples, seed=0) -> Dataset:
    """A data set of a kind: 3 classes, 2 labels, 2 targets; float64 samples of 5 numbers."""
    x, noise = numbers(samples, 5, seed=seed), numbers(samples, 2, seed=seed + 1)
    y = {"classification": torch.arange(samples) % 3, "multi-label": noise > 0, "regression": noise}[kind]
    return Dataset(x=x, y=y, classes=tuple("abc" if kind == "classification" else "ab"))


def world(found, weights=(1.0, 1.0, 1.0, 1.0)):
    """Sets of several sizes, joined; and what each contributes to the loss."""
    sets = {f"t{place}": one(kind, 4 + 3 * place, seed=10 * place) for place, kind in enumerate(found)}
    data = joint.joined(sets, dict(zip(sets, weights, strict=False)))
    factors = joint.factors(data.heads, data.y)
    heads = tuple(
        joint.HeadLoss(head, NATURAL[head.task], factor) for head, factor in zip(data.heads, factors, strict=True)
    )
    return sets, data, heads


def outputs_of(data, seed=5):
    return numbers(len(data.y), len(data.classes), seed=seed)


@given(found=kinds)
def test_every_task_has_its_own_samples_labels_and_outputs_and_they_are_what_they_were(found):
    sets, data, _ = world(found)
    outputs, width = outputs_of(data), 0
    assert data.task == "joint" and len(data.y) == sum(len(own.y) for own in sets.values())
    for head, (name, own) in zip(data.heads, sets.items(), strict=True):
        back, places = joint.alone(data, head)
        assert (head.name, head.task, back.task, back.classes) == (name, own.task, own.task, own.classes)
        assert torch.equal(places, head.first + torch.arange(len(own.y)))
        assert tree.equal(back.x, own.x) and torch.equal(back.y, own.y) and back.y.dtype == own.y.dtype
        assert torch.equal(head.of(outputs), outputs[:, width : width + len(own.classes)])
        width += len(own.classes)
    assert width == len(data.classes)


def by_hand(sets, outputs, weights):
    """[sample]: a loop over samples, with torch's own losses."""
    total, everyone, column, row, found = sum(weights), sum(len(s.y) for s in sets.values()), 0, 0, []
    for weight, own in zip(weights, sets.values(), strict=False):
        for label in own.y:
            logits = outputs[row, column : column + len(own.classes)]
            if own.task == "classification":
                loss = F.cross_entropy(logits.unsqueeze(0), label.unsqueeze(0))
            elif own.task == "regression":
                loss = F.mse_loss(logits, label)
            else:
                loss = F.binary_cross_entropy_with_logits(logits, label.double())
            found.append(loss * weight * everyone / (len(own.y) * total))
            row += 1
        column += len(own.classes)
    return torch.stack(found)


@given(found=kinds, weights=weighings)
def test_the_loss_of_a_sample_is_its_own_task_s_weighted_so_that_tasks_count_as_asked(found, weights):
    weights = weights[: len(found)]
    sets, data, heads = world(found, weights)
    outputs = outputs_of(data)
    each = joint.loss(outputs, data.y, heads=heads)
    torch.testing.assert_close(each, by_hand(sets, outputs, weights), rtol=1e-12, atol=1e-12)
    means = [
        NATURAL[h.task](h.of(outputs)[h.there(data.y)], h.labels(data.y)[h.there(data.y)]).mean() for h, _, _ in heads
    ]
    right = sum(weight * mean for weight, mean in zip(weights, means, strict=True)) / sum(weights)
    torch.testing.assert_close(each.mean(), right, rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(joint.joint_loss(outputs, data.y, heads=heads), right, rtol=1e-11, atol=1e-12)


@given(found=kinds, weights=weighings, factor=st.sampled_from([0.25, 2.0, 3.0, 1e3]))
def test_weights_that_are_all_scaled_change_nothing(found, weights, factor):
    _, data, heads = world(found, weights)
    _, _, scaled = world(found, [factor * weight for weight in weights])
    outputs = outputs_of(data)
    one, other = (joint.loss(outputs, data.y, heads=own) for own in (heads, scaled))
    torch.testing.assert_close(one, other, rtol=1e-12, atol=0)
    one, other = (joint.joint_loss(outputs, data.y, heads=own) for own in (heads, scaled))
    torch.testing.assert_close(one, other, rtol=1e-12, atol=0)


@given(found=kinds, weights=weighings, data=st.data())
def test_tasks_in_another_order_have_their_slices_in_that_order_and_the_same_losses(found, weights, data):
    sets, whole, heads = world(found, weights)
    order = data.draw(st.permutations(list(sets)))
    other = joint.joined({name: sets[name] for name in order}, dict(zip(sets, weights, strict=False)))
    places = {head.name: head for head in whole.heads}
    rows = torch.cat([places[name].there(whole.y).nonzero().squeeze(1) for name in order])
    columns = torch.cat([torch.arange(*places[name].outputs) for name in order])
    factors = joint.factors(other.heads, other.y)
    moved = tuple(joint.HeadLoss(h, NATURAL[h.task], f) for h, f in zip(other.heads, factors, strict=True))
    outputs = outputs_of(whole)
    found_here = joint.loss(outputs[rows][:, columns], other.y, heads=moved)
    torch.testing.assert_close(found_here, joint.loss(outputs, whole.y, heads=heads)[rows], rtol=1e-12, atol=0)


@given(found=kinds, seed=seeds)
def test_outputs_of_other_tasks_have_no_slope_whatever_they_are(found, seed):
    _, data, heads = world(found)
    outputs = outputs_of(data, seed=seed % 1000)
    foreign = torch.ones_like(outputs, dtype=torch.bool)
    for head, _, _ in heads:
        foreign[head.there(data.y), slice(*head.outputs)] = False
    outputs = outputs.masked_fill(foreign, torch.inf).requires_grad_()
    total = joint.loss(outputs, data.y, heads=heads).sum()
    (slope,) = torch.autograd.grad(total, outputs)
    assert bool(total.isfinite()) and bool((slope[foreign] == 0).all()) and bool(slope.isfinite().all())
    assert bool((slope[~foreign] != 0).any())


@pytest.mark.parametrize("kind", KINDS)
def test_one_task_alone_has_its_own_loss_bit_for_bit(kind):
    sets, data, heads = world([kind], [0.3])
    outputs = outputs_of(data)
    assert torch.equal(joint.loss(outputs, data.y, heads=heads), NATURAL[kind](outputs, sets["t0"].y))


def test_samples_on_the_disk_and_in_memory_are_joined_as_those_in_memory(tmp_path):
    for name in "ab":
        (tmp_path / name).mkdir()
        np.save(tmp_path / name / "x.npy", numbers(6, 3, seed=ord(name)).float().numpy())
        np.save(tmp_path / name / "y.npy", np.arange(6) % 2)
    read = {name: mapped(path=str(tmp_path / name)) for name in "ab"}
    read["c"] = read["a"]._replace(x=read["a"].x[torch.arange(6)])
    held = {name: own._replace(x=own.x[torch.arange(6)]) for name, own in read.items()}
    weights = dict.fromkeys(read, 1.0)
    lazy, eager = joint.joined(read, weights), joint.joined(held, weights)
    assert isinstance(eager.x, torch.Tensor) and lazy.x.shape == eager.x.shape and lazy.x.dtype == eager.x.dtype
    ids = torch.tensor([[17, 0, 5], [6, 11, 12]])
    assert torch.equal(lazy.take(ids).x, eager.take(ids).x)
    part = lazy.part(torch.tensor([13, 2]))
    assert torch.equal(part.x[torch.tensor([1, 0])], eager.x[torch.tensor([2, 13])]) and part.heads == lazy.heads
    other = joint.joined({**read, "c": read["c"]._replace(x=torch.as_tensor(read["c"].x) + 1)}, weights)
    assert isinstance(other.x, joint.Joined) and isinstance(lazy.x, joint.Joined)
    assert other.x.identity != lazy.x.identity


def test_groups_of_several_sets_are_different_groups_and_there_are_none_unless_all_have_some():
    a, b = one("classification", 3), one("regression", 4)
    with_groups = {
        "a": a._replace(groups=torch.tensor([1, 0, 1])),
        "b": b._replace(groups=torch.tensor([0, 0, 1, 2])),
    }
    found = joint.joined(with_groups, {"a": 1.0, "b": 1.0})
    assert torch.equal(torch.as_tensor(found.groups), torch.tensor([1, 0, 1, 2, 2, 3, 4]))
    assert joint.joined({**with_groups, "b": b}, {"a": 1.0, "b": 1.0}).groups == ()


def test_samples_of_different_shapes_or_kinds_are_refused_by_name():
    a, b = one("classification", 3), one("regression", 4)
    for x, words in (
        (torch.zeros(4, 7, dtype=torch.float64), "samples of `b` are [7], those of `a` [5]"),
        (torch.zeros(4, 5, dtype=torch.int64), "samples of `b` are torch.int64, those of `a` torch.float64"),
    ):
        with pytest.raises(BadInput) as wrong:
            joint.joined({"a": a, "b": b._replace(x=x)}, {"a": 1.0, "b": 1.0})
        assert str(wrong.value) == f"{words}: tasks that are trained jointly have samples alike"
        assert wrong.value.where == "tasks.b.data"


# runs


def config(tasks, **more):
    own = {key: copy.deepcopy(CONFIG[key]) for key in ("name", "seed", "model", "optimizer")}
    own |= {"split": {"fn": "shuffled", "validation": 0.2, "test": 0.2}}
    own |= {"training": {"total_iterations": 12, "batch_size": 16, "evaluate_every": 6}}
    return own | ({"tasks": tasks} if tasks else {}) | more


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """The digits' parity, their mean ink and two sets of properties, for other samples than digits() or as many."""
    folder, x = tmp_path_factory.mktemp("files"), (DIGITS.images[:, None] / 16).astype(np.float32)
    ink = x.mean((1, 2, 3)) * 10
    np.savez(folder / "parity.npz", x=x[:600], y=DIGITS.target[:600] % 2)
    np.savez(folder / "number.npz", x=x[:300], y=DIGITS.target[:300])
    np.savez(folder / "ink.npz", x=x[200:600], y=ink[200:600])
    np.savez(
        folder / "round.npz",
        x=x[:200],
        y=np.stack([np.isin(DIGITS.target[:200], s) for s in ([0, 6, 8, 9], [0, 8])], 1),
    )
    np.savez(folder / "flat.npz", x=x[:100].reshape(100, -1), y=DIGITS.target[:100])
    return folder


def npz(files, name, **more):
    return {"fn": "npz", "path": str(files / f"{name}.npz"), **more}


ALONE = {
    "classification": ("number", {}, {}),
    "regression": ("ink", {"task": "regression"}, {"fn": "huber"}),
    "multi-label": ("round", {"task": "multi-label"}, {}),
}


@pytest.mark.parametrize("kind", ALONE)
def test_one_task_alone_is_the_plain_run_bit_for_bit(kind, files, tmp_path):
    """Parameters at the end and at the best step, scores, and metrics under the task's name."""
    name, task, loss = ALONE[kind]
    more = {
        "score": {"fn": "cross_validated_loss", "folds": 2},
        "fit": {"iterations": 6, "batch_size": 16},
        "curriculum": {"order": "easy_first", "pace": {"fn": "linear", "initial_size": 0.3, "final_iteration": 0.7}},
        "scaling": {"fn": "standard"},
    }
    data, own = npz(files, name, **task), {"loss": loss} if loss else {}
    plain = config(None, data=data, name="plain", **own, **more)
    alone = config({"own": {"data": data, "weight": 3, **own}}, name="alone", **more)
    for one in (plain, alone):
        result = fcurr("run", written(tmp_path, one), "--out", tmp_path)
        assert result.exit_code == 0, result.stderr
    ends = [
        safetensors.torch.load_file(checkpoint.listed(tmp_path / n / store.CHECKPOINTS)[-1]) for n in ("plain", "alone")
    ]
    params = [key for key in ends[0] if "params" in key or "buffers" in key]
    assert params and all(torch.equal(ends[0][key], ends[1][key]) for key in params)
    scores = [pyarrow.parquet.read_table(tmp_path / n / store.SCORES) for n in ("plain", "alone")]
    for column in ("id", "score", "rank"):
        assert scores[0][column].equals(scores[1][column])
    for a, b in zip(*(store.metrics(tmp_path / n) for n in ("plain", "alone")), strict=True):
        assert a["loss"] == b["loss"]
        named = [key for key in a if key.startswith("validation_") and key != "validation_loss"]
        assert named and all(a[key] == b[f"{key}_own"] for key in named)
        assert abs(b["validation_joint_loss"] - a["validation_loss"]) < 1e-12


@pytest.fixture(scope="module")
def run(files, tmp_path_factory):
    """Number and parity, with scores and two arms."""
    folder = tmp_path_factory.mktemp("run")
    tasks = {
        "number": {"data": "digits", "weight": 2.0, "metrics": ["accuracy", "f1"]},
        "parity": {"data": npz(files, "parity"), "loss": {"fn": "focal", "gamma": 1.0}},
    }
    more = {
        "split": {"fn": "stratified", "validation": 0.1, "test": 0.1},
        "score": {"fn": "loss"},
        "fit": {"iterations": 10},
        "arms": {"plain": {}, "easy_first": {"curriculum": {"order": "easy_first"}}},
        "members": {"seed": [0, 1]},
    }
    more["training"] = {"total_iterations": 250, "batch_size": 64, "evaluate_every": 50}
    result = fcurr("run", written(folder, config(tasks, name="both", **more)), "--out", folder)
    assert result.exit_code == 0, result.stderr
    return folder / "both"


def test_a_joint_run_learns_all_of_its_tasks(run):
    found = json.loads((run / store.RESULTS).read_text())
    assert (found["metric"], found["higher"]) == ("joint_loss", False)
    assert found["confusion"] is None
    for member in found["members"]:
        assert set(member["best"]) == {"loss", "joint_loss", "accuracy_number", "f1_number", "accuracy_parity"}
        assert member["best"]["accuracy_number"] > 0.5 and member["best"]["accuracy_parity"] > 0.75
    assert found["facts"]["tasks"] == "number (classes: 10, samples: 1,437), parity (classes: 2, samples: 480)"
    assert (found["tasks"]["number"]["first"], found["tasks"]["parity"]["first"]) == (0, 1797)
    confusion = found["tasks"]["parity"]["confusion"]
    assert set(confusion) == {"plain", "easy_first"} and sum(map(sum, confusion["plain"])) == 2 * 60
    right = sum(confusion["plain"][c][c] for c in range(2)) / 120
    told = [m["best"]["accuracy_parity"] for m in found["members"] if m["arm"] == "plain"]
    assert abs(right - sum(told) / 2) < 1e-6


def test_every_task_is_split_by_its_own_labels(run):
    parts = {p: pyarrow.parquet.read_table(run / f"predictions/{p}.parquet").to_pylist() for p in ("train", "test")}
    tested = [row for row in parts["test"] if row["member"] == 0]
    by_task = {name: [row for row in tested if row["task"] == name] for name in ("number", "parity")}
    assert (len(by_task["number"]), len(by_task["parity"])) == (180, 60)
    assert all(row["id"] < 1797 for row in by_task["number"]) and all(row["id"] >= 1797 for row in by_task["parity"])
    counts = [sum(row["target"] == label for row in by_task["number"]) for label in map(str, range(10))]
    assert max(counts) - min(counts) <= 2  # as the classes themselves
    assert all(row["target"] == str(DIGITS.target[row["id"]]) for row in by_task["number"])
    assert all(row["target"] == str(DIGITS.target[row["id"] - 1797] % 2) for row in by_task["parity"])


def test_predictions_have_the_task_and_its_own_outputs_and_agree_with_the_metrics(run):
    found = json.loads((run / store.RESULTS).read_text())["members"][0]["best"]
    rows = pyarrow.parquet.read_table(run / "predictions/test.parquet").to_pylist()
    for name, classes in (("number", 10), ("parity", 2)):
        own = [row for row in rows if row["member"] == 0 and row["task"] == name]
        assert all(len(row["output"]) == classes for row in own)
        assert all(int(np.argmax(row["output"])) == int(row["prediction"]) for row in own)
        right = sum(row["prediction"] == row["target"] for row in own) / len(own)
        assert abs(right - found[f"accuracy_{name}"]) < 1e-6


def test_scores_of_several_tasks_have_a_column_of_their_names(run):
    table = pyarrow.parquet.read_table(run / store.SCORES)
    assert table.column_names == ["id", "task", "label", "true_label", "score", "rank"]
    rows = table.to_pylist()
    assert all((row["task"] == "parity") == (row["id"] >= 1797) and row["label"] == row["true_label"] for row in rows)
    assert len(rows) == 1437 + 480


def test_a_class_and_a_number_are_trained_together_and_predicted(files, tmp_path):
    tasks = {
        "number": {"data": npz(files, "number")},
        "ink": {"data": npz(files, "ink", task="regression"), "metrics": ["r2", "mean_absolute_error"]},
        "round": {"data": npz(files, "round", task="multi-label"), "weight": 0.5},
    }
    more = {"model": {"fn": "mlp", "hidden": [32]}, "optimizer": {"fn": "adam", "learning_rate": 0.01}}
    more["training"] = {"total_iterations": 300, "batch_size": 32, "evaluate_every": 100}
    path = written(tmp_path, config(tasks, name="three", **more))
    assert fcurr("check", path, "--out", tmp_path).exit_code == 0
    result = fcurr("run", path, "--out", tmp_path)
    assert result.exit_code == 0, result.stderr
    best = json.loads((tmp_path / "three/results.json").read_text())["members"][0]["best"]
    assert best["r2_ink"] > 0.6 and best["accuracy_number"] > 0.5 and "label_f1_round" in best
    rows = pyarrow.parquet.read_table(tmp_path / "three/predictions/test.parquet").to_pylist()
    inks = [row for row in rows if row["task"] == "ink"]
    assert all(float(row["prediction"]) == pytest.approx(row["output"][0], rel=1e-7) for row in inks)
    np.save(tmp_path / "x.npy", np.load(files / "ink.npz")["x"][:5])
    assert fcurr("predict", tmp_path / "three", tmp_path / "x.npy", "--to", tmp_path / "p.parquet").exit_code == 0
    found = pyarrow.parquet.read_table(tmp_path / "p.parquet").to_pydict()
    chances = [found[f"number: probability of {label}"] for label in range(10)]
    assert np.allclose(np.sum(chances, 0), 1) and len(found["ink: 0"]) == 5
    assert [found["number: prediction"][0]] == [str(int(np.argmax(np.array(chances)[:, 0])))]
    assert all(set(sample) <= {"0", "1"} for sample in found["round: prediction"])


def test_tasks_are_weighted_and_reweighted_as_samples_are(files, tmp_path):
    tasks = {"number": {"data": npz(files, "number")}, "ink": {"data": npz(files, "ink", task="regression")}}
    more: dict[str, Any] = {
        "clean": {"fn": "drawn", "size": 40},
        "reweighting": {"fn": "meta_weight_net", "warm_up": 2},
    }
    more["controls"] = False
    more["arms"] = {"learned": {}, "superloss": {"weighting": {"fn": "superloss", "threshold": "running_mean"}}}
    found = config(tasks, name="weighted", **more)
    result = fcurr("run", written(tmp_path, found), "--out", tmp_path)
    assert result.exit_code == 0, result.stderr
    table = pyarrow.parquet.read_table(tmp_path / "weighted" / store.WEIGHTS)
    assert set(table["task"].to_pylist()) == {"number", "ink"}
    assert torch.tensor(table["weight"].to_pylist()).isfinite().all()


def test_groups_are_kept_together_in_every_task(files, tmp_path):
    numbers = np.random.default_rng(0)
    for name in "ab":
        np.savez(tmp_path / f"{name}.npz", x=numbers.normal(size=(60, 4)), y=np.arange(60) % 2, who=np.arange(60) // 6)
    tasks = {name: {"data": {"fn": "npz", "path": str(tmp_path / f"{name}.npz"), "group": "who"}} for name in "ab"}
    split = {"fn": "grouped_k_fold", "folds": 5, "fold": 0, "validation": 0.25}
    assert fcurr("run", written(tmp_path, config(tasks, split=split)), "--out", tmp_path).exit_code == 0
    tested = pyarrow.parquet.read_table(tmp_path / "small/predictions/test.parquet")["id"].to_pylist()
    assert len({sample // 6 for sample in tested}) == 4 and len(set(tested)) == 24


NUMBER, INK = {"data": {"fn": "npz", "path": "number"}}, {"data": {"fn": "npz", "path": "ink", "task": "regression"}}
BOTH = {"number": NUMBER, "ink": INK}
WRONG = {
    "data as well": (
        {"data": "digits"},
        {},
        "data: samples are in [data], or in the `data` of every task: one of the two",
    ),
    "a loss of all": ({"loss": "huber"}, {}, "loss: with several tasks every one has its own: tasks.NAME.loss"),
    "metrics of all": ({"metrics": "r2"}, {}, "metrics: with several tasks every one has its own: tasks.NAME.metrics"),
    "a loss of an arm": (
        {"arms": {"a": {"loss": {"fn": "huber"}}}},
        {},
        "loss: with several tasks every one has its own: tasks.NAME.loss",
    ),
    "no tasks": ({"tasks": {}}, {}, "tasks: {} is not a table of tasks, each a table with `data`"),
    "no table": ({"tasks": {"a": 3}}, {}, "tasks.a: 3 is not a table with `data`"),
    "no data": ({}, {"data": None}, "tasks.ink: a task needs `data`, a component"),
    "a wrong key": (
        {},
        {"wieght": 2},
        "tasks.ink.wieght: a task takes no `wieght` (did you mean `weight`?); it takes ",
    ),
    "a wrong weight": ({}, {"weight": 0}, "tasks.ink.weight: 0 is not a weight of a task: a number, greater than 0"),
    "a wrong component": ({}, {"data": "ditigs"}, "tasks.ink.data.fn: there is no data `ditigs`"),
    "a loss of another kind": (
        {},
        {"loss": "cross_entropy"},
        "tasks.ink.loss: cross_entropy is for labels that are a class each, and these are numbers",
    ),
    "a loss that does not fit": (
        {},
        {"loss": {"fn": "weighted_squared_error", "weights": [1.0, 2.0]}},
        "tasks.ink.loss: 2 weights do not fit 1 outputs: one each",
    ),
    "a loss that needs more": ({}, {"loss": "fcurr.joint:loss"}, "tasks.ink.loss: fcurr.joint:loss is for labels"),
    "a metric of another kind": (
        {},
        {"metrics": ["r2", "accuracy"]},
        "tasks.ink.metrics[1]: accuracy is for labels that are a class each, and these are numbers",
    ),
    "a metric twice": ({}, {"metrics": ["r2", "r2"]}, "tasks.ink.metrics: r2 is asked for twice"),
    "a loss of counts": (
        {"tasks": {"number": NUMBER | {"loss": "balanced_cross_entropy"}}},
        {},
        "tasks.number.loss: balanced_cross_entropy follows the classes in play, which are not counted where there are",
    ),
    "a split by classes": (
        {"split": {"fn": "stratified", "validation": 0.1, "test": 0.1}},
        {},
        "split: stratified wants a class a sample, and the labels of `ink` are numbers; shuffled does not",
    ),
    "an empty part": (
        {"split": {"fn": "published", "validation": 0.001, "test_size": 20}},
        {},
        "split: of 300 samples of `number` none is left to choose by: the validation split is empty",
    ),
    "noise": (
        {"noise": {"fn": "symmetric", "share": 0.2}},
        {},
        "noise: symmetric wants a class a sample, and the labels are those of several tasks",
    ),
    "imbalance": ({"imbalance": {"fn": "long_tail", "ratio": 2.0}}, {}, "imbalance: long_tail wants a class a sample"),
    "a sampling": (
        {"curriculum": {"sampling": "balanced"}},
        {},
        "curriculum.sampling: balanced wants a class a sample, and the labels are those of several tasks; unbalanced",
    ),
    "clean samples by class": (
        {"clean": {"fn": "balanced", "size": 20}},
        {},
        "clean: balanced wants a class a sample, and the labels are those of several tasks; drawn does not",
    ),
    "a score of classes": (
        {"score": "margin"},
        {},
        "score: margin is for labels that are a class each, and these are those of several tasks",
    ),
    "mixed labels": (
        {"augment": ["mixup"]},
        {},
        "augment: mixup makes new labels, and those of several tasks cannot be mixed",
    ),
    "corrected labels": (
        {"clean": {"fn": "drawn", "size": 20}, "reweighting": "label_correction"},
        {},
        "reweighting: label_correction makes new labels, and those of several tasks cannot be mixed",
    ),
    "another shape": (
        {},
        {"data": {"fn": "npz", "path": "flat"}},
        "tasks.ink.data: samples of `ink` are [64], those of `number` [1, 8, 8]: tasks that are trained jointly have",
    ),
    "groups of none": (
        {"split": {"fn": "grouped_k_fold", "folds": 3, "fold": 0}},
        {},
        "split: grouped_k_fold keeps groups together, and the data has none",
    ),
    "tasks in an arm": ({"arms": {"a": {"tasks": {}}}}, {}, "arms.a.tasks: members of one run share `tasks`"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_several_tasks_cannot_have_is_said_where_it_was_written(case, files, tmp_path):
    change, ink, words = WRONG[case]
    found = config(copy.deepcopy(BOTH)) | copy.deepcopy(change)
    if "ink" in found["tasks"]:
        found["tasks"]["ink"] |= ink
        found["tasks"]["ink"] = {key: value for key, value in found["tasks"]["ink"].items() if value is not None}
    for task in found["tasks"].values():
        if isinstance(task, dict) and isinstance(task.get("data"), dict):
            task["data"]["path"] = str(files / f"{task['data']['path']}.npz")
    result = fcurr("check", written(tmp_path, found))
    assert result.exit_code == 2 and result.stderr.count("\n") == 1, result.stderr or result.exception
    assert words in result.stderr, result.stderr


def test_the_loss_of_several_tasks_is_not_one_of_one_task(tmp_path):
    path = written(tmp_path, copy.deepcopy(CONFIG) | {"loss": "fcurr.joint:loss"})
    result = fcurr("check", path)
    assert "loss: fcurr.joint:loss is for labels that are those of several tasks, and these are a class each" in (
        result.stderr
    )


def test_a_model_with_too_few_outputs_for_all_tasks_is_told_how_many_there_are(files, tmp_path):
    tasks = {"number": {"data": npz(files, "number")}, "ink": {"data": npz(files, "ink", task="regression")}}
    result = fcurr("check", written(tmp_path, config(tasks, model={"fn": "mlp", "classes": 10})))
    assert "model: the model has [10] outputs a sample, the labels have 11 classes and targets" in result.stderr
