"""The command line: what each command prints, and that nothing heavy is loaded to print it."""

import json
import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import jsonschema
import pytest
from small import CONFIG, fcurr, process, written

from fcurr.study.schema import schema

ROOT = Path(__file__).parent.parent
TEMPLATES = ROOT / "cli/fcurr_cli/templates"
VALIDATOR = jsonschema.Draft202012Validator(schema())


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"], ["--version"], ["ls"], ["ls", "pace"]])
def test_help_and_listings_load_neither_torch_nor_numpy(arguments):
    program = (
        "import sys\nfrom fcurr_cli.main import main\n"
        f"try: main({arguments!r})\nexcept SystemExit as end: assert not end.code\n"
        "print([name for name in ('torch', 'numpy', 'sklearn', 'matplotlib') if name in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "[]\n")
    assert done.stdout.strip()


def test_ls_names_every_component_of_a_role_in_a_line_each():
    lines = fcurr("ls", "pace").stdout.splitlines()
    assert lines[0] == "pace: how many are in play?"
    names = ["none", "linear", "quadratic", "root", "polynomial", "exponential", "logarithmic", "one_step"]
    assert [line.split()[0] for line in lines[1:]] == names
    assert all(len(line.split(None, 1)[1]) > 20 for line in lines[1:])


def test_ls_refuses_a_role_that_there_is_not():
    result = fcurr("ls", "pase")
    assert result.exit_code == 2 and "there is no role `pase` (did you mean `pace`?)" in result.stderr


def test_explain_shows_signature_units_formula_and_source():
    said = fcurr("explain", "root").stdout
    assert said.startswith("pace.root(state, iteration)    in fcurr.pacing\n")
    assert "initial_size       a share of the data: a number, greater than 0, at most 1\n" in said
    assert "f(u) = u^(1 / power)" in said and "Wu et al. (2021)" in said and "(default 2.0)" in said
    assert "sense: larger is easier" in fcurr("explain", "score.margin").stdout


def test_every_component_is_explained_with_a_source_or_a_formula():
    from fcurr.study.roles import ROLES, components

    for role in ROLES:
        for component in components(role):
            said = fcurr("explain", f"{role}.{component.name}")
            assert said.exit_code == 0 and len(said.stdout) > 60, component


def test_explain_suggests_what_may_have_been_meant():
    result = fcurr("explain", "rooot")
    assert result.exit_code == 2
    assert result.stderr == "fcurr: there is no component `rooot` (did you mean `root`?); `fcurr ls` lists them\n"


def test_the_schema_is_a_schema_and_accepts_every_config_that_is_shipped():
    printed = json.loads(fcurr("schema").stdout)
    validator = jsonschema.Draft202012Validator(printed)
    validator.check_schema(printed)
    for path in [*ROOT.glob("configs/*.toml"), *TEMPLATES.glob("*.toml")]:
        assert not list(validator.iter_errors(tomllib.loads(path.read_text()))), path


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("training", "total_iteration", 3),
        ("training", "batch_size", 0),
        ("optimizer", "fn", "sgdd"),
        ("optimizer", "momentum", 1.5),
        ("model", "hidden", ["wide"]),
        ("curriculum", "pace", {"fn": "root", "initial_size": 2}),
    ],
)
def test_the_schema_refuses_what_the_command_refuses(section, key, value, tmp_path):
    config = {**CONFIG, section: {**CONFIG[section], key: value}}
    assert not VALIDATOR.is_valid(config)
    assert fcurr("check", written(tmp_path, config)).exit_code == 2


