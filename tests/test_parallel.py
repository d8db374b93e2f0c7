"""Processes that train together are one process with the whole batch."""

import copy
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from small import CONFIG, fcurr, written

from fcurr import tree
from fcurr.io import checkpoint, parallel, store
from fcurr.training import ALONE


def together(folder: Path, config: dict[str, Any], *more: str) -> subprocess.CompletedProcess[str]:
    """The run by two processes, as torchrun starts them."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["-m", "fcurr_cli", "run", str(written(folder, config)), "--out", str(folder / "runs"), *more]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=90)


def _config(**training: Any) -> dict[str, Any]:
    config = copy.deepcopy(CONFIG)
    config["training"] |= training
    config["optimizer"] = {"fn": "clipped", "max_norm": 1.0, "optimizer": {"fn": "adam", "learning_rate": 0.003}}
    config["augment"] = [{"fn": "noise", "deviation": 0.05}]
    return config


@pytest.mark.long
def test_two_processes_with_half_a_batch_each_are_one_process_with_all_of_it_to_rounding(tmp_path):
    config = _config(accumulate=2)
    found = together(tmp_path, config)
    assert found.returncode == 0, found.stderr
    assert found.stdout.count("report: ") == 1
    (tmp_path / "alone").mkdir()
    assert fcurr("run", written(tmp_path / "alone", config), "--out", tmp_path / "alone/runs").exit_code == 0
    two, one = (
        checkpoint.read(checkpoint.listed(folder / "runs/small" / store.CHECKPOINTS)[-1])
        for folder in (tmp_path, tmp_path / "alone")
    )
    assert two.keys() == one.keys()
    for name, leaf in one.items():
        torch.testing.assert_close(
            two[name], leaf, rtol=2e-3, atol=2e-4, msg=lambda words, name=name: f"{name}: {words}"
        )
    rows, right = (store.metrics(folder / "runs/small") for folder in (tmp_path, tmp_path / "alone"))
    assert [row["loss"] for row in rows] == pytest.approx([row["loss"] for row in right], rel=1e-4)


@pytest.mark.long
def test_two_processes_that_lost_their_checkpoints_find_the_same_bits_again(tmp_path):
    config = _config(total_iterations=30)
    folder = tmp_path / "runs/small"
    assert together(tmp_path, config).returncode == 0
    before = {name: (folder / name).read_bytes() for name in (store.METRICS, store.STEPS, store.SCORES)}
    (folder / store.STATUS).write_text('{"status": "running"}')
    for path in checkpoint.listed(folder / store.CHECKPOINTS):
        path.unlink()
    again = together(tmp_path, config)
    assert again.returncode == 0, again.stderr
    assert {name: (folder / name).read_bytes() for name in before} == before


def test_a_batch_that_does_not_come_in_equal_parts_is_refused_by_every_process(tmp_path):
    config = _config(batch_size=15)
    found = together(tmp_path, config)
    assert found.returncode != 0
    assert "training.batch_size: a batch of 15 does not come in equal parts for 2 processes" in found.stderr


def test_without_torchrun_a_process_is_alone_and_nothing_is_shared(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with parallel.team() as team:
        assert team == ALONE and parallel.agreed(lambda: 15, team)() == 15
    found = (torch.tensor(1.0), {}, {"w": torch.ones(2)})
    assert tree.equal(ALONE.shared(found), found) and parallel.speaks()
