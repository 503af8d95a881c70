"""The one way from tokens to text. Each token is turned into bytes once, and only the newest bytes are looked at.

Bytes that belong to no character are left out, as llama_cpp does.
"""

from __future__ import annotations

import codecs
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

# A character has at most 4 bytes: whoever has waited for three more tokens waits for none.
N_WAIT_MOST = 3
# Tokens shown together at most, though each may end inside a character: a model that repeats itself might never stop.
N_UNIT_MOST = 64


def utf8_decoder() -> codecs.IncrementalDecoder:
    """Gives a character once its last byte has come; bytes that belong to none are left out."""
    return codecs.getincrementaldecoder("utf-8")("ignore")


class TokenText:
    """Text of tokens as they come; a character whose bytes are spread over several tokens is held back until whole."""

    def __init__(self, piece_of: Callable[[int], bytes]):
        self._piece_of = piece_of
        self._decoder = utf8_decoder()

    def __call__(self, token: int) -> str:
        return self._decoder.decode(self._piece_of(token))


class AnswerText:
    """All bytes of an answer; whether they end inside a character, and where a stop text begins."""

    def __init__(self, stops: Sequence[bytes]):
        self._text = bytearray()
        self._stops = stops
        self._n_searched = 0  # bytes that have been searched for stop texts
        self._n_wait = 0
        self._n_waited = 0  # tokens in a row

    @property
    def n_bytes(self) -> int:
        return len(self._text)

    def add(self, piece: bytes) -> None:
        self._text += piece

    def decode(self, end: int | None) -> str:
        """The first `end` bytes as text; None: all. Bytes that belong to no character are left out."""
        return self._text[:end].decode("utf-8", errors="ignore")

    def waits(self) -> bool:
        """Whether nothing is decided before the next token, as the text ends inside a character; once per token.

        It is llama_cpp's rule, on which the number of tokens in an answer depends: it waits for as many tokens as
        bytes were missing, even if fewer brought them, and sees no open character in a text of one or two bytes.
        But it waits on and on, past max_tokens, where each token leaves a character open.
        """
        for i, byte in enumerate(self._text[-3:]):
            n_seen = 3 - i
            for n_bytes, lead in ((2, 0xC0), (3, 0xE0), (4, 0xF0)):
                if n_bytes > n_seen and byte & lead == lead:
                    self._n_wait = n_bytes - n_seen
        if self._n_wait == 0 or self._n_waited == N_WAIT_MOST:
            self._n_waited = 0
            return False
        self._n_wait -= 1
        self._n_waited += 1
        return True

    def find_stops(self) -> list[int]:
        """Where each stop text that is in the text begins, in the order in which they were given."""
        found = []
        for stop in self._stops:
            first = max(0, self._n_searched + 1 - len(stop)) if stop else 0
            found.append(self._text.find(stop, first))
        self._n_searched = len(self._text)
        return [i for i in found if i >= 0]

    def n_held(self, n_shown: int) -> int:
        """Bytes at the end that may become a stop text, of those behind the first n_shown."""
        n_longest = max(map(len, self._stops), default=0)
        tail = self._text[max(n_shown, len(self._text) - n_longest) :]
        starts = (stop[:n] for stop in self._stops for n in range(1, min(len(stop), len(tail)) + 1))
        return max((len(start) for start in starts if tail.endswith(start)), default=0)


class _Token(NamedTuple):
    piece: bytes
    end: int  # in the answer's bytes
    note: Any


class TokenQueue:
    """Tokens on their way to the reader of a stream: as many at a time as make whole characters, or each alone.

    What is shown, put together, is the text that its bytes give when decoded at once.
    """

    def __init__(self, each_alone: bool):
        self.n_shown = 0  # bytes
        self._each_alone = each_alone
        self._n_bytes = 0
        self._tokens: deque[_Token] = deque()
        self._units: deque[tuple[int, int]] = deque()  # of the tokens: how many make whole characters, and their end
        self._n_open = 0  # tokens behind the last unit
        self._arrived = utf8_decoder()
        self._shown = utf8_decoder()

    def add(self, piece: bytes, note: Any = None) -> None:
        self._n_bytes += len(piece)
        self._tokens.append(_Token(piece, self._n_bytes, note))
        self._n_open += 1
        self._arrived.decode(piece)
        ends_inside = bool(self._arrived.getstate()[0])
        if self._each_alone or not ends_inside or self._n_open == N_UNIT_MOST:
            self._units.append((self._n_open, self._n_bytes))
            self._n_open = 0

    def take(self, end: int) -> Iterator[tuple[str, Any]]:
        """Text and note of each unit within the answer's first `end` bytes; they leave the queue."""
        while self._units and self._units[0][1] <= end:
            n_tokens, self.n_shown = self._units.popleft()
            tokens = [self._tokens.popleft() for _ in range(n_tokens)]
            yield self._shown.decode(b"".join(token.piece for token in tokens)), tokens[-1].note

    def rest(self, end: int) -> Iterator[tuple[str, Any]]:
        """Text and note of every token up to the one with the answer's last byte, `end`."""
        for token in self._tokens:
            n_more = max(0, token.end - end)
            yield self._shown.decode(token.piece[: max(0, len(token.piece) - n_more)]), token.note
            if token.end >= end:
                return
