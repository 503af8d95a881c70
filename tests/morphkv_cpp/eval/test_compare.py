"""Several caches on the same texts."""

import numpy as np
import pytest

from morphkv_cpp import MorphKV
from morphkv_cpp.eval.arms import Arm, parse_arms
from morphkv_cpp.eval.compare import Ordering, differences, parse_orderings, reference_arm, unmet

ARMS = parse_arms("full,recency,morphkv@512", MorphKV())


class TestOrderings:
    def test_the_better_one_stands_left(self):
        assert parse_orderings(["morphkv@512 < recency"], ARMS) == [Ordering("morphkv@512", "recency")]

    @pytest.mark.parametrize("text", ["full", "full>recency", "full<random", "full<full", "full<recency<morphkv@512"])
    def test_what_names_no_two_arms_is_refused(self, text):
        with pytest.raises(ValueError, match="must look like 'A<B' with two of full, recency, morphkv@512"):
            parse_orderings([text], ARMS)


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