STUDIES = {
    "a grid": {
        "sweep": {"optimizer.learning_rate": [0.1, 0.2], "fit": {"iterations": {"from": 20, "to": 40, "steps": 3}}}
    },
    "a geometric range": {"sweep": {"optimizer.learning_rate": {"from": 1e-3, "to": 0.1, "steps": 3, "log": True}}},
    "components": {
        "sweep": {"curriculum.pace": ["none", {"fn": "linear", "initial_size": 0.2, "final_iteration": 1.0}]}
    },
    "a key and a section that only the sweep gives": {
        "optimizer": "sgd",
        "model": {"fn": "mlp"},
        "sweep": {"optimizer.learning_rate": [0.1, 0.2], "model.hidden": [[8], [4]], "fit": [{"iterations": 20}]},
    },
    "seeds alone": {"sweep": {"seed": [0, 1]}, "members": {}},
    "a random search": {
        "sweep": {"method": "random", "trials": 3, "seed": 4, "optimizer.learning_rate": {"low": 0.01, "high": 0.1}}
    },
    "a search": {
        "sweep": {"method": "tpe", "trials": 3, "pruner": "median", "at_once": 2, "optimizer.momentum": [0.0, 0.9]}
    },
    "nested cross-validation": {
        "split": {"fn": "stratified_k_fold"},
        "cross_validation": {"folds": 3, "inner_folds": 2},
        "sweep": {"optimizer.learning_rate": [0.1, 0.2]},
    },
    "commands and hooks": {
        "commands": {
            "mine": {
                "function": "parts:f",
                "inputs": ["train/*"],
                "parameters": {"a": [1]},
                "uses": {"evaluate": "test"},
            },
            "short": {"function": "parts:f", "inputs": "evaluate/*"},
        },
        "hooks": {"train": {"before": "parts:f", "after": ["parts:f", "parts:g"]}},
    },
    "routines": {
        "study": {"routines": ["train", "evaluate"], "width": 8, "leakage": "record"},
        "notify": {"webhook": "http://localhost:1", "desktop": True},
    },
    "another config first": {"start": {"config": "first.toml", "freeze": ["0.*"]}},
    "swept beginnings": {"start": {"config": "first.toml"}, "sweep": {"start.config": ["first.toml"]}},
}


@pytest.mark.parametrize("study", STUDIES)
def test_the_schema_accepts_the_studies_that_the_command_plans(study, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    written(tmp_path, {key: value for key, value in CONFIG.items() if key != "arms"}, "first.toml")
    config = CONFIG | STUDIES[study]
    assert not list(VALIDATOR.iter_errors(config))
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "parts.py").write_text("def f(found): ...\ndef g(found): ...\n")
    planned = fcurr("plan", written(tmp_path, config), "--plugin", "parts")
    sys.modules.pop("parts", None)
    assert (planned.exit_code, planned.stderr) == (0, "")


RATE = "optimizer.learning_rate"


@pytest.mark.parametrize(
    "wrong",
    [
        {"swep": {RATE: [0.1]}},
        {"sweep": {"method": "grid"}},
        {"sweep": {"method": "tpi", "trials": 3, RATE: [0.1]}},
        {"sweep": {"method": "tpe", RATE: [0.1]}},
        {"sweep": {"trials": 3, RATE: [0.1]}},
        {"sweep": {"pruner": "median", RATE: [0.1]}},
        {"sweep": {"seed": 3}},
        {"sweep": {RATE: []}},
        {"sweep": {RATE: 0.1}},
        {"sweep": {RATE: {"low": 0.1, "high": 0.2}}},
        {"sweep": {"optimizer": {"learning_rate": {"low": 0.1, "high": 0.2}}}},
        {"sweep": {RATE: {"from": 0.1, "to": 0.2}}},
        {"sweep": {RATE: {"from": 0.1, "to": 0.2, "steps": 1}}},
        {"sweep": {RATE: {"from": 0.1, "to": 0.2, "steps": 3, "lg": True}}},
        {"sweep": {"method": "random", "trials": 3, RATE: {"low": 0.1, "high": 0.2, "steps": 3}}},
        {"sweep": {"optimiser.learning_rate": [0.1]}},
        {"sweep": {"optimizer..learning_rate": [0.1]}},
        {"sweep": {"optimizer": {}}},
        {"sweep": [0.1]},
        {"cross_validation": {"inner_folds": 2}},
        {"cross_validation": {"folds": 1}},
        {"study": {"routines": ["trian"]}},
        {"study": {"width": 0}},
        {"study": {"leakage": "ignore"}},
        {"commands": {"mine": {"inputs": ["report"]}}},
        {"commands": {"mine": {"function": "f"}}},
        {"commands": {"mine": {"function": "parts:f", "input": ["report"]}}},
        {"commands": {"mine": {"function": "parts:f", "uses": {"select": "tests"}}}},
        {"hooks": {"trian": {"before": "mine:f"}}},
        {"hooks": {"train": {"befor": "mine:f"}}},
        {"hooks": {"train": {"before": "f"}}},
        {"notify": {"web_hook": "http://localhost:1"}},
        {"split": {"fn": "stratified_k_fold"}},
        {"optimizer": {"fn": "sgd"}},
        {"optimizer": {"fn": "sgd", "learning_rat": 0.1}, "sweep": {RATE: [0.1]}},
        {"optimizer": {"fn": "sgd", "learning_rate": -0.1}, "sweep": {"fit.iterations": [20]}},
        {"start": {"config": "small.toml", "run": "runs/small"}},
        {"start": {"freeze": ["0.*"], "which": "best"}},
    ],
    ids=str,
)
def test_the_schema_refuses_the_studies_that_the_command_refuses(wrong, tmp_path):
    config = CONFIG | wrong
    assert not VALIDATOR.is_valid(config)
    assert fcurr("check", written(tmp_path, config)).exit_code == 2


