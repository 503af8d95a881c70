"""Presses of kvpress, as they are given to its DecodingPress.

Its scorers are written for a prompt that is cut once. Where it is cut again and again, three things would weaken them:
the cells that a press keeps stand in the order of their scores, which hides from the next cut what is old and what is
first; ExpectedAttentionPress takes the newest queries to be at the beginning of the text; ObservedAttentionPress
divides by queries that are long gone. All three are put right here. The scores are kvpress's own.

The module needs the extra `peers`.
"""

from __future__ import annotations

from typing import Any

import torch
from kvpress import (
    ExpectedAttentionPress,
    ObservedAttentionPress,
    ScorerPress,
    SnapKVPress,
    StreamingLLMPress,
)

N_WINDOW = 32  # of SnapKV: queries that vote. kvpress wants fewer than there are between two cuts


class InOrder(ScorerPress):
    """Keeps the order of the cells. Comes before a press of kvpress among a class's bases."""

    needs_attention = False  # as weights, which only the eager implementation gives
    n_again = 0  # newest cells that are left out, since their tokens are read once more
    n_before = 0  # position of the first of the newest tokens

    def compress(
        self, module: Any, hidden_states: Any, keys: Any, values: Any, attentions: Any, kwargs: dict[str, Any]
    ) -> tuple[Any, Any]:
        """keys, values: (1, n_heads, n_cells, n_dim)."""
        if self.compression_ratio == 0:
            return keys, values
        scores = self.score(module, hidden_states, keys, values, attentions, kwargs)
        n_cells = keys.shape[2]
        n_kept = int(n_cells * (1 - self.compression_ratio)) - self.n_again
        best = scores[..., : n_cells - self.n_again].topk(n_kept, dim=-1).indices.sort(dim=-1).values
        best = best.unsqueeze(-1)
        return (
            keys.gather(2, best.expand(-1, -1, -1, keys.shape[3])),
            values.gather(2, best.expand(-1, -1, -1, values.shape[3])),
        )


class SnapKV(InOrder, SnapKVPress):
    """Its votes are those of the newest queries alone."""


class H2O(InOrder, ObservedAttentionPress):
    """The mean attention that a cell had from the newest queries which saw it: those of one interval, not of all."""

    needs_attention = True

    def score(
        self, module: Any, hidden_states: Any, keys: Any, values: Any, attentions: Any, kwargs: dict[str, Any]
    ) -> Any:
        scores = super().score(module, hidden_states, keys, values, attentions, kwargs)
        n_after = torch.arange(keys.shape[2], 0, -1)
        # no more queries than there are now can have seen a cell
        return scores * n_after / n_after.clamp(max=attentions.shape[2])


class Expected(InOrder, ExpectedAttentionPress):
    def apply_avg_rope(self, module: Any, mu: Any, cov: Any, q_len: int) -> tuple[Any, Any]:
        return super().apply_avg_rope(module, mu, cov, self.n_before + q_len)  # type: ignore[no-any-return]


class Streaming(InOrder, StreamingLLMPress):
    """Keys stay as they were rotated."""


def press_of(method: str) -> InOrder:
    """For "full" any: it is not asked."""
    if method == "snapkv":
        return SnapKV(window_size=N_WINDOW)
    return {"h2o": H2O, "expected": Expected, "streaming": Streaming, "full": Streaming}[method]()
