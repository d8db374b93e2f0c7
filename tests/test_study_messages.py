"""What bad input to a study gets: a clear line, exit 2 (5 for the disk), and nothing lost."""

import copy
import errno
import json
import os
import re
import resource
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from small import CONFIG, contents, fcurr, process, written
from test_reliability import _child, _ended
from test_studies import BRIEF, FINE, IRIS, STUDY, _lines, _plugin, _run, _started, _states

from fcurr.io import artefacts, journal, store

TEXT = """\
data = "iris"
[split]
fn = "stratified"
validation = 0.2
test = 0.2
[model]
fn = "mlp"
hidden = [4]
[optimizer]
fn = "sgd"
learning_rate = 0.1
[training]
total_iterations = 20
"""

# what is written below the text above -> the message, after the file's name
FAULTS = {
    "a sweep key that does not exist": (
        '[sweep]\n"optimizer.learning_rat" = [0.1]\n',
        ":15:28: sweep.optimizer.learning_rat: sgd takes no `learning_rat` (did you mean `learning_rate`?); "
        "it takes learning_rate, momentum, nesterov, weight_decay",
    ),
    "a sweep over a section that does not exist": (
        "[sweep.optimiser]\nlearning_rate = [0.1]\n",
        ": there is no section `optimiser` (did you mean `optimizer`?)",
    ),
    "a swept value out of bounds": (
        '[sweep]\n"optimizer.learning_rate" = [0.1, -1.0]\n',
        ":15:29: sweep.optimizer.learning_rate: -1.0 is not a learning rate: a number, at least 0",
    ),
    "a wrong section": (
        "[swep]\nseed = [0, 1]\n",
        ":14:1: swep: there is no section `swep` (did you mean `sweep`?)",
    ),
    "a wrong key of [study]": (
        "[study]\nwidht = 4\n",
        ":15:9: study.widht: [study] takes no `widht` (did you mean `width`?); it takes routines, width, leakage",
    ),
    "a routine that does not exist": (
        '[study]\nroutines = ["trian"]\n',
        ':15:12: study.routines: ["trian"] is not a list, each one of "prepare", "score", "train", ',
    ),
    "a wrong key of [cross_validation]": (
        "[cross_validation]\nfold = 4\n",
        ":15:8: cross_validation.fold: [cross_validation] takes no `fold` (did you mean `folds`?)",
    ),
    "no folds": (
        "[cross_validation]\ninner_folds = 4\n",
        ":14:1: cross_validation: [cross_validation] needs `folds`, ",
    ),
    "inner folds without a sweep": (
        "[cross_validation]\nfolds = 3\ninner_folds = 2\n",
        ":16:15: cross_validation.inner_folds: inner folds choose among the points of a sweep: add a section [sweep]",
    ),
    "folds of a split that has none": (
        "[cross_validation]\nfolds = 3\n",
        ": stratified takes no `folds`",
    ),
    "a wrong key of a command": (
        '[commands.mine]\nfunktion = "steps:numbers"\n',
        ":14:1: commands.mine: a command takes no `funktion` (did you mean `function`?); "
        "it takes function, inputs, parameters, uses",
    ),
    "a command without a function": (
        '[commands.mine]\ninputs = "train/*"\n',
        ':14:1: commands.mine: a command needs function = "module:function"',
    ),
    "a function that does not exist": (
        '[commands.mine]\nfunction = "steps:number"\n',
        ":15:12: commands.mine.function: steps has no function `number` (did you mean `numbers`?)",
    ),
    "a command that reads what there is not": (
        '[commands.mine]\nfunction = "steps:total"\ninputs = "trian/*"\n',
        ":16:10: commands.mine.inputs: no command is called trian/*; there are prepare/iris, train/random, ",
    ),
    "a cycle between commands": (
        '[commands.a]\nfunction = "steps:total"\ninputs = "b"\n[commands.b]\nfunction = "steps:total"\ninputs = "a"\n',
        ": commands wait for one another: ",
    ),
    "a command that reads itself": (
        '[commands.a]\nfunction = "steps:total"\ninputs = "a"\n',
        ":16:10: commands.a.inputs: commands wait for one another: a reads a",
    ),
    "a use that there is not": (
        '[commands.a]\nfunction = "steps:total"\nuses = { fit = "trian" }\n',
        ':16:8: commands.a.uses: {"fit": "trian"} is not one of fit, select, calibrate, evaluate, and a part of the '
        "samples: train, validation, test, clean",
    ),
    "hooks of a routine that does not exist": (
        '[hooks.trian]\nbefore = "steps:doubled"\n',
        ":14:1: hooks.trian: there is no routine `trian` (did you mean `train`?); there are prepare, score, train, ",
    ),
    "a hook at another moment": (
        '[hooks.train]\nduring = "steps:doubled"\n',
        ":15:10: hooks.train.during: a hook is before or after, not `during`",
    ),
    "a hook that does not exist": (
        '[hooks.train]\nbefore = "steps:doubld"\n',
        ":15:10: hooks.train.before: steps has no function `doubld` (did you mean `doubled`?)",
    ),
    "a wrong key of [notify]": (
        '[notify]\nweb_hook = "http://localhost"\n',
        ":15:12: notify.web_hook: [notify] takes no `web_hook` (did you mean `webhook`?); it takes webhook, desktop",
    ),
    "the name of the store": ("[study]\n[other]\n", ":15:1: other: there is no section `other`"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_bad_input_is_one_line_with_file_line_and_column(fault, tmp_path):
    more, message = FAULTS[fault]
    path = written(tmp_path, TEXT + more)
    for command in ("run", "plan", "check"):
        result = fcurr(command, path, "--out", tmp_path / "runs", "--plugin", "steps")
        assert result.exit_code == 2, result.output
        assert result.stderr.startswith(f"fcurr: {path}") and result.stderr.count("\n") == 1
        assert message in result.stderr, result.stderr
        assert not (tmp_path / "runs").exists()


def test_a_sweep_of_more_runs_than_is_stated_asks(tmp_path):
    config = IRIS | {
        "split": {"fn": "stratified", "validation": 0.2, "test": 0.2},
        "sweep": {"at_most": 3, "optimizer.learning_rate": [0.1, 0.2, 0.3, 0.4]},
        "study": {"routines": ["prepare"]},
    }
    result = _run(tmp_path, config)
    words = "sweep: this would make 4 runs, more than 3: --yes makes them, and so does at_most = 4\n"
    assert result.exit_code == 2 and result.stderr.endswith(words) and not (tmp_path / "runs").exists()
    assert _run(tmp_path, config, "--yes").exit_code == 0


def test_engines_that_there_are_not_and_options_of_a_study_for_a_run_are_named(tmp_path):
    path = written(tmp_path, STUDY)
    result = fcurr("run", path, "--out", tmp_path / "runs", "--engine", "locla")
    assert result.exit_code == 2 and not (tmp_path / "runs").exists()
    assert result.stderr == "fcurr: there is no engine `locla` (did you mean `local`?); there are local, inline, " + (
        "submitit, ray\n"
    )
    for option in (["--jobs", "2"], ["--engine", "inline"], ["--fail-fast"], ["--only", "x"], ["--yes"]):
        result = fcurr("run", written(tmp_path, CONFIG), "--out", tmp_path / "runs", *option)
        assert result.exit_code == 2 and not (tmp_path / "runs").exists()
        assert result.stderr == (
            "fcurr: --engine, --jobs, --fail-fast, --only and --yes are for studies: this config is one run\n"
        )


def test_a_folder_that_is_no_study_is_named(tmp_path):
    (tmp_path / "runs").mkdir()
    for folder in (tmp_path, tmp_path / "nothing"):
        result = fcurr("status", folder)
        assert result.exit_code == 2
        assert result.stderr == f"fcurr: {folder} is not the folder of a study: it has no journal.jsonl\n"
    result = fcurr("ls", "runs", "--out", tmp_path / "nothing")
    assert (result.exit_code, result.stderr) == (2, f"fcurr: there is no folder {tmp_path / 'nothing'}\n")
    assert fcurr("ls", "runs", "--out", tmp_path / "runs").stdout == f"{tmp_path / 'runs'} holds no runs\n"
    assert fcurr("clean", "--out", tmp_path / "nothing").stdout == (
        "nothing is left over: studies refer to all there is\n"
    )


PREPARED = {key: value for key, value in CONFIG.items() if key != "score"} | {
    "study": {"routines": ["prepare"]},
    "arms": {"plain": CONFIG["arms"]["plain"]},
    "curriculum": {"order": "random"},
}


def test_a_study_does_not_take_the_folder_of_a_run_nor_a_run_that_of_a_study(tmp_path):
    folder = tmp_path / "runs/small"
    folder.mkdir(parents=True)
    (folder / store.IDENTITY).write_text("{}")
    before = contents(tmp_path / "runs")
    result = _run(tmp_path, PREPARED)
    assert result.exit_code == 2 and contents(tmp_path / "runs") == before
    assert result.stderr == (f"fcurr: {folder} is the folder of a single run; name=... starts another beside it\n")
    (folder / store.IDENTITY).rename(folder / "notes.txt")
    result = _run(tmp_path, PREPARED)
    assert result.exit_code == 2
    assert result.stderr == (
        f"fcurr: {folder} is not a study's folder: it holds notes.txt; give another name with name=...\n"
    )
    (folder / "notes.txt").unlink()
    assert _run(tmp_path, PREPARED).exit_code == 0
    before = contents(tmp_path / "runs")
    result = fcurr("run", written(tmp_path, CONFIG), "--out", tmp_path / "runs")
    assert result.exit_code == 2 and contents(tmp_path / "runs") == before
    words = f"{folder} is the folder of a study, and this is one run; give another name with name=..."
    assert result.stderr == f"fcurr: {words}\n"


def test_what_is_in_the_place_of_the_store_is_named(tmp_path):
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs/store").write_text("mine")
    result = _run(tmp_path, PREPARED)
    assert result.exit_code == 2 and (tmp_path / "runs/store").read_text() == "mine"
    assert result.stderr == (
        f"fcurr: {tmp_path / 'runs/store'} is a file, and studies keep what they make in a folder of this name\n"
    )
    result = _run(tmp_path, PREPARED | {"name": "store"})
    assert result.exit_code == 2 and "where studies keep what they made" in result.stderr


def test_a_disk_that_is_full_is_a_message_and_nothing_is_lost(tmp_path):
    """The kernel refuses to let files grow: within the samples, or within a checkpoint of the training."""
    path, said = written(tmp_path, STUDY | {"study": {"routines": ["train"]}}), tmp_path / "said"
    for limit in (600, 12_000):
        assert _ended(_child(_limited_study, limit, path, tmp_path / "runs", said)) == 0
        found = said.read_text()
        assert found.startswith("5 ") and "File too large" in found and "Traceback" not in found, found
        assert not [line for line in _lines_whole(tmp_path) if line["event"] == "failed"]
    assert _run(tmp_path, STUDY | {"study": {"routines": ["train"]}}).exit_code == 0
    assert set(_states(tmp_path, STUDY | {"study": {"routines": ["train"]}}).values()) == {"done"}


def _limited_study(limit: int, config: Path, out: Path, said: Path) -> None:
    _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, most))
    result = fcurr("run", config, "--out", out, "--engine", "inline")
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
    said.write_text(f"{result.exit_code} {result.stderr} {result.exception!r}")


