"""A run and its folder: what it leaves, and that nothing that happens to it changes what it would have been."""

import contextlib
import copy
import json
import shutil
import signal
import tomllib
from pathlib import Path

import pyarrow.parquet
import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small import CONFIG, contents, fcurr, process, written

from fcurr import tree
from fcurr.errors import Halt
from fcurr.io import checkpoint, configs, runner, store

SAME = (
    store.METRICS,
    store.STEPS,
    store.TABLE,
    store.SCORES,
    store.RESULTS,
    store.CONFIG,
    *(f"{store.PREDICTIONS}/{part}.parquet" for part in ("train", "validation", "test")),
)  # no clock in them


def _run(folder: Path, config=CONFIG, *more: str):
    return fcurr("run", written(folder, config), "--out", folder / "runs", *more)


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """A run that nothing happened to."""
    folder = tmp_path_factory.mktemp("straight")
    result = _run(folder)
    assert result.exit_code == 0, result.stderr
    return folder / "runs/small", result


def _same(folder: Path, straight: Path) -> None:
    for name in SAME:
        assert (folder / name).exists() == (straight / name).exists()
        if not (straight / name).exists():
            continue  # a run without scores
        assert (folder / name).read_bytes() == (straight / name).read_bytes(), name
    assert _end(folder).name == _end(straight).name
    assert _end(folder).read_bytes() == _end(straight).read_bytes()


def _end(folder: Path) -> Path:
    """The last checkpoint of a run."""
    return checkpoint.listed(folder / store.CHECKPOINTS)[-1]


def test_a_run_leaves_its_config_environment_scores_metrics_checkpoint_results_and_report(straight):
    folder, result = straight
    weighted = {store.WEIGHTS, store.IRREDUCIBLE}  # of runs whose samples are weighted
    assert {entry.name for entry in folder.iterdir() if entry.name[0] != "."} == {
        *(set(store.WRITTEN) - weighted),
        store.CHECKPOINTS,
        store.PREDICTIONS,
    }
    assert tomllib.loads((folder / store.CONFIG).read_text()) == CONFIG
    assert json.loads((folder / store.ENVIRONMENT).read_text())["torch"] == torch.__version__
    assert json.loads((folder / store.STATUS).read_text()) == {"status": "finished"}
    assert str(folder / store.REPORT) in result.stdout and "± " in result.stdout
    rows = store.metrics(folder)
    assert [row["iteration"] for row in rows] == [i for i in (10, 20, 30, 40) for _ in range(4)]
    assert {row["arm"] for row in rows} == {"plain", "easy_first"}


def test_results_go_to_stdout_and_progress_to_stderr_in_plain_lines(straight):
    _, result = straight
    assert "steps/s" in result.stderr and "steps/s" not in result.stdout
    assert "\x1b" not in result.stderr + result.stdout and "\r" not in result.stderr
    assert "best on validation" in result.stdout and "best on validation" not in result.stderr


def test_the_sizes_that_are_logged_follow_the_pace(straight):
    rows = store.metrics(straight[0])
    sizes = {(row["arm"], row["iteration"]): row["size"] for row in rows}
    assert [sizes["plain", i] for i in (10, 20, 30, 40)] == [1437] * 4
    assert sizes["easy_first", 10] == 287  # floor(0.2 * 1437), exhausted in batch 17 of 16 samples, when the pace says
    assert sizes["easy_first", 40] == int((0.2 + 0.8 * 17 / 20) * 1437)  # 1264, which 23 more batches do not exhaust


def test_scores_are_a_table_with_both_labels_and_ranks(straight):
    table = pyarrow.parquet.read_table(straight[0] / store.SCORES).to_pydict()
    assert list(table) == ["id", "label", "true_label", "score", "rank"]
    assert len(set(table["id"])) == 1437
    wrong = sum(a != b for a, b in zip(table["label"], table["true_label"], strict=True))
    assert wrong == round(0.4 * 1437)
    by_rank = sorted(range(1437), key=lambda i: table["rank"][i])
    assert [table["score"][i] for i in by_rank] == sorted(table["score"])
    assert table["rank"][by_rank[0]] == 0 and table["rank"][by_rank[-1]] == 1


def test_a_checkpoint_is_named_tensors_that_anything_can_read(straight):
    tensors = safetensors.torch.load_file(_end(straight[0]))
    assert tensors["state.run.train.params['0.weight']"].shape == (4, 8, 64)
    assert int(tensors["state.run.iteration"]) == 40


class Killed(Halt):
    """As if the process had been killed: nobody catches it."""


