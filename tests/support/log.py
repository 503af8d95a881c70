"""llama.cpp's log, which is one for the process: whoever sets it sets it back."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterator
from typing import Any

from morphkv_cpp import bridge  # noqa: F401

# isort: split
# after morphkv_cpp, which says what libllama is loaded
import llama_cpp


@llama_cpp.llama_log_callback
def _nothing(_level: int, _text: bytes, _data: Any) -> None:
    pass


def _log() -> tuple[Any, ctypes.c_void_p]:
    callback, data = llama_cpp.llama_log_callback(), ctypes.c_void_p()
    llama_cpp.llama_log_get(ctypes.byref(callback), ctypes.byref(data))
    return callback, data


def log_address() -> int | None:
    """Of the function that gets the log."""
    return ctypes.cast(_log()[0], ctypes.c_void_p).value


@contextlib.contextmanager
def log_to(callback: Any) -> Iterator[None]:
    """A llama_log_callback gets the log in here."""
    before = _log()
    llama_cpp.llama_log_set(callback, ctypes.c_void_p())
    try:
        yield
    finally:
        llama_cpp.llama_log_set(*before)


def silent_log() -> contextlib.AbstractContextManager[None]:
    """Nothing is logged in here."""
    return log_to(_nothing)
