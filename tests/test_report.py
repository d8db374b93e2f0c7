"""The report: laws of the page, and the sentences it begins with."""

import base64
import json
import re
from html import escape, unescape
from html.parser import HTMLParser
from io import BytesIO
from itertools import pairwise, product
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small import CONFIG, fcurr, written

matplotlib = pytest.importorskip("matplotlib")
pytest.importorskip("jinja2")

from fcurr.io import plots, weights  # noqa: E402
from fcurr.io.report import Arm, Picture, Row, Story, limits, reading, render, ruler  # noqa: E402
from fcurr.io.weights import Weighted  # noqa: E402

VOID = {"meta", "img", "br"}


class Page(HTMLParser):
    """What a browser would see: the words, the attributes, and whether every element is closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open, self.tags, self.attributes, self.said = [], [], [], ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        self.open += [] if tag in VOID else [tag]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.said += data


def row(arm: str, last: float, std: float = 0.01, seeds: int = 3) -> Row:
    best = {"best_mean": last + 0.001, "best_std": std / 2}
    return {"arm": arm, "last_mean": last, "last_std": std, **best, "seeds": seeds}


def story(names=("easy_first", "plain"), seeds: int = 3, evaluations: int = 9, **changes) -> Story:
    numbers = np.random.default_rng(0)
    size = (evaluations, seeds)
    arms = [
        Arm(
            name=name,
            iterations=50 * np.arange(1, evaluations + 1),
            validation=numbers.uniform(0.8, 0.9, size),
            loss=np.concatenate([np.full((1, seeds), np.nan), numbers.uniform(0.1, 2, size)[1:]]),
            sizes=np.minimum(100, 20 + 10 * np.arange(evaluations)) if at else np.full(evaluations, 100),
        )
        for at, name in enumerate(names)
    ]
    pictures = [
        Picture(7, numbers.random((8, 8)), "3", "8", 2.5),
        Picture(9, numbers.random((40, 90, 3)), "1", "1", 0.1),
    ]
    plain = Story(
        name="digits",
        summary=[("training samples", "1,078"), ("label noise", "symmetric, 40 %")],
        metric="accuracy",
        higher=True,
        length=f"{50 * evaluations:,} steps",
        arms=arms,
        table=[row(arm.name, float(arm.validation[-1].mean()), 0.0123, seeds) for arm in arms],
        confusion={arm.name: numbers.integers(0, 9, (3, 3)) for arm in arms},
        classes=["cat", "a dog", "bird"],
        scores=numbers.gamma(2, 1, 100),
        wrong=numbers.random(100) < 0.4,
        easiest=pictures[1:],
        hardest=pictures[:1],
        controls=[],
        weighted=[],
        lightest=[],
        heaviest=[],
        config='[data]\nfn = "digits"  # 0 < 1 & more',
        environment={"torch": "2.13.0"},
    )
    return plain._replace(**changes)


def headings(text: str) -> list[str]:
    return [unescape(found) for found in re.findall(r"<h[23]>(.*?)</h[23]>", text)]


def test_a_report_fetches_nothing():
    page = Page(render(story()))
    assert not {"script", "link", "iframe", "object", "base"} & set(page.tags)
    for name, value in page.attributes:
        if name in {"src", "href", "xlink:href", "srcset", "poster", "data", "action"}:
            assert value.startswith(("#", "data:image/png;base64,")), (name, value)
        assert not re.search(r"url\((?!#)", value or "")
    assert not re.search(r"@import|url\((?!#)", render(story()))


def test_every_element_is_closed():
    assert Page(render(story())).open == []


def test_every_arm_and_every_number_of_the_table_is_in_the_text():
    told = story([f"arm_{at}" for at in range(8)])
    said = Page(render(told)).said
    for line in told.table:
        assert line["arm"] in said
        for key in ("last_mean", "last_std", "best_mean", "best_std"):
            assert ruler(told)(line[key]) in said


def test_facts_config_and_environment_are_in_the_text():
    told = story()
    said = Page(render(told)).said
    for words in [told.name, told.config, *sum(told.summary, ()), *sum(told.environment.items(), ())]:
        assert words in said


def test_markup_in_words_is_escaped():
    evil = "<script>alert('&')</script>\"$x$"
    told = story(
        names=(evil, "plain"),
        name=evil,
        summary=[(evil, evil)],
        config="</pre>" + evil,
        environment={evil: evil},
        hardest=[Picture(0, np.zeros((2, 2)), evil, "8", 1.0)],
    )
    text = render(told)
    assert "<script" not in text
    assert escape(evil, quote=False)[:11] in text
    assert Page(text).open == []
    assert evil in Page(render(told._replace(table=[row(evil, 0.9)]))).said


def test_the_same_story_renders_to_the_same_bytes():
    with matplotlib.rc_context({"font.size": 30, "lines.linewidth": 9, "axes.facecolor": "red"}):
        other = render(story())
        assert matplotlib.rcParams["font.size"] == 30  # and leaves settings as they were
    assert render(story()) == render(story()) == other


def test_what_a_story_lacks_has_no_section():
    difficulty = ["Difficulty", "The easiest", "The hardest"]
    facts, *middle, made = ["Facts", "Test accuracy", "Learning curves and pace", "How it was made"]
    assert headings(render(story())) == [facts, *middle, "Mistakes", *difficulty, made]
    bare = story(summary=[], confusion={}, scores=None, wrong=None, easiest=[], hardest=[], environment={})
    assert headings(render(bare)) == [*middle, made]
    assert "Environment" not in Page(render(bare)).said
    assert headings(render(bare._replace(arms=[], table=[]))) == [made]
    assert "The hardest" not in headings(render(story(hardest=[])))


def test_a_wrong_label_is_marked_and_a_right_one_is_not():
    text = render(story())
    assert text.count('class="wrong"') == 1
    assert "3, truly 8" in Page(text).said


def test_a_picture_keeps_its_pixels():
    image = pytest.importorskip("matplotlib.image")
    told = story(hardest=[Picture(0, np.array([[0.0, 1.0], [0.2, np.nan]]), "a", "a", 1.0)], easiest=[])
    code = re.search(r'src="data:image/png;base64,([^"]*)"', render(told))
    assert code
    pixels = image.imread(BytesIO(base64.b64decode(code[1])))
    np.testing.assert_allclose(pixels[..., 0], [[0, 1], [0.2, 0]], atol=1e-6)


def test_large_stories_stay_small():
    pictures = [Picture(at, np.random.default_rng(at).random((64, 64, 3)), "3", "8", 1.0) for at in range(20)]
    told = story([f"arm {at}" for at in range(8)], evaluations=5000, seeds=5, easiest=pictures, hardest=pictures)
    assert len(render(told)) < 1_000_000


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "changes",
    [
        {"seeds": 1},
        {"evaluations": 1},
        {"evaluations": 1, "seeds": 1, "names": ["plain"]},
        {"names": []},
        {"names": [f"a very long name that goes on and on {at}" for at in range(20)]},
        *({"scores": np.full(100, score)} for score in (0.3, -0.3, 0, 1e30, np.inf, np.nan)),
        {"scores": np.arange(100) % 7},
        {"scores": np.where(np.arange(100) < 50, np.inf, 1.5)},
        *({"wrong": wrong} for wrong in (None, np.zeros(100, dtype=bool), np.ones(100, dtype=bool))),
        {"table": []},
        {"table": [row("elsewhere", np.nan, np.nan)]},
        *({"table": [row("plain", value), row("b", -value)]} for value in (0.0, 1e-30, 1e30)),
        *({"metric": "mean_squared_error", "higher": False, "table": [row("plain", v)]} for v in (0.0, 1e-30, 1e30)),
        {"confusion": {"plain": np.zeros((3, 3), dtype=np.int64)}},
    ],
)
def test_stories_at_the_edge_are_told_without_a_warning(changes):
    assert Page(render(story(**changes))).open == []


@pytest.mark.filterwarnings("error")
@settings(max_examples=20, deadline=None)
@given(
    seeds=st.integers(1, 3),
    evaluations=st.integers(1, 4),
    metric=st.sampled_from(["accuracy", "mean_squared_error"]),
    value=st.sampled_from([0.0, 0.5, 1.0, -1e-9, 1e12, np.inf, np.nan]),
    loss=st.sampled_from([0.0, 1e-12, 3.0, 1e12, np.inf, np.nan]),
)
def test_any_metric_and_loss_can_be_drawn(seeds, evaluations, metric, value, loss):
    told = story(seeds=seeds, evaluations=evaluations, metric=metric)
    first = told.arms[0]
    validation, losses = first.validation.copy(), first.loss.copy()
    validation[0, 0], losses[-1, 0] = value, loss
    told = told._replace(arms=[first._replace(validation=validation, loss=losses), *told.arms[1:]])
    assert Page(render(told)).open == []


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=9))
def test_an_axis_holds_all_values_but_those_of_the_start(values):
    low, high = limits([np.array(values)[:, None]], (-np.inf, np.inf)) or (-np.inf, np.inf)
    kept = values[len(values) // 4 :]
    assert low < min(kept) and max(kept) < high


def test_an_axis_of_shares_ends_where_shares_end():
    low, high = limits([np.array([[0.0], [100.0]])], (0.0, 100.5)) or (np.nan, np.nan)
    assert (low, high) == (0.0, 100.5)


def test_arms_are_drawn_at_their_own_iterations():
    """As they are where passes are counted, and one arm's passes are shorter."""
    short, long = np.array([5, 11, 18, 30]), np.array([50, 100, 150, 200])
    values = np.linspace(0, 1, 4)[:, None]

    def ends(svg: str) -> list[float]:
        """Where the lines end on the page: the last point of each path of four."""
        paths = re.findall(r'<path d="(M [^"]*)"[^>]*style="fill: none', svg)
        return [float(path.split()[-2]) for path in paths if path.split("\n")[0] and path.count("L") == 3]

    both = ends(plots.curves([("a", short, values), ("b", long, values)], title="test"))
    assert len(both) == 2 and both[0] < both[1]
    alone = re.findall(r">([\d,]+)</text>", plots.curves([("a", short, values)], title="test"))
    assert "30" in alone and "200" not in alone