def test_find_hands_on_what_it_is_asked_and_prints_json(tmp_path):
    path = written(tmp_path)
    options = ["--low", "0.001", "--high", "0.1", "--iterations", "20", "--json"]
    rates = json.loads(fcurr("find", "learning_rate", path, *options).stdout)["rates"]
    assert len(rates) == 20 and rates[0] == pytest.approx(0.001) and rates[-1] == pytest.approx(0.1)
    options = ["--most", "32", "--limit", str(2**40), "--json"]
    found = json.loads(fcurr("find", "batch_size", path, *options).stdout)
    assert found["largest"] == 32 and max(row["batch_size"] for row in found["rows"]) <= 32


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["learning_rat"],
            "there is nothing to find a learning_rat by (did you mean `learning_rate`?); there are learning_rate, "
            "batch_size",
        ),
        (
            ["learning_rate", "--most", "8"],
            "--most is not an option of learning_rate, which takes --low, --high, --iterations",
        ),
        (["batch_size", "--low", "0.1"], "--low is not an option of batch_size, which takes --limit, --most"),
        (["learning_rate", "--low", "0"], "--low: 0.0 is not a positive number: a number, greater than 0"),
        (["batch_size", "--most", "0"], "--most: 0 is not a number of samples: a whole number, at least 1"),
        (
            ["learning_rate", "--low", "1", "--high", "0.1"],
            "the rate grows from low = 1 to high = 0.1: low has to be less",
        ),
    ],
)
def test_find_refuses_options_of_something_else_and_values_out_of_bounds(arguments, message, tmp_path):
    what, *options = arguments
    result = fcurr("find", what, written(tmp_path), *options)
    assert (result.exit_code, result.stdout, result.stderr) == (2, "", f"fcurr: {message}\n")


def test_init_writes_a_starter_that_runs_as_it_is(tmp_path):
    made = fcurr("init", tmp_path / "new")
    assert made.stdout.splitlines()[-1] == f"next: fcurr run {tmp_path}/new/starter.toml --plugin my_curriculum"
    command = ["run", "starter.toml", "--plugin", "my_curriculum", "training.total_iterations=30", "fit.iterations=20"]
    done = process(*command, cwd=tmp_path / "new")
    said, progress = done.communicate()
    assert done.returncode == 0, progress
    assert "mine" in said and (tmp_path / "new/runs/starter/report.html").exists()
    plugins = json.loads((tmp_path / "new/runs/starter/identity.json").read_text())["plugins"]
    assert list(plugins) == ["my_curriculum"] and len(plugins["my_curriculum"]) == 64


def test_init_never_writes_over_a_file(tmp_path):
    (tmp_path / "my_curriculum.py").write_text("mine")
    result = fcurr("init", tmp_path)
    assert result.exit_code == 2 and result.stderr.endswith("is there already; nothing was written\n")
    assert [p.name for p in tmp_path.iterdir()] == ["my_curriculum.py"]


@pytest.mark.skipif(shutil.which("script") is None, reason="needs `script` to make a terminal")
def test_on_a_terminal_there_is_a_bar_with_rate_and_time_left(tmp_path):
    path = written(tmp_path, {**CONFIG, "training": {**CONFIG["training"], "total_iterations": 400}})
    program = f"{sys.executable} -c 'from fcurr_cli.main import main; main()' run {path} --out {tmp_path}/runs"
    done = subprocess.run(
        ["script", "-qec", program, "/dev/null"], capture_output=True, text=True, env={**os.environ, "TERM": "xterm"}
    )
    assert "━" in done.stdout and "steps/s" in done.stdout and "0:00:0" in done.stdout
