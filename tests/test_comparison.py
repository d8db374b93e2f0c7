"""Comparisons of folders: what is read, and what is written."""

import csv
import json
import random
import re
import subprocess
import sys
import warnings
from html.parser import HTMLParser
from itertools import product
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pyarrow.parquet
import pytest
from small import CONFIG, contents, fcurr, written

for module in ("scipy", "matplotlib", "jinja2"):
    pytest.importorskip(module)

from matplotlib.image import imread  # noqa: E402

from fcurr.errors import BadInput  # noqa: E402
from fcurr.io import comparison, figures  # noqa: E402

PACES = ["none", {"fn": "root", "power": 2.0}, {"fn": "linear"}, {"fn": "exponential"}]
VOID = {"meta", "br", "img"}


def folder(path: Path, groups: list[dict[str, Any]], seeds=3, metric="accuracy", higher=True, curves=True) -> Path:
    """A study's, of groups (arm and axes): each 0.02 above the one before, seeds 0.1 apart, some 0.01 more."""
    members, rows = [], []
    for (at, keys), seed in product(enumerate(groups), range(seeds)):
        value = 0.5 + 0.02 * at + 0.1 * seed + 0.01 * (at * seed % 2)
        found = {"loss": 1 - value, metric: value}
        name = {"member": len(members), "arm": "", **keys, "seed": seed}
        members.append({**name, "iterations": 40, "best_iteration": 20, "last": found, "best": dict(found)})
        for iteration in (10, 20, 30, 40):
            loss = None if iteration == 10 else 1.0
            rows.append({"iteration": iteration, **name, "loss": loss, f"validation_{metric}": value - 1 / iteration})
    path.mkdir(parents=True)
    (path / "results.json").write_text(json.dumps({"metric": metric, "higher": higher, "members": members}))
    if curves:
        (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def changed(path: Path, change) -> Path:
    """The folder, its results changed."""
    found = json.loads((path / "results.json").read_text())
    change(found)
    (path / "results.json").write_text(json.dumps(found))
    return path


ARMS = [{"arm": "plain"}, {"arm": "easy_first"}]
MANY = [
    {"arm": "c", "curriculum.pace": pace, "curriculum.order": order, "rate": rate}
    for pace, order, rate in product(PACES, ("easy_first", "hard_first"), (0.1, 0.2, 0.3))
]
FIRST = ["curriculum.pace=none", "curriculum.order=easy_first", "rate=0.1"]  # of MANY, which has no plain training
WRITTEN = [f"comparison.{kind}" for kind in ("csv", "html", "md", "parquet", "tex")]
WRITTEN += ["curves.png", "curves.svg", "differences.png", "differences.svg", "members.csv", "members.parquet"]


@pytest.fixture(scope="module")
def many(tmp_path_factory) -> tuple[Path, Path]:
    """A study of 24 groups, and its comparison."""
    home = tmp_path_factory.mktemp("many")
    study = folder(home / "study", MANY)
    comparison.compare([study], to=home / "out", against=FIRST)
    return study, home / "out"


class Page(HTMLParser):
    """Tags that are open, attributes, and words."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open, self.tags, self.attributes, self.said = [], set(), [], ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes += attrs
        self.open += [] if tag in VOID else [tag]

    def handle_startendtag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.said += data


@pytest.mark.long
def test_a_run_is_compared_with_the_numbers_of_its_own_table(tmp_path):
    assert fcurr("run", written(tmp_path), "--out", tmp_path).exit_code == 0
    lines = comparison.compare([tmp_path / CONFIG["name"]], to=tmp_path / "out")
    assert sorted(contents(tmp_path / "out")) == WRITTEN
    own = json.loads((tmp_path / CONFIG["name"] / "results.json").read_text())["table"]
    found = list(csv.DictReader((tmp_path / "out/comparison.csv").open()))
    for which in ("last", "best"):
        rows = [row for row in found if row["parameters"] == which]
        assert [row["arm"] for row in rows] == [row["arm"] for row in own]
        for row, mine in zip(rows, own, strict=True):
            assert float(row["mean"]) == pytest.approx(mine[f"{which}_mean"])
            assert float(row["deviation"]) == pytest.approx(mine[f"{which}_std"])
    assert lines[0] == "Test accuracy, %, at the end" and lines[-1].endswith("comparison.html")


def test_the_same_input_gives_the_same_bytes_in_whatever_order_members_and_rows_are_written(many, tmp_path):
    study, out = many
    found, lines = json.loads((study / "results.json").read_text()), (study / "metrics.jsonl").read_text().splitlines()
    order = random.Random(0)
    order.shuffle(found["members"])
    order.shuffle(lines)
    other = tmp_path / "study"
    other.mkdir()
    (other / "results.json").write_text(json.dumps(found))
    (other / "metrics.jsonl").write_text("\n".join(lines))
    comparison.compare([other], to=tmp_path / "out", against=FIRST)
    assert contents(tmp_path / "out") == contents(out)
    assert sorted(contents(out)) == WRITTEN


def test_csv_and_parquet_hold_the_same_numbers(many):
    _, out = many
    for name, count in (("comparison", 48), ("members", 72)):
        rows = pyarrow.parquet.read_table(out / f"{name}.parquet").to_pylist()
        lines = list(csv.DictReader((out / f"{name}.csv").open()))
        assert len(rows) == len(lines) == count
        for row, line in zip(rows, lines, strict=True):
            for key, value in row.items():
                assert (float(line[key]) if isinstance(value, int | float) else line[key] or None) == value
        assert rows[0]["curriculum.pace"] == "none" and rows[-1]["rate"] == 0.3
    assert rows[0].keys() == {
        *("arm", "curriculum.pace", "curriculum.order", "rate", "seed"),
        *("last_loss", "last_accuracy", "best_loss", "best_accuracy"),
    }


def test_a_table_of_words_has_as_many_cells_in_every_row(many):
    _, out = many
    markdown = [line for line in (out / "comparison.md").read_text().splitlines() if line.startswith("|")]
    assert len(markdown) == 2 * 26 and {line.count("|") for line in markdown} == {9}
    assert len({len(line) for line in markdown[:26]}) == 1
    assert sum("**" in line for line in markdown) == 2
    latex = (out / "comparison.tex").read_text()
    rows = [line for line in latex.splitlines() if line.endswith(r"\\")]
    assert len(rows) == 2 * 25 and {line.count("&") for line in rows} == {7}
    assert latex.count(r"\begin{tabular}{lllrrrrr}") == latex.count(r"\toprule") == latex.count(r"\bottomrule") == 2
    assert latex.count(r"\textbf{") == 2 and r"easy\_first" in latex and "root(power=2)" in latex


def test_nothing_of_a_name_is_taken_for_latex_markdown_or_html(tmp_path):
    nasty = [r"50% of_{a} & \b $x^2$ #1 ~", "[16, 16]", "<script>|`*x*`", "_under_score_"]
    lines = comparison.compare([folder(tmp_path / "a", [{"arm": name} for name in nasty])], to=tmp_path / "out")
    assert any(r"\<script>\|\`\*x\*\`" in line for line in lines) and any(r"\_under_score\_" in line for line in lines)
    latex = (tmp_path / "out/comparison.tex").read_text()
    special = r"50\% of\_\{a\} \& \textbackslash{}b \$x\textasciicircum{}2\$ \#1 \textasciitilde{} & 3 &"
    assert special in latex and "{[}16, 16{]} & 3 &" in latex
    assert not any(line.startswith("[") for line in latex.splitlines())
    page = Page((tmp_path / "out/comparison.html").read_text())
    assert page.open == [] and "script" not in page.tags and all(name in page.said for name in nasty)


def test_the_page_needs_nothing_else(many):
    _, out = many
    text = (out / "comparison.html").read_text()
    page = Page(text)
    assert page.open == [] and page.tags & {"script", "link", "img", "iframe"} == set() and "svg" in page.tags
    assert not [value for key, value in page.attributes if key in ("src", "href", "xlink:href") and value[0] != "#"]
    assert not re.findall(r"url\((?!#)|@import", text)
    ids = [value for key, value in page.attributes if key == "id"]
    assert len(set(ids)) == len(ids)
    assert page.said.count("root(power=2)") == 12
    assert "At the end, curriculum.pace = exponential, curriculum.order = hard_first, rate = 0.3 has the" in page.said


def test_figures_stand_alone_and_no_name_meets_another_or_the_margin(many):
    _, out = many
    for name in ("differences", "curves"):
        text = (out / f"{name}.svg").read_text()
        assert "var(" not in text and "<script" not in text
        drawing = ElementTree.fromstring(text)
        assert imread(out / f"{name}.png").shape[1] == pytest.approx(
            float(drawing.get("width", "0pt")[:-2]) * 200 / 72, abs=1
        )
    drawing = ElementTree.fromstring((out / "differences.svg").read_text())
    width = float(drawing.get("width", "0pt")[:-2])
    places = {}
    for element in drawing.iter("{http://www.w3.org/2000/svg}text"):
        if "rate" in (words := element.text or "") and "anchor: end" in element.get("style", ""):
            places[words] = (float(element.get("x", "nan")), float(element.get("y", "nan")))
    assert len(places) == 23  # all but the reference
    heights = sorted(y for _, y in places.values())
    assert min(np.diff(heights)) > 12
    assert all(x - 5.5 * len(words) > 0 and x < width for words, (x, _) in places.items())


def test_of_very_many_groups_the_best_are_drawn_and_the_page_says_so(many, tmp_path, monkeypatch):
    monkeypatch.setattr(figures, "MOST", 10)
    comparison.compare([many[0]], to=tmp_path, higher=False)
    page = Page((tmp_path / "comparison.html").read_text())
    assert "Figures show 10 of 24 groups, those with the best means in the first table." in page.said
    names = [line for line in (tmp_path / "curves.svg").read_text().splitlines() if "first, rate" in line]
    assert len(names) == 10 and sum("none, " in name for name in names) == 6  # the lowest


def test_a_figure_that_there_is_not_is_not_left_from_before(tmp_path):
    comparison.compare([folder(tmp_path / "a", ARMS)], to=tmp_path / "out")
    assert sorted(contents(tmp_path / "out")) == WRITTEN
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        comparison.compare([folder(tmp_path / "b", ARMS[:1], seeds=1, curves=False)], to=tmp_path / "out")
    assert sorted(contents(tmp_path / "out")) == [name for name in WRITTEN if name[0] != "d" and name[:2] != "cu"]
    page = Page((tmp_path / "out/comparison.html").read_text())
    assert "At the end, test accuracy is 50.00 % (of one)." in page.said and "svg" not in page.tags


def test_without_a_folder_to_write_to_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    study = folder(tmp_path / "a", ARMS)
    before = contents(tmp_path)
    lines = comparison.compare([study], which="last")
    assert contents(tmp_path) == before
    assert lines == [
        "Test accuracy, %, at the end",
        "",
        "| arm        |   n |  mean ± deviation |  95 % interval | mean rank |  difference to plain |",
        "| ---------- | --: | ----------------: | -------------: | --------: | -------------------: |",
        "| plain      |   3 |     60.00 ± 10.00 | [50.00, 70.00] |      2.00 |            reference |",
        "| easy_first |   3 | **62.33 ± 10.02** | [52.00, 72.00] |      1.00 | +2.33 [+2.00, +3.00] |",
        "",
        "Bootstrap intervals of few repeats are too narrow: of 5, a 95 % interval holds the truth in about 84 of 100 "
        "cases, of 10 in about 90.",
    ]


def test_trials_of_a_search_are_told_in_four_digits_and_compared_with_none_unless_one_is_named(tmp_path):
    rates = [0.010620228780967376, 0.1176691451457191, 1e-05 / 3, 1.0]
    trials = [{"arm": "c", "trial": at, "optimizer.learning_rate": rate} for at, rate in enumerate(rates)]
    study = folder(tmp_path / "a", trials)
    lines = comparison.compare([study], which="last", to=tmp_path / "out")
    assert lines[2:8] == [
        "| trial | optimizer.learning_rate |   n |  mean ± deviation |  95 % interval | mean rank |",
        "| ----- | ----------------------- | --: | ----------------: | -------------: | --------: |",
        "| 0     | 0.01062                 |   3 |     60.00 ± 10.00 | [50.00, 70.00] |      4.00 |",
        "| 1     | 0.1177                  |   3 |     62.33 ± 10.02 | [52.00, 72.00] |      3.00 |",
        "| 2     | 3.333e-06               |   3 |     64.00 ± 10.00 | [54.00, 74.00] |      2.00 |",
        "| 3     | 1                       |   3 | **66.33 ± 10.02** | [56.00, 76.00] |      1.00 |",
    ]
    assert "Nothing is called plain or random, so no group is compared with another: --against names one." in lines
    assert not (tmp_path / "out/differences.svg").exists()
    lines = comparison.compare([study], which="last", against=["trial=0"])
    assert lines[2].endswith(" mean rank |           difference |") and lines[4].endswith("|            reference |")
    assert "Differences are to trial = 0, optimizer.learning_rate = 0.010620228780967376." in lines


def test_numbers_that_four_digits_do_not_tell_apart_are_written_whole(tmp_path):
    groups = [{"arm": "plain", "rate": 0.12345678}, {"arm": "plain", "rate": 0.12345679}]
    lines = comparison.compare([folder(tmp_path / "a", groups)], which="last")
    assert [line.split("|")[1].strip() for line in lines if line.startswith("|")][2:] == ["0.12345678", "0.12345679"]


@pytest.mark.parametrize(("higher", "best"), [(True, max), (False, min)])
def test_a_pivot_has_one_key_down_and_one_across_and_the_best_of_each_column_in_bold(many, higher, best):
    lines = comparison.compare(
        [many[0]], by=["curriculum.pace"], across="curriculum.order", which="best", higher=higher
    )
    assert lines[0] == "Test accuracy, %, best on validation: mean ± deviation by curriculum.order"
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    assert cells[0] == ["curriculum.pace", "easy_first", "hard_first"]
    assert [row[0] for row in cells[2:]] == ["none", "root(power=2)", "linear", "exponential"]
    for column in (1, 2):
        bold = [row[0] for row in cells[2:] if row[column].startswith("**")]
        means = {row[0]: float(row[column].strip("*").split(" ")[0]) for row in cells[2:]}
        assert bold == [best(means, key=lambda name: means[name])]
    assert "Within each seed, the mean over rate is taken first." in lines


def test_of_several_runs_the_run_is_one_more_key_and_its_name_what_tells_it_from_the_others(tmp_path):
    one, two = folder(tmp_path / "x/run", ARMS), folder(tmp_path / "y/run", ARMS)
    lines = comparison.compare([one, two], which="last", against=["x/run"])
    rows = [[cell.strip() for cell in line.strip("|").split("|")][:2] for line in lines if line.startswith("|")]
    assert rows[0] == ["run", "arm"] and rows[2:] == [
        list(pair) for pair in product(("x/run", "y/run"), ("plain", "easy_first"))
    ]
    assert (
        comparison.compare([one, two], by=["arm"], which="last")[7]
        == "Within each seed, the mean over run is taken first."
    )
    changed(two, lambda found: found["members"].pop())
    lines = comparison.compare([one, two], which="last", where=["arm=easy_first"])
    assert [line.split("|")[2].strip() for line in lines if line.startswith("|")][2:] == ["3", "2"]
    assert "Only members with arm=easy_first." in lines


def test_the_way_a_metric_points_is_that_of_the_run_of_fcurr_or_as_said(tmp_path):
    study = folder(tmp_path / "a", ARMS, metric="f1_micro", higher=True)

    def bold(**options):
        return [
            line.split("|")[1].strip() for line in comparison.compare([study], which="last", **options) if "**" in line
        ]

    assert bold() == ["easy_first"] and bold(higher=False) == ["plain"]
    assert bold(metric="loss") == ["easy_first"]
    other = changed(study, lambda found: found.update(metric="loss", higher=False))
    assert comparison.chosen(comparison.read([other]), "f1_micro", None) == ("f1_micro", True)


def test_numbers_that_are_no_shares_have_four_digits(tmp_path):
    study = folder(tmp_path / "a", ARMS, metric="mean_squared_error", higher=False)
    lines = comparison.compare([study], which="last")
    assert lines[0] == "Test mean squared error, at the end"
    assert "| **0.6000 ± 0.1000** | [0.5000, 0.7000] |" in lines[4]


def test_notes_that_hold_for_one_table_say_which(tmp_path):
    study = changed(folder(tmp_path / "a", ARMS), lambda found: found["members"][0]["last"].update(accuracy=None))
    lines = comparison.compare([study])
    lost = "Members without a finite accuracy are left out, which flatters their groups: plain (1 of 3: seed=0)."
    assert f"At the end: {lost}" in lines and sum("finite" in line for line in lines) == 1


def test_the_sentences_say_who_leads_and_whether_it_may_be_chance(tmp_path):
    def lead(change=lambda found: None, **options):
        path = changed(folder(tmp_path / str(len(list(tmp_path.iterdir()))), ARMS, **options), change)
        comparison.compare([path], which="last", to=tmp_path / "out")
        return re.findall(r'<p class="lead">(.*?)</p>', (tmp_path / "out/comparison.html").read_text())

    def ahead(by):
        def change(found):
            for member in found["members"]:
                member["last"]["accuracy"] = 0.5 + member["seed"] / 10 + by * (member["arm"] == "easy_first")

        return change

    clear = "easy_first has the highest test accuracy: 62.00 % (mean of 3, standard deviation 10.00)."
    assert lead(ahead(0.02)) == [
        f"At the end, {clear} That is 2.00 points above plain, 95 % interval of the difference [+2.00, +2.00], "
        "which does not hold 0."
    ]
    assert lead(ahead(-0.02)) == [
        "At the end, plain has the highest test accuracy: 60.00 % (mean of 3, standard deviation 10.00)."
    ]
    assert lead(ahead(0.02), seeds=1) == [
        "At the end, easy_first has the highest test accuracy: 52.00 % (of one). That is 2.00 points above plain; "
        "with one pair there is no telling whether that is more than chance."
    ]
    both = "plain and easy_first have the highest test accuracy"
    assert lead(ahead(0)) == [f"At the end, {both}: 60.00 % (mean of 3, standard deviation 10.00)."]
    assert (
        "which holds 0, so it may well be chance."
        in lead(lambda found: found["members"][3]["last"].update(accuracy=0.49))[0]
    )


def test_a_comparison_of_the_tracked_metric_does_not_wait_for_torch(tmp_path):
    study = folder(tmp_path / "a", ARMS)
    program = (
        "import sys; from pathlib import Path; from fcurr.io.comparison import compare;"
        "compare([Path(sys.argv[1])]); print('torch' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", program, str(study)], capture_output=True, text=True, check=True)
    assert result.stdout == "False\n"


def test_folders_that_cannot_be_compared_are_named_in_a_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder(Path("runs/a"), ARMS)
    folder(Path("runs/b"), ARMS, metric="mean_squared_error", higher=False)
    folder(Path("c"), ARMS, metric="mine", higher=True)
    changed(Path("c"), lambda found: found.update(metric="loss", higher=False))
    changed(folder(Path("d"), ARMS), lambda found: found.pop("members"))
    Path("half").mkdir()
    Path("half/config.toml").touch()
    Path("strange").mkdir()
    Path("strange/photo.jpg").touch()
    Path("empty").mkdir()
    Path("broken").mkdir()
    Path("broken/results.json").write_text("{")
    faults: list[tuple[list[str], dict[str, Any], str]] = [
        (["nowhere"], {}, "nowhere is not a folder"),
        (["runs"], {}, "runs has no results.json: its folders have: fcurr compare runs/a runs/b"),
        (["half"], {}, "half has no results.json: the run is not finished; to go on: fcurr resume half"),
        (["strange"], {}, "strange has no results.json: it holds photo.jpg"),
        (["empty"], {}, "empty has no results.json: it is empty"),
        (["d"], {}, "d/results.json holds no members: it was written by another version, or by hand"),
        (["runs/a", "runs/../runs/a"], {}, "runs/../runs/a is given twice"),
        (
            ["runs/a", "runs/b"],
            {},
            "a tracks accuracy, b tracks mean_squared_error; choose one that all have with --metric: loss",
        ),
        (
            ["runs/a"],
            {"metric": "acuracy"},
            "no member has the metric `acuracy` (did you mean `accuracy`?); there are accuracy, loss",
        ),
        (["c"], {"metric": "mine"}, "it is not known which way mine points: say --higher or --lower"),
        (["runs/a"], {"across": "x"}, "there is no key `x` to aggregate over; there are arm, seed"),
    ]
    for folders, options, message in faults:
        with pytest.raises(BadInput) as wrong:
            comparison.compare([Path(name) for name in folders], to=Path("out"), **options)
        assert str(wrong.value) == message
    with pytest.raises(BadInput, match=r"^broken/results.json cannot be read: "):
        comparison.compare([Path("broken")])
    assert not Path("out").exists()
