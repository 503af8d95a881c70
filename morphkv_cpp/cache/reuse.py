"""How much of a prompt is in the cache: the rule for histories that come back as text.

A history that is tokenized anew may differ from the tokens that were sampled. What counts is the longest common prefix:
where it ends among the recent tokens, the cache is rolled back to it and goes on; else all is evaluated again. A model
with recurrent layers is rolled back to the mark that the last prompt set before its last token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from .live import Live, TokenIds
from .stats import CacheStats


@dataclass(frozen=True)
class PromptReuse:
    """How much of a prompt was in the cache. Counts are in tokens."""

    n_prompt: int
    n_common: int  # first tokens that are the same as in the cache
    n_cached: int  # of these, the ones that are not evaluated again
    n_restored: int = 0  # of these, the ones that were gone back to by the archive: not the same bits as evaluated
    n_evictions: int = field(default=0, compare=False)  # of the text that was cached, so far
    n_evicted: int = field(default=0, compare=False)  # likewise, tokens per KV head

    @property
    def n_evaluated(self) -> int:
        return self.n_prompt - self.n_cached

    @property
    def reprocessed(self) -> bool:
        """The cache knew the prompt's start, but had evicted some of it: all was evaluated again."""
        return self.n_cached == 0 and min(self.n_common, self.n_prompt - 1) > 0


def prompt_reuse(llm: Live, prompt: Sequence[int]) -> PromptReuse:
    """What llm.generate(prompt) will make of the cache as it is, without checkpoints. Nothing changes."""
    n_prompt, n_common = len(prompt), common_prefix(llm._input_ids, prompt)
    stats = llm.cache_stats()
    if n_common == n_prompt == llm.n_tokens and not llm._requires_eval:
        return PromptReuse(n_prompt, n_common, n_prompt, 0, stats.n_evictions, stats.n_evicted)
    # of a prompt that is known to its end, the last token is decoded again, for its logits
    n_cached = first_tokens_kept(stats, min(n_common, n_prompt - 1))
    evictions = (stats.n_evictions, stats.n_evicted) if n_cached > 0 else (0, 0)
    return PromptReuse(n_prompt, n_common, n_cached, 0, *evictions)


def first_tokens_kept(stats: CacheStats, n: int) -> int:
    """Of the text's first n tokens, how many stay where those behind are taken back."""
    if n > max(stats.complete_pos, 0):
        return n
    return stats.mark_pos if 0 < stats.mark_pos <= n else 0


def common_prefix(a: Sequence[int] | TokenIds, b: Sequence[int] | TokenIds) -> int:
    """Length of the longest common prefix."""
    n = min(len(a), len(b))
    differ = np.flatnonzero(np.asarray(a[:n]) != np.asarray(b[:n]))
    return int(differ[0]) if len(differ) else n