def matrices(told: Story) -> list[str]:
    return re.findall(r'<table class="matrix.*?</table>', render(told), re.S)


def test_a_cell_of_the_mistakes_is_its_share_of_the_row_and_says_how_many_it_holds():
    counts = np.array([[8, 2, 0], [0, 0, 0], [1, 1, 997]])
    (matrix,) = matrices(story(["plain"], confusion={"plain": counts}))
    cells = re.findall(r'<td( class="right")? style="--s:([\d.]+)" title="(\d+)">(\d+)</td>', matrix)
    assert [(int(count), int(share), bool(right)) for right, _, count, share in cells] == [
        (8, 80, True),
        (2, 20, False),
        (1, 0, False),
        (1, 0, False),
        (997, 100, True),
    ]
    np.testing.assert_allclose(float(cells[0][1]) ** 2, 0.8, atol=0.01)
    assert matrix.count("<td></td>") == 4 + 1  # of nobody, and the corner
    for name in ("cat", "a dog", "bird"):
        assert f'<th scope="row" title="{name}">{name}</th>' in matrix
        assert f'<th scope="col" title="{name}"><span>{name}</span></th>' in matrix


def test_the_mistakes_of_the_best_four_arms_are_shown():
    names = [f"arm {at}" for at in range(6)]
    table = [row(name, 0.5 + (0.1 if at in (0, 2, 3, 5) else 0.0)) for at, name in enumerate(names)]
    shown = matrices(story(names, table=table))
    assert re.findall(r"<caption>(.*?)</caption>", "".join(shown)) == ["arm 0", "arm 2", "arm 3", "arm 5"]
    assert "Shown are the best 4 arms." in Page(render(story(names, table=table))).said
    assert "Shown are" not in Page(render(story())).said


