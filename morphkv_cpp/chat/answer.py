"""An answer of a session while it is being written."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

from ..text.pieces import AnswerText, TokenQueue


class Answer:
    """Its text in pieces of whole characters, and why it ends, which is at n_most tokens at the latest.

    The text is what create_completion makes of the same tokens and stop strings.
    """

    def __init__(self, piece_of: Callable[[int], bytes], stop: Iterable[str], n_most: int):
        self._piece_of = piece_of
        self._n_most = n_most
        self._text = AnswerText([text.encode() for text in stop if text])
        self._queue = TokenQueue(each_alone=False)
        self._end: int | None = None  # where a stop string begins, in bytes
        self._piece = ""
        self._starts: list[int] = []  # of each token: bytes before it
        self._times_s: list[float] = []
        self.finish_reason: str | None = None

    @property
    def n_tokens(self) -> int:
        return len(self._starts)

    def add(self, token: int) -> None:
        self._times_s.append(time.perf_counter())
        self._starts.append(self._text.n_bytes)
        piece = self._piece_of(token)
        self._text.add(piece)
        self._queue.add(piece)
        if found := self._text.find_stops():
            self._end = min(found)
            self.end("stop")
        elif self.n_tokens == self._n_most:
            self.end("length")
        else:
            n_ready = self._text.n_bytes - self._text.n_held(self._queue.n_shown)
            self._piece += "".join(text for text, _ in self._queue.take(n_ready))

    def end(self, reason: str) -> None:
        end = self._text.n_bytes if self._end is None else self._end
        self._piece += "".join(text for text, _ in self._queue.rest(end))
        self.finish_reason = reason

    def take_piece(self) -> str:
        piece, self._piece = self._piece, ""
        return piece

    @property
    def text(self) -> str:
        """All of it so far."""
        return self._text.decode(self._end)

    @property
    def n_behind_stop(self) -> int:
        """Tokens at the end that belong to a stop string alone."""
        return 0 if self._end is None else sum(start >= self._end for start in self._starts)

    @property
    def rate_tok_s(self) -> float:
        return (self.n_tokens - 1) / (self._times_s[-1] - self._times_s[0]) if self.n_tokens > 1 else 0.0
