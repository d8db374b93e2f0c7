"""What flows between the commands of a study is what they compute with."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest
from small import CONFIG, fcurr, written

from fcurr.io import datasets

TESTS = Path(__file__).parent


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(TESTS))


def _run(config: dict[str, Any], *more: str):
    return fcurr("run", written(Path(), config, f"{config['name']}.toml"), "--engine", "inline", *more)


def _members(folder: str) -> list[dict[str, Any]]:
    return json.loads((Path(folder) / "results.json").read_text())["members"]


def test_what_a_hook_makes_of_the_samples_is_trained_on():
    brief = {"arms": {"plain": CONFIG["arms"]["plain"]}, "members": {"seed": [0]}}
    config = CONFIG | brief | {"hooks": {"prepare": {"after": "steps:fewer"}}}
    result = _run(config, "--plugin", "steps")
    assert result.exit_code == 0, result.stderr
    (path,) = Path("runs/store/predictions").iterdir()
    parts = pyarrow.parquet.read_table(path)["part"].to_pylist()
    assert parts.count("train") == 50 and parts.count("test") > 100


def test_rho_loss_is_in_a_study_what_it_is_in_a_run():
    config = {key: value for key, value in CONFIG.items() if key not in ("score", "arms")} | {
        "clean": {"fn": "balanced", "size": 20},
        "weighting": "rho_loss",
        "curriculum": {"order": "random", "pace": "none"},
    }
    alone = fcurr("run", written(Path(), config | {"name": "alone"}, "alone.toml"))
    assert alone.exit_code == 0, alone.stderr
    result = _run(config | {"study": {}})
    assert result.exit_code == 0, result.stderr
    single, study = (
        json.loads(Path(f"runs/{name}/results.json").read_text())["members"] for name in ("alone", "small")
    )
    for one, other in zip(single, study, strict=True):
        for which in ("last", "best"):
            assert one[which] == pytest.approx(other[which], rel=1e-6)
    swept = config | {"name": "swept", "study": {"width": 64}, "sweep": {"optimizer.learning_rate": [0.001, 0.5]}}
    narrow = swept | {"name": "narrow", "study": {"width": 1}}
    for one in (swept, narrow):
        assert _run(one, "--out", f"runs of {one['name']}").exit_code == 0
    wide, alone = (_members(f"runs of {name}/{name}") for name in ("swept", "narrow"))
    for one, other in zip(wide, alone, strict=True):  # whoever is beside
        assert one["last"] == pytest.approx(other["last"], rel=1e-5)


def test_samples_are_the_same_whatever_their_labels():
    data = datasets.digits()
    x, fine = np.asarray(data.x[:400]), np.asarray(data.y[:400])
    np.savez("data.npz", x=x, fine=fine, coarse=fine % 2)
    base = {key: CONFIG[key] for key in ("optimizer", "training")} | {"model": {"fn": "mlp", "hidden": [8]}}
    first = base | {"data": {"fn": "npz", "path": "data.npz", "y": "fine"}, "split": CONFIG["split"], "seed": 0}
    written(Path(), first, "first.toml")
    then = first | {"name": "then", "seed": 1, "data": {"fn": "npz", "path": "data.npz", "y": "coarse"}}
    result = _run(then | {"start": {"config": "first.toml", "member": 0}, "study": {"routines": ["train"]}})
    assert result.exit_code == 1 and "that what it reads was fitted on" in result.stderr
    joint = {key: value for key, value in then.items() if key != "data"} | {
        "tasks": {"digits": {"data": "digits"}, "parity": {"data": then["data"]}},
        "start": {"config": "first.toml", "member": 0, "only": ["0.*"]},
        "study": {"routines": ["train"]},
    }
    result = _run(joint)
    assert result.exit_code == 1 and "that what it reads was fitted on" in result.stderr
