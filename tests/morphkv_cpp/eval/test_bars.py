"""Bars on rows of a result."""

import math

import pytest

from morphkv_cpp.eval.bars import missed, parse_bars

ROWS = ["full", "morphkv@256", "morphkv@512", "recency@256"]


@pytest.mark.parametrize(
    "text, value, is_met",
    [
        ("full>=0.95", 0.95, True),
        ("full>=0.95", 0.94, False),
        ("full<0.4", 0.4, False),
        ("full<=0.4", 0.4, True),
        ("full>-1", -1.0, False),
        ("full >= .5", 0.5, True),
        ("full>=0", math.nan, False),
    ],
)
def test_a_bar_holds_or_is_missed(text, value, is_met):
    assert (missed(parse_bars([text], ROWS), {"full": value}) == []) == is_met


def test_a_bar_on_a_policy_covers_all_its_capacities():
    bars = parse_bars(["morphkv>=0.8"], ROWS)
    assert missed(bars, {"full": 0.0, "morphkv@256": 0.7, "morphkv@512": 0.9}) == [
        "morphkv@256 must be >= 0.8, got 0.700"
    ]


def test_a_bar_on_one_row_leaves_the_others_alone():
    bars = parse_bars(["morphkv@512>=0.8"], ROWS)
    assert missed(bars, {"morphkv@256": 0.1, "morphkv@512": 0.9}) == []


@pytest.mark.parametrize("text", ["full", "full=1", ">=0.5", "full>=high"])
def test_what_is_no_bar_is_refused(text):
    with pytest.raises(ValueError, match=r"a requirement must look like 'full>=0\.80'"):
        parse_bars([text], ROWS)


def test_a_bar_that_could_never_fail_is_refused():
    with pytest.raises(ValueError, match=r"must speak of one of full, morphkv@256.*got 'random<0\.4'"):
        parse_bars(["random<0.4"], ROWS)
