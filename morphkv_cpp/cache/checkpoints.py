"""Checkpoints of a text: states to go back to, where a prompt leaves the text at a place that is evicted in part."""

from __future__ import annotations

import itertools
import logging
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from .. import bridge
from .live import Live, TokenIds
from .restore import restore
from .reuse import PromptReuse, common_prefix, prompt_reuse

logger = logging.getLogger("morphkv_cpp")

N_DEFAULT = 32  # as llama-server's --ctx-checkpoints was when this was written
MAX_BYTES = 2**30  # of all checkpoints together
N_APART = 64  # tokens; to evaluate fewer again costs less than a checkpoint
NUMBERS = itertools.count()


@dataclass(frozen=True, eq=False)
class Checkpoint:
    ids: TokenIds  # of the tokens that it holds
    state: bytes  # of them, without an archive's pages
    complete_pos: int  # as in CacheStats
    n_archived: int  # as in CacheStats
    number: int = field(default_factory=NUMBERS.__next__)  # of a newer one it is higher

    @property
    def n_bytes(self) -> int:
        return len(self.state) + self.ids.nbytes

    def n_cached(self, prompt: TokenIds) -> int:
        """First tokens of a prompt that need not be evaluated from here; its last one always is."""
        n = min(common_prefix(self.ids, prompt), len(prompt) - 1)
        return n if n > max(self.complete_pos, 0) or n == len(self.ids) else 0


