"""Whatever happens to a run, it ends as the run that nothing happened to, or says in words why it cannot."""

import contextlib
import copy
import json
import multiprocessing
import multiprocessing.process
import os
import random
import resource
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nets
import numpy as np
import pytest
import safetensors.torch
import torch
from small import CONFIG, contents, fcurr, written
from test_run import _end, _run, _same

from fcurr import tree
from fcurr.io import checkpoint, configs, execute, files, journey, runner, store

PLUGINS = {"nets": "as it is"}


def _short(**changes: Any) -> dict[str, Any]:
    """A run of 60 steps that evaluates and saves all the time."""
    config = copy.deepcopy(CONFIG)
    config["training"] |= {"total_iterations": 60, "evaluate_every": 7, "save_every": 5}
    del config["noise"]
    for key, value in changes.items():
        config[key] = config[key] | value if key == "training" else value
    return config


PLAIN = {"order": "random", "pace": "none"}
CASES = {
    "plain, one member": _short(arms={"one": {"curriculum": PLAIN}}, members={"seed": [3]}),
    "curriculum, mapped, in steps": _short(),
    "curriculum, mapped, in epochs": _short(
        training={"clock": "epoch", "total_iterations": 2, "batch_size": 64, "evaluate_every": 1, "save_every": 1}
    ),
    "reweighted by class, BatchNorm and dropout, mapped": _short(
        model={"fn": "nets:normed"}, loss="balanced_cross_entropy", imbalance={"fn": "long_tail", "ratio": 5.0}
    ),
    "weights learned by Meta-Weight-Net, with controls, BatchNorm and dropout, mapped": _short(
        model={"fn": "nets:normed"},
        clean={"fn": "balanced", "size": 20},
        reweighting={"fn": "meta_weight_net", "hidden": 8, "warm_up": 5},
        arms={"one": {}, "focal": {"weighting": "focal"}},
        members={"seed": [0]},
    ),
    "BatchNorm and dropout, augmented, one member, rewinding, plateau": _short(
        model={"fn": "nets:normed"},
        augment=["flip", {"fn": "noise", "deviation": 0.1}],
        training={"on_nonfinite": "rewind", "patience": 6, "accumulate": 2},
        optimizer={"fn": "plateau", "patience": 1, "optimizer": {"fn": "adam", "learning_rate": 0.01}},
        arms={"one": {}},
        members={"seed": [1]},
    ),
}


def _execute(config: dict[str, Any], folder: Path) -> None:
    execute.execute(configs.read(config, ["nets"]), folder, PLUGINS)


_FORKS = multiprocessing.get_context("forkserver")  # torch does not like to be forked once it has differentiated
_FORKS.set_forkserver_preload(["test_reliability"])