def test_mistakes_of_many_classes_are_not_shown():
    assert not matrices(story(classes=["c"] * 31, confusion={"plain": np.eye(31)}))
    assert len(matrices(story(classes=["c"] * 30, confusion={"plain": np.eye(30)}))) == 1


def test_bands_are_drawn_for_several_seeds_only():
    assert "bands one standard deviation" in render(story(seeds=2))
    assert "bands" not in render(story(seeds=1)).split("</style>")[1]


def test_the_band_is_the_sample_standard_deviation_and_unknown_where_a_seed_is_not_finite():
    mean, spread = plots.moments(np.array([[1.0, 3.0], [2.0, np.inf]]))
    np.testing.assert_allclose(mean, [2, np.nan])
    np.testing.assert_allclose(spread, [np.sqrt(2), np.nan])


def test_a_dollar_in_a_name_is_no_formula():
    assert ">a $x$ b</text>" in plots.curves([("a $x$ b", np.arange(3), np.ones((3, 2)))], title="test")


def test_arms_of_one_pace_share_a_line():
    steps = np.arange(3)
    shared = plots.pace([("a", steps, np.array([1, 2, 3])), ("b", steps, np.array([1, 2, 3]))])
    apart = plots.pace([("a", steps, np.array([1, 2, 3])), ("b", steps, np.array([2, 2, 3]))])
    assert "var(--arm-0" not in shared and "var(--arm-0" in apart and "var(--arm-1" in apart


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0.05, 0.3)), min_size=1, max_size=9))
def test_names_beside_lines_keep_their_order_and_never_overlap(marks):
    wanted, heights = zip(*marks, strict=True)
    places = plots.apart(wanted, heights)
    order = sorted(range(len(wanted)), key=lambda at: wanted[at])
    for low, high in pairwise(order):
        assert places[high] - places[low] >= (heights[high] + heights[low]) / 2 - 1e-9


