"""What bad input gets: one line that says where, what was given and what would be right; exit 2; nothing written."""

import copy
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
from small import CONFIG, contents, fcurr, process, written

from fcurr.io import checkpoint, store

SMALL = """\
name = "small"
[data]
fn = "digits"
[split]
fn = "stratified"
validation = 0.1
test = 0.1
[model]
fn = "mlp"
hidden = [8]
[optimizer]
fn = "sgd"
learning_rate = 0.1
[training]
total_iterations = 20
[curriculum]
order = "random"
[curriculum.pace]
fn = "root"
initial_size = 0.2
final_iteration = 0.8
"""

# what is changed in the text above -> the message, after the file's name
FAULTS = {
    "an unknown key": (
        "initial_size = 0.2",
        "initial_sise = 0.2",
        ":20:16: curriculum.pace.initial_sise: root takes no `initial_sise` (did you mean `initial_size`?); "
        "it takes initial_size, final_iteration, total_iterations, dataset_size, power",
    ),
    "a missing key": (
        "initial_size = 0.2\n",
        "",
        ":18:1: curriculum.pace: root needs `initial_size`, a share of the data: a number, greater than 0, at most 1",
    ),
    "a wrong type": (
        "initial_size = 0.2",
        'initial_size = "big"',
        ':20:16: curriculum.pace.initial_size: "big" is not a share of the data: a number, greater than 0, at most 1',
    ),
    "a truth for a number": (
        "total_iterations = 20",
        "total_iterations = true",
        ":15:20: training.total_iterations: true is not a number of iterations: a whole number, at least 1",
    ),
    "a value out of bounds": (
        "initial_size = 0.2",
        "initial_size = 1.5",
        ":20:16: curriculum.pace.initial_size: 1.5 is not a share of the data: a number, greater than 0, at most 1",
    ),
    "a number that is none": (
        "learning_rate = 0.1",
        "learning_rate = nan",
        ":13:17: optimizer.learning_rate: NaN is not a learning rate: a number, at least 0",
    ),
    "an unknown component": (
        '"root"',
        '"rot"',
        ":19:6: curriculum.pace.fn: there is no pace `rot` (did you mean `root`?); "
        "there are none, linear, quadratic, root, polynomial, exponential, logarithmic, one_step",
    ),
    "an unknown section": (
        "[training]",
        "[trainin]",
        ":14:1: trainin: there is no section `trainin` (did you mean `training`?); there are name, seed, data, split, "
        "clean, noise, imbalance, scaling, model, loss, optimizer, score, weighting, reweighting, augment, metrics, "
        "observers, loggers, training, fit, outputs, start, curriculum, members, arms, controls, samples, tasks; "
        "and, of a study, study, sweep, cross_validation, commands, hooks, notify",
    ),
    "a section that is nearly one of a study": (
        "[curriculum]",
        '[swep]\n"optimizer.learning_rate" = [0.1, 0.2]\n[curriculum]',
        ":16:1: swep: there is no section `swep` (did you mean `sweep`?); there are name, seed, data, split, clean, "
        "noise, imbalance, scaling, model, loss, optimizer, score, weighting, reweighting, augment, metrics, "
        "observers, loggers, training, fit, outputs, start, curriculum, members, arms, controls, samples, tasks; "
        "and, of a study, study, sweep, cross_validation, commands, hooks, notify",
    ),
    "an unknown section beside a sweep": (
        "[curriculum]",
        '[sweep]\n"optimizer.learning_rate" = [0.1, 0.2]\n[cross_validatoin]\nfolds = 3\n[curriculum]',
        ":18:1: cross_validatoin: there is no section `cross_validatoin` (did you mean `cross_validation`?); there "
        "are name, seed, data, split, clean, noise, imbalance, scaling, model, loss, optimizer, score, weighting, "
        "reweighting, augment, metrics, observers, loggers, training, fit, outputs, start, curriculum, members, "
        "arms, controls, samples, tasks; and, of a study, study, sweep, cross_validation, commands, hooks, notify",
    ),
    "a section without a component": (
        '[model]\nfn = "mlp"',
        "[model]",
        ':8:1: model: needs fn = "...", one of mlp, convnet, resnet, from_module, or your own "module:function"',
    ),
    "a missing section": (
        '[optimizer]\nfn = "sgd"\nlearning_rate = 0.1\n',
        "",
        ":1:1: optimizer: a config needs a section [optimizer]",
    ),
    "an order without a score": (
        '"random"',
        '"easy_first"',
        ":17:9: curriculum.order: easy_first ranks by a score: add a section [score]",
    ),
    "a module that is not allowed": (
        '"root"',
        '"my_pace:stairs"',
        ":19:6: curriculum.pace.fn: `my_pace:stairs` is code from outside fcurr; to allow it, add --plugin my_pace",
    ),
    "an empty split": (
        "validation = 0.1",
        "validation = 0.0",
        ":4:1: split: of 1797 samples none is left to choose by: the validation split is empty",
    ),
    "a model that does not take the samples": (
        'fn = "mlp"\nhidden = [8]',
        'fn = "convnet"\nchannels = [4, 4, 4, 4]',
        ":8:1: model: 4 stages halve a side of 8 to nothing",
    ),
    "a list with a wrong entry": (
        "hidden = [8]",
        "hidden = [8, 0]",
        ":10:10: model.hidden: [8, 0] is not a list of layer widths: a list, each a number of units: "
        "a whole number, at least 1",
    ),
    "members that do not share the model": (
        "[curriculum]",
        '[members]\n"model.hidden" = [[4], [8]]\n[curriculum]',
        ":17:18: members.model.hidden: members of one run share `model`; "
        "they may differ in seed, optimizer, loss, curriculum, weighting, reweighting, samples",
    ),
    "members of another kind": (
        "[curriculum]",
        '[arms]\na = {}\nb = { optimizer = { fn = "adam", learning_rate = 0.1 } }\n[curriculum]',
        ":11:1: optimizer: members of one run may differ in numbers of their optimizer, not in its kind",
    ),
    "a wrong value in an arm": (
        "[curriculum]",
        "[arms]\na = { curriculum = { pace = { initial_size = 2 } } }\n[curriculum]",
        ":17:46: arms.a.curriculum.pace.initial_size: 2 is not a share of the data: "
        "a number, greater than 0, at most 1",
    ),
    "a wrong value in an axis": (
        "[curriculum]",
        '[members]\n"curriculum.pace.initial_size" = [0.5, 2]\n[curriculum]',
        ":17:34: members.curriculum.pace.initial_size: 2 is not a share of the data: "
        "a number, greater than 0, at most 1",
    ),
    "not TOML": ("[curriculum]", "[curriculum", ":16:12: not TOML: expected ']' at the end of a table declaration"),
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("command", ["run", "check"])
def test_a_fault_in_a_config_is_one_line_with_its_place_and_writes_nothing(command, fault, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    old, new, message = FAULTS[fault]
    assert SMALL.count(old) >= 1
    path = written(tmp_path, SMALL.replace(old, new, 1))
    before = contents(tmp_path)
    result = fcurr(command, path)
    assert result.stderr == f"fcurr: {path}{message}\n"
    assert (result.exit_code, result.stdout) == (2, "")
    assert contents(tmp_path) == before


def test_the_text_that_the_faults_change_is_right(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = fcurr("check", written(tmp_path, SMALL))
    assert (result.exit_code, result.stderr) == (0, "")
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            "curriculum.pace.initial_size=7",
            "curriculum.pace.initial_size (on the command line): 7 is not a share of the data: "
            "a number, greater than 0, at most 1",
        ),
        (
            "curriculum.pase=root",
            "curriculum.pase (on the command line): [curriculum] takes no `pase` (did you mean `pace`?); "
            "it takes order, sampling, pace",
        ),
        ("seed", "`seed` is not a change to the config: key=value, such as optimizer.learning_rate=0.05"),
        ("seed.a=1", "seed.a (on the command line): `seed` is 0, which has no keys"),
    ],
)
def test_a_fault_in_a_change_says_that_it_stands_on_the_command_line(change, message, tmp_path):
    result = fcurr("check", written(tmp_path), change)
    assert (result.exit_code, result.stderr) == (2, f"fcurr: {message}\n")


