"""What Llama.eval makes of tokens with MorphKV: where a prompt begins, and when the archive is asked."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .. import bridge
from .archive import Archive, Recall
from .checkpoints import Checkpoints
from .live import Live, TokenIds
from .live_text import LiveText


@dataclass(frozen=True, eq=False)
class Asked:
    """A prompt that has been read to its end."""

    ids: TokenIds
    archive: Archive  # as it was set
    n_recalls: int  # of the text so far

    def has(self, llm: Live, last: Sequence[int]) -> bool:
        """Whether this is what the cache holds with the last token behind it, and what it asks for was recalled."""
        return (
            len(last) == 1
            and llm.n_tokens + 1 == len(self.ids)
            and last[0] == self.ids[-1]
            and llm.archive == self.archive
            and llm.cache_stats().n_recalls >= self.n_recalls
            and np.array_equal(llm._input_ids, self.ids[:-1])
        )


class Evals:
    """What one Llama remembers between two evals."""

    def __init__(self, checkpoints: Checkpoints) -> None:
        self.checkpoints = checkpoints
        self.texts: weakref.WeakSet[LiveText] = weakref.WeakSet()  # of sessions
        self.prompt_comes = False  # the next tokens are a prompt's
        self._is_whole = False  # the prompt is a text from its beginning, and may come again
        self._drawn: tuple[int, int] | None = None  # position and id of the token that was sampled last
        self._asked: Asked | None = None  # with an archive, the last prompt that was a whole text

    def expect_prompt(self, is_whole: bool) -> None:
        self.prompt_comes, self._is_whole = True, is_whole

    def drew(self, position: int, token: int) -> None:
        self._drawn = (position, token)

    def eval(self, llm: Live, tokens: Sequence[int]) -> None:
        """Decode tokens; before the last of a prompt, recall what it asks for, and mark where its answer begins.

        A prompt that was asked last, and of which all but the last token is there, has nothing new to ask for: its
        answer begins where the first one did.

        An answer's last token is left to be decoded with what comes next, unless Ctrl-C came late. So it is decoded
        alone in any case: evictions and recalls then come where they would have come, had the answer gone on.
        """
        if not self.prompt_comes or len(tokens) == 0:
            self._write(llm, tokens)
            return
        self.prompt_comes = False
        if len(tokens) > 1 and self._begins_with_answer(llm, tokens):
            self._write(llm, tokens[:1])
            tokens = tokens[1:]
        is_known = self._is_whole and self._asked is not None and self._asked.has(llm, tokens)
        llm.last_recalls = _eval_prompt(llm, tokens, asks=not is_known)
        if self._is_whole:
            if llm.archive is not None:
                self._asked = Asked(llm._input_ids.copy(), llm.archive, llm.cache_stats().n_recalls)
            self.checkpoints.make(llm)

    def _begins_with_answer(self, llm: Live, tokens: Sequence[int]) -> bool:
        return self._drawn == (llm.n_tokens, tokens[0]) and not llm._is_end(tokens[0])

    def _write(self, llm: Live, tokens: Sequence[int]) -> None:
        n_before = llm.n_tokens
        if llm.archive is not None and llm.archive.recall == "auto":
            if len(tokens) == 1 or llm._has_drafts:
                llm._recall_while_writing()
            llm.decode(tokens)
            return
        try:
            llm.decode(tokens)
        finally:
            # Ctrl-C may have come behind the decoding: what was to follow it does.
            if llm.n_tokens == n_before + len(tokens) and self._asks_between(llm, n_before):
                llm._recall()

    def _asks_between(self, llm: Live, n_before: int) -> bool:
        """By positions alone, so that it does not matter how the text came to be."""
        if llm.archive is None or llm.morphkv is None or isinstance(llm.archive.recall, str):
            return False
        n_period = llm.archive.recall * llm.morphkv.interval
        return n_before // n_period < llm.n_tokens // n_period


def _eval_prompt(llm: Live, tokens: Sequence[int], asks: bool) -> list[Recall]:
    """Decode a prompt's new part, as the native library says: with an archive, before its last token, recall what it
    asks for, decode its end again, and recall again.
    """
    archive = None if not asks or llm.archive is None or llm.archive.recall == "off" else llm.archive
    n_redo, settings = (0, {}) if archive is None else (archive.redo, archive.recall_settings())
    n_past = llm.n_tokens
    n_tokens = n_past + len(tokens)
    prompt = bridge.Prompt(n_past, n_tokens, min(n_redo, len(tokens)), recalls=archive is not None)
    recalls, n_end = [], n_past
    while n_end < n_tokens:
        n_back, n_end, recalled = prompt.next(llm.ctx, llm.n_tokens, **settings)
        if recalled is not None:
            recalls.append(llm._recalled(recalled))
        llm.n_tokens -= n_back
        if llm.n_tokens < n_end:
            _read(llm, tokens[llm.n_tokens - n_past : n_end - n_past])
    return recalls


def _read(llm: Live, tokens: Sequence[int]) -> None:
    """Decode; where somebody wants to know how far it is, in the batches that it is decoded in anyway."""
    if llm.progress is None or len(tokens) <= llm.n_batch:
        llm.decode(tokens)
        return
    for start in range(0, len(tokens), llm.n_batch):
        llm.decode(tokens[start : start + llm.n_batch])
        llm.progress(min(start + llm.n_batch, len(tokens)), len(tokens))
