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
from .live import Live
from .reuse import PromptReuse, common_prefix, first_tokens_kept, prompt_reuse
from .stats import CacheStats


class LiveText:
    """A text that only grows at its end. Of several on one Llama, the cache is that of the last one to take it.

    The Llama calls `leave` before anything but this text changes the cache; then the state is saved, and `take` brings
    it back. So a state is copied only when another text takes the cache. Before `begin` there is no text, and what the
    cache holds is not its own.
    """

    def __init__(self, llm: Live):
        self.llm = llm
        self.begun = False
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

    def take_back(self, n: int) -> None:
        """Forget the last n tokens, as far as the cache can; nothing where another has it."""
        if self.is_orphan or not self.is_live:
            return
        self.settle()
        n_left = self.n_tokens - n
        if n <= 0:
            return
        if n_left >= self.n_held:
            # what is still ahead can go in any case
            del self.ahead[n_left - self.n_held :]
        elif n_kept := first_tokens_kept(self.llm.cache_stats(), n_left):
            self.ahead = self.llm.input_ids[n_kept:n_left].tolist()
            self.n_held = self.llm.n_tokens = n_kept
            if self.ahead:
                self.llm._ctx.kv_cache_seq_rm(-1, n_kept, -1)  # else they would be found there

    def mark(self) -> int | None:
        """This place of the text, for go_back; None before it has begun."""
        return self.n_tokens if self.begun else None

    def go_back(self, mark: int | None) -> bool:
        """Forget what came behind a mark; whether that could be, else nothing is forgotten."""
        if mark is None:
            self.begun, self.n_held, self.ahead = False, 0, []
            return True
        self.take_back(self.n_tokens - mark)
        return self.n_tokens == mark

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
        other = LiveText(self.llm)
        if self.begun:
            state = self.state()
            other.begun, other.n_held, other.ahead = True, state.n_tokens, self.ahead.copy()
            other._state, other._stats = state, self.stats()
        return other

    def restore(self, state: LlamaState, n_tokens: int, newest: np.ndarray, ahead: Sequence[int]) -> None:
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
        self.begun, self.n_held, self.ahead = True, n_tokens, list(ahead)
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
