"""What a study has trained is used as what a run has trained."""

import numpy as np
import pytest
import safetensors.torch
import torch
from small import CONFIG, fcurr, written

from fcurr.io import artefacts, datasets, store

NESTED = {
    "name": "nested",
    "data": {"fn": "iris"},
    "split": {"fn": "stratified_k_fold"},
    "model": {"fn": "mlp", "hidden": [4]},
    "optimizer": {"fn": "sgd", "learning_rate": 0.1},
    "training": {"total_iterations": 20, "batch_size": 16},
    "cross_validation": {"folds": 2, "inner_folds": 2},
    "sweep": {"model.hidden": [[4], [6]]},
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("used")
    for config in (CONFIG | {"sweep": {"optimizer.learning_rate": [0.1, 0.01]}}, NESTED):
        result = fcurr("run", written(folder, config), "--out", folder / "runs", "--engine", "inline")
        assert result.exit_code == 0, result.stderr
    return folder / "runs"


def test_a_member_of_a_study_is_exported_as_it_lies_in_the_store(runs, tmp_path):
    for which, more in (("best", []), ("last", ["--last"])):
        result = fcurr("export", runs / "small", tmp_path / "w.safetensors", "--member", 5, *more)
        assert result.exit_code == 0, result.stderr
        found = safetensors.torch.load_file(tmp_path / "w.safetensors")
        models = [safetensors.torch.load_file(path) for path in (runs / "store/model").iterdir()]
        same = [model for model in models if _holds(model, which, found)]
        assert len(same) == 1


def _holds(model: dict[str, torch.Tensor], which: str, found: dict[str, torch.Tensor]) -> bool:
    own = {key.partition(".")[2]: leaf for key, leaf in model.items() if key.startswith(f"{which}.")}
    return own.keys() == found.keys() and all(torch.equal(own[key], leaf) for key, leaf in found.items())


def test_without_a_number_it_is_the_member_with_the_best_validation(runs, tmp_path):
    result = fcurr("export", runs / "small", tmp_path / "w.safetensors")
    rows = store.metrics(runs / "small")
    best = max(rows, key=lambda row: row["validation_accuracy"])
    assert f"member {best['member']} of" in result.stdout


def test_a_study_predicts_also_with_the_model_that_inner_folds_have_chosen(runs, tmp_path):
    for name, data in (("small", datasets.digits()), ("nested", datasets.iris())):
        np.save(tmp_path / "x.npy", np.asarray(data.x[:5].reshape(5, *data.features)))
        result = fcurr("predict", runs / name, tmp_path / "x.npy", "--to", tmp_path / "p.csv", "--member", 0)
        assert result.exit_code == 0, result.stderr
        assert len((tmp_path / "p.csv").read_text().splitlines()) == 6


def test_a_member_that_there_is_not_and_a_study_without_results_are_told(runs, tmp_path):
    result = fcurr("export", runs / "small", tmp_path / "w.safetensors", "--member", 99)
    assert (result.exit_code, result.stderr) == (2, f"fcurr: there is no member 99: {runs / 'small'} has 0 to 7\n")
    (tmp_path / "journal.jsonl").write_text("")
    result = fcurr("export", tmp_path, tmp_path / "w.safetensors", "--member", 0)
    assert result.stderr == f"fcurr: {tmp_path} is a study without results: it has not come to its end\n"


def test_a_model_that_the_store_has_lost_is_told(runs, tmp_path):
    for path in (runs / "store" / artefacts.RECORDS).iterdir():
        if '"name":"train/plain[optimizer.learning_rate=0.1, seed=0]"' in path.read_text():
            content = path.read_text()
            path.unlink()
            result = fcurr("export", runs / "small", tmp_path / "w.safetensors", "--member", 0)
            path.write_text(content)
            assert "does not hold train/plain" in result.stderr
            return
    raise AssertionError("there is no such training")
