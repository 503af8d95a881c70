"""A tiny llama (RMSNorm, RoPE over adjacent pairs, GQA, SwiGLU) in float64 NumPy, with MorphKV by the reference."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path

import gguf
import gguf.quants
import numpy as np

from support.reference import Adopt, HeadCut, Rules, SequenceCache, is_prompt


def round_to(x: np.ndarray, cache_type: str) -> np.ndarray:
    """What a cache of that type ("f32", "f16" or "q8_0") gives back, in float64; x: (..., head_size)."""
    if cache_type == "q8_0":
        # llama.cpp rotates what it quantizes, where heads allow it
        rotation = hadamard(64) if x.shape[-1] == 64 else np.eye(x.shape[-1])
        rows = gguf.quants.quantize((x @ rotation).astype(np.float32), gguf.GGMLQuantizationType.Q8_0)
        return gguf.quants.dequantize(rows, gguf.GGMLQuantizationType.Q8_0).astype(np.float64) @ rotation.T
    return x.astype({"f16": np.float16, "f32": np.float32}[cache_type]).astype(np.float64)


def hadamard(n: int) -> np.ndarray:
    """Sylvester's matrix, orthonormal; n a power of 2."""
    return np.array([[1.0]]) if n == 1 else np.kron([[1.0, 1.0], [1.0, -1.0]], hadamard(n // 2)) / np.sqrt(2.0)


class NumpyLlama:
    """One sequence of a GGUF of architecture llama whose tensors are F32.

    Keys and values are rounded when stored (cache_type) and when read by attention (read_type: llama.cpp's flash
    attention reads an f32 cache as f16 too); scores see what is stored. Everything else is float64.
    query_type: what queries are rounded to, "q8_0" on the CPU where keys are q8_0. capacities: as of SequenceCache.
    """

    def __init__(
        self,
        path: Path,
        rules: Rules,
        *,
        cache_type: str = "f16",
        read_type: str = "f16",
        query_type: str | None = None,
        n_ubatch: int = 512,
        capacities: Sequence[int] = (),
    ):
        reader = gguf.GGUFReader(path)
        size = {name: field.contents() for name, field in reader.fields.items() if name.startswith("llama.")}
        self.weights = {tensor.name: tensor.data.astype(np.float64) for tensor in reader.tensors}
        self.n_layer = size["llama.block_count"]
        self.n_head = size["llama.attention.head_count"]
        self.n_head_kv = size["llama.attention.head_count_kv"]
        self.head_size = size["llama.attention.key_length"]
        self.n_vocab = size["llama.vocab_size"]
        self.epsilon = size["llama.attention.layer_norm_rms_epsilon"]
        self.frequencies = size["llama.rope.freq_base"] ** (-np.arange(0, self.head_size, 2) / self.head_size)
        self.cache_type = cache_type
        self.read_type = read_type
        self.query_type = query_type
        self.n_ubatch = n_ubatch
        self.capacities = tuple(capacities)
        self.cache = self._empty_cache(rules)

    def _empty_cache(self, rules: Rules) -> SequenceCache:
        shape = self.n_layer, self.n_head, self.n_head_kv, self.head_size
        return SequenceCache(rules, *shape, capacities=self.capacities)

    @property
    def n_past(self) -> int:
        return self.cache.newest_position + 1

    def empty(self) -> NumpyLlama:
        """Another sequence of the same model."""
        other = copy.copy(self)
        other.cache = self._empty_cache(self.cache.rules)
        return other

    def copy(self) -> NumpyLlama:
        """The same sequence, to go on with otherwise."""
        other = copy.copy(self)
        other.cache = copy.deepcopy(self.cache)
        return other

    def decode(
        self, tokens: list[int], adopt: Adopt | None = None, n_logits: int = 1
    ) -> tuple[np.ndarray, list[list[list[HeadCut]]]]:
        """Decode one batch; returns the last token's logits, (n_vocab,), and the report of each cut it caused."""
        cuts, done = [], 0
        self.is_prompt = is_prompt(len(tokens), n_logits)
        for cut_first, n_new in self.cache.plan(len(tokens), self.n_ubatch, n_logits):
            if cut_first:
                cuts.append(self.cache.cut(adopt))
            self.cache.make_rotary_room(n_new, self._turn)
            logits = self._forward(np.array(tokens[done : done + n_new]))
            done += n_new
        return logits, cuts

    def _forward(self, tokens: np.ndarray) -> np.ndarray:
        positions = self.n_past - self.cache.rotary_offset + np.arange(len(tokens))
        x = self.weights["token_embd.weight"][tokens]  # (n_new, n_embd)
        for layer in range(self.n_layer):
            x = x + self._attention(layer, self._norm(x, f"blk.{layer}.attn_norm"), positions)
            x = x + self._feed_forward(layer, self._norm(x, f"blk.{layer}.ffn_norm"))
        return self._linear(self._norm(x[-1:], "output_norm"), "output")[0]

    def _attention(self, layer: int, x: np.ndarray, positions: np.ndarray) -> np.ndarray:
        def heads(name: str, n_head: int) -> np.ndarray:  # (n_head, n_new, head_size)
            return self._linear(x, f"blk.{layer}.{name}").reshape(len(x), n_head, self.head_size).swapaxes(0, 1)

        queries = self._rope(heads("attn_q", self.n_head), positions)
        queries = queries if self.query_type is None else round_to(queries, self.query_type)
        keys = round_to(self._rope(heads("attn_k", self.n_head_kv), positions), self.cache_type)
        values = round_to(heads("attn_v", self.n_head_kv), self.cache_type)
        self.cache.append(layer, queries, keys, values, self.is_prompt)

        n_group = self.n_head // self.n_head_kv
        # (n_head, n_used, head_size) both
        held_keys = round_to(self.cache.keys(layer), self.read_type).repeat(n_group, axis=0)
        held_values = round_to(self.cache.values(layer), self.read_type).repeat(n_group, axis=0)
        logits = queries @ held_keys.swapaxes(1, 2) / np.sqrt(self.head_size)  # (n_head, n_new, n_used)
        n_new, n_used = logits.shape[1:]
        is_future = np.arange(n_used) > np.arange(n_used - n_new, n_used)[:, None]
        weights = np.exp(np.where(is_future, -np.inf, logits - logits.max(axis=-1, keepdims=True)))
        mixed = weights @ held_values / weights.sum(axis=-1, keepdims=True)
        return self._linear(mixed.swapaxes(0, 1).reshape(n_new, -1), f"blk.{layer}.attn_output")

    def _feed_forward(self, layer: int, x: np.ndarray) -> np.ndarray:
        gate, up = self._linear(x, f"blk.{layer}.ffn_gate"), self._linear(x, f"blk.{layer}.ffn_up")
        return self._linear(gate / (1 + np.exp(-gate)) * up, f"blk.{layer}.ffn_down")

    def _turn(self, rows: np.ndarray, deltas: np.ndarray) -> np.ndarray:
        """Rotate stored rows (..., n, head_size) on by deltas (n,)."""
        shape = rows.shape
        return round_to(self._rope(rows.reshape(-1, *shape[-2:]), deltas), self.cache_type).reshape(shape)

    def _rope(self, x: np.ndarray, positions: np.ndarray) -> np.ndarray:
        """Rotate the pairs (x[2i], x[2i+1]) of (n_head, n_new, head_size) by position * frequency."""
        angle = positions[:, None] * self.frequencies
        even, odd = x[..., 0::2], x[..., 1::2]
        turned = [even * np.cos(angle) - odd * np.sin(angle), even * np.sin(angle) + odd * np.cos(angle)]
        return np.stack(turned, axis=-1).reshape(x.shape)

    def _norm(self, x: np.ndarray, name: str) -> np.ndarray:
        return x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + self.epsilon) * self.weights[f"{name}.weight"]

    def _linear(self, x: np.ndarray, name: str) -> np.ndarray:
        return x @ self.weights[f"{name}.weight"].T
