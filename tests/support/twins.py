"""The native cache beside its NumPy twin: how close is close enough, and how choices are compared.

Flash attention accumulates values in f16, so a choice closer than TIE_TOLERANCE may fall the other way: such near-ties
are counted, the reference adopts the native set, and both go on.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from support.device import DEVICE
from support.reference import HeadCut, Rules

# Largest error of a logit; logits have a standard deviation of 1. Stock flash attention with a full cache is off by up
# to 0.006 from the same float64 model (by 0.000005 without flash attention, whose sums are f32).
LOGITS_TOLERANCE = 0.02
# Largest relative gap between two scores that may fall the other way. Errors as above turned gaps up to 0.003; about
# 0.3% of all choices were turned.
TIE_TOLERANCE = 0.01
TIE_SHARE = 0.02  # of all choices
# (logits, ties, share of ties) where K and V are q8_0: what rounds to another 8 bits differs by a hundredth.
# Measured, on the CPU and on lavapipe: up to 0.056, 0.04 and 0.08.
TOLERANCES = {"q8_0": (0.1, 0.05, 0.1)}
# The same on CUDA, which multiplies F32 weights as TF32: 10 bits, so that what attends is off by a part in a thousand
# before any vote.
CUDA_TOLERANCES = {"f16": (0.05, 0.05, 0.1), "q8_0": (0.2, 0.1, 0.2)}
REORDER_SHARE = 0.02  # of all moved tokens: their order has more near-ties than the set, and matters less


@dataclass
class Tally:
    """What a comparison saw. A choice is one cut in one head."""

    cache_type: str = "f16"
    n_cuts: int = 0
    n_choices: int = 0
    n_near_ties: int = 0
    n_moved: int = 0  # tokens that took a distant slot
    n_reordered: int = 0  # choices of the same set in other slots
    logits_error: float = 0.0

    @property
    def tolerances(self) -> tuple[float, float, float]:
        """Of logits, of ties, and of the share of ties."""
        if DEVICE is not None and DEVICE.startswith("CUDA"):
            return CUDA_TOLERANCES[self.cache_type]
        return TOLERANCES.get(self.cache_type, (LOGITS_TOLERANCE, TIE_TOLERANCE, TIE_SHARE))

    def __iadd__(self, other: Tally) -> Tally:
        self.n_cuts += other.n_cuts
        self.n_choices += other.n_choices
        self.n_near_ties += other.n_near_ties
        self.n_moved += other.n_moved
        self.n_reordered += other.n_reordered
        self.logits_error = max(self.logits_error, other.logits_error)
        return self

    def compare_cut(self, cut: list[list[HeadCut]], rules: Rules) -> None:
        """One cut by [layer][kv head], in which the reference has adopted what the native cache keeps."""
        self.n_cuts += 1
        for layer, heads in enumerate(cut):
            for i_head, head in enumerate(heads):
                where = f"cut {self.n_cuts}, layer {layer}, kv head {i_head}"
                self.n_choices += 1
                n_distant = head.rules.n_distant
                self.n_moved += int((head.kept >= n_distant).sum())
                stayed = head.kept[head.kept < n_distant]
                assert (head.kept[stayed] == stayed).all(), f"{where}: a token that stays must not change its slot"
                if rules.policy == "random":
                    continue
                if set(head.kept) != set(head.chosen):
                    gap = -head.kept_margin / head.worst_chosen
                    assert gap <= self.tolerances[1], f"{where}: other tokens kept, scores apart by {gap:.4f}"
                    self.n_near_ties += 1
                elif (head.kept != head.chosen).any():
                    assert not is_out_of_order(head, rules, self.tolerances[1]), (
                        f"{where}: the best graduates must take the worst slots"
                    )
                    self.n_reordered += 1

    def compare_logits(self, native, expected, where: str) -> None:
        error = float(abs(native - expected).max())
        assert error <= self.tolerances[0], f"{where}: off by {error:.4f}"
        self.logits_error = max(self.logits_error, error)

    def check(self, n_cuts: int) -> None:
        print(self)
        assert self.n_cuts >= n_cuts
        assert self.n_near_ties <= self.tolerances[2] * self.n_choices
        assert self.n_reordered <= self.tolerances[2] * self.n_moved


def is_out_of_order(head: HeadCut, rules: Rules, tolerance: float = TIE_TOLERANCE) -> bool:
    """Whether of two moved tokens the clearly better one took the slot of the clearly better token."""
    slots = np.flatnonzero(head.kept >= head.rules.n_distant)
    left, came = head.scores[slots], head.scores[head.kept[slots]]

    def is_above(scores: np.ndarray) -> np.ndarray:
        return scores[:, None] > scores[None, :] * (1 + tolerance)

    return bool((is_above(left) & is_above(came)).any())
