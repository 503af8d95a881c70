"""Several caches on the same texts."""

import numpy as np
import pytest

from morphkv_cpp import MorphKV
from morphkv_cpp.eval.arms import Arm, parse_arms
from morphkv_cpp.eval.compare import (
    Bound,
    Ordering,
    by_position,
    differences,
    exceeded,
    parse_bounds,
    parse_orderings,
    reference_arm,
    unmet,
)

ARMS = parse_arms("full,recency,morphkv@512", MorphKV())


class TestOrderings:
    def test_the_better_one_stands_left(self):
        assert parse_orderings(["morphkv@512 < recency"], ARMS) == [Ordering("morphkv@512", "recency")]

    @pytest.mark.parametrize("text", ["full", "full>recency", "full<random", "full<full", "full<recency<morphkv@512"])
    def test_what_names_no_two_arms_is_refused(self, text):
        with pytest.raises(ValueError, match="must look like 'A<B' with two of full, recency, morphkv@512"):
            parse_orderings([text], ARMS)


class TestBounds:
    def test_the_factor_stands_before_the_other(self):
        assert parse_bounds(["full < 1.05*recency"], ARMS) == [Bound("full", 1.05, "recency")]

    @pytest.mark.parametrize("text", ["full<recency", "full<1.05*random", "full<x*recency", "full"])
    def test_what_is_no_bound_is_refused(self, text):
        with pytest.raises(ValueError, match=r"must look like 'A<1\.05"):
            parse_bounds([text], ARMS)

    def test_it_must_hold_in_every_row_behind_the_skipped_ones(self):
        values = {"a": [np.array([9.0, 9, 1, 1, 1, 1])], "b": [np.array([1.0, 1, 1, 1, 1.2, 1.2])]}
        rows = by_position(values, 2)
        assert [row[:2] for row in rows] == [(1, 2), (2, 4), (4, 6), (6, 7)]
        assert rows[2][2] == pytest.approx({"a": np.e, "b": np.exp(1.1)})
        assert exceeded([Bound("a", 1.01, "b")], rows, n_skip=4) == []
        sentences = exceeded([Bound("a", 1.01, "b"), Bound("b", 1.01, "a")], rows, n_skip=4)
        assert [sentence.split(" at ")[-1] for sentence in sentences] == ["4..5", "6..6"]


def test_the_reference_is_what_ranks_by_attention():
    assert reference_arm(ARMS).name == "morphkv@512"
    assert reference_arm(ARMS[:2]).name == "full"
    assert reference_arm([Arm("a", MorphKV(policy="random"))]).name == "a"


@pytest.fixture
def values():
    """Two texts; `b` is worse than `a` everywhere, `c` only as often as it is better."""
    rng = np.random.default_rng(0)
    a = [rng.normal(size=1024) for _ in range(2)]
    b = [v + 0.1 + 0.01 * rng.normal(size=1024) for v in a]
    c = [v + rng.normal(size=1024) for v in a]
    return {"a": a, "b": b, "c": c}


def test_differences_are_from_the_reference(values):
    found = differences(values, "a", 0)
    assert list(found) == ["b", "c"]
    assert found["b"].mean == pytest.approx(0.1, abs=0.005)


def test_only_what_exceeds_the_noise_counts(values):
    assert unmet([Ordering("a", "b")], values, 0) == []
    assert unmet([Ordering("b", "a")], values, 0)[0].startswith("b<a must hold by 2 standard errors, got -0.1")
    assert len(unmet([Ordering("a", "c"), Ordering("c", "a")], values, 0)) == 2