def test_a_config_that_is_not_there_is_named(tmp_path):
    result = fcurr("run", tmp_path / "none.toml")
    assert (result.exit_code, result.stderr) == (2, f"fcurr: there is no file {tmp_path / 'none.toml'}\n")


def _data(tmp_path: Path, table: dict, **sections) -> tuple[int, str]:
    config = copy.deepcopy(CONFIG) | {"data": table} | sections
    path = written(tmp_path, config)
    result = fcurr("run", path, "--out", tmp_path / "runs")
    assert not (tmp_path / "runs").exists()
    assert result.stdout == ""
    return result.exit_code, result.stderr.replace(str(tmp_path), "~").replace("~/small.toml:", "")


def test_faults_in_data_are_named_before_anything_is_trained(tmp_path):
    x, y = np.random.default_rng(0).normal(size=(50, 3)), np.arange(50) % 3
    broken, holed, text = tmp_path / "broken.npz", tmp_path / "holed.npz", tmp_path / "text.csv"
    broken.write_bytes(b"PK not an archive")
    np.savez(holed, x=np.where(np.arange(150).reshape(50, 3) == 7, np.nan, x), y=y)
    text.write_text("a,b,label\n1,2,x\n3,four,y\n")
    gap = tmp_path / "gap.csv"
    gap.write_text("a,label\n1,x\n2,\n3,y\n")
    cases = [
        ({"fn": "npz", "path": f"{tmp_path}/no.npz"}, "data.path: there is no file ~/no.npz"),
        (
            {"fn": "npz", "path": str(broken)},
            "data.path: ~/broken.npz is not a .npz archive, which is a zip file",
        ),
        (
            {"fn": "npz", "path": str(holed)},
            "data: sample 2 has a value that is not a finite number (1 samples have)",
        ),
        (
            {"fn": "npz", "path": str(holed), "y": "z"},
            "data.path: ~/holed.npz has no array `z`; it has x, y",
        ),
        ({"fn": "csv", "path": str(text)}, "data.path: ~/text.csv: column `b` is string, not numbers"),
        (
            {"fn": "csv", "path": str(text), "label": "c"},
            "data.label: ~/text.csv has no column `c`; it has a, b, label",
        ),
        (
            {"fn": "csv", "path": str(gap)},
            "data.path: ~/gap.csv: column `label` has no value in row 2 after the header",
        ),
        ({"fn": "parquet", "path": str(text)}, "data.path: ~/text.csv is not a readable parquet table: "),
    ]
    for table, message in cases:
        code, said = _data(tmp_path, table)
        place, _, rest = said.removeprefix("fcurr: ").partition(" ")
        assert code == 2 and place.count(":") == 2, said
        assert rest.startswith(message) and said.count("\n") == 1, said


