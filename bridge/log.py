"""What llama.cpp logs is its only word on why something failed."""

from __future__ import annotations

import contextlib
import ctypes
import re
import threading
from collections.abc import Iterator
from typing import Any

import llama_cpp

LEVEL_ERROR, LEVEL_CONT = 4, 5  # of ggml.h; those that llama_cpp names are older ones

Callback = Any  # a pointer to a function, of ctypes

_mutex = threading.Lock()
_listeners: dict[int, list[str]] = {}  # by thread: text of its errors
_silent: set[int] = set()  # threads of which nothing is logged
_before = (llama_cpp.llama_log_callback(), ctypes.c_void_p())


@llama_cpp.llama_log_callback  # type: ignore[untyped-decorator]
def _hear(level: int, text: bytes, user_data: int) -> None:
    lines = _listeners.get(threading.get_ident())
    if lines is not None and (level == LEVEL_ERROR or (level == LEVEL_CONT and lines)):
        lines.append(text.decode("utf-8", "replace"))
    callback, data = _before
    if callback and threading.get_ident() not in _silent:
        callback(level, text, data)


@contextlib.contextmanager
def heard_errors(is_logged: bool = True) -> Iterator[list[str]]:
    """The errors that llama.cpp logs in this thread within, a list that grows.

    is_logged: whether they, and all else that it says in this thread, are logged as before, too.
    """
    global _before
    thread = threading.get_ident()
    errors: list[str] = []
    # The log is the process's, and may be heard by several threads: the first one in and the last one out set it.
    with _mutex:
        if not _listeners:
            _before = _log()
            llama_cpp.llama_log_set(_hear, None)
        outer = _listeners.get(thread)
        _listeners[thread] = errors
        was_silent = thread in _silent
        if not is_logged:
            _silent.add(thread)
    try:
        yield errors
    finally:
        with _mutex:
            if not was_silent:
                _silent.discard(thread)
            if outer is None:
                del _listeners[thread]
            else:
                _listeners[thread] = outer
            if not _listeners and _address(_log()[0]) == _address(_hear):
                llama_cpp.llama_log_set(*_before)


def as_reason(errors: list[str]) -> str:
    """The errors as one line, without names of functions, repetitions, and what says no more than that it failed."""
    reasons: list[str] = []
    for line in "".join(errors).splitlines():
        reason = re.sub(r"^\w+: (error loading model( \w+)?: )*", "", line.strip())
        if reason and reason not in reasons and not re.match(r"(\w+: )?failed to load model($| from )", reason):
            reasons.append(reason)
    return "; ".join(reasons)


def _log() -> tuple[Callback, ctypes.c_void_p]:
    callback, data = llama_cpp.llama_log_callback(), ctypes.c_void_p()
    llama_cpp.llama_log_get(ctypes.byref(callback), ctypes.byref(data))
    return callback, data


def _address(callback: Callback) -> int | None:
    return ctypes.cast(callback, ctypes.c_void_p).value