def said(*rows: Row, **changes) -> str:
    return Page(str(reading(story(table=list(rows), **changes)))).said.replace("\u00a0", " ")


def test_a_lead_of_more_than_a_standard_deviation_is_called_that():
    assert said(row("easy_first", 0.9), row("hard_first", 0.7), row("plain", 0.85, 0.02), row("random", 0.84)) == (
        "After 450 steps, easy_first has the highest test accuracy of 4 arms, "
        "90.00 % in the mean (3 seeds, standard deviation 1.00). "
        "That is 5.00 points above plain (85.00 %) and 6.00 points above random (84.00 %), "
        "more than one standard deviation over seeds of either arm. "
        "Taken where validation is best*, it leads as well, with 90.10 %. "
        "That is 5.00 points above plain (85.10 %) and 6.00 points above random (84.10 %), "
        "more than one standard deviation over seeds of either arm."
    )


def test_a_lead_within_a_standard_deviation_may_be_chance():
    assert (
        "That is 0.50 points above plain (89.50 %), not more than one standard deviation over seeds, so it may well "
        in (said(row("easy_first", 0.9), row("plain", 0.895)))
    )


def test_when_plain_training_is_best_the_next_is_named():
    assert "plain has the highest" in said(row("easy_first", 0.8), row("plain", 0.9), row("random", 0.7))
    assert "10.00 points above easy_first" in said(row("easy_first", 0.8), row("plain", 0.9), row("random", 0.7))


def test_of_several_plain_arms_the_best_is_compared():
    rates = [row("plain, rate = 0.1", 0.7), row("plain, rate = 0.2", 0.8), row("plain, rate = 0.3", 0.75)]
    assert "That is 10.00 points above plain, rate = 0.2 (80.00 %), more" in said(
        row("easy_first, rate = 0.1", 0.9), *rates
    )


def test_one_seed_tells_nothing_about_chance():
    assert "(one seed). That is 5.00 points above plain (85.00 %); with one seed there is no telling" in (
        said(row("easy_first", 0.9, seeds=1), row("plain", 0.85, seeds=1))
    )


def test_equals_are_called_the_same():
    assert "That is the same as plain." in said(row("easy_first", 0.9), row("plain", 0.9))


def test_another_arm_may_lead_where_validation_is_best():
    ahead = {**row("plain", 0.85), "best_mean": 0.905}
    assert said(row("easy_first", 0.9), ahead).endswith(
        "Taken where validation is best*, plain leads, with 90.50 %. That is 0.40 points above easy_first (90.10 %), "
        "not more than one standard deviation over seeds, so it may well be chance."
    )