PLUGIN = """
import torch
from fcurr.types import Dataset, Easier, Harder
def wild(state, iteration, *, dataset_size):
    return torch.as_tensor(iteration) * 0 + dataset_size + 1
def late(state, iteration, *, dataset_size):
    return torch.where(torch.as_tensor(iteration) < 7, dataset_size, 0)
def broken(state, iteration, *, dataset_size):
    raise RuntimeError("no idea")
def soft(state, iteration, *, dataset_size):
    return torch.as_tensor(iteration) * 0 + 0.5
def nothing(state, iteration, *, dataset_size):
    pass
def swapped(iteration, *, dataset_size):
    return dataset_size
def unsure(params, batch, *, model):
    return batch.y.float()
def nowhere(params, batch, *, model) -> Harder:
    return batch.y / (batch.y - batch.y)
def short(params, batch, *, model) -> Harder:
    return batch.y[:3].float()
def few(*, features):
    from fcurr.models import mlp
    return mlp(features=features, classes=5, hidden=(4,))
"""


@pytest.mark.parametrize(
    ("section", "name", "message"),
    [
        ("pace", "wild", "curriculum.pace: bad:wild puts 1438 samples in play at iteration 0; there are 1 to 1437"),
        ("pace", "late", "curriculum.pace: bad:late puts 0 samples in play at iteration 7; there are 1 to 1437"),
        ("pace", "broken", "curriculum.pace: bad:broken fails in line 9 of bad: RuntimeError: no idea"),
        ("pace", "soft", "curriculum.pace: bad:soft gives torch.float32 []: a pace is one whole number"),
        (
            "pace",
            "swapped",
            "curriculum.pace.fn: a pace takes (state, iteration) by position, `swapped` takes (iteration)",
        ),
        ("pace", "wildd", "curriculum.pace.fn: bad has no function `wildd` (did you mean `wild`?)"),
        ("score", "unsure", "score: bad:unsure does not say which way it points: annotate its result Harder or Easier"),
        ("pace", "nothing", "curriculum.pace: bad:nothing gives None: a pace is one whole number"),
        ("score", "short", "score: bad:short gives [3] for 4 samples: a tensor of one number each"),
        ("model", "few", "model: the model has [5] outputs a sample, the labels have 10 classes"),
    ],
)
def test_a_fault_in_a_persons_own_function_is_named_before_anything_is_trained(section, name, message, tmp_path):
    (tmp_path / "bad.py").write_text(PLUGIN)
    config = copy.deepcopy(CONFIG)
    table = config["curriculum"] if section == "pace" else config
    table[section] = {"fn": f"bad:{name}"}
    result = process("run", written(tmp_path, config), "--plugin", "bad", "--out", tmp_path / "runs")
    _, said = result.communicate()
    assert result.returncode == 2 and message in said and said.count("\n") == 1, said
    assert not (tmp_path / "runs").exists()