class Checkpoints:
    """The newest n_max checkpoints, and of these as many as fit in max_bytes. One that is gone back to stays.

    Each is as large as the cells in use when it was made, however long the text. With an archive, a checkpoint holds
    none of its pages: it is one of the text in the archive, which goes back with it. What was archived behind it is
    gone then, and so are the checkpoints of that.

    A Llama's completions have one such list, and each of its sessions (`another`); the limits hold for all together.
    """

    def __init__(self, n_max: int, max_bytes: int = MAX_BYTES):
        if isinstance(n_max, bool) or not isinstance(n_max, int) or n_max < 0:
            raise ValueError(f"ctx_checkpoints must be an integer of at least 0, got {n_max!r}")
        self.n_max, self._max_bytes = n_max, max_bytes
        self._all: list[Checkpoint] = []  # the newest is the last
        self._lists = weakref.WeakSet([self])  # of the same Llama

    def __len__(self) -> int:
        return len(self._all)

    @property
    def n_bytes(self) -> int:
        return sum(one.n_bytes for one in self._all)

    def another(self) -> Checkpoints:
        """For another text of the same Llama."""
        other = Checkpoints(self.n_max, self._max_bytes)
        other._lists = self._lists
        self._lists.add(other)
        return other

    def copy(self) -> Checkpoints:
        """Of the same text, for a copy of it."""
        other = self.another()
        other._all = self._all.copy()
        return other

    def become(self, other: Checkpoints) -> None:
        self._all = other._all.copy()

    def clear(self) -> None:
        self._all.clear()

    def add(self, one: Checkpoint) -> None:
        self._all.append(one)
        self._make_room()

    def before(self, ids: TokenIds, n: int) -> Checkpoint | None:
        """The longest of at most the first n of these tokens."""
        fits = (one for one in self._all if len(one.ids) <= n and common_prefix(one.ids, ids) == len(one.ids))
        return max(fits, key=lambda one: len(one.ids), default=None)

    def n_known(self, llm: Live, prompt: Sequence[int]) -> int:
        """First tokens of a prompt that begin() would have without an archive."""
        ids = np.asarray(prompt, dtype=np.intc)
        return max(prompt_reuse(llm, prompt).n_cached, self._n_cached(llm, ids) if llm.n_tokens > 0 else 0)

    def begin(self, llm: Live, prompt: Sequence[int]) -> PromptReuse:
        """Have the cache hold as much of a prompt as can be had, and nothing else, and make a checkpoint of that.

        After a reset() nothing can be had. A prompt with images (ids below 0) has been evaluated by its chat handler.
        """
        if llm.n_tokens == 0:
            self._all.clear()  # as reset() says
        reuse = prompt_reuse(llm, prompt)
        if min(prompt, default=0) < 0:
            return reuse
        ids = np.asarray(prompt, dtype=np.intc)
        n_cached = max(reuse.n_cached, self._n_cached(llm, ids))
        restored = restore(llm, prompt, n_cached)
        if restored is not None:
            self.make(llm)
            return restored
        self._go_back(llm, ids, reuse.n_cached)
        reuse = prompt_reuse(llm, prompt)
        if 0 < reuse.n_cached < llm.n_tokens:
            llm._ctx.kv_cache_seq_rm(-1, reuse.n_cached, -1)
            llm.n_tokens, llm._requires_eval = reuse.n_cached, True
        if reuse.n_cached > 0:
            self.make(llm)
        return reuse

    def make(self, llm: Live, n_apart: int = N_APART, has_media: bool = False) -> None:
        """One of the text as it is, unless one of its last n_apart tokens has one; has_media: images are no matter."""
        ids, stats = llm._input_ids, llm.cache_stats()
        if self.n_max == 0 or len(ids) <= n_apart or stats.logical_pos + 1 != len(ids):
            return
        if ids.min() < 0 and not has_media:
            return
        if any(len(ids) - n_apart <= len(one.ids) == common_prefix(one.ids, ids) for one in self._all):
            return
        try:
            state = bridge.checkpoint(llm.ctx)
        except bridge.NativeError as error:
            logger.warning("no checkpoint after %d tokens: %s", len(ids), error)
            return
        self.add(Checkpoint(ids.copy(), state, stats.complete_pos, stats.n_archived))

    def _make_room(self) -> None:
        lists = list(self._lists)
        # copies of a text share them
        held = {one.number: one for other in lists for one in other._all}
        n_bytes = sum(one.n_bytes for one in held.values())
        for number in sorted(held):
            if len(held) <= self.n_max and n_bytes <= self._max_bytes:
                break
            n_bytes -= held.pop(number).n_bytes
        for other in lists:
            other._all = [one for one in other._all if one.number in held]

    def longest(self, n: int) -> int:
        """How many of a text's first n tokens can be had by back_to(), where all are of one text; 0: none."""
        best = self._best(n)
        return 0 if best is None else min(len(best.ids), n)

    def _best(self, n: int) -> Checkpoint | None:
        """The longest of at most n tokens, or a longer one whose end can be taken back, where that is much more."""
        best = max((one for one in self._all if len(one.ids) <= n), key=lambda one: len(one.ids), default=None)
        if n - (0 if best is None else len(best.ids)) > N_APART:
            longer = (one for one in self._all if len(one.ids) > n > max(one.complete_pos, 0))
            best = next(longer, best)
        return best

    def forget(self, n: int) -> None:
        """Drop those of more than n tokens."""
        self._all = [one for one in self._all if len(one.ids) <= n]

    def back_to(self, llm: Live, n: int) -> int:
        """Give the cache one of the text's first n tokens, and drop those of more, where all are of one text.

        How many tokens it then has; 0 where there is none, and the cache may be empty.
        """
        n_held = 0
        while n_held == 0 and (best := self._best(n)) is not None:
            if self._set(llm, best) and (len(best.ids) <= n or llm._ctx.kv_cache_seq_rm(-1, n, -1)):
                n_held = llm.n_tokens = min(len(best.ids), n)
            else:
                self._all = [one for one in self._all if one is not best]
        self.forget(n)
        return n_held

    def _n_cached(self, llm: Live, prompt: TokenIds) -> int:
        """First tokens of a prompt that need not be evaluated from a checkpoint."""
        n_archived = llm.cache_stats().n_archived
        self._all = [one for one in self._all if one.n_archived <= n_archived]  # else of a text before this one
        return max((one.n_cached(prompt) for one in self._all), default=0)

    def _go_back(self, llm: Live, prompt: TokenIds, n_cached: int) -> bool:
        """Give the cache the checkpoint that saves most of the prompt, if that is N_APART tokens more than n_cached, or
        where an answer is asked for again and an eviction or a recall has come since it began.
        """
        stats = llm.cache_stats()
        is_changed = 0 < n_cached == len(prompt) - 1 and n_cached < stats.exact_pos and stats.mark_pos < 0
        n_least = n_cached if is_changed else n_cached + N_APART + 1
        while self._n_cached(llm, prompt) >= n_least:
            best = max(self._all, key=lambda one: one.n_cached(prompt))
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
