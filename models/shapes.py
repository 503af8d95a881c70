"""Shapes of published models: how fast a layer is decoded depends on them alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class ModelShape:
    """Sizes of one layer, and how many of them the model has."""

    name: str
    n_layer: int
    n_embd: int
    n_head: int
    n_head_kv: int
    head_size: int
    n_ff: int

    @property
    def layer_weights(self) -> int:
        """How many numbers a layer's matrices hold."""
        return sum(n_out * n_in for _, n_out, n_in in self.matrices())

    def matrices(self) -> Iterator[tuple[str, int, int]]:
        """(name, n_out, n_in) of each matrix of a layer."""
        n_q, n_kv = self.n_head * self.head_size, self.n_head_kv * self.head_size
        yield "attn_q", n_q, self.n_embd
        yield "attn_k", n_kv, self.n_embd
        yield "attn_v", n_kv, self.n_embd
        yield "attn_output", self.n_embd, n_q
        yield "ffn_gate", self.n_ff, self.n_embd
        yield "ffn_up", self.n_ff, self.n_embd
        yield "ffn_down", self.n_embd, self.n_ff


SHAPES = {
    "1b": ModelShape("Llama 3.2 1B", 16, 2048, 32, 8, 64, 8192),
    "4b": ModelShape("Qwen 3 4B", 36, 2560, 32, 8, 128, 9728),
    "8b": ModelShape("Llama 3.1 8B", 32, 4096, 32, 8, 128, 14336),
    "32b": ModelShape("Qwen 3 32B", 64, 5120, 64, 8, 128, 25600),
}
