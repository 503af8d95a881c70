"""What the comparison of the native cache with its twin lets pass, and what not."""

import numpy as np
import pytest

from support.reference import HeadCut, Rules
from support.twins import is_out_of_order

RULES = Rules(capacity=8, window=2, interval=4, keep=1)  # slots 0 to 5
SCORES = np.array([9, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.601, 0.7, 0.35])


@pytest.mark.parametrize(
    "kept, is_wrong",
    [
        ([0, 8, 7, 6, 4, 5], False),
        ([0, 8, 6, 7, 4, 5], False),  # 0.6 and 0.601 are a near-tie
        ([0, 7, 8, 6, 4, 5], True),
        ([0, 6, 7, 8, 4, 5], True),
    ],
)
def test_graduates_may_change_places_at_a_near_tie_only(kept, is_wrong):
    cut = HeadCut(RULES, np.arange(10), SCORES, np.array([0, 8, 7, 6, 4, 5]), np.array(kept))
    assert is_out_of_order(cut, RULES) == is_wrong