def test_one_arm_is_compared_with_nothing():
    assert said(row("plain", 0.9)) == (
        "After 450 steps, plain has a test accuracy of 90.00 % in the mean (3 seeds, standard deviation 1.00)."
    )


def test_where_lower_is_better_the_lowest_leads():
    errors = {"metric": "mean_squared_error", "higher": False}
    assert said(row("plain", 2950.4, 80.0), row("easy_first", 2897.0, 42.0), **errors) == (
        "After 450 steps, easy_first has the lowest test mean squared error of 2 arms, "
        "2,897 in the mean (3 seeds, standard deviation 42). "
        "That is 53 below plain (2,950), not more than one standard deviation over seeds, so it may well be chance. "
        "Taken where validation is best*, it leads as well, with 2,897. "
        "That is 53 below plain (2,950), more than one standard deviation over seeds of either arm."
    )
    page = Page(render(story(table=[row("plain", 0.3), row("easy_first", 0.2)], **errors))).said
    assert "Test mean squared error" in page and "Lower is better." in page and "lowest validation" in page
    text = render(story(table=[row("plain", 0.3), row("easy_first", 0.2)], **errors))
    assert re.findall(r'<td class="top">([\d.]+)', text) == ["0.2000", "0.2010"]


@pytest.mark.parametrize(
    ("largest", "value", "written"),
    [
        (0.86, 0.0065, "0.0065"),
        (2950.0, 82.1, "82"),
        (1234567.0, 12.3, "12"),
        (1e-7, 1e-8, "1.000e-08"),
        (0, 0, "0.000"),
    ],
)
def test_values_are_written_with_four_digits_of_the_largest(largest, value, written):
    assert ruler(story(metric="r2", table=[row("plain", largest, value) | {"best_mean": np.nan}]))(value) == written


def test_a_metric_that_is_not_defined_is_a_dash():
    nothing = row("plain", np.nan, np.nan)
    assert said(nothing, metric="r2") == "No test r2 was measured."
    assert "—" in Page(render(story(table=[nothing, row("b", 0.5)], metric="r2"))).said


def weighted(
    name: str = "easy_first",
    given=((1.0, 1.0, 0.5, 0.0),),
    losses=None,
    wrong=(False, False, True, True),
    learned: bool = True,
) -> Weighted:
    counts = np.array(given, dtype=np.float32)
    effective, snr = (
        np.tile(values, (1, len(counts))) for values in ([[1.0], [0.75]], [[np.nan], [0.04 if learned else np.nan]])
    )
    return Weighted(
        name=name,
        learned=learned,
        weights=counts,
        losses=np.broadcast_to(
            np.arange(counts.shape[1], dtype=np.float32) if losses is None else losses, counts.shape
        ),
        iterations=np.array([50, 100]),
        effective=effective,
        snr=snr,
        found=weights.numbers(counts, snr, None if wrong is None else np.array(wrong)),
    )


def weighing(*arms: Weighted, wrong: Any = (False, False, True, True), **changes) -> Story:
    picture = [Picture(3, np.zeros((2, 2)), "3", "8", 0.0)]
    known = None if wrong is None else np.array(wrong)
    bare = story(scores=None, easiest=[], hardest=[], wrong=known, **changes)
    return bare._replace(weighted=list(arms), lightest=picture, heaviest=picture)


def test_numbers_of_weights_are_means_over_seeds():
    assert weighted(given=((1, 1, 0.5, 0), (0.2, 0.2, 0.2, 0.2))).found == pytest.approx(
        {
            "mean_weight": (0.625 + 0.2) / 2,
            "mean_weight_right": (1 + 0.2) / 2,
            "mean_weight_wrong": (0.25 + 0.2) / 2,
            "share_of_wrong": (0.2 + 0.5) / 2,
            "auc": (1 + 0.5) / 2,
            "effective_sample_size": (6.25 / 2.25 / 4 + 1) / 2,
            "hypergradient_snr": 0.04,
        }
    )


@given(st.lists(st.tuples(st.integers(0, 3), st.booleans()), min_size=1, max_size=12))
def test_the_area_is_the_share_of_pairs_in_which_the_wrong_label_weighs_less(samples):
    counts, wrong = (np.array(column) for column in zip(*samples, strict=True))
    pairs = [(r < w) + (r == w) / 2 for r, w in product(counts[wrong], counts[~wrong])]
    expected = np.mean(pairs) if pairs else np.nan
    np.testing.assert_allclose(weights.told_apart(counts.astype(float), wrong), expected)


