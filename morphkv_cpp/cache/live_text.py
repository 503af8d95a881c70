"""A text that lives in a Llama's cache, and steps aside when the cache is used for another."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from llama_cpp import LlamaState

from .. import bridge
from ..errors import SessionEndedError
from . import saved_state
from .checkpoints import N_APART, Checkpoints
from .live import Live
from .restore import restore_start
from .reuse import PromptReuse, common_prefix, first_tokens_kept, prompt_reuse
from .stats import CacheStats


class LiveText:
    """A text that grows at its end, and goes back. Of several on one Llama, the cache is that of the last to take it.

    The Llama calls `leave` before anything but this text changes the cache; then the state is saved, and `take` brings
    it back. So a state is copied only when another text takes the cache. Before `begin` there is no text, and what the
    cache holds is not its own.
    """

    def __init__(self, llm: Live, checkpoints: Checkpoints):
        self.llm = llm
        self.checkpoints = checkpoints  # of this text alone
        self.begun = False
        self.n_keep = 0  # first tokens that are never evicted
        self.n_again = 0  # of the tokens ahead, those that were in the cache before the text went back
        self.n_restored = 0  # while there are such: tokens before them that came back by the archive
        # The text is the cache's first n_held tokens, then those ahead, which are still to be decoded.
        self.n_held = 0
        self.ahead: list[int] = []
        self._state: LlamaState | None = None  # while something else has the cache
        self._stats: CacheStats | None = None  # likewise
        self._works = False
        self._end: str | None = None  # why it cannot continue

    @property
    def n_tokens(self) -> int:
        return self.n_held + len(self.ahead)

    @property
    def is_live(self) -> bool:
        return self.llm._holder is not None and self.llm._holder() is self

    @property
    def is_orphan(self) -> bool:
        """Whether the Llama was closed."""
        return self.llm.ctx is None

    def take(self) -> None:
        """Make the cache this text's. Raises SessionEndedError if it cannot continue."""
        self.refuse_ended()
        if not self.is_live:
            self.llm._leave_text()
            if self._state is not None:
                saved_state.load_own(self.llm, self._state.llama_state)
                self.llm._set_text(self._state)
            self.llm._holder = weakref.ref(self)
            self._state = self._stats = None
        if self.begun:
            self.settle()
            self.refuse_ended()

    def leave(self) -> LlamaState | None:
        """Save the state, as the cache is about to change, and give it; nothing while this text itself is at work.

        Raises NativeError where it cannot be saved; the text then still has the cache.
        """
        if self._works:
            return None
        if self.begun:
            n_tokens = self.llm.n_tokens  # may be set for what comes next
            try:
                self.settle()
                self._state, self._stats = self.llm.save_state(), self.llm.cache_stats()
            finally:
                self.llm.n_tokens = n_tokens
        self.llm._holder = None
        return self._state

    def end(self, reason: str) -> None:
        """Give up the text; the cache stays as it is."""
        self._end, self._state = reason, None
        if self.is_live:
            self.llm._holder = None

    @property
    def is_needed(self) -> bool:
        """Whether it has begun, and can continue."""
        return self.begun and self._end is None

    def refuse_ended(self) -> None:
        end = "its Llama is closed" if self.is_orphan else self._end
        if end is not None:
            raise SessionEndedError(f"the session cannot continue: {end}")

    @contextlib.contextmanager
    def at_work(self) -> Iterator[None]:
        """What changes the cache in here is this text's own doing; what it left undone stays ahead."""
        try:
            self._works = True
            yield
        finally:
            self._works = False

    def begin(self, prompt: Sequence[int], n_keep: int) -> PromptReuse:
        """Start with a prompt, of which the cache may hold a part, and never evict the first n_keep tokens."""
        self.take()
        llm, stats = self.llm, self.llm.cache_stats()
        reuse = prompt_reuse(llm, prompt)
        n_held = max(min(reuse.n_cached, len(prompt) - 1), 0)
        if stats.n_evictions > 0 and n_keep > stats.keep:
            n_held = 0  # what is to be kept may be gone
        if not llm._ctx.kv_cache_seq_rm(-1, n_held, -1):
            n_held = 0  # the prompt is the text, and of that not even the last token can be taken back
            llm._clear()
        llm.n_tokens = n_held
        bridge.set_keep(llm.ctx, 0, n_keep)
        self.n_held, self.ahead, self.begun = n_held, list(prompt[n_held:]), True
        self.n_keep, self.n_again, self.n_restored = n_keep, 0, 0
        self.checkpoints.clear()
        return PromptReuse(len(prompt), reuse.n_common, n_held)

    def add_media(self, decode: Callable[[Any, int, int], None], n_batch: int) -> None:
        """Put an image behind the text, of which nothing may be ahead; decode: of context, position and n_batch."""
        llm = self.llm
        with self.at_work():
            llm._ctx.kv_cache_seq_rm(-1, self.n_held, -1)
            decode(llm.ctx, self.n_held, n_batch)
        llm.n_tokens = llm.cache_stats().logical_pos + 1
        # no token has the id -1
        llm.input_ids[self.n_held : llm.n_tokens] = -1
        llm._requires_eval = True
        self.n_held = llm.n_tokens

    def checkpoint(self, n_apart: int = 0) -> None:
        """One of this place to go back to, unless one of the last n_apart tokens has one."""
        if self.is_live and self.n_held > 0:
            self.checkpoints.make(self.llm, n_apart, has_media=True)

    def begin_anew(self) -> None:
        """Forget the text; what the cache holds of it may be of use to the next."""
        self.begun, self.n_held, self.n_again, self.n_restored, self.ahead = False, 0, 0, 0, []
        self.checkpoints.clear()

    def go_back(self, n: int) -> bool:
        """Let the text end behind its first n tokens; whether that can be, else nothing has changed.

        It can where the cache still has them all, or a checkpoint. Else the tokens behind the last checkpoint before,
        or all, are ahead once more, which needs their ids: there are none of images, and of what an old file left out.
        Of many of them the archive brings back all but the last 128.
        """
        self.take()
        if n >= self.n_held:
            del self.ahead[n - self.n_held :]
            self.n_again = min(self.n_again, max(len(self.ahead) - 1, 0))
            self.n_restored = self.n_restored if self.n_again > 0 else 0
            return True
        llm, stats = self.llm, self.llm.cache_stats()
        ids, n_held = llm.input_ids[:n].copy(), self.n_held
        n_kept, n_checkpoint = first_tokens_kept(stats, n), self.checkpoints.longest(n)
        unknown = np.flatnonzero(ids < 0)
        if max(n_kept, n_checkpoint) < (unknown[-1] + 1 if len(unknown) else 0):
            return False
        self.n_restored = restore_start(llm, n, max(n_kept, n_checkpoint))
        if llm.n_tokens < n_held and self.n_restored == 0:
            n_kept = 0  # the cache has been emptied
        # a checkpoint is exact; so are the recent tokens as far as exact_pos
        if self.n_restored > 0:
            n_kept = self.n_restored
            self.checkpoints.forget(n)
        elif n_kept > n_checkpoint + (0 if n_kept >= stats.exact_pos else N_APART):
            llm._ctx.kv_cache_seq_rm(-1, n_kept, -1)
            self.checkpoints.forget(n)
        else:
            n_kept = self.checkpoints.back_to(llm, n)
        if n_kept == 0:
            self._empty()
        if (ids[n_kept:] < 0).any():
            self.end(f"of its first {n} tokens, {n_kept} are left, and not all others can be evaluated again")
            self.refuse_ended()
        self.ahead = ids[n_kept:].tolist()
        self.n_again = max(min(n, n_held) - n_kept - 1, 0)  # an answer's last token is always decoded with what follows
        self.holds(ids[:n_kept])
        return True

    def change(self, n: int, tokens: Sequence[int], n_new: int = 0) -> bool:
        """Let these tokens follow the text's first n, the last n_new of them to be decoded; whether that can be.

        What is there already stays, as far as go_back() can.
        """
        self.take()
        behind = [*self.llm.input_ids[n : self.n_held].tolist(), *self.ahead[max(n - self.n_held, 0) :]]
        n_same = min(common_prefix(behind, tokens), max(len(tokens) - n_new, 0))
        if not self.go_back(n + n_same):
            return False
        self.ahead += tokens[n_same:]
        return True

    def _empty(self) -> None:
        self.llm._ctx.kv_cache_seq_rm(-1, 0, -1)
        bridge.set_keep(self.llm.ctx, 0, self.n_keep)
        self.checkpoints.clear()

    def holds(self, ids: np.ndarray) -> None:
        """The cache was given these first tokens of the text."""
        llm = self.llm
        self.n_held = llm.n_tokens = len(ids)
        llm.input_ids[: len(ids)] = ids
        llm._requires_eval = True

    def stats(self) -> CacheStats:
        """State of the text's cache, live or aside."""
        return self._stats or self.llm.cache_stats()

    def state(self) -> LlamaState:
        """To be restored with load_state; its n_tokens are those held."""
        if self._state is not None:
            return self._state
        self.take()
        return self.llm.save_state()

    def copy(self) -> LiveText:
        """The same text once more, aside."""
        other = LiveText(self.llm, self.checkpoints.copy())
        if self.begun:
            state = self.state()
            other.begun, other.n_held, other.ahead = True, state.n_tokens, self.ahead.copy()
            other.n_keep, other.n_again, other.n_restored = self.n_keep, self.n_again, self.n_restored
            other._state, other._stats = state, self.stats()
        return other

    def restore(self, state: LlamaState, n_tokens: int, newest: np.ndarray, ahead: Sequence[int], n_keep: int) -> None:
        """Start with a state that came without its token ids, and what is still to be decoded behind it.

        newest: ids of the last of the n_tokens; the others are unknown. Raises StateError where they do not fit; then
        the cache is as it was.
        """
        llm = self.llm
        saved_state.check(llm, state)
        if len(newest) > n_tokens:
            saved_state.refuse(f"of {n_tokens} tokens there cannot be {len(newest)} newest")
        before = llm._leave_text()
        saved_state.load(llm, state.llama_state, lambda n_cache: n_cache == n_tokens, before)
        llm._set_text(state)
        llm.n_tokens = n_tokens
        # no token has the id -1, so no prompt begins like it
        llm.input_ids[: n_tokens - len(newest)] = -1
        llm.input_ids[n_tokens - len(newest) : n_tokens] = newest
        self.begun, self.n_held, self.ahead, self.n_keep = True, n_tokens, list(ahead), n_keep
        llm._holder = weakref.ref(self)

    def settle(self) -> None:
        """Find out how much of the text the cache holds, whatever ended the last decoding."""
        n_cache = self.llm.cache_stats().logical_pos + 1
        if n_cache < self.n_held:
            self.end(f"its cache was emptied, {n_cache} of {self.n_held} tokens are left")
            return
        # behind the text there may be drafts that nobody took
        n_new = common_prefix(self.llm.input_ids[self.n_held : n_cache], self.ahead)
        self.n_held += n_new
        del self.ahead[:n_new]
        self.llm.n_tokens = self.n_held
