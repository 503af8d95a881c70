"""More random-weight models with heads that draft (support.heads): Nemotron 3, Ling 3, GLM 4.5.

Their heads have experts, and those of Nemotron no positions; the models of the first two have recurrent layers.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from .heads import HEAD_SIZE, N_EMBD, N_FF, N_HEAD, N_HEAD_KV, N_VOCAB, Weights, sizes, write

N_EXPERT, N_CONV = 4, 4


class ExpertWeights(Weights):
    def __init__(self, seed: int):
        super().__init__(seed)
        self["token_embd.weight"] = self.rng.standard_normal((N_VOCAB, N_EMBD)).astype(np.float32)
        self.norm("output_norm")
        self.matrix("output", N_VOCAB, N_EMBD)

    def experts(self, block: str, noise: float, has_gates: bool = True) -> None:
        """And one that all tokens share."""
        self.matrix(f"{block}.ffn_gate_inp", N_EXPERT, N_EMBD)
        self[f"{block}.exp_probs_b.bias"] = np.zeros(N_EXPERT, np.float32)
        for name, n_out, n_in in (("gate", N_FF, N_EMBD), ("up", N_FF, N_EMBD), ("down", N_EMBD, N_FF)):
            if name != "gate" or has_gates:
                gain = noise if name == "down" else 1.0
                parts = self.rng.standard_normal((N_EXPERT, n_out, n_in)) * gain / np.sqrt(n_in)
                self[f"{block}.ffn_{name}_exps.weight"] = parts.astype(np.float32)
                self.matrix(f"{block}.ffn_{name}_shexp", n_out, n_in, gain)

    def attention(self, block: str, noise: float) -> None:
        n_q, n_kv = N_HEAD * HEAD_SIZE, N_HEAD_KV * HEAD_SIZE
        self.matrix(f"{block}.attn_q", n_q, N_EMBD, 1.5)
        self.matrix(f"{block}.attn_k", n_kv, N_EMBD, 1.5)
        self.matrix(f"{block}.attn_v", n_kv, N_EMBD)
        self.matrix(f"{block}.attn_output", N_EMBD, n_q, 2 * noise)


EXPERTS: dict[str, Any] = {
    "nextn_predict_layers": 1,
    "expert_count": N_EXPERT,
    "expert_used_count": 2,
    "expert_feed_forward_length": N_FF,
    "expert_shared_count": 1,
}


def write_glm4moe(path: Path, noise: float = 0.15, seed: int = 0, sections: tuple[int, ...] = ()) -> Path:
    """GLM 4.5 Air: two layers that attend, then a head. sections: of its rotation, as GLM 4.5V has them."""
    weights, n_layer = ExpertWeights(seed), 2
    for i in range(n_layer + 1):
        block = f"blk.{i}"
        weights.norm(f"{block}.attn_norm")
        weights.norm(f"{block}.post_attention_norm")
        weights.attention(block, noise)
        if i < n_layer:
            weights.feed_forward(block, noise)
    weights.experts(f"blk.{n_layer}", noise)
    weights.head(f"blk.{n_layer}.nextn")
    keys = sizes(n_layer + 1) | EXPERTS | {"leading_dense_block_count": n_layer}
    if sections:
        keys["rope.dimension_sections"] = list(sections)
    return write(path, "glm4moe", keys, weights)


def write_nemotron(path: Path, noise: float = 0.08, seed: int = 0) -> Path:
    """Nemotron 3: layers that are one thing each (Mamba 2, attention, experts), then a head that is the last two."""
    weights, kinds = ExpertWeights(seed), "MAEMA"
    n_inner, n_state, n_groups, n_mixers = 64, 16, 2, 4
    for i, kind in enumerate(kinds):
        block = f"blk.{i}"
        weights.norm(f"{block}.attn_norm")
        if kind == "A":
            weights.attention(block, noise)
        elif kind == "E":
            weights.experts(block, noise, has_gates=False)
        else:
            n_conv = n_inner + 2 * n_groups * n_state
            weights.matrix(f"{block}.ssm_in", n_inner + n_conv + n_mixers, N_EMBD)
            weights.matrix(f"{block}.ssm_conv1d", n_conv, N_CONV)
            weights[f"{block}.ssm_conv1d.bias"] = np.zeros(n_conv, np.float32)
            weights[f"{block}.ssm_dt.bias"] = np.zeros(n_mixers, np.float32)
            weights[f"{block}.ssm_a"] = np.full((n_mixers, 1), -0.5, np.float32)
            weights[f"{block}.ssm_d"] = np.ones((n_mixers, 1), np.float32)
            weights[f"{block}.ssm_norm.weight"] = np.ones((n_groups, n_inner // n_groups), np.float32)
            weights.matrix(f"{block}.ssm_out", N_EMBD, n_inner, noise)
    block = f"blk.{len(kinds)}"
    weights.norm(f"{block}.attn_norm")
    weights.norm(f"{block}.post_attention_norm")
    weights.attention(block, noise)
    weights.experts(block, noise, has_gates=False)
    weights.head(f"{block}.nextn")
    weights.norm(f"{block}.nextn.shared_head_norm")
    keys = (
        sizes(len(kinds) + 1)
        | EXPERTS
        | {
            "attention.layer_norm_epsilon": 1e-6,
            "attention.head_count_kv": [N_HEAD_KV if kind == "A" else 0 for kind in kinds] + [N_HEAD_KV],
            "feed_forward_length": [N_FF if kind == "E" else 0 for kind in kinds] + [N_FF],
            "expert_shared_feed_forward_length": N_FF,
            "ssm.conv_kernel": N_CONV,
            "ssm.inner_size": n_inner,
            "ssm.state_size": n_state,
            "ssm.time_step_rank": n_mixers,
            "ssm.group_count": n_groups,
        }
    )
    return write(path, "nemotron_h_moe", keys, weights)


def write_ling(path: Path, noise: float = 0.15, seed: int = 0) -> Path:
    """Ling 3: linear attention (KDA), and compressed keys in two layers and the head."""
    weights, is_recurrent = ExpertWeights(seed), (1, 0, 1, 0)
    n_layer, n_rope, n_lora, n_q = len(is_recurrent), 16, 48, N_HEAD * HEAD_SIZE
    for i in range(n_layer + 1):
        block = f"blk.{i}"
        weights.norm(f"{block}.attn_norm")
        weights.norm(f"{block}.ffn_norm")
        weights.matrix(f"{block}.attn_q", n_q, N_EMBD, 1.5)
        if i < n_layer and is_recurrent[i]:
            weights.matrix(f"{block}.attn_k", n_q, N_EMBD)
            weights.matrix(f"{block}.attn_v", n_q, N_EMBD)
            for name in "qkv":
                taps = weights.rng.standard_normal((1, n_q, 1, N_CONV)) / np.sqrt(N_CONV)
                weights[f"{block}.ssm_conv1d_{name}.weight"] = taps.astype(np.float32)
            weights.matrix(f"{block}.ssm_f_a", n_q, N_EMBD)
            weights.matrix(f"{block}.ssm_g_a", n_q, N_EMBD)
            weights.matrix(f"{block}.ssm_beta", N_HEAD, N_EMBD)
            weights[f"{block}.ssm_a"] = np.full((N_HEAD, 1), 0.5, np.float32)
            weights[f"{block}.ssm_dt.bias"] = np.zeros(n_q, np.float32)
            weights.norm(f"{block}.ssm_norm", HEAD_SIZE)
        else:
            weights.norm(f"{block}.attn_kv_a_norm", n_lora)
            weights.matrix(f"{block}.attn_kv_a_mqa", n_lora + n_rope, N_EMBD, 1.5)
            for name, n_out, n_in in (("k", n_lora, HEAD_SIZE - n_rope), ("v", HEAD_SIZE, n_lora)):
                parts = weights.rng.standard_normal((N_HEAD, n_out, n_in)) / np.sqrt(n_in)
                weights[f"{block}.attn_{name}_b.weight"] = parts.astype(np.float32)
            weights.matrix(f"{block}.attn_gate", N_HEAD, N_EMBD)
        weights.matrix(f"{block}.attn_output", N_EMBD, n_q, 2 * noise)
        if i < n_layer:
            weights.feed_forward(block, noise)
    block = f"blk.{n_layer}"
    weights.experts(block, noise)
    weights.head(f"{block}.nextn")
    weights.norm(f"{block}.layer_output_norm")
    keys = (
        sizes(n_layer + 1, head_size=n_lora + n_rope)
        | EXPERTS
        | {
            "rope.dimension_count": n_rope,
            "attention.head_count_kv": [0 if each else 1 for each in (*is_recurrent, 0)],
            "attention.value_length": n_lora,
            "attention.kv_lora_rank": n_lora,
            "attention.key_length_mla": HEAD_SIZE,
            "attention.value_length_mla": HEAD_SIZE,
            "leading_dense_block_count": n_layer,
            "expert_gating_func": 2,
            "ssm.conv_kernel": N_CONV,
            "kda.head_dim": HEAD_SIZE,
            "kda.gate_lower_bound": -5.0,
        }
    )
    return write(path, "bailingmoe3", keys, weights)