def test_a_score_that_is_not_finite_is_named_and_leaves_a_folder_that_can_be_used_again(tmp_path):
    name, message = "nowhere", "score: bad:nowhere gives inf for sample "
    (tmp_path / "bad.py").write_text(PLUGIN)
    path = written(tmp_path, copy.deepcopy(CONFIG) | {"score": {"fn": f"bad:{name}"}})
    result = process("run", path, "--plugin", "bad", "--out", tmp_path / "runs")
    _, said = result.communicate()
    assert result.returncode == 2 and message in said and "Traceback" not in said, said
    mended = written(tmp_path, copy.deepcopy(CONFIG) | {"score": {"fn": "entropy"}})
    shutil.rmtree(tmp_path / "runs/small" / store.SCORING)
    assert fcurr("run", mended, "--out", tmp_path / "runs").exit_code == 0


def test_nothing_outside_fcurr_is_imported_without_being_allowed(tmp_path):
    (tmp_path / "spy.py").write_text(
        f"open({str(tmp_path / 'came')!r}, 'w')\ndef pace(state, iteration): return iteration\n"
    )
    config = copy.deepcopy(CONFIG)
    config["curriculum"]["pace"] = {"fn": "spy:pace"}
    path = written(tmp_path, config)
    for arguments in (["check", path], ["run", path], ["ls"], ["explain", "spy:pace"], ["schema"]):
        done = process(*arguments, cwd=tmp_path)
        done.communicate()
        assert not (tmp_path / "came").exists(), arguments
    done = process("check", path, "--plugin", "spy", cwd=tmp_path)
    done.communicate()
    assert (tmp_path / "came").exists()


def test_a_plugin_that_does_not_import_is_named_with_its_reason(tmp_path):
    (tmp_path / "lame.py").write_text("import not_there\n")
    config = copy.deepcopy(CONFIG)
    config["curriculum"]["pace"] = {"fn": "lame:pace"}
    done = process("check", written(tmp_path, config), "--plugin", "lame")
    _, said = done.communicate()
    reason = "module lame does not import: ModuleNotFoundError: No module named 'not_there'"
    assert done.returncode == 2 and said.endswith(f"curriculum.pace.fn: {reason}\n") and said.count("\n") == 1


def test_a_folder_that_another_process_holds_is_refused_and_untouched(tmp_path):
    folder = tmp_path / "runs" / "small"
    with store.held(folder):
        before = contents(folder)
        result = fcurr("run", written(tmp_path), "--out", tmp_path / "runs")
        after = contents(folder)
    assert result.exit_code == 2 and before == after
    assert result.stderr.startswith(f"fcurr: {folder} is held by process ") and "name=..." in result.stderr


def test_a_folder_with_another_run_is_refused_and_untouched(tmp_path):
    path = written(tmp_path)
    assert fcurr("run", path, "--out", tmp_path / "runs").exit_code == 0
    before = contents(tmp_path / "runs")
    result = fcurr("run", path, "optimizer.learning_rate=0.05", "--out", tmp_path / "runs")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == (
        f"fcurr: {tmp_path}/runs/small holds a run with optimizer.learning_rate = 0.1, not 0.05; "
        "name=... starts another beside it, --fresh throws it away and starts anew\n"
    )
    assert contents(tmp_path / "runs") == before


