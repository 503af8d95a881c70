"""Random-weight models with heads that draft: qwen35 and GLM Flash, gemma4 with an assistant, llama with EAGLE 3.

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

    def head(self, name: str) -> None:
        """Of the newest token's embedding all, of what the model made of the one before nearly nothing."""
        self.norm(f"{name}.enorm")
        self.norm(f"{name}.hnorm")
        parts = [np.eye(N_EMBD), self.rng.standard_normal((N_EMBD, N_EMBD)) * 0.02]
        self[f"{name}.eh_proj.weight"] = np.concatenate(parts, axis=1).astype(np.float32)


def write(path: Path, architecture: str, keys: Mapping[str, Any], weights: Mapping[str, np.ndarray]) -> Path:
    """keys: without the architecture's name."""
    writer = gguf.GGUFWriter(path, architecture)
    synthetic.add_vocabulary(writer, N_VOCAB)
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


def write_qwen35(path: Path, recurrent: tuple[int, ...] = (1, 0, 1, 0), noise: float = 0.15, seed: int = 0) -> Path:
    """Two layers of linear attention and two of full attention, then a head. Rope sections as published, the last 0."""
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
    weights.head(f"blk.{n_layer}.nextn")
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


def write_glm_flash(path: Path, noise: float = 0.15, seed: int = 0) -> Path:
    """Compressed keys (MLA), and a head whose feed-forward network is of experts, as GLM 4.7 Flash has it."""
    weights = Weights(seed)
    n_layer, n_rope, n_lora, n_experts = 2, 16, 48, 4
    weights["token_embd.weight"] = weights.rng.standard_normal((N_VOCAB, N_EMBD)).astype(np.float32)
    weights.norm("output_norm")
    weights.matrix("output", N_VOCAB, N_EMBD)
    for i in range(n_layer + 1):
        block = f"blk.{i}"
        weights.norm(f"{block}.attn_norm")
        weights.norm(f"{block}.ffn_norm")
        weights.norm(f"{block}.attn_kv_a_norm", n_lora)
        weights.norm(f"{block}.attn_q_a_norm", n_lora)
        weights.matrix(f"{block}.attn_q_a", n_lora, N_EMBD)
        weights.matrix(f"{block}.attn_q_b", N_HEAD * HEAD_SIZE, n_lora, 1.5)
        weights.matrix(f"{block}.attn_kv_a_mqa", n_lora + n_rope, N_EMBD, 1.5)
        for name, n_out, n_in in (("k", n_lora, HEAD_SIZE - n_rope), ("v", HEAD_SIZE, n_lora)):
            parts = weights.rng.standard_normal((N_HEAD, n_out, n_in)) / np.sqrt(n_in)
            weights[f"{block}.attn_{name}_b.weight"] = parts.astype(np.float32)
        weights.matrix(f"{block}.attn_output", N_EMBD, N_HEAD * HEAD_SIZE, 2 * noise)
        if i < n_layer:
            weights.feed_forward(block, noise)
            continue
        weights.matrix(f"{block}.ffn_gate_inp", n_experts, N_EMBD)
        for name, n_out, n_in in (("gate", N_FF, N_EMBD), ("up", N_FF, N_EMBD), ("down", N_EMBD, N_FF)):
            experts = weights.rng.standard_normal((n_experts, n_out, n_in)) * noise / np.sqrt(n_in)
            weights[f"{block}.ffn_{name}_exps.weight"] = experts.astype(np.float32)
            weights.matrix(f"{block}.ffn_{name}_shexp", n_out, n_in, noise)
        weights.head(f"{block}.nextn")
    keys = sizes(n_layer + 1, head_size=n_lora + n_rope) | {
        "nextn_predict_layers": 1,
        "rope.dimension_count": n_rope,
        "attention.value_length": n_lora,
        "attention.q_lora_rank": n_lora,
        "attention.kv_lora_rank": n_lora,
        "attention.key_length_mla": HEAD_SIZE,
        "attention.value_length_mla": HEAD_SIZE,
        "leading_dense_block_count": n_layer,
        "expert_count": n_experts,
        "expert_used_count": 2,
        "expert_feed_forward_length": N_FF,
        "expert_shared_count": 1,
    }
    return write(path, "deepseek2", keys, weights)


