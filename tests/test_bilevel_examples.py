"""The examples of two levels and more are programs that prove what they show: each is run as a newcomer would."""

import re

import pytest
from test_examples import EXAMPLES, output

SAID = {  # example -> what it says, with the numbers left open
    "bilevel_reweighting": r"""
learned weights: test accuracy \S+, \S+, \S+ %
all weights 1:   test accuracy \S+, \S+, \S+ %
wrong labels are 40 % of the samples and carry \d+ % of the weight
""",
    "bilevel_logistic_regression": r"""
penalties: nearly none   test loss \S+, accuracy \S+
penalties: one for all   test loss \S+, accuracy \S+
penalties: one a weight  test loss \S+, accuracy \S+
penalties of features that tell \S+, of noise \S+ \(medians\)
the derivative of the minimum, against that of 300 steps to it: relative error \S+
""",
    "bilevel_pruning": r"""
1248 samples, 40% of their labels wrong; 40% are left out; seeds \(0, 1, 2\)
of those of least weight \S+ \S+ \S+ are wrong
left out: nothing        test accuracy \S+ \S+ \S+
left out: all but clean  test accuracy \S+ \S+ \S+
left out: at random      test accuracy \S+ \S+ \S+
left out: by weight      test accuracy \S+ \S+ \S+
""",
    "bilevel_implicit_maml": r"""
learned from: nothing        error on new waves \S+
learned from: the mean wave  error on new waves \S+
learned from: adaptation     error on new waves \S+
of 4 tasks mapped, against one after another: \S+
of 20 inner steps, against the minimum in closed form: \S+
""",
    "bilevel_three_levels": r"""
slope of a whole step along a direction (\S+), by a difference \1
source: like the target    weight 0.9\S+
source: upside down        weight 0.0\S+
source: labels moved by 3  weight 0.0\S+
source: labels at random   weight 0.0\S+
without pretraining  test accuracy \S+ \S+
all sources alike    test accuracy \S+ \S+
as learned           test accuracy \S+ \S+
""",
}


def test_every_bilevel_example_is_run():
    assert {path.stem for path in EXAMPLES.glob("bilevel_*.py")} == {*SAID}


@pytest.mark.long
@pytest.mark.parametrize("name, said", SAID.items(), ids=SAID.keys())
def test_an_example_ends_well_and_says_what_it_found(name, said, tmp_path):
    """What it claims it asserts itself."""
    pytest.importorskip("sklearn")
    found = output(EXAMPLES / f"{name}.py", cwd=tmp_path)
    assert re.fullmatch(said.strip(), found.strip()), found
    assert not list(tmp_path.iterdir())