def test_a_folder_that_is_no_runs_is_refused_and_untouched(tmp_path):
    (tmp_path / "runs/small").mkdir(parents=True)
    (tmp_path / "runs/small/thesis.tex").write_text("years")
    for more in ([], ["--fresh"]):
        result = fcurr("run", written(tmp_path), "--out", tmp_path / "runs", *more)
        assert result.exit_code == 2
        assert "is not a run's folder: it holds thesis.tex" in result.stderr
        assert (tmp_path / "runs/small/thesis.tex").read_text() == "years"


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_good_checkpoint(tmp_path):
    """A weight decay of 1000 at a rate of 0.1 multiplies the weights by -99 a step."""
    config = copy.deepcopy(CONFIG) | {"arms": {"a": {}, "b": {"optimizer": {"weight_decay": 1000.0}}}}
    config["training"]["save_every"] = 1
    config["score"] = {"fn": "entropy"}
    result = fcurr("run", written(tmp_path, config), "--out", tmp_path / "runs")
    folder = tmp_path / "runs/small"
    assert result.exit_code == 3 and "Traceback" not in result.stderr
    said = result.stderr.splitlines()[-1]
    found = re.match(
        r"fcurr: the (.+) became (nan|inf|-inf) at step (\d+) in b, seed = 0; b, seed = 1; the last ", said
    )
    newest = checkpoint.listed(folder / store.CHECKPOINTS)[-1]
    assert found and f"the last good checkpoint is {newest}; " in said
    tensors = safetensors.torch.load_file(newest)
    assert int(tensors["state.run.iteration"]) == int(found[3]) - 1
    assert all(leaf.isfinite().all() for name, leaf in tensors.items() if ".params" in name)
    assert '"diverged"' in (folder / store.STATUS).read_text()


def test_a_run_that_diverges_at_once_says_that_there_is_no_checkpoint(tmp_path):
    config = copy.deepcopy(CONFIG) | {"optimizer": {"fn": "sgd", "learning_rate": 1e38}, "arms": {"a": {}}}
    del config["score"], config["curriculum"]
    result = fcurr("run", written(tmp_path, config), "--out", tmp_path / "runs")
    assert result.exit_code == 3 and "in a, seed = 0; a, seed = 1; no checkpoint had been written yet" in result.stderr


@pytest.mark.parametrize("name", ["../out", "/tmp/out", ".", "..", "a/b", "a\\b", "a\0b"])
def test_a_name_that_is_no_folders_name_is_refused(name, tmp_path):
    result = fcurr("run", written(tmp_path, CONFIG | {"name": name}), "--out", tmp_path / "runs")
    assert result.exit_code == 2 and "name: " in result.stderr and "is not the name of a folder" in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["small.toml"]


def test_fresh_never_throws_away_what_no_run_wrote(tmp_path):
    folder = tmp_path / "runs/small"
    folder.mkdir(parents=True)
    for name in ("config.toml", "report.html", "notes.txt"):
        (folder / name).write_text("mine")
    before = contents(folder)
    result = fcurr("run", written(tmp_path), "--out", tmp_path / "runs", "--fresh")
    assert result.exit_code == 2 and "is not a run's folder: it holds config.toml" in result.stderr
    assert {k: v for k, v in contents(folder).items() if k[0] != "."} == before


SHAPES = [
    *(
        {key: value}
        for key in ("data", "model", "score", "curriculum", "training")
        for value in (3, [], "x", [{}], True)
    ),
    {"members": []},
    {"members": {"x": {}}},
    {"members": {"seed": 3}},
    {"members": {"seed": []}},
    {"arms": {}},
    {"arms": {"": {}}},
    {"arms": {"a": 3}},
    {"name": 5},
    {"seed": -1},
    {"score": {"fn": "loss", "loss": 3}},
    {"score": {"fn": "loss", "model": {"fn": "mlp"}}},
    {"model": {"fn": "mlp", "hidden": [10**12]}},
    {"model": {"fn": "mlp", "features": [0]}},
    {"model": {"fn": "convnet", "kernel": 0}},
    {"model": {"fn": "from_module"}},
    {"optimizer": {"fn": "sgd", "learning_rate": 1e300}},
    {"optimizer": {"fn": "clipped", "max_norm": 1.0}},
    {"optimizer": {"fn": "sgd", "learning_rate": {"fn": "constant", "learning_rate": {"fn": "cosine"}}}},
    {"optimizer": {"fn": "fcurr.training:deque"}},
    {"optimizer": {"fn": "fcurr.optim:_rate"}},
    {"training": {"total_iterations": 10, "batch_size": 10**12}},
    {"split": {"fn": "stratified", "validation": 0.6, "test": 0.6}},
]


