"""What a run is good for: weights for others, predictions."""

import copy
import csv

import numpy as np
import pyarrow.parquet
import pytest
import safetensors.torch
import torch
from small import CONFIG, fcurr, written
from torch import nn

from fcurr.io import checkpoint, store


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("used")
    config = copy.deepcopy(CONFIG) | {"scaling": "standard", "arms": {"one": {}}}
    assert fcurr("run", written(folder, config), "--out", folder / "runs").exit_code == 0
    return folder / "runs/small"


def _digits() -> torch.Tensor:
    from sklearn.datasets import load_digits

    return torch.from_numpy(load_digits().images[:20, None] / 16).float()


def _by_hand(weights: dict[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    x = ((x - weights["input.shift"]) * weights["input.factor"]).flatten(1)
    x = torch.relu(x @ weights["0.weight"].T + weights["0.bias"])
    return x @ weights["1.weight"].T + weights["1.bias"]


@pytest.mark.parametrize("member", [0, 1])
@pytest.mark.parametrize("last", [True, False])
def test_exported_weights_are_those_of_the_checkpoint(member, last, run, tmp_path):
    result = fcurr("export", run, tmp_path / "w.safetensors", "--member", str(member), *(["--last"] if last else []))
    found_out = store.read_json(run / store.RESULTS)["members"][member]
    step = 40 if last else found_out["best_iteration"]
    assert (
        result.exit_code == 0 and result.stdout == f"{tmp_path}/w.safetensors: member {member} of {run}, step {step}\n"
    )
    found = safetensors.torch.load_file(tmp_path / "w.safetensors")
    tensors = checkpoint.read(checkpoint.listed(run / store.CHECKPOINTS)[-1])
    root = "run.train.params" if last else "record.best"
    assert set(found) == {"0.weight", "0.bias", "1.weight", "1.bias", "input.shift", "input.factor"}
    assert torch.equal(found["0.weight"], tensors[f"state.{root}['0.weight']"][member])
    layers = nn.ModuleList([nn.Linear(64, 8), nn.Linear(8, 10)])
    layers.load_state_dict({name: leaf for name, leaf in found.items() if not name.startswith("input.")})


def test_the_member_with_the_best_validation_is_taken_unless_one_is_asked_for(run, tmp_path):
    best = max(store.metrics(run), key=lambda row: row["validation_accuracy"])["member"]
    result = fcurr("export", run, tmp_path / "w.safetensors")
    assert f"member {best} of" in result.stdout


def test_predictions_are_what_the_exported_weights_answer(run, tmp_path):
    np.save(tmp_path / "x.npy", _digits().numpy())
    fcurr("export", run, tmp_path / "w.safetensors", "--member", "1")
    result = fcurr("predict", run, tmp_path / "x.npy", "--to", tmp_path / "p.parquet", "--member", "1")
    assert result.exit_code == 0, result.stderr
    outputs = _by_hand(safetensors.torch.load_file(tmp_path / "w.safetensors"), _digits())
    table = pyarrow.parquet.read_table(tmp_path / "p.parquet").to_pydict()
    assert table["prediction"] == [str(c) for c in outputs.argmax(1).tolist()]
    assert table["probability of 3"] == pytest.approx(outputs.softmax(1)[:, 3].tolist(), rel=1e-4, abs=1e-6)
    again = fcurr("predict", run, tmp_path / "x.npy", "--to", tmp_path / "p.csv", "--member", "1")
    assert again.exit_code == 0
    with open(tmp_path / "p.csv") as file:
        assert [row["prediction"] for row in csv.DictReader(file)] == table["prediction"]


def test_numbers_are_predicted_from_a_table_with_or_without_its_labels(tmp_path):
    x = np.random.default_rng(0).normal(size=(60, 2)).round(3)
    rows = [f"{a},{b},{a - b:.3f}" for a, b in x]
    (tmp_path / "t.csv").write_text("a,b,sum\n" + "\n".join(rows) + "\n")
    (tmp_path / "u.csv").write_text("a,b\n" + "\n".join(row.rpartition(",")[0] for row in rows) + "\n")
    config = {
        "data": {"fn": "csv", "path": str(tmp_path / "t.csv"), "label": "sum", "task": "regression"},
        "split": {"fn": "shuffled", "validation": 0.2, "test": 0.2},
        "model": {"fn": "mlp", "hidden": [8]},
        "optimizer": {"fn": "adam", "learning_rate": 0.03},
        "training": {"total_iterations": 200, "batch_size": 16},
    }
    assert fcurr("run", written(tmp_path, config), "--out", tmp_path / "runs").exit_code == 0
    found = []
    for name in ("t", "u"):
        to = tmp_path / f"{name}-p.parquet"
        assert fcurr("predict", tmp_path / "runs/small", tmp_path / f"{name}.csv", "--to", to).exit_code == 0
        found.append(pyarrow.parquet.read_table(to).to_pydict())
    assert found[0] == found[1] and list(found[0]) == ["sum"]
    (tmp_path / "v.csv").write_text("b,a\n" + "\n".join(",".join(row.split(",")[1::-1]) for row in rows) + "\n")
    to = tmp_path / "v-p.parquet"
    assert fcurr("predict", tmp_path / "runs/small", tmp_path / "v.csv", "--to", to).exit_code == 0
    assert pyarrow.parquet.read_table(to).to_pydict() == found[0]  # columns are known by their names
    (tmp_path / "w.csv").write_text("b,c\n1,2\n")
    lacking = fcurr("predict", tmp_path / "runs/small", tmp_path / "w.csv", "--to", to)
    assert lacking.stderr == f"fcurr: {tmp_path}/w.csv has no column `a`, which the run was trained on\n"
    assert np.corrcoef(found[0]["sum"], x[:, 0] - x[:, 1])[0, 1] > 0.98


def test_an_exported_network_in_onnx_answers_as_the_run_does(run, tmp_path):
    pytest.importorskip("onnxscript")
    reference = pytest.importorskip("onnx.reference")
    result = fcurr("export", run, tmp_path / "net.onnx", "--member", "0")
    assert result.exit_code == 0, result.stderr
    fcurr("export", run, tmp_path / "w.safetensors", "--member", "0")
    right = _by_hand(safetensors.torch.load_file(tmp_path / "w.safetensors"), _digits())
    (found,) = reference.ReferenceEvaluator(str(tmp_path / "net.onnx")).run(None, {"x": _digits().numpy()})
    torch.testing.assert_close(torch.from_numpy(found), right, rtol=1e-4, atol=1e-5)


FAULTS = {
    "there is no member 7: {run} has 0 to 1": ["export", "{run}", "{tmp}/w.safetensors", "--member", "7"],
    "{tmp}/w.pt is neither .safetensors nor .onnx": ["export", "{run}", "{tmp}/w.pt"],
    "{tmp} has no checkpoint: it is not the folder of a run that has trained": [
        "export",
        "{tmp}",
        "{tmp}/w.safetensors",
    ],
    "there is no file {tmp}/none.npy": ["predict", "{run}", "{tmp}/none.npy"],
    "{tmp}/small.toml is not a file of samples: .npy, .npz, .csv, .parquet": ["predict", "{run}", "{tmp}/small.toml"],
    "{tmp}/p.xls is neither .csv nor .parquet": ["predict", "{run}", "{tmp}/x.npy", "--to", "{tmp}/p.xls"],
    "{tmp}/x.npy holds samples of shape [3], the run was trained on [1, 8, 8]": ["predict", "{run}", "{tmp}/x.npy"],
    "{tmp}/n.npy holds a value that is not a finite number": ["predict", "{run}", "{tmp}/n.npy"],
    "{tmp}/z.npz has no array `x`; it has y": ["predict", "{run}", "{tmp}/z.npz"],
}


@pytest.mark.parametrize("message", FAULTS)
def test_what_cannot_be_exported_or_predicted_is_said_in_words(message, run, tmp_path):
    written(tmp_path)
    np.save(tmp_path / "x.npy", np.ones((2, 3)))
    np.save(tmp_path / "n.npy", np.full((2, 1, 8, 8), np.nan))
    np.savez(tmp_path / "z.npz", y=np.ones(2))
    arguments = [part.format(run=run, tmp=tmp_path) for part in FAULTS[message]]
    result = fcurr(*arguments)
    assert (result.exit_code, result.stderr) == (2, f"fcurr: {message.format(run=run, tmp=tmp_path)}\n")