@given(st.integers(1, 20), st.integers(0, 20), st.floats(1e-30, 1e30))
def test_samples_that_count_alike_beside_others_that_do_not_count_are_the_effective_ones(some, none, weight):
    found = weighted(given=[[weight] * some + [0.0] * none], wrong=None).found
    np.testing.assert_allclose(found["effective_sample_size"], some / (some + none), rtol=1e-5)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("given", [np.nan, np.inf, 0.0])
def test_numbers_that_are_not_defined_are_unknown(given):
    found = weighted(given=[[given, 0, 0, 0]]).found
    assert np.isnan(found["share_of_wrong"]) and (given == 0 or np.isnan(found["auc"]))
    one_kind = weighted(wrong=(True,) * 4).found
    assert np.isnan(one_kind["mean_weight_right"]) and np.isnan(one_kind["auc"]) and one_kind["share_of_wrong"] == 1
    unknown = {name for name, value in weighted(wrong=None).found.items() if np.isnan(value)}
    assert unknown == {"mean_weight_right", "mean_weight_wrong", "share_of_wrong", "auc"}


def told(arm: Weighted, wrong: Any = (False, False, True, True)) -> str:
    words = weights.told(arm, None if wrong is None else np.array(wrong))
    return Page(str(words)).said.replace("\u00a0", " ")


def test_weights_are_told_in_words():
    assert told(weighted()) == (
        "easy_first gives right labels a mean weight of 1.00, wrong ones 0.250: wrong labels are 50.0 % of the "
        "training samples and carry 20.0 % of all weight. Of a right and a wrong label, the wrong one weighs less in "
        "100.0 % of pairs, ties counted half."
    )
    assert told(weighted(wrong=None), None) == (
        "easy_first weighs samples as unevenly as if 69.4 % of them counted, all alike, and the others not at all."
    )
    assert told(weighted(given=[[0.3] * 4])) == "easy_first gives all samples the same weight."
    assert told(weighted(given=[[np.nan] * 4])) == ""
    assert "&lt;b&gt;" in weights.told(weighted("<b>"), None)


def test_the_line_for_a_terminal_is_of_the_arms_that_learn():
    wrong = np.array([False, False, True, True])
    arms = [weighted("fixed", learned=False), *(weighted(f"net {at}") for at in range(6))]
    ((name, fact),) = weights.fact(arms[:2], wrong)
    assert (name, fact) == ("weight on wrong labels", "20.0% in net 0; they are 50.0% of the samples")
    assert "20.0% in net 3 and 2 more; they" in weights.fact(arms, wrong)[0][1]
    assert "in fixed" in weights.fact(arms[:1], wrong)[0][1]
    assert not weights.fact([], wrong)
    assert not weights.fact([weighted(wrong=None)], None)
    assert not weights.fact([weighted(given=[[np.nan] * 4])], wrong)


def test_samples_come_by_their_mean_weight_and_of_equals_the_larger_loss_first():
    order, mean = weights.by_weight(weighted(given=[[1, 0, np.nan, 0], [1, 0, 1, 0]], losses=[9.0, 1.0, 1.0, 2.0]))
    assert order.tolist() == [3, 1, 0]
    np.testing.assert_allclose(mean, [1, 0, np.nan, 0])


@given(st.lists(st.integers(0, 10**6), min_size=2, max_size=50, unique=True), st.sampled_from(["falling", "hill"]))
def test_weights_that_are_a_function_of_the_loss_lie_on_a_curve(losses, shape):
    x = np.array(losses, dtype=float)
    y = np.exp(-x / 1e6) if shape == "falling" else -np.abs(x - np.median(x))
    found = weights.along(x, y)
    assert found is not None
    np.testing.assert_array_equal(found[0], np.sort(x))


def test_weights_that_are_none_lie_on_no_curve():
    numbers = np.random.default_rng(0)
    assert weights.along(numbers.random(50), numbers.random(50)) is None
    assert weights.along(np.arange(50.0), np.arange(50) % 2) is None