@pytest.mark.parametrize("change", SHAPES, ids=str)
def test_no_shape_of_a_config_gives_a_traceback(change, tmp_path):
    result = fcurr("run", written(tmp_path, copy.deepcopy(CONFIG) | change), "--out", tmp_path / "runs")
    assert result.exit_code == 2 and result.stderr.count("\n") == 1 and result.stderr.startswith("fcurr: ")
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("text", [b"", b"\xff\xfe", b"a = " + b"1" * 5000, b"a = " + b"[" * 3000, b"name = 2020-01-01"])
def test_no_text_of_a_config_gives_a_traceback(text, tmp_path):
    (tmp_path / "odd.toml").write_bytes(text)
    result = fcurr("check", tmp_path / "odd.toml")
    assert result.exit_code == 2 and result.stderr.count("\n") == 1 and result.stderr.startswith("fcurr: ")


@pytest.mark.parametrize("plugin", ["no_such", "no.such", "..", "./x", "", "small.toml"])
def test_a_plugin_that_is_not_there_is_named(plugin, tmp_path):
    result = fcurr("check", written(tmp_path), "--plugin", plugin)
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
    assert result.stderr.startswith(f"fcurr: --plugin {plugin}: there is no such module")


def test_a_torn_file_in_a_runs_folder_is_named(tmp_path):
    path = written(tmp_path)
    assert fcurr("run", path, "--out", tmp_path / "runs").exit_code == 0
    for name in (store.RESULTS, store.STATUS, store.IDENTITY):
        whole = (tmp_path / "runs/small" / name).read_bytes()
        (tmp_path / "runs/small" / name).write_bytes(whole[:20])
        result = fcurr("run", path, "--out", tmp_path / "runs")
        assert result.exit_code == 2 and str(tmp_path / "runs/small" / name) in result.stderr, name
        (tmp_path / "runs/small" / name).write_bytes(whole)


def test_a_sign_that_hides_behind_text_annotations_is_read(tmp_path):
    (tmp_path / "later.py").write_text(
        "from __future__ import annotations\nfrom fcurr.types import Easier\n"
        "def sure(params, batch, *, model) -> Easier:\n    return model.apply(params, batch.x).max(-1).values\n"
    )
    path = written(tmp_path, copy.deepcopy(CONFIG) | {"score": {"fn": "later:sure"}})
    done = process("check", path, "--plugin", "later")
    assert done.communicate()[1] == "" and done.returncode == 0


PLACES = {
    "a list": (
        {"metrics": ["accuracy", "acuracy"]},
        [],
        r"small.toml:\d+:\d+: metrics\[1\].fn: there is no metric `acuracy`",
    ),
    "an arm's bare name": (
        {"arms": {"a": {"curriculum": {"order": "random", "pace": "nonee"}}}},
        [],
        r"small.toml:\d+:\d+: arms.a.curriculum.pace: there is no pace `nonee`",
    ),
    "a key inside": ({}, ["loss.fn=squared_error"], r"loss \(on the command line\): squared_error is for labels"),
}


@pytest.mark.parametrize("case", PLACES)
def test_a_wrong_name_in_a_list_in_an_arm_or_on_the_command_line_is_found_where_it_was_written(case, tmp_path):
    change, more, message = PLACES[case]
    config = copy.deepcopy(CONFIG) | change
    path = written(tmp_path, config)
    result = fcurr("check", path, *more)
    assert result.exit_code == 2 and re.search(message, result.stderr), result.stderr
    if case == "a list":
        line = int(re.search(r"small.toml:(\d+):", result.stderr)[1])  # pyright: ignore[reportOptionalSubscript]
        assert path.read_text().splitlines()[line - 1].startswith("metrics = [")