def _child(work: Callable[..., object], *arguments: Any) -> multiprocessing.process.BaseProcess:
    """Does something in a process of its own, which has imported everything already."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(sys.path))  # for the process that forks the others
        process = _FORKS.Process(target=_quietly, args=(work, arguments))
        process.start()
    return process


def _quietly(work: Callable[..., object], arguments: tuple[Any, ...]) -> None:
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)
    torch.set_num_threads(1)
    work(*arguments)


def _ended(child: multiprocessing.process.BaseProcess) -> int:
    """0, or what ended a child: minus the signal, or its exit code."""
    child.join()
    assert child.exitcode is not None
    return child.exitcode


def _nothing() -> None:
    """As it says."""


def _dying(config: dict[str, Any], folder: Path, moment: str, nth: int) -> None:
    with _fatal(moment, nth):
        _execute(config, folder)


@contextlib.contextmanager
def _fatal(moment: str, nth: int):
    """The process kills itself at the n-th time it comes to a moment."""
    came = 0
    places = {
        "inside a step": (runner.fold.tree, "member"),
        "while evaluating": (runner.evaluating, "measured"),
        "between a file and its name": (files.os, "replace"),
        "while a checkpoint is written": (checkpoint, "_digest"),
        "before an old checkpoint goes": (checkpoint, "listed"),
        "while metrics are written": (store, "append_metrics"),
    }
    module, name = places[moment]
    real = getattr(module, name)

    def deadly(*arguments, **named):
        nonlocal came
        came += 1
        if came == nth:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*arguments, **named)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, name, deadly)
        yield


MOMENTS = (
    "while evaluating",
    "between a file and its name",
    "while a checkpoint is written",
    "while metrics are written",
)


@pytest.mark.long
@pytest.mark.parametrize("case", CASES)
def test_a_run_killed_at_eleven_moments_is_bit_for_bit_the_run_that_was_not(case, tmp_path):
    """Seven moments at random, and one each while evaluating, saving, naming and logging: 66 in all cases together."""
    config = CASES[case]
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    assert _ended(_child(_nothing)) == 0  # the process that forks the others is there
    began = time.monotonic()
    assert _ended(_child(_execute, config, straight)) == 0
    lasts, chance, kills = time.monotonic() - began, random.Random(case), 0
    moments: list[Any] = [chance.uniform(0.3, 0.9) * lasts for _ in range(7)]
    moments += [(moment, chance.randint(1, 2)) for moment in MOMENTS]
    chance.shuffle(moments)
    while moments:
        moment = moments[-1]
        if isinstance(moment, tuple):
            code = _ended(_child(_dying, config, killed, *moment))
        else:
            child = _child(_execute, config, killed)
            time.sleep(moment)
            child.kill()
            code = _ended(child)
        assert code in (-signal.SIGKILL, 0)
        if code:
            kills += 1
            moments.pop()
        else:  # it came to its end before: the next one begins anew
            _same(killed, straight)
            shutil.rmtree(killed)
            moments[-1] = moment if isinstance(moment, tuple) else 0.8 * moment
    assert kills == 11
    assert _ended(_child(_execute, config, killed)) == 0
    _same(killed, straight)


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """A run that nothing happened to."""
    folder = tmp_path_factory.mktemp("straight")
    assert _run(folder).exit_code == 0
    return folder / "runs/small"


class Cut(BaseException):
    """As if the process had been killed."""


def _cut(folder: Path, config: dict[str, Any], step: int) -> Path:
    """A run that was cut after this step of training."""
    with pytest.MonkeyPatch.context() as patch:
        fine = journey.Steps.add

        def cutting(steps, loss):
            done = fine(steps, loss)
            if done == step and steps.path is not None:
                raise Cut
            return done

        patch.setattr(journey.Steps, "add", cutting)
        with contextlib.suppress(Cut):
            _run(folder, config)
    return folder / "runs/small"


def _truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def _flipped(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1000] ^= 4
    path.write_bytes(data)


def _foreign(path: Path) -> None:
    safetensors.torch.save_file({"weight": torch.ones(2)}, path)


def _of_another_run(path: Path) -> None:
    checkpoint.save(path, {"weight": torch.ones(2)})


WORDS = {
    _truncated: "is not a checkpoint: ",
    _flipped: "is not what was written: its checksum is another",
    _foreign: "is not what was written: its checksum is another",
    _of_another_run: "is not a checkpoint of this run: ",
}


@pytest.mark.parametrize("harm", WORDS, ids=lambda harm: harm.__name__[1:])
def test_a_checkpoint_that_is_broken_is_named_and_the_one_before_it_is_used(harm, tmp_path, straight):
    folder = _cut(tmp_path, CONFIG, 33)
    first, newest = checkpoint.listed(folder / store.CHECKPOINTS)
    assert (first.stem, newest.stem) == ("step-0000000015", "step-0000000030")
    harm(newest)
    result = _run(tmp_path)
    assert result.exit_code == 0 and f"{newest} {WORDS[harm]}" in result.stderr
    assert "; the checkpoint before it is used" in result.stderr
    _same(folder, straight)


def test_a_run_whose_checkpoints_are_all_broken_starts_anew(tmp_path, straight):
    folder = _cut(tmp_path, CONFIG, 33)
    for path in checkpoint.listed(folder / store.CHECKPOINTS):
        path.write_bytes(b"")
    result = _run(tmp_path)
    assert result.exit_code == 0 and result.stderr.count("is not a checkpoint") == 2
    _same(folder, straight)


def test_no_pickle_is_read(tmp_path):
    path = tmp_path / "step-0000000001.safetensors"
    torch.save({"state.weight": torch.ones(2)}, path)
    with pytest.raises(checkpoint.BadInput, match="is not a checkpoint: "):
        checkpoint.load(path, {"weight": torch.ones(2)})


def _limited(limit: int, config: Path, out: Path, said: Path) -> None:
    """A run while files may not grow beyond a limit."""
    _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, most))
    result = fcurr("run", config, "--out", out)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
    said.write_text(f"{result.exit_code} {result.stderr}")


@pytest.mark.parametrize("limit", [300, 20_000])
def test_a_disk_that_is_full_is_a_message_and_the_runs_earlier_state_is_intact(limit, tmp_path, straight):
    """The kernel refuses to let files grow: within the first small files, or within the first checkpoint."""
    folder = _cut(tmp_path, CONFIG, 33)
    before = {path.name: path.read_bytes() for path in checkpoint.listed(folder / store.CHECKPOINTS)}
    said = tmp_path / "said"
    assert _ended(_child(_limited, limit, written(tmp_path), tmp_path / "runs", said)) == 0
    found = said.read_text()
    assert found.startswith("5 ") and "File too large" in found and "Traceback" not in found, found
    assert {path.name: path.read_bytes() for path in checkpoint.listed(folder / store.CHECKPOINTS)} == before
    assert not files.leftovers(folder)
    assert _run(tmp_path).exit_code == 0
    _same(folder, straight)


def test_a_folder_that_cannot_be_written_is_a_message(tmp_path):
    result = fcurr("run", written(tmp_path), "--out", "/proc/fcurr")
    assert result.exit_code == 5 and "Traceback" not in result.stderr
    assert result.stderr.startswith("fcurr: /proc/fcurr")


def test_what_a_killed_writer_left_is_cleared_away(tmp_path, straight):
    folder = _cut(tmp_path, CONFIG, 33)
    left = folder / store.CHECKPOINTS / ".step-0000000045.safetensors.77.tmp"
    left.write_bytes(b"half")
    assert _run(tmp_path).exit_code == 0
    assert not left.exists()
    _same(folder, straight)


def test_what_goes_wrong_in_the_background_is_raised(tmp_path, monkeypatch):
    def full(*arguments, **named):
        raise OSError(28, "No space left on device", "somewhere")

    monkeypatch.setattr(checkpoint, "save", full)
    with pytest.raises(OSError, match="No space left"), checkpoint.shelf(tmp_path / "shelf") as shelf:
        shelf.write({"weight": torch.ones(1)}, 1)
        shelf.settle()


def test_a_state_that_changes_after_it_was_given_to_be_saved_is_saved_as_it_was_given(tmp_path):
    state = {"weight": torch.zeros(5)}
    with checkpoint.shelf(tmp_path / "shelf") as shelf:
        shelf.write(state, 1)
        state = {"weight": state["weight"] + 1}
        shelf.write(state, 2)
    first, second = checkpoint.listed(tmp_path / "shelf")
    assert checkpoint.read(first)["state['weight']"].tolist() == [0.0] * 5
    assert checkpoint.read(second)["state['weight']"].tolist() == [1.0] * 5


def test_the_last_two_checkpoints_that_were_due_are_kept_and_the_one_of_a_stop(tmp_path):
    with checkpoint.shelf(tmp_path / "shelf") as shelf:
        for iteration in (10, 20, 25, 30, 33, 40):
            shelf.write({"weight": torch.ones(1)}, iteration, stopped=iteration in (25, 33))
    assert [path.stem for path in checkpoint.listed(tmp_path / "shelf")] == ["step-0000000030", "step-0000000040"]


def _with_a_bad_sample(tmp_path: Path, **training: Any) -> dict[str, Any]:
    """Numbers to be fitted, one of which is so large that its square is not finite in float32."""
    x = np.random.default_rng(0).normal(size=(60, 3)).astype(np.float32)
    y = x @ np.array([1.0, -1.0, 0.5], dtype=np.float32)
    y[7] = 1e30
    np.savez(tmp_path / "bad.npz", x=x, y=y)
    return {
        "name": "small",
        "data": {"fn": "npz", "path": str(tmp_path / "bad.npz"), "task": "regression"},
        "split": {"fn": "published", "validation": 0.0001, "test_size": 5},
        "model": {"fn": "mlp", "hidden": [4]},
        "optimizer": {"fn": "sgd", "learning_rate": 0.05},
        "training": {"total_iterations": 40, "batch_size": 8, "evaluate_every": 10, "save_every": 10, **training},
        "members": {"seed": [0, 1]},
    }


def _losses(folder: Path) -> list[list[float | None]]:
    return [json.loads(line)["loss"] for line in (folder / store.STEPS).read_text().splitlines()]


@pytest.mark.parametrize("policy", ["skip", "rewind"])
def test_a_run_that_skips_or_rewinds_goes_on_past_a_loss_that_is_not_finite_and_says_so(policy, tmp_path):
    config = _with_a_bad_sample(tmp_path, on_nonfinite=policy)
    config["split"]["validation"] = 0.1
    assert _run(tmp_path, config).exit_code == 0
    folder, losses = tmp_path / "runs/small", _losses(tmp_path / "runs/small")
    bad = [sum(row[member] is None for row in losses) for member in (0, 1)]
    assert min(bad) >= 3 and max(bad) < 20
    rows = store.metrics(folder)
    assert [sum(row["nonfinite"] for row in rows if row["member"] == member) for member in (0, 1)] == bad
    tensors = checkpoint.read(_end(folder))
    assert all(leaf.isfinite().all() for name, leaf in tensors.items() if ".params" in name)
    assert losses[-1] and max(loss for row in losses for loss in row if loss is not None) < 100
    (tmp_path / "again").mkdir()
    cut = _cut(tmp_path / "again", config, 33)
    assert _run(tmp_path / "again", config).exit_code == 0
    _same(cut, folder)


def test_a_run_that_stops_at_a_loss_that_is_not_finite_does_so(tmp_path):
    config = _with_a_bad_sample(tmp_path)
    config["split"]["validation"] = 0.1
    result = _run(tmp_path, config)
    assert result.exit_code == 3 and "the loss became inf at step" in result.stderr


def test_a_step_that_is_skipped_leaves_everything_but_the_clock(tmp_path):
    from functools import partial

    from fcurr import losses, models, optim, training
    from fcurr.types import Batch

    model = models.mlp(features=(3,), classes=1, hidden=(4,))
    method = training.gradient_descent(
        model=model, loss=losses.squared_error, optimizer=optim.sgd(learning_rate=0.1, momentum=0.9)
    )
    step = partial(training.skipping, step=method.step)
    good = Batch(torch.ones(4, 3), torch.ones(4, 1), torch.arange(4))
    bad = good._replace(y=torch.full((4, 1), 1e30))
    state = step(method.init(0), good)
    after = step(state, bad)
    assert after.iteration == 2 and after.loss.isnan()
    assert tree.equal(after._replace(iteration=state.iteration, loss=state.loss), state)
    assert tree.equal(step(state, good), method.step(state, good))


def test_a_run_that_rewinds_all_the_time_gives_up_in_words(tmp_path, monkeypatch):
    monkeypatch.setattr(journey, "TIRED", 5)
    config = _with_a_bad_sample(tmp_path, on_nonfinite="rewind", evaluate_every=40)
    config["split"]["validation"] = 0.1
    config["optimizer"]["learning_rate"] = 1e37
    result = _run(tmp_path, config)
    assert result.exit_code == 3 and "after 5 steps in a row that were rewound" in result.stderr


def test_observers_are_told_what_happens_and_cannot_change_it(tmp_path, straight):
    nets.SEEN.clear()
    folder = tmp_path / "runs/small"
    path = written(tmp_path, {**CONFIG, "observers": ["nets:meddle", "nets:listen", "nets:rates", "last_loss"]})
    assert fcurr("run", path, "--out", tmp_path / "runs", "--plugin", "nets").exit_code == 0
    assert _end(folder).read_bytes() == _end(straight).read_bytes()
    for name in (store.STEPS, store.SCORES):
        assert (folder / name).read_bytes() == (straight / name).read_bytes()
    told, plain = store.metrics(folder), store.metrics(straight)
    assert [{key: row[key] for key in other} for row, other in zip(told, plain, strict=True)] == plain
    assert told[0].keys() - plain[0].keys() == {"rates_mean", "rates_key", "last_loss"}
    events = list(nets.SEEN)
    assert events[0] == ("begin", 0) and events[-1] == ("end", 40)
    assert [iteration for name, iteration in events if name == "step"] == list(range(1, 41))
    assert [iteration for name, iteration in events if name == "evaluate"] == [10, 20, 30, 40]
    assert [iteration for name, iteration in events if name == "save"] == [15, 30, 40]
    assert {name for name, _ in events} == {"begin", "step", "pass", "evaluate", "save", "end"}
    assert sys.modules["nets"] is nets


def test_a_member_stops_when_its_metric_has_not_become_better_for_so_many_evaluations(tmp_path):
    config = _short(training={"patience": 2, "evaluate_every": 5}, members={"optimizer.learning_rate": [0.0, 0.1]})
    config["arms"] = {"one": {"curriculum": PLAIN}}
    del config["score"]
    assert _run(tmp_path, config).exit_code == 0
    rows = store.metrics(tmp_path / "runs/small")
    found = store.read_json(tmp_path / "runs/small" / store.RESULTS)["members"]
    assert [row["iteration"] for row in rows if row["member"] == 0] == [5, 10, 15] and found[0]["iterations"] == 15
    assert [row["iteration"] for row in rows if row["member"] == 1] == list(range(5, found[1]["iterations"] + 1, 5))
    assert found[1]["iterations"] > 15 and found[0]["best_iteration"] == 5
    cut = _cut(tmp_path / "again", config, 33) if not (tmp_path / "again").mkdir() else None
    assert cut and _run(tmp_path / "again", config).exit_code == 0
    _same(cut, tmp_path / "runs/small")


def test_a_finished_run_goes_on_when_more_iterations_are_asked_for(tmp_path):
    """Where nothing depends on how many there are, it is the longer run, bit for bit."""
    config = _short(arms={"one": {"curriculum": PLAIN}}, training={"evaluate_every": 10})
    del config["score"]
    longer = copy.deepcopy(config)
    longer["training"]["total_iterations"] = 90
    assert _run(tmp_path, config).exit_code == 0
    first = store.read_json(tmp_path / "runs/small" / store.RESULTS)["iteration"]
    on = _run(tmp_path, longer)
    assert on.exit_code == 0 and "90/90 steps" in on.stderr and first == 60
    (tmp_path / "other").mkdir()
    assert _run(tmp_path / "other", longer).exit_code == 0
    _same(tmp_path / "runs/small", tmp_path / "other/runs/small")
    shorter = _run(tmp_path, config)
    assert shorter.exit_code == 2 and "holds a run with training.total_iterations = 90, not 60" in shorter.stderr


def test_resume_goes_on_with_a_run_by_its_folder_alone(tmp_path, straight):
    folder = _cut(tmp_path, CONFIG, 33)
    (tmp_path / "small.toml").unlink()
    result = fcurr("resume", folder)
    assert result.exit_code == 0, result.stderr
    _same(folder, straight)
    more = fcurr("resume", folder, "training.total_iterations=50")
    assert more.exit_code == 0 and "50/50 steps" in more.stderr
    nowhere = fcurr("resume", tmp_path)
    assert (
        nowhere.exit_code == 2
        and nowhere.stderr == f"fcurr: {tmp_path} is not the folder of a run: it has no identity.json\n"
    )


def test_the_lines_of_steps_are_the_losses_that_the_metrics_are_the_means_of(straight):
    losses, rows = _losses(straight), store.metrics(straight)
    assert len(losses) == 40
    for row in rows:
        own = [line[row["member"]] for line in losses[row["iteration"] - 10 : row["iteration"]]]
        assert row["loss"] == pytest.approx(sum(own) / 10, rel=1e-12)


def test_nothing_is_left_of_a_run_that_is_thrown_away(tmp_path):
    assert _run(tmp_path).exit_code == 0
    store.clear(tmp_path / "runs/small")
    assert {name for name in contents(tmp_path / "runs/small") if not name.startswith(".")} == set()
    shutil.rmtree(tmp_path / "runs")


def test_a_logger_of_ones_own_is_told_the_lines_and_one_that_fails_is_named(tmp_path, straight):
    (tmp_path / "mine.py").write_text(
        "from fcurr.io.loggers import Logger\nTOLD = []\n"
        "def log() -> Logger:\n    return Logger(TOLD.extend, lambda: None, lambda rows: TOLD.extend(rows))\n"
        "def broken() -> Logger:\n    return Logger(lambda rows: 1 / 0, lambda: None)\n"
        "def odd():\n    return 3\n"
    )
    sys.modules.pop("mine", None)
    good = fcurr(
        "run", written(tmp_path, {**CONFIG, "loggers": ["mine:log"]}), "--out", tmp_path / "a", "--plugin", "mine"
    )
    assert good.exit_code == 0, good.stderr
    assert store.metrics(tmp_path / "a/small") == sys.modules["mine"].TOLD
    for name, words in (
        ("broken", "mine:broken fails in line 6 of mine: ZeroDivisionError"),
        ("odd", "gives a int, not a Logger"),
    ):
        path = written(tmp_path, {**CONFIG, "loggers": [f"mine:{name}"]})
        result = fcurr("run", path, "--out", tmp_path / name, "--plugin", "mine")
        assert result.exit_code == 2 and words in result.stderr, result.stderr
    sys.modules.pop("mine", None)


def test_the_end_of_a_run_that_stops_early_is_saved_whenever_checkpoints_are_due(tmp_path):
    config = _short(
        training={"patience": 1, "evaluate_every": 5, "save_every": 500, "total_iterations": 500},
        optimizer={"fn": "sgd", "learning_rate": 0.0},
        arms={"one": {"curriculum": PLAIN}},
    )
    del config["score"]
    assert _run(tmp_path, config).exit_code == 0
    folder = tmp_path / "runs/small"
    assert _end(folder).stem == "step-0000000010" and len(_losses(folder)) == 10
    assert "at most 500 steps each" in store.read_json(folder / store.RESULTS)["facts"]["members"]


def test_members_of_different_length_all_go_on_when_more_passes_are_asked_for(tmp_path):
    config = _short(
        training={"clock": "epoch", "total_iterations": 3, "batch_size": 64, "evaluate_every": 1, "save_every": 1}
    )
    config["curriculum"]["pace"] = {"fn": "mine:stay"}
    (tmp_path / "mine.py").write_text(
        "import torch\ndef stay(state, iteration, *, dataset_size: int, seed: int):\n"
        "    return torch.as_tensor(iteration) * 0 + 200 + 300 * seed\n"
    )
    config["arms"] = {"one": {"curriculum": {"order": "random"}}}
    del config["score"]
    longer = copy.deepcopy(config)
    longer["training"]["total_iterations"] = 5
    for name, steps in (("a", [config, longer]), ("b", [longer])):
        for one in steps:
            result = fcurr("run", written(tmp_path, one), "--out", tmp_path / name, "--plugin", "mine")
            assert result.exit_code == 0, result.stderr
    sys.modules.pop("mine", None)
    on, straight = (checkpoint.read(_end(tmp_path / name / "small")) for name in ("a", "b"))
    assert straight["state.run.train.iteration"].tolist() == [-(-5 * 200 // 64), -(-5 * 500 // 64)]
    for name in straight:
        if ".run.train." in name or ".cursor." in name or ".best[" in name:
            assert torch.equal(on[name], straight[name]), name


def test_a_score_may_train_models_as_often_as_it_likes(tmp_path):
    (tmp_path / "mine.py").write_text(
        "import torch\nfrom fcurr.types import Harder\n"
        "def twice(data, *, fit) -> Harder:\n"
        "    half = (torch.arange(len(data.y)) % 2 == 0)[None]\n"
        "    one, other = fit(data, half), fit(data, ~half)\n"
        "    assert not torch.equal(one['0.weight'], other['0.weight'])\n"
        "    return torch.arange(len(data.y)).double()\n"
    )
    path = written(tmp_path, {**CONFIG, "score": {"fn": "mine:twice"}})
    result = fcurr("run", path, "--out", tmp_path / "runs", "--plugin", "mine")
    sys.modules.pop("mine", None)
    assert result.exit_code == 0, result.stderr
    assert not (tmp_path / "runs/small" / store.SCORING).exists()


def test_a_run_that_rewinds_and_is_stopped_where_a_checkpoint_was_due_goes_back_to_that_one(tmp_path):
    config = _with_a_bad_sample(tmp_path, on_nonfinite="rewind", save_every=5)
    config["split"]["validation"] = 0.1
    assert _run(tmp_path, config).exit_code == 0
    (tmp_path / "again").mkdir()
    for at in (5, 10, 15, 20, 30):
        with pytest.MonkeyPatch.context() as patch:
            real = journey.Steps.add
            came = [0]

            def add(steps, loss, real=real, came=came):
                came[0] = real(steps, loss)
                return came[0]

            asked = runner.signals.asked_to_stop

            @contextlib.contextmanager
            def asking(came=came, at=at, asked=asked):
                with asked():
                    yield lambda: 15 if came[0] == at else 0

            patch.setattr(journey.Steps, "add", add)
            patch.setattr(runner.signals, "asked_to_stop", asking)
            assert _run(tmp_path / "again", config).exit_code == 143
    assert _run(tmp_path / "again", config).exit_code == 0
    _same(tmp_path / "again/runs/small", tmp_path / "runs/small")


def test_memory_of_an_optimizer_that_is_not_finite_stops_a_run_and_is_skipped_in_another(tmp_path):
    """A gradient of 1e25 is finite, its square is not."""
    x = np.random.default_rng(0).normal(size=(60, 3)).astype(np.float32)
    x[[3, 5, 9, 14, 20]] = 1e25
    np.savez(tmp_path / "large.npz", x=x, y=np.arange(60) % 2)
    config = _short(
        data={"fn": "npz", "path": str(tmp_path / "large.npz")},
        split={"fn": "published", "validation": 0.2, "test_size": 10},
        optimizer={"fn": "adam", "learning_rate": 0.01},
        arms={"one": {"curriculum": PLAIN}},
    )
    del config["score"]
    stopped = _run(tmp_path, config)
    assert stopped.exit_code == 3 and "the optimizer's second " in stopped.stderr
    config["training"]["on_nonfinite"] = "skip"
    assert _run(tmp_path, config, "--fresh").exit_code == 0
    tensors = checkpoint.read(_end(tmp_path / "runs/small"))
    assert all(leaf.isfinite().all() for name, leaf in tensors.items() if ".optimizer" in name)
    assert sum(row["nonfinite"] for row in store.metrics(tmp_path / "runs/small")) > 0


TASKS = {
    "regression loss=cross_entropy": "cross_entropy is for labels that are a class each, and these are numbers",
    "regression loss=balanced_cross_entropy": "balanced_cross_entropy is for labels that are a class each, "
    "and these are numbers",
    "regression metrics=f1": "f1 is for labels that are a class each, and these are numbers",
    "regression score=entropy": "entropy is for labels that are a class each, and these are numbers",
    "multi-label metrics=f1": "f1 is for labels that are a class each, and these are sets of classes",
    "multi-label loss=squared_error": "squared_error is for labels that are numbers, and these are sets of classes",
    "classification metrics=r2": "r2 is for labels that are numbers, and these are a class each",
}


@pytest.mark.parametrize("case", TASKS)
def test_components_for_labels_of_another_kind_are_refused_at_the_door(case, tmp_path):
    task, change = case.split(" ")
    y = {
        "regression": np.random.rand(40),
        "multi-label": np.random.rand(40, 2) > 0.5,
        "classification": np.arange(40) % 2,
    }
    np.savez(tmp_path / "d.npz", x=np.random.rand(40, 3), y=y[task])
    config = {
        "data": {"fn": "npz", "path": str(tmp_path / "d.npz"), "task": task},
        "split": {"fn": "shuffled", "validation": 0.2, "test": 0.2},
        "model": {"fn": "mlp"},
        "optimizer": {"fn": "sgd", "learning_rate": 0.1},
        "training": {"total_iterations": 4},
    }
    result = fcurr("check", written(tmp_path, config), change)
    assert result.exit_code == 2 and result.stderr.strip().endswith(TASKS[case]), result.stderr


def test_a_folder_from_which_a_run_was_being_thrown_away_is_used_again(tmp_path, straight, monkeypatch):
    """--fresh is killed while the checkpoints go."""
    assert _run(tmp_path).exit_code == 0
    folder, remove = tmp_path / "runs/small", shutil.rmtree

    def half(path, **named):
        (folder / store.CHECKPOINTS / "left").write_text("half")
        raise Cut

    monkeypatch.setattr(store.shutil, "rmtree", half)
    with pytest.raises(Cut):
        _run(tmp_path, CONFIG, "--fresh")
    monkeypatch.setattr(store.shutil, "rmtree", remove)
    result = _run(tmp_path)
    assert result.exit_code == 0, result.stderr
    _same(folder, straight)


def test_a_finished_run_is_not_thrown_away_for_a_config_that_cannot_run(tmp_path):
    assert _run(tmp_path).exit_code == 0
    before = contents(tmp_path / "runs/small")
    config = copy.deepcopy(CONFIG)
    config["training"]["device"] = "nowhere"
    result = _run(tmp_path, config, "--fresh")
    assert result.exit_code == 2 and "training.device: there is no device nowhere here" in result.stderr
    assert contents(tmp_path / "runs/small") == before


ODD = {
    "metric": ("metrics", "a tensor without axes"),
    "late": ("metrics", "mine:late fails in line"),
    "vector": ("observers", "mine:vector fails"),
    "some": ("observers", "mine:some gives other names to other members"),
}


@pytest.mark.parametrize("name", ODD)
def test_what_a_strangers_metric_or_view_does_in_the_middle_of_a_run_is_a_message(name, tmp_path):
    (tmp_path / "mine.py").write_text(
        "import torch\nfrom fcurr.types import Higher\n"
        "def metric(outputs, y) -> Higher:\n    return outputs.mean() if len(y) < 9 else outputs.mean(0)\n"
        "def late(outputs, y) -> Higher:\n    return outputs.mean() if len(y) < 9 else outputs.nothing\n"
        "def vector(state):\n    return torch.ones(3)\n"
        "TURN = iter('abcdefgh')\ndef some(state):\n    return {next(TURN): 1.0}\n"
    )
    key, words = ODD[name]
    path = written(tmp_path, {**CONFIG, key: [f"mine:{name}"]})
    result = fcurr("run", path, "--out", tmp_path / "runs", "--plugin", "mine")
    sys.modules.pop("mine", None)
    assert result.exit_code == 2 and words in result.stderr.splitlines()[-1], result.stderr
    assert json.loads((tmp_path / "runs/small" / store.STATUS).read_text())["status"] == "failed"


def test_a_run_that_was_moved_goes_on(tmp_path):
    folder = _cut(tmp_path, CONFIG, 33)
    folder.rename(tmp_path / "moved")
    result = fcurr("resume", tmp_path / "moved")
    assert result.exit_code == 0 and "40/40 steps" in result.stderr, result.stderr


def test_a_checkpoint_is_written_after_half_an_hour_whatever_the_config_says(straight, tmp_path, monkeypatch):
    """By a clock on which every step takes ten minutes: three steps are half an hour."""
    now = iter(range(0, 10**9, 600))
    monkeypatch.setattr(journey.Watch, "clock", property(lambda watch: lambda: float(next(now))))
    folder = _cut(tmp_path, CONFIG, 14)  # the first that is due is written after step 15
    (newest,) = checkpoint.listed(folder / store.CHECKPOINTS)
    assert newest.name.startswith("stopped") and 9 <= int(newest.stem.partition("-")[2]) <= 13
    assert _run(tmp_path).exit_code == 0
    _same(folder, straight)
