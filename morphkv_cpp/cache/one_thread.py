"""One Llama is for one thread at a time: another one gets a sentence at once, where llama.cpp would crash.

Methods are guarded by name, those that come from llama_cpp too. Nothing waits for a lock.
"""

from __future__ import annotations

import contextlib
import functools
import threading
import weakref
from collections.abc import Callable, Generator, Iterator
from typing import Any, TypeVar

from ..errors import BusyError, ClosedError, ThreadError

T = TypeVar("T")
C = TypeVar("C", bound=type)

RULE = "a Llama is for one thread at a time"
NESTED = "this Llama is in the middle of a token of a text"


class Turn:
    """A text that is being written in steps. Between two of them no other thread may change the cache."""

    thread = 0  # that took the last step


ANYBODY = Turn()


class StoppedError(BusyError):
    """Whoever waited for the text waits no more."""


def _nobody() -> None:
    return None


def _anybody() -> Turn:
    return ANYBODY


def _never() -> bool:
    return False


class OneThread:
    """Who is using a Llama. Its thread may come in again, e.g. from a logits processor."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._readers: list[int] = []  # threads that use the model beside the one that uses the context
        # weak: a generator that Ctrl-C ends while it ends has no turn either
        self._turn: Callable[[], Turn | None] = _nobody
        self._is_closed = False
        self._is_stopped: Callable[[], bool] = _never
        self._samples = False
        self._writing: Turn | None = None  # of the step that is being taken
        self._refused: BusyError | None = None

    def run(self, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call what touches the context."""
        try:
            if not self._lock.acquire(blocking=False):
                raise ThreadError(f"{RULE}: another one is in the middle of a call")
            return call(*args, **kwargs)
        finally:
            # No flag tells whether the lock was taken: Ctrl-C can come between the two.
            try:
                self._lock.release()
            except RuntimeError:
                pass  # it is another thread's

    def turn(self, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call what changes the text in the cache."""
        return self.run(self._in_turn, call, *args, **kwargs)

    def use(self, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """As `run`, of an open Llama."""
        return self.run(self._open, call, *args, **kwargs)

    def change(self, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """As `turn`, of an open Llama."""
        return self.run(self._open, self._in_turn, call, *args, **kwargs)

    def sample(self, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """As `change`, where functions of the user's are called: these must leave the text alone.

        llama.cpp calls them, and forgets what they raise. So it is raised here again.
        """
        return self.run(self._open, self._in_turn, self._sample, call, *args, **kwargs)

    def read(self, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call what uses the model alone, from any thread, of an open Llama."""
        thread = threading.get_ident()
        self._readers.append(thread)  # before the look at _is_closed: close() does it the other way around
        try:
            return self._open(call, *args, **kwargs)
        finally:
            self._readers.remove(thread)

    @contextlib.contextmanager
    def stopped_by(self, is_stopped: Callable[[], bool]) -> Iterator[None]:
        """Texts that are written in here end with a StoppedError at the token where this holds."""
        before, self._is_stopped = self._is_stopped, is_stopped
        try:
            yield
        finally:
            self._is_stopped = before

    def restored(self) -> None:
        """A saved state is in the cache, so the text that it was of can go on, whichever that is."""
        self._turn = _anybody

    def close(self, call: Callable[..., Any]) -> None:
        """Call what frees the context and the model."""
        self.run(self._close, call)

    def steps(self, steps: Generator[T, Any, Any], turn: Turn | None = None) -> Generator[T, Any, None]:
        """The same generator, each of whose steps is a call of `use`, the first with a turn one of `change`.

        Raises BusyError at the next step where another turn has begun since, unless a state was restored behind it.
        """
        sent, begins = None, turn is not None
        try:
            while True:
                try:
                    item = (self.change if begins else self.use)(self._step, steps, sent, turn, begins)
                except StopIteration:
                    return
                begins = False
                sent = yield item
        finally:
            if turn is not None and self._turn() is turn:
                self._turn = _nobody
            steps.close()

    def _step(self, steps: Generator[T, Any, Any], sent: Any, turn: Turn | None, begins: bool) -> T:
        if turn is None:
            return steps.send(sent)
        if self._is_stopped():
            raise StoppedError("the text was stopped: its task is cancelled")
        if self._writing is not None:
            raise BusyError(f"{NESTED}: begin another one when it is written")
        if not begins and self._turn() not in (turn, ANYBODY):
            raise BusyError("this text cannot continue: another one has begun on the same Llama")
        turn.thread = threading.get_ident()
        self._turn = weakref.ref(turn)
        try:
            self._writing = turn
            return steps.send(sent)
        finally:
            self._writing = None

    def _sample(self, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        try:
            self._samples = True
            token = call(*args, **kwargs)
        finally:
            self._samples = False
            refused, self._refused = self._refused, None
        if refused is not None:
            raise refused
        return token

    def _in_turn(self, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if self._samples:
            self._refused = BusyError(f"{NESTED}: a logits processor must not change it")
            raise self._refused
        turn = self._turn()
        if turn not in (None, ANYBODY) and turn.thread != threading.get_ident():
            raise ThreadError(f"{RULE}: another one is writing a text, which must be read to its end or closed first")
        return call(*args, **kwargs)

    def _open(self, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if self._is_closed:
            raise ClosedError("this Llama is closed")
        return call(*args, **kwargs)

    def _close(self, call: Callable[..., Any]) -> None:
        was_closed, self._is_closed = self._is_closed, True
        if set(self._readers) - {threading.get_ident()}:
            self._is_closed = was_closed
            raise ThreadError(f"{RULE} that closes it: another one is in the middle of a call")
        call()


def guarded(**names: str) -> Callable[[C], C]:
    """Let methods of a class, inherited ones too, run as a method of its objects' OneThread, `_one_thread`.

    names: of the methods, separated by spaces, by the OneThread's method: change="eval reset".
    """

    def decorate(cls: C) -> C:
        for way, methods in names.items():
            for name in methods.split():
                setattr(cls, name, _guarded(getattr(cls, name), way))
        return cls

    return decorate


def _guarded(method: Callable[..., Any], way: str) -> Callable[..., Any]:
    @functools.wraps(method)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        return getattr(self._one_thread, way)(method, self, *args, **kwargs)

    return call
