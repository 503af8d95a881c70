"""GGUF files with the shape of a published model, a few of its layers, and random weights in Q4_0.

What a large model's layer costs can be measured with them on any machine. Needs the extra `bench`.
"""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np

from .shapes import ModelShape
from .synthetic import TinyLlamaShape, add_sizes, add_vocabulary, write_file

BLOCK = 32  # values that share a scale in Q4_0
BLOCK_BYTES = 2 + BLOCK // 2
STEP_SIZE = 4.6  # the standard deviation of random 4-bit steps, -8 to 7
N_ROWS = 64  # random rows, repeated: what they hold does not change the speed
N_VOCAB = 4096


def write_shape(path: str | Path, shape: ModelShape, n_layer: int, seed: int = 0) -> Path:
    """Write `n_layer` layers of the shape, with a vocabulary of 4,096 tokens, and return the path.

    Raises ValueError for fewer than 1 layer or more than the model has.
    """
    if not 1 <= n_layer <= shape.n_layer:
        raise ValueError(f"layers must be in 1..{shape.n_layer} of {shape.name}, got {n_layer}")
    sizes = TinyLlamaShape(
        n_layer=n_layer,
        n_embd=shape.n_embd,
        n_head=shape.n_head,
        n_head_kv=shape.n_head_kv,
        head_size=shape.head_size,
        n_ff=shape.n_ff,
        n_vocab=N_VOCAB,
        context_length=131072,
        rope_freq_base=500000.0,
    )
    rng = np.random.default_rng(seed)
    writer = gguf.GGUFWriter(Path(path), sizes.architecture)
    add_sizes(writer, sizes)
    add_vocabulary(writer, sizes.n_vocab)
    ones = np.ones(sizes.n_embd, np.float32)
    for name, n_out in (("token_embd", sizes.n_vocab), ("output", sizes.n_vocab)):
        _add_matrix(writer, name, n_out, sizes.n_embd, rng)
    writer.add_tensor("output_norm.weight", ones)
    for layer in range(n_layer):
        for norm in ("attn_norm", "ffn_norm"):
            writer.add_tensor(f"blk.{layer}.{norm}.weight", ones)
        for name, n_out, n_in in shape.matrices():
            _add_matrix(writer, f"blk.{layer}.{name}", n_out, n_in, rng)
    write_file(writer)
    return Path(path)


def _add_matrix(writer: gguf.GGUFWriter, name: str, n_out: int, n_in: int, rng: np.random.Generator) -> None:
    """Random steps under one scale, such that inputs of size 1 give outputs of size 1."""
    blocks = rng.integers(0, 256, (N_ROWS, n_in // BLOCK, BLOCK_BYTES), np.uint8)
    scale = np.array([1 / (STEP_SIZE * np.sqrt(n_in))], np.float16).view(np.uint8)
    blocks[..., :2] = scale
    rows = np.tile(blocks.reshape(N_ROWS, -1), (n_out // N_ROWS, 1))
    writer.add_tensor(f"{name}.weight", rows, raw_dtype=gguf.GGMLQuantizationType.Q4_0)
