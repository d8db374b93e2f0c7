"""A run small enough for tests: digits, two arms, two seeds, a score, a few dozen steps."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import tomli_w
from fcurr_cli.main import app
from typer.testing import CliRunner, Result

CONFIG: dict[str, Any] = {
    "name": "small",
    "seed": 0,
    "data": {"fn": "digits"},
    "split": {"fn": "stratified", "validation": 0.1, "test": 0.1},
    "noise": {"fn": "symmetric", "share": 0.4},
    "model": {"fn": "mlp", "hidden": [8]},
    "optimizer": {"fn": "sgd", "learning_rate": 0.1, "momentum": 0.9},
    "score": {"fn": "cross_validated_loss", "folds": 2},
    "fit": {"iterations": 20, "batch_size": 16},
    "curriculum": {
        "order": "easy_first",
        "pace": {"fn": "linear", "initial_size": 0.2, "final_iteration": 0.5},
    },
    "training": {"total_iterations": 40, "batch_size": 16, "evaluate_every": 10, "save_every": 15},
    "members": {"seed": [0, 1]},
    "arms": {"plain": {"curriculum": {"order": "random", "pace": {"fn": "none"}}}, "easy_first": {}},
}


def written(folder: Path, config: dict[str, Any] | str = CONFIG, name: str = "small.toml") -> Path:
    """The config as a file in a folder."""
    path = folder / name
    path.write_text(config if isinstance(config, str) else tomli_w.dumps(config))
    return path


def fcurr(*arguments: str | Path) -> Result:
    """The command line, in this process."""
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def process(*arguments: str | Path, **options: Any) -> subprocess.Popen[str]:
    """The command line, in a process of its own."""
    program = "from fcurr_cli.main import main; main()"
    command = [sys.executable, "-c", program, *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}  # as the tests themselves
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, env=environment, **pipes, **options)


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a folder."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
