"""Functions of llama.h that llama_cpp declares with ctypes, as Python functions.

A vocabulary and a context are what llama_cpp holds.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import llama_cpp
import numpy as np

from .calls import last_error, load_state, rpc_devices
from .errors import NoMorphKVError, refuse_state

N_PIECE = 64  # bytes; few tokens are longer


def token_piece(vocab: Any, token: int) -> bytes:
    """Text of a token, b"" of a special one; llama_cpp.Llama.detokenize() gives b"" for more than 32 bytes as well."""
    buffer = (ctypes.c_char * N_PIECE)()
    n_bytes = llama_cpp.llama_token_to_piece(vocab, token, buffer, N_PIECE, 0, False)
    if n_bytes < 0:
        buffer = (ctypes.c_char * -n_bytes)()
        n_bytes = llama_cpp.llama_token_to_piece(vocab, token, buffer, -n_bytes, 0, False)
    return buffer.raw[:n_bytes]


def state(context: Any) -> bytes:
    """All that a context holds. NativeError with the reason where it cannot be had."""
    n_bytes = llama_cpp.llama_state_get_size(context)
    data = (ctypes.c_uint8 * n_bytes)()
    return _saved(data, llama_cpp.llama_state_get_data(context, data, n_bytes))


def set_state(context: Any, data: bytes) -> None:
    """Give a context what `state` gave. NativeError with the reason where it is refused: nothing has changed then.

    A context without MorphKV may have changed: there it is llama.cpp that loads.
    """
    try:
        load_state(context, data)
    except NoMorphKVError:
        array = np.frombuffer(data, dtype=np.uint8)
        pointer = array.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))
        if len(array) == 0 or llama_cpp.llama_state_set_data(context, pointer, len(array)) != len(array):
            refuse_state("llama.cpp refused the state, or not all of it was one")


def checkpoint(context: Any, seq_id: int = 0) -> bytes:
    """All that a sequence holds but its archive: to go back to, in this context, while its text only grows.

    NativeError with the reason where it cannot be had.
    """
    flags = llama_cpp.LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY
    n_bytes = llama_cpp.llama_state_seq_get_size_ext(context, seq_id, flags)
    data = (ctypes.c_uint8 * n_bytes)()
    return _saved(data, llama_cpp.llama_state_seq_get_data_ext(context, data, n_bytes, seq_id, flags))


def set_checkpoint(context: Any, data: bytes, seq_id: int = 0) -> None:
    """Go back to a checkpoint. NativeError with the reason where it is refused: nothing has changed then."""
    load_state(context, data, seq_id, llama_cpp.LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY)


def _saved(data: Any, n_written: int) -> bytes:
    """What llama.cpp has written: it announces, and writes, 0 bytes where it fails."""
    if n_written == 0 or n_written != len(data):
        refuse_state(last_error() or f"llama.cpp gave {n_written} bytes of a state of {len(data)}")
    return bytes(data)


def use_rpc_servers(model_params: Any, servers: str) -> Any:
    """Let a model live on RPC servers ("HOST:PORT,...") and the local GPUs; the result must outlive model_params."""
    devices = rpc_devices(servers, llama_cpp.LLAMA_MAX_DEVICES)
    array = (ctypes.c_void_p * (len(devices) + 1))(*devices)
    model_params.devices = ctypes.cast(array, ctypes.c_void_p)
    return array


class LoadProgress:
    """Tells how much of a model is loaded, 0 to 1; it must outlive model_params. What `tell` raises ends it."""

    def __init__(self, model_params: Any, tell: Callable[[float], object]):
        self.error: BaseException | None = None

        def on_progress(share: float, _: Any) -> bool:
            try:
                tell(share)
            except BaseException as error:  # Ctrl-C too: it would be lost on the way through C
                self.error = error
            return self.error is None

        self._callback = llama_cpp.llama_progress_callback(on_progress)
        model_params.progress_callback = self._callback
