"""An answer as Session.say gives it: pieces that come when they are read."""

from __future__ import annotations

import sys
import warnings
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator, Iterator

from ..cache.worker import Worker


class Reply(Iterator[str]):
    """Pieces of an answer. The question is asked when the first one is read; a reply that nobody reads warns."""

    def __init__(self, pieces: Generator[str, None, None], call: str):
        self._pieces = pieces
        self._call = call
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
            _warn(self._call, f"for piece in chat.{self._call.partition('(')[0]}(...)", 4)
        self._pieces.close()

    def __del__(self) -> None:
        if not sys.is_finalizing():
            self.leave()


class AsyncReply(AsyncIterator[str]):
    """The same for `async for`; the pieces are written in the Llama's own thread."""

    def __init__(self, worker: Worker, ask: Callable[[], Reply], call: str):
        self._pieces: AsyncGenerator[str, None] = worker.stream(ask)
        self._call = call
        self._is_noticed = False

    async def __anext__(self) -> str:
        self._is_noticed = True
        return await self._pieces.__anext__()

    async def aclose(self) -> None:
        """End the answer here; it stays in the chat as far as it came."""
        self._is_noticed = True
        await self._pieces.aclose()

    def __del__(self) -> None:
        if not self._is_noticed and not sys.is_finalizing():
            _warn(self._call, f"async for piece in chat.{self._call.partition('(')[0]}(...)", 3)


def _warn(call: str, loop: str, stacklevel: int) -> None:
    warnings.warn(
        f"{call} was not asked, because its answer was not read: use `{loop}`", RuntimeWarning, stacklevel=stacklevel
    )
