"""How far a model is loaded, on a terminal, in every command that opens one."""

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator
from typing import TextIO

from .. import Llama

AFTER_S, PERIOD_S = 0.5, 0.1
N_BAR = 30


class LoadBar:
    """For Llama's load_progress: a bar, once loading takes a while. It leaves nothing behind."""

    def __init__(self, stream: TextIO):
        self._stream = stream
        self._last = 1.0
        self._is_shown = False

    def __call__(self, share: float) -> None:
        now_s = time.monotonic()
        if share < self._last or self._last == 1.0:  # another model
            self._start_s = self._shown_s = now_s
        self._last = share
        if share >= 1.0:
            self._show("" if self._is_shown else None)
            self._is_shown = False
        elif now_s - self._start_s >= AFTER_S and (not self._is_shown or now_s - self._shown_s >= PERIOD_S):
            self._shown_s, self._is_shown = now_s, True
            n_done = int(N_BAR * share)
            bar = "#" * n_done + "-" * (N_BAR - n_done)
            self._show(f"loading the model [{bar}] {share:.0%}")

    def _show(self, text: str | None) -> None:
        if text is not None:
            print(f"\r{text}\x1b[K", end="", file=self._stream, flush=True)


@contextlib.contextmanager
def shown_loads() -> Iterator[None]:
    """All models that are opened meanwhile, if standard error is a terminal."""
    if not sys.stderr.isatty():
        yield
        return
    # llama_cpp leads standard error elsewhere while it opens a model
    with os.fdopen(os.dup(sys.stderr.fileno()), "w") as stream, _told(LoadBar(stream)):
        yield


@contextlib.contextmanager
def _told(tell: Callable[[float], object] | None) -> Iterator[None]:
    before, Llama.load_progress_of_all = Llama.load_progress_of_all, tell
    try:
        yield
    finally:
        Llama.load_progress_of_all = before


def untold_loads() -> contextlib.AbstractContextManager[None]:
    """While another bar has the terminal."""
    return _told(None)
