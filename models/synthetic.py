"""Tiny GGUF files with random weights: architecture "llama" (RMSNorm, RoPE over adjacent pairs, GQA, SwiGLU), all F32.

For tests: small enough to decode in NumPy, and with attention peaked enough that eviction scores rarely tie.
"""

from __future__ import annotations

import string
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np

SPACE = "\u2581"  # how a SentencePiece vocabulary writes a space
N_BYTE_TOKENS = 256
SPECIAL_TOKENS = ("<unk>", "<s>", "</s>")
N_VOCAB_MIN = len(SPECIAL_TOKENS) + N_BYTE_TOKENS + 1


@dataclass(frozen=True)
class TinyLlamaShape:
    """Sizes of a tiny llama.

    head_size 32 or more keeps quantized caches possible; the GQA group is n_head / n_head_kv. attention_gain is the
    standard deviation of each coordinate of q and k: the logits of attention spread by about its square.
    """

    n_layer: int = 2
    n_embd: int = 64
    n_head: int = 2
    n_head_kv: int = 2
    head_size: int = 32
    n_ff: int = 96
    n_vocab: int = 320
    context_length: int = 8192
    rope_freq_base: float = 10000.0
    rms_epsilon: float = 1e-5
    attention_gain: float = 1.5
    seed: int = 0
    architecture: str = "llama"  # or one with the same tensors, as qwen2vl
    rope_sections: tuple[int, ...] = ()  # with M-RoPE: pairs of a head by time, row, column and nothing
    special: tuple[str, ...] = ()  # more special tokens, behind the letters

    def __post_init__(self) -> None:
        for name in ("n_layer", "n_embd", "n_head", "n_head_kv", "n_ff", "context_length"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.n_head % self.n_head_kv:
            raise ValueError(f"n_head must be a multiple of n_head_kv, got {self.n_head} and {self.n_head_kv}")
        if self.head_size < 2 or self.head_size % 2:
            raise ValueError(f"head_size must be even and positive, got {self.head_size}")
        if self.n_vocab < N_VOCAB_MIN:
            raise ValueError(f"n_vocab must be at least {N_VOCAB_MIN} (specials and bytes), got {self.n_vocab}")


def write_tiny_llama(path: str | Path, **shape: Any) -> Path:
    """Write a tiny llama and return its path; the keywords are the fields of TinyLlamaShape."""
    sizes = TinyLlamaShape(**shape)
    path = Path(path)
    writer = gguf.GGUFWriter(path, sizes.architecture)
    add_sizes(writer, sizes)
    add_vocabulary(writer, sizes.n_vocab, sizes.special)
    for name, weights in _random_weights(sizes).items():
        writer.add_tensor(name, weights)
    write_file(writer)
    return path


def write_file(writer: gguf.GGUFWriter) -> None:
    """Write all that was added, and close the file."""
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    finally:
        writer.close()


def add_sizes(writer: gguf.GGUFWriter, sizes: TinyLlamaShape) -> None:
    """What a GGUF of these sizes says of them."""
    writer.add_name("tiny-llama")
    writer.add_block_count(sizes.n_layer)
    writer.add_context_length(sizes.context_length)
    writer.add_embedding_length(sizes.n_embd)
    writer.add_feed_forward_length(sizes.n_ff)
    writer.add_head_count(sizes.n_head)
    writer.add_head_count_kv(sizes.n_head_kv)
    writer.add_key_length(sizes.head_size)
    writer.add_value_length(sizes.head_size)
    writer.add_rope_dimension_count(sizes.head_size)
    writer.add_rope_freq_base(sizes.rope_freq_base)
    writer.add_layer_norm_rms_eps(sizes.rms_epsilon)
    if sizes.rope_sections:
        writer.add_rope_dimension_sections(list(sizes.rope_sections))
    writer.add_vocab_size(sizes.n_vocab)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)


def add_vocabulary(writer: gguf.GGUFWriter, n_vocab: int, special: tuple[str, ...] = ()) -> None:
    """A SentencePiece vocabulary with every byte as fallback, so that any text has tokens."""
    letters = [SPACE, *string.ascii_lowercase, *(SPACE + letter for letter in string.ascii_lowercase), *special]
    n_pieces = n_vocab - len(SPECIAL_TOKENS) - N_BYTE_TOKENS
    pieces = (letters + [f"<unused{i}>" for i in range(n_pieces)])[:n_pieces]
    tokens = [*SPECIAL_TOKENS, *(f"<0x{byte:02X}>" for byte in range(N_BYTE_TOKENS)), *pieces]
    kinds = gguf.TokenType
    types = [kinds.UNKNOWN, kinds.CONTROL, kinds.CONTROL] + [kinds.BYTE] * N_BYTE_TOKENS
    for piece in pieces:
        is_unused = piece.startswith("<unused")
        types.append(kinds.CONTROL if piece in special else kinds.UNUSED if is_unused else kinds.NORMAL)

    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_scores([-float(i) for i in range(n_vocab)])
    writer.add_token_types(types)
    writer.add_unk_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_add_bos_token(True)
    writer.add_add_eos_token(False)


def _random_weights(sizes: TinyLlamaShape) -> dict[str, np.ndarray]:
    """Tensors by GGUF name, shapes (n_out, n_in), scaled so that inputs of size 1 give outputs of the stated gain."""
    rng = np.random.default_rng(sizes.seed)
    n_q, n_kv = sizes.n_head * sizes.head_size, sizes.n_head_kv * sizes.head_size

    def matrix(n_out: int, n_in: int, gain: float = 1.0) -> np.ndarray:
        weights: np.ndarray = rng.standard_normal((n_out, n_in)) * gain / np.sqrt(n_in)
        return weights.astype(np.float32)

    def norm() -> np.ndarray:
        return rng.uniform(0.8, 1.2, sizes.n_embd).astype(np.float32)

    weights = {"token_embd.weight": rng.standard_normal((sizes.n_vocab, sizes.n_embd)).astype(np.float32)}
    for layer in range(sizes.n_layer):
        block = {
            "attn_norm": norm(),
            "attn_q": matrix(n_q, sizes.n_embd, sizes.attention_gain),
            "attn_k": matrix(n_kv, sizes.n_embd, sizes.attention_gain),
            "attn_v": matrix(n_kv, sizes.n_embd),
            "attn_output": matrix(sizes.n_embd, n_q),
            "ffn_norm": norm(),
            "ffn_gate": matrix(sizes.n_ff, sizes.n_embd),
            "ffn_up": matrix(sizes.n_ff, sizes.n_embd),
            "ffn_down": matrix(sizes.n_embd, sizes.n_ff),
        }
        weights |= {f"blk.{layer}.{name}.weight": tensor for name, tensor in block.items()}
    weights["output_norm.weight"] = norm()
    weights["output.weight"] = matrix(sizes.n_vocab, sizes.n_embd)
    return weights