def _lines_whole(folder: Path) -> list[dict[str, Any]]:
    """The lines of a journal that are not torn."""
    found = []
    path = folder / "runs/small" / journal.JOURNAL
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            found.append(json.loads(line))
        except ValueError:
            continue
    return found


def test_a_disk_that_fills_while_the_journal_is_written_is_a_message(tmp_path, monkeypatch):
    real, count = os.write, 0

    def full(handle: int, data: bytes) -> int:
        nonlocal count
        count += b'"event"' in data
        if count > 3 and b'"event"' in data:
            real(handle, data[: len(data) // 2])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(handle, data)

    monkeypatch.setattr(journal.os, "write", full)
    result = _run(tmp_path, PREPARED | {"study": {"routines": ["train"]}})
    assert result.exit_code == 5 and "No space left on device" in result.stderr
    monkeypatch.undo()
    assert fcurr("status", tmp_path / "runs/small").exit_code == 0
    assert _run(tmp_path, PREPARED | {"study": {"routines": ["train"]}}).exit_code == 0
    ends = [line["name"] for line in _lines_whole(tmp_path) if line["event"] == "finished" and not line["reused"]]
    assert len(set(ends)) == len(ends)


@pytest.mark.parametrize("where", ["at the end", "in the middle", "after a bracket", "with noughts"])
def test_a_journal_with_a_torn_line_is_read_and_gone_on_with(where, tmp_path):
    config = PREPARED | {"study": {"routines": ["train"]}}
    assert _run(tmp_path, config).exit_code == 0
    path = tmp_path / "runs/small" / journal.JOURNAL
    lines = path.read_bytes().splitlines(keepends=True)
    torn = {
        "at the end": [*lines[:-1], lines[-1][:40]],
        "in the middle": [*lines[:3], lines[3][:50], b"\n", *lines[4:]],
        "after a bracket": [*lines, lines[-1][:27] + b',"event":"failed","error":"no {x}'],
        "with noughts": [*lines[:2], b"\0" * 64, b"\n", *lines[2:]],
    }[where]
    path.write_bytes(b"".join(torn))
    known = journal.read(tmp_path / "runs/small")
    assert len(known) == 3
    assert fcurr("status", tmp_path / "runs/small").exit_code == 0
    since = path.read_bytes().count(b'"started"')
    assert _run(tmp_path, config).exit_code == 0
    assert path.read_bytes().count(b'"started"') == since  # nothing is done again
    assert {line["event"] for line in journal.read(tmp_path / "runs/small").values()} == {"finished"}


SLOW = """\
import time
from pathlib import Path

def wait(inputs, *, path):
    while not Path(path).exists():
        time.sleep(0.01)
    return 1
"""


def test_a_second_scheduler_of_a_study_is_refused_while_the_first_runs(tmp_path):
    stone = tmp_path / "go"
    _plugin(tmp_path, SLOW, "waits")
    own = {"wait": {"function": "waits:wait", "parameters": {"path": str(stone)}}}
    config = IRIS | {"split": {"fn": "stratified", "validation": 0.2, "test": 0.2}, "commands": own}
    config["study"] = {"routines": []}
    arguments = ["--plugin", "waits", "--engine", "inline"]
    first = process("run", written(tmp_path, config), "--out", tmp_path / "runs", *arguments)
    try:
        until = time.monotonic() + 60
        while not any(line["event"] == "started" for line in _lines_whole(tmp_path)):
            assert time.monotonic() < until and first.poll() is None
            time.sleep(0.05)
        result = _run(tmp_path, config, "--plugin", "waits")
        assert result.exit_code == 2
        assert re.fullmatch(
            rf"fcurr: {re.escape(str(tmp_path / 'runs/small'))} is held by process {first.pid} on \S+; wait for it, "
            r"or give another name with name=\.\.\.\n",
            result.stderr,
        )
        told = fcurr("status", tmp_path / "runs/small").stdout
        assert "1 under way" in told and "under way  wait" in told
    finally:
        stone.write_text("")
        _, said = first.communicate(timeout=60)
    assert first.returncode == 0, said
    assert _started(tmp_path) == {"wait": 1}


ONE = STUDY | {"study": {"routines": ["train"]}, "sweep": {"optimizer.learning_rate": [0.1]}}


def test_a_file_of_the_store_whose_content_has_changed_is_named_and_made_anew_when_it_is_deleted(tmp_path):
    assert _run(tmp_path, ONE | {"study": {"routines": ["score"]}}).exit_code == 0
    (path,) = (tmp_path / "runs/store/scores").glob("*.parquet")
    whole = path.read_bytes()
    path.write_bytes(whole[:100] + bytes([whole[100] ^ 1]) + whole[101:])
    result = _run(tmp_path, ONE)
    assert result.exit_code == 1
    failed = [line for line in result.stderr.splitlines() if line.startswith("failed: ")]
    assert failed == [
        f"failed: train/easy_first[optimizer.learning_rate=0.1, seed={seed}]: {path} is not what was written there: "
        "its content has changed; delete it to make it anew"
        for seed in (0, 1)
    ]
    assert [line["name"] for line in _lines(tmp_path) if line["event"] == "finished"][-2:] == [
        f"train/plain[optimizer.learning_rate=0.1, seed={seed}]" for seed in (0, 1)
    ]
    path.unlink()
    since = len(_lines(tmp_path))
    assert _run(tmp_path, ONE).exit_code == 0
    assert _started(tmp_path, since) == {"score": 1, "train": 2}
    assert path.read_bytes() == whole


@pytest.mark.parametrize("content", [b"", b"[]", b'{"key": "1"}', b'{"outputs": {"scores": {}}}', b"\xff\0"])
def test_a_record_that_is_broken_is_named_and_made_anew_when_it_is_deleted(content, tmp_path):
    config = ONE | {"study": {"routines": ["score"]}}
    assert _run(tmp_path, config).exit_code == 0
    (key,) = (key for key, line in journal.read(tmp_path / "runs/small").items() if "score/" in line["name"])
    path = tmp_path / "runs/store" / artefacts.RECORDS / f"{key}.json"
    path.write_bytes(content)
    for command in ("run", "plan"):
        result = fcurr(command, written(tmp_path, config), "--out", tmp_path / "runs")
        assert result.exit_code == 2, result.exception
        assert result.stderr.splitlines()[-1].startswith(f"fcurr: {path} is not a record of a command (")
        assert result.stderr.endswith("; delete it to make it anew\n")
    path.unlink()
    since = len(_lines(tmp_path))
    assert _run(tmp_path, config).exit_code == 0 and _started(tmp_path, since) == {"score": 1}


OWN = """\
def words(values):
    return "words"

def thing(inputs):
    return object()

def infinite(inputs):
    return {"a": float("inf")}

def leaves(inputs):
    raise SystemExit(3)

def absent(inputs):
    return open("/there/is/no/such/file").read()

def elsewhere(inputs):
    raise OSError(30, "Read-only file system", "/another/disk")

def several(inputs):
    raise ValueError("first\\nsecond")
"""
OWNS = {
    "thing": "a command gave object, which is not tensors by name, a pyarrow table, text, bytes, or what JSON holds: ",
    "infinite": "a command gave dict, which is not tensors by name, a pyarrow table, text, bytes, or what JSON holds: ",
    "leaves": "SystemExit: 3",
    "absent": "FileNotFoundError: [Errno 2] No such file or directory: '/there/is/no/such/file'",
    "elsewhere": "OSError: [Errno 30] Read-only file system: '/another/disk'",
    "several": "ValueError: first",
}


@pytest.mark.parametrize("function", OWNS)
def test_a_command_of_ones_own_that_fails_is_a_line_and_stops_no_other(function, tmp_path):
    _plugin(tmp_path, OWN, "owned")
    own = {"bad": {"function": f"owned:{function}"}, "late": {"function": "owned:thing", "inputs": "bad"}, "good": FINE}
    config = PREPARED | {"study": {"routines": []}, "commands": own}
    result = _run(tmp_path, config, "--plugin", "owned", "--plugin", "steps")
    assert result.exit_code == 1
    lines = result.stderr.splitlines()
    (failed,) = [line for line in lines if line.startswith("failed: ")]
    assert failed.startswith(f"failed: bad: {OWNS[function]}")
    assert lines[-1] == "fcurr: 1 of 2 commands failed, 1 wait for these"
    assert {line["name"]: line["event"] for line in journal.read(tmp_path / "runs/small").values()} == {
        "bad": "failed",
        "late": "planned",
        "good": "finished",
    }
    assert "failed  bad: " in fcurr("status", tmp_path / "runs/small").stdout


def test_a_hook_that_gives_something_else_than_values_is_named(tmp_path):
    _plugin(tmp_path, OWN, "owned")
    config = PREPARED | {"hooks": {"prepare": {"after": "owned:words"}}}
    result = _run(tmp_path, config, "--plugin", "owned")
    assert result.exit_code == 1
    words = "hooks.prepare.after: owned:words gives a str, not a dict of values"
    assert any(line.startswith("failed: prepare/") and line.endswith(words) for line in result.stderr.splitlines())


def test_a_hook_that_takes_an_output_away_is_named(tmp_path):
    _plugin(tmp_path, "def nothing(values):\n    return {}\n", "taking")
    config = PREPARED | {"hooks": {"prepare": {"after": "taking:nothing"}}}
    result = _run(tmp_path, config, "--plugin", "taking")
    assert result.exit_code == 1
    words = "hooks.prepare.after: there is no output `samples` after the hooks"
    assert any(words in line for line in result.stderr.splitlines()), result.stderr


def test_a_score_that_diverges_stops_what_reads_it_and_nothing_else(tmp_path):
    config = copy.deepcopy(ONE) | {"study": BRIEF, "sweep": {"optimizer.learning_rate": [1e30]}}
    config["arms"] = {"easy_first": {}, "tame": {"optimizer": {"learning_rate": 0.1}, **CONFIG["arms"]["plain"]}}
    result = _run(tmp_path, config)
    assert result.exit_code == 1
    assert _started(tmp_path) == {"prepare": 1, "score": 1, "train": 2, "evaluate": 2}
    assert "failed: score/cross_validated_loss: the " in result.stderr


def test_a_key_that_is_swept_cannot_be_changed_beside_its_sweep(tmp_path):
    path = written(tmp_path, STUDY)
    result = fcurr("plan", path, "optimizer.learning_rate=0.5", "--out", tmp_path / "runs")
    words = "optimizer.learning_rate (on the command line): it is swept: change sweep.optimizer.learning_rate"
    assert (result.exit_code, result.stderr) == (2, f"fcurr: {words}\n")
    assert fcurr("plan", path, "sweep.optimizer.learning_rate=[0.5]", "--out", tmp_path / "runs").exit_code == 0


def test_one_run_has_no_plan_and_one_inner_fold_is_none(tmp_path):
    result = fcurr("plan", written(tmp_path, CONFIG), "--out", tmp_path / "runs")
    assert result.exit_code == 2
    assert result.stderr.endswith("this config is one run and no study: fcurr check says what it would do\n")
    folds = CONFIG | {"cross_validation": {"folds": 3, "inner_folds": 1}}
    result = fcurr("plan", written(tmp_path, folds), "--out", tmp_path / "runs")
    assert result.stderr.endswith(
        "cross_validation.inner_folds: 1 is not a number of parts: at least 2, or 0 for none\n"
    )


def test_a_beginning_from_elsewhere_is_said_to_be_unknown(tmp_path):
    config = STUDY | {"start": {"weights": "w.safetensors"}}
    result = fcurr("plan", written(tmp_path, config), "--out", tmp_path / "runs")
    assert result.exit_code == 0, result.stderr
    assert "by samples that are not known: no leak of these can be told" in result.stdout