@given(st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=300))
def test_of_many_dots_some_are_kept_wherever_there_are_any(values):
    x = np.array(values)
    kept = plots.some(x)
    assert len(set(kept)) == len(kept) <= plots.BINS * plots.EACH
    assert len(kept) == len(x) or len(x) > plots.EACH
    width = (x.max() - x.min()) / plots.BINS
    assert all(np.abs(x[kept] - value).min() <= width * (1 + 1e-9) for value in x)


def test_a_sample_is_a_dot():
    wrong = np.array([False, False, True, True])
    svg = weights.over_loss(weighted(given=[[0.5, np.nan, 0.2, 0.1]]), wrong)
    assert len(re.findall(r"M ([\d.]+ [\d.]+) \nL \1 \n", svg)) == 3
    assert "right label (1)" in svg and "wrong label (2)" in svg


SECTION = ["Weights", "easy_first", "While training", "The most down-weighted", "The most up-weighted"]


def spoken(text: str) -> list[str]:
    return [" ".join(re.sub("<.*?>", "", found).split()) for found in re.findall(r"<h[23]>(.*?)</h[23]>", text, re.S)]


def test_weights_have_a_section_where_there_are_any():
    told = weighing(weighted())
    assert spoken(render(told))[-6:-1] == SECTION
    assert "Weights" not in spoken(render(told._replace(weighted=[], lightest=[], heaviest=[])))
    page = Page(render(told))
    assert page.open == [] and page.said.count("3, truly 8") == 2
    for number in ("1.00", "0.250", "20.0", "1.000", "69.4", "0.040"):
        assert f">{number}</td>" in render(told)
    assert "mean weight, right labels" not in Page(render(weighing(weighted(wrong=None), wrong=None))).said
    assert "signal to noise" not in Page(render(weighing(weighted(learned=False)))).said


def test_weights_that_are_all_alike_are_told_but_not_drawn():
    told = weighing(weighted(given=[[1.0] * 4]))._replace(lightest=[], heaviest=[])
    assert spoken(render(told))[-3:-1] == ["Weights", "While training"]
    assert "gives all samples the same weight" in Page(render(told)).said
    fixed = weighted(given=[[1.0] * 4], learned=False)
    assert not weights.worth_telling(fixed) and weights.worth_telling(weighted(given=[[1.0] * 4]))
    assert weights.worth_telling(weighted(learned=False))


def test_of_many_arms_that_weigh_four_are_drawn_those_that_learn_first():
    arms = [weighted(f"arm {at}", learned=at == 5) for at in range(6)]
    text = render(weighing(*arms, names=[arm.name for arm in arms]))
    assert spoken(text)[-9:-3] == ["Weights", "arm 5", "arm 0", "arm 1", "arm 2", "While training"]
    assert "Figures are of 4 of 6 arms" in Page(text).said
    assert "weight in arm 5" in Page(text).said


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("given", "losses"),
    [
        ([[np.nan] * 4], None),
        ([[np.inf, 1, 2, 0]], None),
        ([[0.0] * 4], None),
        ([[1, 2, 3, 4], [np.nan] * 4], None),
        ([[1, 2, 3, 4]], [0.0] * 4),
        ([[1, 2, 3, 4]], [np.inf, np.nan, 1, 1]),
        ([[1, 2, 3, 4]], [-5.0, -1, 0, 3]),
        ([[1e38, 2, 3, 1e-38]], [0, 1e-30, 1, 1e30]),
        ([[1e-38, 2e-38, 3e-38, 1e-38]], [0.0, 0.0, 0.0, 1e-38]),
    ],
)
@pytest.mark.parametrize("wrong", [None, (False, False, True, True), (True,) * 4])
def test_weights_at_the_edge_are_told_without_a_warning(given, losses, wrong):
    arm = weighted("a very long name that goes on and on, and on", given, losses, wrong)
    assert Page(render(weighing(arm, wrong=wrong))).open == []


CONTROLS: dict[str, Any] = {"controls": ["plain", "random_weights", "trimmed"]}


