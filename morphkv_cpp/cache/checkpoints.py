"""Checkpoints of a text: states to go back to, where a prompt leaves the text at a place that is evicted in part."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .. import bridge
from .live import Live, TokenIds
from .reuse import PromptReuse, common_prefix, prompt_reuse

logger = logging.getLogger("morphkv_cpp")

N_DEFAULT = 32  # as llama-server's --ctx-checkpoints was when this was written
MAX_BYTES = 2**30  # of all checkpoints together
N_APART = 64  # tokens; to evaluate fewer again costs less than a checkpoint


@dataclass(frozen=True, eq=False)
class Checkpoint:
    ids: TokenIds  # of the tokens that it holds
    state: bytes  # of them, without an archive's pages
    complete_pos: int  # as in CacheStats
    n_archived: int  # as in CacheStats

    def n_cached(self, prompt: TokenIds) -> int:
        """First tokens of a prompt that need not be evaluated from here; its last one always is."""
        n = min(common_prefix(self.ids, prompt), len(prompt) - 1)
        return n if n > max(self.complete_pos, 0) or n == len(self.ids) else 0


class Checkpoints:
    """The newest n_max checkpoints, and of these as many as fit in max_bytes. One that is gone back to stays.

    Each is as large as the cells in use when it was made, however long the text. With an archive, a checkpoint holds
    none of its pages: it is one of the text in the archive, which goes back with it. What was archived behind it is
    gone then, and so are the checkpoints of that.
    """

    def __init__(self, n_max: int, max_bytes: int = MAX_BYTES):
        if isinstance(n_max, bool) or not isinstance(n_max, int) or n_max < 0:
            raise ValueError(f"ctx_checkpoints must be an integer of at least 0, got {n_max!r}")
        self.n_max, self._max_bytes = n_max, max_bytes
        self._all: list[Checkpoint] = []  # the newest is the last

    def __len__(self) -> int:
        return len(self._all)

    @property
    def n_bytes(self) -> int:
        return sum(len(one.state) + one.ids.nbytes for one in self._all)

    def begin(self, llm: Live, prompt: Sequence[int]) -> PromptReuse:
        """Have the cache hold as much of a prompt as can be had, and nothing else, and make a checkpoint of that.

        After a reset() nothing can be had. A prompt with images (ids below 0) has been evaluated by its chat handler.
        """
        if llm.n_tokens == 0:
            self._all.clear()  # as reset() says
        reuse = prompt_reuse(llm, prompt)
        if min(prompt, default=0) < 0:
            return reuse
        if self._go_back(llm, np.asarray(prompt), reuse.n_cached):
            reuse = prompt_reuse(llm, prompt)
        if 0 < reuse.n_cached < llm.n_tokens:
            llm._ctx.kv_cache_seq_rm(-1, reuse.n_cached, -1)
            llm.n_tokens, llm._requires_eval = reuse.n_cached, True
        if reuse.n_cached > 0:
            self.make(llm)
        return reuse

    def make(self, llm: Live) -> None:
        """One of the text as it is, unless one of its last N_APART tokens has one."""
        ids, stats = llm._input_ids, llm.cache_stats()
        if self.n_max == 0 or len(ids) <= N_APART or stats.logical_pos + 1 != len(ids) or ids.min() < 0:
            return
        if any(len(ids) - N_APART <= len(one.ids) == common_prefix(one.ids, ids) for one in self._all):
            return
        try:
            state = bridge.checkpoint(llm.ctx)
        except bridge.NativeError as error:
            logger.warning("no checkpoint after %d tokens: %s", len(ids), error)
            return
        self._all.append(Checkpoint(ids.copy(), state, stats.complete_pos, stats.n_archived))
        while len(self._all) > self.n_max or self.n_bytes > self._max_bytes:
            del self._all[0]

    def _go_back(self, llm: Live, prompt: TokenIds, n_cached: int) -> bool:
        """Give the cache the checkpoint that saves most of the prompt, if that is N_APART tokens more than n_cached, or
        where an answer is asked for again and an eviction or a recall has come since it began.
        """
        stats = llm.cache_stats()
        is_changed = 0 < n_cached == len(prompt) - 1 and n_cached < stats.exact_pos and stats.mark_pos < 0
        n_least = n_cached if is_changed else n_cached + N_APART + 1
        self._all = [one for one in self._all if one.n_archived <= stats.n_archived]  # else of a text before this one
        while self._all:
            best = max(self._all, key=lambda one: one.n_cached(prompt))
            if best.n_cached(prompt) < n_least:
                break
            if self._set(llm, best):
                return True
            self._all.remove(best)
        return False

    def _set(self, llm: Live, one: Checkpoint) -> bool:
        try:
            bridge.set_checkpoint(llm.ctx, one.state)
        except bridge.NativeError as error:
            logger.info("a checkpoint of %d tokens cannot be gone back to: %s", len(one.ids), error)
            return False
        llm.n_tokens = len(one.ids)
        llm.input_ids[: len(one.ids)] = one.ids
        llm._requires_eval = True
        if llm.archive is None:
            return True
        # the archive knows one text
        self._all = [other for other in self._all if len(other.ids) <= len(one.ids)]
        if llm.cache_stats().n_archived == one.n_archived:
            return True
        logger.info("the archive is no longer of the text of a checkpoint of %d tokens", len(one.ids))
        llm._clear()
        llm.n_tokens = 0
        return False
