"""README, docs and configs are programs: all of them are executed."""

import re
import shlex
import sys
from pathlib import Path

import pytest
from small import fcurr

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md"))]
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.S | re.M)
NAMED = re.compile(r"# file: (\S+)\n")


def test_there_are_pages_to_execute():
    assert {page.name for page in PAGES} >= {"README.md", "config.md", "own_pace_and_score.md", "composing.md"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_program_on_a_page_runs(page, tmp_path, monkeypatch):
    """Python is executed in one namespace, blocks that name a file are written to it, `fcurr` commands are given."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    names: dict[str, object] = {"__name__": "page"}
    for kind, text in BLOCK.findall(page.read_text()):
        if named := NAMED.match(text):
            (tmp_path / named[1]).write_text(text)
        if kind == "python":
            exec(compile(text, f"{page.name} ({named[1] if named else 'python'})", "exec"), names)
        if kind == "sh":
            for line in text.splitlines():
                if line.startswith("fcurr "):
                    result = fcurr(*shlex.split(line)[1:])
                    assert result.exit_code == 0, (line, result.stderr)
    sys.modules.pop("mine", None)


def test_every_link_on_a_page_leads_to_a_file():
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
            if "://" not in target:
                assert (page.parent / target).exists(), (page.name, target)


def test_the_commands_of_the_readme_are_the_ones_ci_and_newcomers_use():
    readme = (ROOT / "README.md").read_text()
    commands = [line for line in readme.splitlines() if line.startswith("python3 -m venv")]
    assert len(commands) == 2 and commands[0].endswith("fcurr run configs/quickstart.toml")
    ci = (ROOT / ".ci/run").read_text()
    assert "README.md" in ci and "pytest" in commands[1]


@pytest.mark.long
def test_the_quickstart_finds_what_the_readme_prints(tmp_path):
    """Numbers differ in the last digits between machines; what is claimed of them does not."""
    result = fcurr("run", ROOT / "configs/quickstart.toml", "--out", tmp_path)
    assert result.exit_code == 0, result.stderr
    rows = {
        line.split()[0]: [float(number) for number in re.findall(r"[\d.]+", line)]
        for line in result.stdout.splitlines()[1:5]
    }
    last, best = {arm: row[0] for arm, row in rows.items()}, {arm: row[2] for arm, row in rows.items()}
    assert last["easy_first"] > last["plain"] + 5 and last["easy_first"] > last["random"] + 5
    assert best["hard_first"] < best["plain"] - 10
    found = re.search(r"(\d+) of (\d+) wrong labels", result.stdout)
    assert found and int(found[2]) == 431 and int(found[1]) / int(found[2]) > 0.88
    printed = re.search(r"```text\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    assert printed and [line.split()[0] for line in printed[1].splitlines()] == [
        line.split()[0] for line in result.stdout.splitlines()
    ]


@pytest.mark.parametrize("path", [*ROOT.glob("configs/*.toml")], ids=lambda path: path.name)
def test_every_config_that_is_shipped_is_right(path, tmp_path):
    result = fcurr("check", path, "--out", tmp_path / "runs")
    assert (result.exit_code, result.stderr) == (0, "")
    assert not list(tmp_path.iterdir())
