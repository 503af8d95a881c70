"""Random-weight models with heads that draft: qwen35 with its own, gemma4 with an assistant, llama with EAGLE 3.

What a model writes next depends on its newest token for the most part, and a head guesses from that token alone: it is
right as often as the model's layers change nothing. `noise` says how much they do.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from morphkv_cpp.models import synthetic

N_EMBD, N_FF, N_VOCAB, HEAD_SIZE = 64, 96, 320, 32
N_HEAD, N_HEAD_KV = 2, 1


class Weights(dict[str, np.ndarray]):
    """Tensors by GGUF name; shapes are (n_out, n_in)."""

    def __init__(self, seed: int):
        super().__init__()
        self.rng = np.random.default_rng(seed)

    def matrix(self, name: str, n_out: int, n_in: int, gain: float = 1.0) -> None:
        self[f"{name}.weight"] = (self.rng.standard_normal((n_out, n_in)) * gain / np.sqrt(n_in)).astype(np.float32)

    def norm(self, name: str, n: int = N_EMBD) -> None:
        self[f"{name}.weight"] = self.rng.uniform(0.9, 1.1, n).astype(np.float32)

    def feed_forward(self, block: str, noise: float) -> None:
        self.matrix(f"{block}.ffn_gate", N_FF, N_EMBD)
        self.matrix(f"{block}.ffn_up", N_FF, N_EMBD)
        self.matrix(f"{block}.ffn_down", N_EMBD, N_FF, noise)


def write(path: Path, architecture: str, keys: Mapping[str, Any], weights: Mapping[str, np.ndarray]) -> Path:
    """keys: without the architecture's name."""
    writer = gguf.GGUFWriter(path, architecture)
    synthetic._add_vocabulary(writer, N_VOCAB)
    for key, value in keys.items():
        add = {int: writer.add_uint32, float: writer.add_float32, list: writer.add_array, bool: writer.add_bool}
        add[type(value)](f"{architecture}.{key}", value)
    for name, data in weights.items():
        writer.add_tensor(name, data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def sizes(n_layer: int, n_head_kv: int = N_HEAD_KV, head_size: int = HEAD_SIZE) -> dict[str, Any]:
    return {
        "block_count": n_layer,
        "context_length": 8192,
        "embedding_length": N_EMBD,
        "feed_forward_length": N_FF,
        "attention.head_count": N_HEAD,
        "attention.head_count_kv": n_head_kv,
        "attention.key_length": head_size,
        "attention.value_length": head_size,
        "attention.layer_norm_rms_epsilon": 1e-6,
        "rope.dimension_count": head_size,
        "rope.freq_base": 10000.0,
        "vocab_size": N_VOCAB,
    }


def write_qwen35(path: Path, recurrent: tuple[int, ...] = (1, 0, 1, 0), noise: float = 0.35, seed: int = 0) -> Path:
    """Two layers of linear attention and two of full attention, then a head. Rope sections as published: the last is 0."""
    weights = Weights(seed)
    n_layer, state, n_groups = len(recurrent), 32, 2
    weights["token_embd.weight"] = weights.rng.standard_normal((N_VOCAB, N_EMBD)).astype(np.float32)
    weights.norm("output_norm")
    weights.matrix("output", N_VOCAB, N_EMBD)
    for i in range(n_layer + 1):
        block = f"blk.{i}"
        weights.norm(f"{block}.attn_norm")
        weights.norm(f"{block}.post_attention_norm")
        weights.feed_forward(block, noise)
        if i == n_layer or not recurrent[i]:
            weights.matrix(f"{block}.attn_q", 2 * N_HEAD * HEAD_SIZE, N_EMBD)
            weights.matrix(f"{block}.attn_k", N_HEAD_KV * HEAD_SIZE, N_EMBD)
            weights.matrix(f"{block}.attn_v", N_HEAD_KV * HEAD_SIZE, N_EMBD)
            weights.matrix(f"{block}.attn_output", N_EMBD, N_HEAD * HEAD_SIZE, 2 * noise)
            # sharp enough that eviction scores rarely tie
            weights[f"{block}.attn_q_norm.weight"] = np.full(HEAD_SIZE, 1.5, np.float32)
            weights[f"{block}.attn_k_norm.weight"] = np.full(HEAD_SIZE, 1.5, np.float32)
        else:
            n_keys = state * n_groups
            weights.matrix(f"{block}.attn_qkv", 3 * n_keys, N_EMBD)
            weights.matrix(f"{block}.attn_gate", n_keys, N_EMBD)
            weights.matrix(f"{block}.ssm_beta", n_groups, N_EMBD)
            weights.matrix(f"{block}.ssm_alpha", n_groups, N_EMBD)
            weights.matrix(f"{block}.ssm_out", N_EMBD, n_keys, noise)
            weights.matrix(f"{block}.ssm_conv1d", 3 * n_keys, 4)
            weights.norm(f"{block}.ssm_norm", state)
            weights[f"{block}.ssm_dt.bias"] = np.zeros(n_groups, np.float32)
            weights[f"{block}.ssm_a"] = np.full(n_groups, -0.5, np.float32)
    head = f"blk.{n_layer}.nextn"
    weights.norm(f"{head}.enorm")
    weights.norm(f"{head}.hnorm")
    # of the newest token's embedding all, of what the model made of the one before nearly nothing
    weights[f"{head}.eh_proj.weight"] = np.concatenate(
        [np.eye(N_EMBD), weights.rng.standard_normal((N_EMBD, N_EMBD)) * 0.02], axis=1
    ).astype(np.float32)
    keys = sizes(n_layer + 1) | {
        "nextn_predict_layers": 1,
        "attention.recurrent_layers": [bool(each) for each in (*recurrent, 0)],
        "rope.dimension_count": HEAD_SIZE // 2,
        "rope.dimension_sections": [3, 3, 2, 0],
        "ssm.conv_kernel": 4,
        "ssm.inner_size": state * n_groups,
        "ssm.state_size": state,
        "ssm.time_step_rank": n_groups,
        "ssm.group_count": n_groups,
    }
    return write(path, "qwen35", keys, weights)
