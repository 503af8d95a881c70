"""The thread in which a Llama's async calls run: one, and one call at a time."""

from __future__ import annotations

import threading
from collections.abc import AsyncGenerator, Callable, Iterator
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from .one_thread import OneThread

if TYPE_CHECKING:
    from concurrent.futures import ThreadPoolExecutor

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)
END: Any = object()


class Closable(Iterator[T_co], Protocol[T_co]):
    def close(self) -> None: ...


class Worker:
    """Runs calls for tasks of asyncio, in the order in which they come.

    A task that is cancelled ends its call at the next token, and waits for that: then the Llama is free. A prompt that
    is being evaluated is evaluated to its end first.
    """

    def __init__(self, one_thread: OneThread):
        self._one_thread = one_thread
        self._pool: ThreadPoolExecutor | None = None

    async def call(self, call: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        # they take a while to import, and most do without
        import asyncio
        from concurrent.futures import ThreadPoolExecutor

        if self._pool is None:
            self._pool = ThreadPoolExecutor(1, thread_name_prefix="morphkv")
        is_cancelled = threading.Event()

        def run() -> T:
            with self._one_thread.stopped_by(is_cancelled.is_set):
                return call(*args, **kwargs)

        future = self._pool.submit(run)
        result = asyncio.wrap_future(future)
        try:
            return await asyncio.shield(result)
        except asyncio.CancelledError:
            is_cancelled.set()
            if not future.cancel():
                await asyncio.wait([result])
            raise

    async def stream(self, begin: Callable[[], Closable[T]]) -> AsyncGenerator[T, None]:
        """Items of an iterator that a call gives; both run in the thread. Closing this one closes that one."""
        items = await self.call(begin)
        try:
            while (item := await self.call(next, items, END)) is not END:
                yield item
        finally:
            await self.call(items.close)

    def close(self) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=False)


async def awaited(worker: Worker, create: Callable[..., Any], *args: Any, stream: bool = False, **kwargs: Any) -> Any:
    """The result of a call that gives an answer, or with `stream` an async generator of its chunks."""
    if stream:
        return worker.stream(lambda: create(*args, stream=True, **kwargs))
    return await worker.call(create, *args, **kwargs)