def write_gemma4(target: Path, assistant: Path, noise: float = 0.15, seed: int = 0) -> tuple[Path, Path]:
    """A gemma4 and an assistant, whose two layers have no K and V and read those of the last two of the model."""
    n_small, window, full = N_EMBD // 2, 32, 64
    weights, heads = Weights(seed), Weights(seed + 1)
    weights["token_embd.weight"] = weights.rng.standard_normal((N_VOCAB, N_EMBD)).astype(np.float32)
    # what both make of a token's embedding before they choose the next one
    narrow = weights.rng.standard_normal((n_small, N_EMBD)) / np.sqrt(N_EMBD)
    output = weights.rng.standard_normal((N_VOCAB, n_small)) / np.sqrt(n_small)
    weights["output.weight"] = (output @ narrow).astype(np.float32)
    heads["token_embd.weight"] = output.astype(np.float32)
    heads["nextn.pre_projection.weight"] = np.concatenate([narrow, np.zeros_like(narrow)], axis=1).astype(np.float32)
    heads.matrix("nextn.post_projection", N_EMBD, n_small)

    pattern = [True, False, True, False]
    for some, n_embd, n_layer in ((weights, N_EMBD, 4), (heads, n_small, 2)):
        some["output_norm.weight"] = np.ones(n_embd, np.float32)
        some["rope_freqs.weight"] = np.ones(full // 2, np.float32)
        for i in range(n_layer):
            block, head_size = f"blk.{i}", window if pattern[i] else full
            some.norm(f"{block}.attn_norm", n_embd)
            some.norm(f"{block}.ffn_norm", n_embd)
            for name in ("post_attention_norm", "post_ffw_norm"):
                some[f"{block}.{name}.weight"] = np.full(n_embd, 4 * noise, np.float32)
            some.matrix(f"{block}.attn_q", N_HEAD * head_size, n_embd)
            some.matrix(f"{block}.attn_output", n_embd, N_HEAD * head_size)
            some[f"{block}.attn_q_norm.weight"] = np.full(head_size, 0.5, np.float32)
            if some is weights:
                some.matrix(f"{block}.attn_k", N_HEAD_KV * head_size, n_embd)
                some.matrix(f"{block}.attn_v", N_HEAD_KV * head_size, n_embd)
                some[f"{block}.attn_k_norm.weight"] = np.full(head_size, 0.5, np.float32)
            else:
                some[f"{block}.layer_output_scale.weight"] = np.ones(1, np.float32)
            some.matrix(f"{block}.ffn_gate", N_FF, n_embd)
            some.matrix(f"{block}.ffn_up", N_FF, n_embd)
            some.matrix(f"{block}.ffn_down", n_embd, N_FF)

    keys = {
        "attention.sliding_window": 32,
        "attention.key_length_swa": window,
        "attention.value_length_swa": window,
        "rope.dimension_count_swa": window,
        "rope.freq_base_swa": 10000.0,
        "attention.shared_kv_layers": 0,
    }
    own = {"attention.sliding_window_pattern": pattern, "embedding_length_per_layer_input": 0}
    write(target, "gemma4", sizes(4, head_size=full) | keys | own, weights)
    own = {
        "attention.sliding_window_pattern": pattern[:2],
        "embedding_length": n_small,
        "embedding_length_out": N_EMBD,
        "nextn_predict_layers": 2,
    }
    write(assistant, "gemma4-assistant", sizes(2, head_size=full) | keys | own, heads)
    return target, assistant


def write_eagle3(target: Path, head: Path, noise: float = 0.2, seed: int = 0) -> tuple[Path, Path]:
    """A llama and its EAGLE 3, which guesses from a token's embedding and nearly nothing of what the model computes."""
    n_layer = 3
    weights, draft = Weights(seed), Weights(seed + 1)
    weights["token_embd.weight"] = weights.rng.standard_normal((N_VOCAB, N_EMBD)).astype(np.float32)
    weights.matrix("output", N_VOCAB, N_EMBD)
    for i in range(n_layer):
        block = f"blk.{i}"
        weights.norm(f"{block}.attn_norm")
        weights.norm(f"{block}.ffn_norm")
        weights.feed_forward(block, noise)
        weights.matrix(f"{block}.attn_q", N_HEAD * HEAD_SIZE, N_EMBD, 1.5)
        weights.matrix(f"{block}.attn_k", N_HEAD * HEAD_SIZE, N_EMBD, 1.5)
        weights.matrix(f"{block}.attn_v", N_HEAD * HEAD_SIZE, N_EMBD)
        weights.matrix(f"{block}.attn_output", N_EMBD, N_HEAD * HEAD_SIZE, 2 * noise)
    # a token attends to itself, and its value is its embedding
    zeros = np.zeros((N_EMBD, N_EMBD))
    for name, gain in (("attn_q", 3.0), ("attn_k", 3.0), ("attn_v", 1.0)):
        draft[f"blk.0.{name}.weight"] = np.concatenate([gain * np.eye(N_EMBD), zeros], axis=1).astype(np.float32)
    draft["blk.0.attn_output.weight"] = np.eye(N_EMBD, dtype=np.float32)
    draft["blk.0.attn_norm_2.weight"] = np.full(N_EMBD, 0.1, np.float32)
    draft.norm("blk.0.attn_norm")
    draft.norm("blk.0.ffn_norm")
    draft.feed_forward("blk.0", 0.1)
    draft.matrix("fc", N_EMBD, 3 * N_EMBD)
    for some in (weights, draft):
        some.norm("output_norm")
    keys = sizes(n_layer, n_head_kv=N_HEAD)
    write(target, "llama", keys, weights)
    own = {"target_layers": [0, 1, 2], "target_hidden_size": N_EMBD, "norm_before_residual": True}
    write(head, "eagle3", keys | own | {"block_count": 1, "rope.dimension_count": 4}, draft)
    return target, head
