"""Batches of embeddings, as libmtmd decodes an image, without a projector."""

from __future__ import annotations

import ctypes

import numpy as np

from morphkv_cpp import Llama

# isort: split
# after morphkv_cpp, which says what libllama is loaded
import llama_cpp


def rows_and_columns(position: int, n_rows: int, n_columns: int) -> np.ndarray:
    """Positions of an image with M-RoPE, (4, n_rows*n_columns): times, rows, columns, and nothing."""
    row, column = np.divmod(np.arange(n_rows * n_columns), n_columns)
    return np.stack([np.full(len(row), position), position + row, position + column, 0 * row])


def embeddings(n_tokens: int, n_embd: int = 64, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n_tokens, n_embd)).astype(np.float32)


def decode_embeddings(llm: Llama, values: np.ndarray, positions: np.ndarray, both_ways: bool = False) -> int:
    """What llama_decode returns for a batch of sequence 0. positions: (n_tokens,), or (4, n_tokens) with M-RoPE."""
    n = len(values)
    values = np.ascontiguousarray(values, dtype=np.float32)
    positions = np.ascontiguousarray(positions, dtype=np.int32)
    sequence = (llama_cpp.llama_seq_id * 1)(0)
    sequences = (ctypes.POINTER(llama_cpp.llama_seq_id) * n)(*[sequence] * n)
    counts, logits = (ctypes.c_int32 * n)(*[1] * n), (ctypes.c_int8 * n)()
    logits[n - 1] = 1
    batch = llama_cpp.llama_batch(
        n_tokens=n,
        token=None,
        embd=values.ctypes.data_as(ctypes.POINTER(ctypes.c_float)),
        pos=positions.ctypes.data_as(ctypes.POINTER(llama_cpp.llama_pos)),
        n_seq_id=counts,
        seq_id=sequences,
        logits=logits,
    )
    if both_ways:
        llama_cpp.llama_set_causal_attn(llm.ctx, False)
    try:
        return llama_cpp.llama_decode(llm.ctx, batch)
    finally:
        llama_cpp.llama_set_causal_attn(llm.ctx, True)


def add_image(llm: Llama, position: int, n_rows: int, n_columns: int, seed: int, n_embd: int = 64) -> int:
    """Decode an image in rows and columns at a position; the next one."""
    values = embeddings(n_rows * n_columns, n_embd, seed)
    assert decode_embeddings(llm, values, rows_and_columns(position, n_rows, n_columns)) == 0
    return position + max(n_rows, n_columns)


def add_line(llm: Llama, position: int, n_tokens: int, seed: int, both_ways: bool = False, n_embd: int = 64) -> int:
    """Decode an image's tokens one behind the other; the next position."""
    line = position + np.arange(n_tokens)
    assert decode_embeddings(llm, embeddings(n_tokens, n_embd, seed), line, both_ways) == 0
    return position + n_tokens