@settings(max_examples=8)
@given(step=st.integers(1, 59), when=st.sampled_from(["before saving", "while saving", "after the step"]))
def test_a_run_cut_anywhere_and_started_again_is_bit_for_bit_the_run_that_was_not(
    step, when, straight, tmp_path_factory
):
    """20 steps of scoring, then 40 of training; a fault comes at one of them, then the same command is given again."""
    folder = tmp_path_factory.mktemp("cut")
    with pytest.MonkeyPatch.context() as patch:
        taken = 0
        travel, shelve = runner.fold.steps, checkpoint.shelf

        def steps(program, here, fetch):
            nonlocal taken
            for done in travel(program, here, fetch):
                taken += 1
                if taken == step and when == "after the step":
                    raise Killed
                yield done

        @contextlib.contextmanager
        def shelf(folder):
            with shelve(folder) as plain:

                def write(state, iteration, **facts):
                    if taken >= step and when == "before saving":
                        raise Killed
                    plain.write(state, iteration, **facts)
                    if taken >= step and when == "while saving":
                        plain.settle()
                        (folder / ".step.safetensors.1.tmp").write_bytes(b"half")
                        raise Killed

                yield plain._replace(write=write)

        patch.setattr(runner.fold, "steps", steps)
        patch.setattr(checkpoint, "shelf", shelf)
        assert isinstance(_run(folder).exception, Killed)
    assert _run(folder).exit_code == 0
    _same(folder / "runs/small", straight[0])


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_stops_after_the_step_saves_says_how_to_go_on_and_nothing_is_lost(number, code, tmp_path):
    config = copy.deepcopy(CONFIG)
    config["training"] |= {"total_iterations": 3000, "save_every": 100000, "evaluate_every": 100}
    path = written(tmp_path, config)
    stopped = process("run", path, "--out", tmp_path / "runs")
    metrics = tmp_path / "runs/small" / store.METRICS
    while not metrics.exists() or not metrics.read_text():
        assert stopped.poll() is None, stopped.communicate()
    stopped.send_signal(number)
    _, said = stopped.communicate(timeout=60)
    assert stopped.returncode == code, said
    last = said.splitlines()[-1]
    assert "stopped after step" in last and "nothing is lost; to go on: fcurr run" in last and "Traceback" not in said
    done = int(last.split("after step ")[1].split()[0])
    assert 0 < done < 3000
    again = fcurr("run", path, "--out", tmp_path / "runs")
    assert again.exit_code == 0
    assert "training (4 members): 3000/3000" in again.stderr
    (tmp_path / "other").mkdir()
    assert fcurr("run", path, "--out", tmp_path / "other").exit_code == 0
    _same(tmp_path / "runs/small", tmp_path / "other/small")


def test_a_finished_run_is_shown_again_and_left_alone(straight):
    folder, first = straight
    before = contents(folder)
    again = fcurr("run", written(folder.parent.parent), "--out", folder.parent)
    assert (again.exit_code, again.stdout) == (0, first.stdout)
    assert "finished already" in again.stderr and contents(folder) == before


def test_a_fresh_run_is_the_same_run(straight, tmp_path):
    assert _run(tmp_path).exit_code == 0
    assert _run(tmp_path, CONFIG, "--fresh").exit_code == 0
    _same(tmp_path / "runs/small", straight[0])


def test_check_says_what_would_run_and_touches_nothing(tmp_path):
    path = written(tmp_path)
    before = contents(tmp_path)
    result = fcurr("check", path, "--out", tmp_path / "runs")
    assert result.stdout.splitlines() == [
        f"{path} is right. It would",
        "  score 1,437 samples by cross_validated_loss, models trained for 20 steps",
        "  train 4 members as one program of 40 steps, batches of 16",
        "  compare plain, easy_first",
        f"  write {tmp_path}/runs/small",
    ]
    assert contents(tmp_path) == before and not (tmp_path / "runs").exists()


def test_a_change_on_the_command_line_is_in_the_config_as_run(tmp_path):
    assert _run(tmp_path, CONFIG, "training.total_iterations=10", "curriculum.pace=none", "name=other").exit_code == 0
    there = tomllib.loads((tmp_path / "runs/other" / store.CONFIG).read_text())
    assert there["training"]["total_iterations"] == 10 and there["curriculum"]["pace"] == "none"


def _states(folder: Path, config) -> runner.fold.Run:
    """The last state of a config's members, by the library."""
    table, _ = configs.load(written(folder, config), [], [])
    experiment = configs.read(table)
    prepared = runner.load(experiment)
    scores = torch.rand(len(prepared.train.y), generator=torch.Generator().manual_seed(0))
    program, run = runner.train_program(experiment, prepared, scores)
    return runner.fold.finish(program, run)


