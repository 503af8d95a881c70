"""Functions of llama.h that llama_cpp declares with ctypes, as Python functions.

A vocabulary and a context are what llama_cpp holds.
"""

from __future__ import annotations

import ctypes
from typing import Any

import llama_cpp
import numpy as np

from .calls import rpc_devices

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
    """All that a context holds. Raises RuntimeError if llama.cpp gives less than it announced."""
    n_bytes = llama_cpp.llama_state_get_size(context)
    data = (ctypes.c_uint8 * n_bytes)()
    if llama_cpp.llama_state_get_data(context, data, n_bytes) != n_bytes:
        raise RuntimeError("Failed to copy llama state data")
    return bytes(data)


def set_state(context: Any, data: bytes) -> bool:
    """Whether the context took it."""
    array = np.frombuffer(data, dtype=np.uint8)
    pointer = array.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))
    return llama_cpp.llama_state_set_data(context, pointer, len(array)) == len(array)


def checkpoint(context: Any, seq_id: int = 0) -> bytes:
    """All that a sequence holds but its archive: to go back to, in this context, while its text only grows."""
    flags = llama_cpp.LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY
    n_bytes = llama_cpp.llama_state_seq_get_size_ext(context, seq_id, flags)
    data = (ctypes.c_uint8 * n_bytes)()
    if llama_cpp.llama_state_seq_get_data_ext(context, data, n_bytes, seq_id, flags) != n_bytes:
        raise RuntimeError("Failed to copy llama state data")
    return bytes(data)


def set_checkpoint(context: Any, data: bytes, seq_id: int = 0) -> bool:
    """Whether the sequence went back."""
    array = np.frombuffer(data, dtype=np.uint8)
    pointer = array.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))
    flags = llama_cpp.LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY
    return llama_cpp.llama_state_seq_set_data_ext(context, pointer, len(array), seq_id, flags) == len(array)


def use_rpc_servers(model_params: Any, servers: str) -> Any:
    """Let a model live on RPC servers ("HOST:PORT,...") and the local GPUs; the result must outlive model_params."""
    devices = rpc_devices(servers, llama_cpp.LLAMA_MAX_DEVICES)
    array = (ctypes.c_void_p * (len(devices) + 1))(*devices)
    model_params.devices = ctypes.cast(array, ctypes.c_void_p)
    return array
