"""Writing token by token: what `generate`, the demo and its stock counterpart share.

Their loop is their own: stock llama_cpp.Llama.create_completion turns all tokens back into text at every token, which
would be timed with the cache.
"""

from __future__ import annotations

import codecs
import time
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import llama_cpp
import numpy as np

if TYPE_CHECKING:
    from ..llama import Llama


class BanTokens:
    """Logits processor: these tokens are never drawn."""

    def __init__(self, tokens: Iterable[int]):
        self.tokens = np.fromiter(tokens, dtype=np.int64)

    def __call__(self, input_ids: np.ndarray, scores: np.ndarray) -> np.ndarray:
        scores[self.tokens] = -np.inf
        return scores


class ForceTokens:
    """Logits processor: draws the given tokens in order, through the same sampler as free writing."""

    def __init__(self, tokens: Iterable[int]):
        self.tokens = iter(tokens)

    def __call__(self, input_ids: np.ndarray, scores: np.ndarray) -> np.ndarray:
        scores[:] = -np.inf
        scores[next(self.tokens)] = 0.0
        return scores


def end_tokens(llm: Llama) -> list[int]:
    """Every token that ends a generation."""
    vocab = llm._model.vocab
    return [token for token in range(llm.n_vocab()) if llama_cpp.llama_vocab_is_eog(vocab, token)]


def write(llm: Llama, prompt: list[int], n_predict: int, processors: Iterable = (), **sampling) -> Iterator[int]:
    """Tokens after the prompt: n_predict of them (-1: no limit), or fewer where one ends the text or n_ctx is full.

    `sampling` as in Llama.generate(). Raises ValueError for a prompt that leaves no place for an answer.
    """
    n_room = llm.n_ctx() - len(prompt)
    if not prompt or n_room < 1:
        raise ValueError(f"a prompt must have 1..{llm.n_ctx() - 1} tokens in this context, got {len(prompt)}")
    n_most = n_room if n_predict < 0 else min(n_predict, n_room)
    if n_most == 0:
        return
    ends = set(end_tokens(llm))
    processors = llama_cpp.LogitsProcessorList(processors)
    tokens = llm.generate(prompt, logits_processor=processors or None, **sampling)
    for i, token in enumerate(tokens, start=1):
        if token in ends:
            return
        yield token
        if i == n_most:
            return


class TokenText:
    """Text of tokens as they come; a character whose bytes are spread over several tokens is held back until whole."""

    def __init__(self, llm: Llama):
        self._llm = llm
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def __call__(self, token: int) -> str:
        return self._decoder.decode(self._llm._piece(token))

    def rest(self) -> str:
        """What is still held back at the end of the text."""
        return self._decoder.decode(b"", final=True)


class StopText:
    """Text up to the first of the stop strings; what may yet become one is held back."""

    def __init__(self, stop: Iterable[str]):
        self._stop = [text for text in stop if text]
        self._held = ""
        self.n_before = 0  # characters given out, which are those before the stop string once one was found
        self.found = False

    def __call__(self, text: str) -> str:
        """What can be shown after this text has come; nothing once a stop string was found."""
        if self.found:
            return ""
        self._held += text
        starts = [start for stop in self._stop if (start := self._held.find(stop)) >= 0]
        self.found = bool(starts)
        return self._give(min(starts) if starts else len(self._held) - self._n_perhaps())

    def rest(self) -> str:
        """What is still held back at the end of the text."""
        return "" if self.found else self._give(len(self._held))

    def _n_perhaps(self) -> int:
        """Characters at the end that may be the start of a stop string."""
        sizes = (n for stop in self._stop for n in range(len(stop) - 1, 0, -1) if self._held.endswith(stop[:n]))
        return max(sizes, default=0)

    def _give(self, n: int) -> str:
        text, self._held = self._held[:n], self._held[n:]
        self.n_before += n
        return text


class Answer:
    """An answer that is being written: its text in pieces, and why it ends, which is at n_most tokens at the latest."""

    def __init__(self, llm: Llama, stop: Iterable[str], n_most: int):
        self._n_most = n_most
        self._characters = TokenText(llm)
        self._text = StopText(stop)
        self._piece = ""
        self._n_characters = 0
        self._starts: list[int] = []  # of each token: characters before it
        self._times_s: list[float] = []
        self.finish_reason: str | None = None

    @property
    def n_tokens(self) -> int:
        return len(self._starts)

    def add(self, token: int) -> None:
        self._starts.append(self._n_characters)
        self._times_s.append(time.perf_counter())
        text = self._characters(token)
        self._n_characters += len(text)
        self._piece += self._text(text)
        if self._text.found:
            self.finish_reason = "stop"
        elif self.n_tokens == self._n_most:
            self.end("length")

    def end(self, reason: str) -> None:
        self._piece += self._text(self._characters.rest()) + self._text.rest()
        self.finish_reason = reason

    def take_piece(self) -> str:
        piece, self._piece = self._piece, ""
        return piece

    @property
    def n_behind_stop(self) -> int:
        """Tokens at the end that belong to a stop string alone."""
        return sum(start >= self._text.n_before for start in self._starts) if self._text.found else 0

    @property
    def rate_tok_s(self) -> float:
        return (self.n_tokens - 1) / (self._times_s[-1] - self._times_s[0]) if self.n_tokens > 1 else 0.0
