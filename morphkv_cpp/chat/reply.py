"""An answer as Session.say gives it: pieces that come when they are read."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Generator, Iterator


class Reply(Iterator[str]):
    """Pieces of an answer. The question is asked when the first one is read; a reply that nobody reads warns."""

    def __init__(self, pieces: Generator[str, None, None], question: str):
        self._pieces = pieces
        self._question = question
        self._is_noticed = False

    def __next__(self) -> str:
        self._is_noticed = True
        return next(self._pieces)

    def close(self) -> None:
        """End the answer here; it stays in the chat as far as it came."""
        self._is_noticed = True
        self._pieces.close()

    def leave(self) -> None:
        """As close(), when somebody else ends it."""
        if not self._is_noticed:
            self._is_noticed = True
            start = self._question if len(self._question) <= 40 else f"{self._question[:40]}..."
            warnings.warn(
                f"say({start!r}) was not asked, because its answer was not read: use `for piece in chat.say(...)`",
                RuntimeWarning,
                stacklevel=3,
            )
        self._pieces.close()

    def __del__(self) -> None:
        if not sys.is_finalizing():
            self.leave()