def test_learned_weights_are_compared_with_the_best_of_their_controls_and_with_plain_training():
    rows = row("net", 0.9), row("plain", 0.7), row("random_weights", 0.69), row("trimmed", 0.895)
    assert said(*rows, **CONTROLS) == (
        "After 450 steps, net has the highest test accuracy of 4 arms, "
        "90.00 % in the mean (3 seeds, standard deviation 1.00). "
        "That is 0.50 points above trimmed, the best of 3 controls (89.50 %), not more than one standard deviation "
        "over seeds, so it may well be chance. "
        "That is 20.00 points above plain (70.00 %), more than one standard deviation over seeds of either arm. "
        "Taken where validation is best*, it leads as well, with 90.10 %. "
        "That is 0.50 points above trimmed, the best of 3 controls (89.60 %) and 20.00 points above plain (70.10 %), "
        "more than one standard deviation over seeds of either arm."
    )
    assert "above plain, its control (70.00 %), more" in said(*rows[:2], **CONTROLS)


def test_a_control_that_leads_is_called_that():
    rows = row("net", 0.7), row("plain", 0.6), row("other", 0.65), row("trimmed", 0.9)
    found = said(*rows, **CONTROLS)
    assert "After 450 steps, trimmed, a control, has the highest test accuracy of 4 arms" in found
    assert "That is 20.00 points above net, the best that is no control (70.00 %), more than one standard" in found
    assert "No arm beats all of its controls." in found
    assert "No arm" not in said(*rows[1::2], **CONTROLS) and "a control" in said(*rows[1::2], **CONTROLS)
    assert "is best*, trimmed, a control, leads, with 95.00 %" in said(
        row("net", 0.9), {**row("trimmed", 0.8), "best_mean": 0.95}, **CONTROLS
    )


def test_controls_are_named_beneath_the_table():
    assert "are plain, random_weights, trimmed." in Page(render(story(**CONTROLS))).said
    assert "Controls" not in Page(render(story())).said


REWEIGHTED = {
    "clean": {"fn": "balanced", "size": 20},
    "reweighting": {"fn": "meta_weight_net", "hidden": 8, "warm_up": 5},
    "curriculum": {},
}


@pytest.mark.parametrize(
    ("change", "arms"),
    [
        ({**REWEIGHTED, "arms": {"net": {}}}, {"net", "random_weights", "trimmed"}),
        ({"curriculum": {}, "arms": {"focal": {"weighting": "focal"}, "plain": {}}}, {"focal"}),
        ({}, set()),
    ],
)
def test_a_run_says_what_its_samples_count(change, arms, tmp_path):
    """The numbers again, from the table that the run wrote."""
    config = {key: part for key, part in CONFIG.items() if key not in ("score", "fit")} if change else CONFIG
    config = config | {"training": CONFIG["training"] | {"total_iterations": 10}}
    found = fcurr("run", written(tmp_path, config | change), "--out", tmp_path / "runs")
    assert found.exit_code == 0, found.output
    folder = tmp_path / "runs/small"
    said = json.loads((folder / "results.json").read_text())
    assert said["weights"].keys() == arms
    text = (folder / "report.html").read_text()
    assert ("Weights" in spoken(text)) == ("The most up-weighted" in spoken(text)) == bool(arms)
    assert ("weight on wrong labels: " in found.output) == bool(arms)
    if not arms:
        return
    table = pyarrow.parquet.read_table(folder / "weights.parquet").to_pydict()
    own = [at for at, arm in enumerate(table["arm"]) if arm in arms - {"random_weights", "trimmed"}]
    member, count, given, true = (np.array(table[name])[own] for name in ("member", "weight", "label", "true_label"))
    seeds = [(count[member == one], (given != true)[member == one]) for one in set(member.tolist())]
    (row,) = (row for name, row in said["weights"].items() if name not in ("random_weights", "trimmed"))
    assert row["share_of_wrong"] == pytest.approx(np.mean([w[wrong].sum() / w.sum() for w, wrong in seeds]), rel=1e-4)
    assert row["mean_weight_right"] == pytest.approx(np.mean([w[~wrong].mean() for w, wrong in seeds]), rel=1e-4)
    assert (row["hypergradient_snr"] is not None) == ("net" in arms)