AXES = {
    "seed": [0, 3],
    "optimizer.learning_rate": [0.1, 0.02],
    "curriculum.order": ["easy_first", "hard_first", "random"],
    "curriculum.pace.initial_size": [0.1, 0.5],
    "curriculum.pace.fn": ["linear", "root", "exponential"],
    "curriculum.sampling": ["balanced", "original"],
}


@pytest.mark.parametrize("axis", AXES)
def test_a_members_numbers_are_those_of_the_same_run_alone(axis, tmp_path):
    """Equal to rounding: at most a few units in the last place of float32 after 40 steps."""
    config = copy.deepcopy(CONFIG) | {"arms": {"one": {}}, "members": {axis: AXES[axis]}}
    together = _states(tmp_path, config)
    for place, value in enumerate(AXES[axis]):
        alone = _states(tmp_path, config | {"members": {axis: [value]}})
        assert tree.equal(tree.member(together.cursor, place), tree.member(alone.cursor, 0))
        for name, leaf in tree.member(together.train.params, place).items():
            torch.testing.assert_close(leaf, alone.train.params[name][0], rtol=2e-4, atol=2e-5)


def test_members_that_count_epochs_end_after_as_many_passes(tmp_path):
    config = copy.deepcopy(CONFIG)
    config["training"] |= {"clock": "epoch", "total_iterations": 2, "batch_size": 64, "evaluate_every": 5}
    run = _states(tmp_path, config)
    plain, easy = run.train.iteration.tolist()[::2]
    assert plain == -(-2 * 1437 // 64) and easy == -(-(287 + 1437) // 64)


@pytest.mark.long
def test_a_compiled_run_finds_what_the_traced_one_does(tmp_path):
    config = copy.deepcopy(CONFIG)
    traced = _states(tmp_path, config)
    config["training"]["compile"] = True
    compiled = _states(tmp_path, config)
    assert tree.equal(traced.cursor, compiled.cursor)
    for name, leaf in traced.train.params.items():
        torch.testing.assert_close(leaf, compiled.train.params[name], rtol=2e-4, atol=2e-5)


VARIED = {
    "momentum that begins with none": ({"fn": "sgd", "learning_rate": 0.1}, {"optimizer.momentum": [0.0, 0.9]}),
    "weight decay in one arm only": (
        {"fn": "sgd", "learning_rate": 0.1},
        {"optimizer.weight_decay": [0.0, 0.1]},
    ),
    "a number of a schedule": (
        {"fn": "adam", "learning_rate": {"fn": "cosine", "learning_rate": 0.01}},
        {"optimizer.learning_rate.learning_rate": [0.01, 0.003]},
    ),
    "a number of an optimizer inside": (
        {"fn": "clipped", "max_norm": 1.0, "optimizer": {"fn": "adamw", "learning_rate": 0.01}},
        {"optimizer.optimizer.weight_decay": [0.1, 0.0]},
    ),
    "a number of the loss": ({"fn": "sgd", "learning_rate": 0.1}, {"loss.smoothing": [0.0, 0.2]}),
}


@pytest.mark.parametrize("case", VARIED)
def test_a_number_in_which_members_differ_has_its_effect_in_whatever_order_they_stand(case, tmp_path):
    optimizer, axis = VARIED[case]
    (key, values), *_ = axis.items()
    config = copy.deepcopy(CONFIG) | {"arms": {"one": {}}, "optimizer": optimizer, "loss": "cross_entropy"}
    for order in (values, values[::-1]):
        together = _states(tmp_path, config | {"members": {key: order}})
        for place, value in enumerate(order):
            alone = _states(tmp_path, config | {"members": {key: [value]}})
            for name, leaf in tree.member(together.train.params, place).items():
                torch.testing.assert_close(leaf, alone.train.params[name][0], rtol=2e-4, atol=2e-5)


def test_a_schedule_of_a_run_that_counts_epochs_ends_with_the_run(tmp_path):
    config = copy.deepcopy(CONFIG) | {"arms": {"one": {"curriculum": {"order": "random", "pace": "none"}}}}
    config["optimizer"] = {"fn": "sgd", "learning_rate": {"fn": "cosine", "learning_rate": 0.1}}
    config["members"] = {"seed": [0]}
    config["training"] |= {"clock": "epoch", "total_iterations": 2, "batch_size": 64}
    epochs = _states(tmp_path, config)
    config["training"] |= {"clock": "step", "total_iterations": -(-2 * 1437 // 64)}
    assert tree.equal(epochs.train, _states(tmp_path, config).train)


def test_a_pace_that_asks_for_the_seed_is_given_its_members(tmp_path):
    (tmp_path / "seeded.py").write_text(
        "import torch\ndef pace(state, iteration, *, seed: int, dataset_size: int):\n"
        "    return torch.as_tensor(iteration) * 0 + 100 + 10 * seed\n"
    )
    config = copy.deepcopy(CONFIG) | {"members": {"seed": [0, 1, 2]}, "arms": {"one": {}}}
    config["curriculum"] = {"order": "fcurr.curriculum:random", "pace": {"fn": "seeded:pace"}}
    del config["score"]
    done = process("run", written(tmp_path, config), "--plugin", "seeded", "--out", tmp_path / "runs")
    assert done.communicate() and done.returncode == 0
    assert [row["size"] for row in store.metrics(tmp_path / "runs/small", until=10)] == [100, 110, 120]


def _stopped(folder: Path, config, *more: str) -> Path:
    """A run that was cut after step 25 of training."""
    with pytest.MonkeyPatch.context() as patch:
        travel = runner.fold.steps

        def steps(program, here, fetch):
            for done in travel(program, here, fetch):
                if program.total_iterations == 40 and done == 26:
                    raise Killed
                yield done

        patch.setattr(runner.fold, "steps", steps)
        assert isinstance(_run(folder, config, *more).exception, Killed)
    return folder / "runs/small"


def test_a_run_is_not_continued_with_its_arms_in_another_order(tmp_path):
    folder = _stopped(tmp_path, CONFIG)
    before = contents(folder)
    result = _run(tmp_path, CONFIG | {"arms": dict(reversed(CONFIG["arms"].items()))})
    assert result.exit_code == 2 and "holds a run with its arms or members in another order" in result.stderr
    assert contents(folder) == before


def test_a_run_is_not_continued_on_other_data(tmp_path):
    rows = [f"{i % 7},{i % 5},{i % 2}" for i in range(60)]
    path = tmp_path / "data.csv"
    path.write_text("\n".join(["a,b,label", *rows]))
    config = copy.deepcopy(CONFIG) | {"data": {"fn": "csv", "path": str(path)}}
    folder = _stopped(tmp_path, config)
    before = contents(folder)
    path.write_text("\n".join(["a,b,label", *rows[:-1], "9,9,1"]))
    result = _run(tmp_path, config)
    assert result.exit_code == 2 and "holds a run on other samples or labels" in result.stderr
    assert contents(folder) == before


def test_what_is_left_of_a_run_that_was_being_thrown_away_is_not_taken_for_another(straight, tmp_path):
    """--fresh was killed when all but the scores, the checkpoint and the identity were gone."""
    folder = tmp_path / "runs/small"
    folder.mkdir(parents=True)
    for name in (store.SCORES, store.IDENTITY):
        (folder / name).write_bytes((straight[0] / name).read_bytes())
    shutil.copytree(straight[0] / store.CHECKPOINTS, folder / store.CHECKPOINTS)
    config = copy.deepcopy(CONFIG) | {"optimizer": {"fn": "sgd", "learning_rate": 0.001}}
    assert _run(tmp_path, config).exit_code == 0
    (tmp_path / "other").mkdir()
    assert _run(tmp_path / "other", config).exit_code == 0
    _same(folder, tmp_path / "other/runs/small")


def test_check_says_of_a_folder_with_another_run_that_the_config_is_right_and_would_not_begin(straight):
    folder = straight[0]
    result = fcurr("check", written(folder.parent.parent), "seed=5", "--out", folder.parent)
    lines = result.stdout.splitlines()
    assert result.exit_code == 0 and lines[0].endswith(" is right. It would")
    assert lines[-1].startswith(f"  not begin: {folder} holds a run with seed = 0, not 5; ")


def test_a_member_that_has_finished_is_not_evaluated_any_more(tmp_path):
    config = copy.deepcopy(CONFIG)
    config["training"] |= {"clock": "epoch", "total_iterations": 2, "batch_size": 64, "evaluate_every": 1}
    assert _run(tmp_path, config).exit_code == 0
    alone = config | {"arms": {"easy_first": {}}}
    (tmp_path / "alone").mkdir()
    assert _run(tmp_path / "alone", alone).exit_code == 0
    both, one = store.metrics(tmp_path / "runs/small"), store.metrics(tmp_path / "alone/runs/small")
    easy, own = ([row for row in rows if (row["arm"], row["seed"]) == ("easy_first", 0)] for rows in (both, one))
    assert [row["iteration"] for row in easy] == [5, 27] == [row["iteration"] for row in own]  # 287 samples, then all
    assert [row["iteration"] for row in both if (row["arm"], row["seed"]) == ("plain", 0)] == [23, 45]
    assert [row["loss"] for row in easy] == pytest.approx([row["loss"] for row in own], rel=1e-4)
