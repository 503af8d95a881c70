"""Random tensors of projectors, and the layers that many share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gguf
import numpy as np

PATCH, IMAGE, N_INSIDE, N_FF = 8, 32, 32, 96
N_SIDE = IMAGE // PATCH
N_GRID = N_SIDE**2
N_JOINED = 4 * N_INSIDE  # of two rows and two columns


class Tensors(dict[str, np.ndarray]):
    """By name; shapes are (n_out, n_in)."""

    def __init__(self, seed: int):
        super().__init__()
        self.rng = np.random.default_rng(seed)

    def matrix(self, name: str, *shape: int) -> None:
        n_in = int(np.prod(shape[1:]))
        self[name] = (self.rng.standard_normal(shape) / np.sqrt(n_in)).astype(np.float32)

    def bias(self, name: str, *shape: int) -> None:
        self[name] = (0.1 * self.rng.standard_normal(shape)).astype(np.float32)

    def linear(self, name: str, n_out: int, n_in: int) -> None:
        self.matrix(f"{name}.weight", n_out, n_in)
        self.bias(f"{name}.bias", n_out)

    def norm(self, name: str, n: int = N_INSIDE, has_bias: bool = True) -> None:
        self[f"{name}.weight"] = self.rng.uniform(0.8, 1.2, n).astype(np.float32)
        if has_bias:
            self.bias(f"{name}.bias", n)

    def conv(self, name: str, n_out: int, n_in: int, *size: int, is_half: bool = False) -> None:
        """is_half: where ggml multiplies by a kernel in f16 alone."""
        self.matrix(f"{name}.weight", n_out, n_in, *size)
        if is_half:
            self[f"{name}.weight"] = self[f"{name}.weight"].astype(np.float16)

    def vector(self, name: str, *shape: int) -> None:
        self[name] = self.rng.standard_normal(shape).astype(np.float32)

    def matrices(self, **shapes: tuple[int, int]) -> None:
        """Their names begin with mm, and __ is a dot."""
        for name, shape in shapes.items():
            self.matrix(f"mm.{name.replace('__', '.')}.weight", *shape)

    def block(self, name: str, n: int = N_INSIDE) -> None:
        """A layer as CLIP has it."""
        for part in ("attn_q", "attn_k", "attn_v", "attn_out"):
            self.linear(f"{name}.{part}", n, n)
        self.linear(f"{name}.ffn_up", N_FF, n)
        self.linear(f"{name}.ffn_down", n, N_FF)
        for part in ("ln1", "ln2"):
            self.norm(f"{name}.{part}", n)

    def queries(self, name: str, n: int, n_seen: int) -> None:
        """A layer of a Q-Former: queries attend to each other, and then to what is seen or heard."""
        for attention, n_in in (("self_attn", n), ("cross_attn", n_seen)):
            for part in ("q", "out"):
                self.linear(f"{name}.{attention}_{part}", n, n)
            for part in ("k", "v"):
                self.linear(f"{name}.{attention}_{part}", n, n_in)
            self.norm(f"{name}.{attention}_norm", n)
        self.linear(f"{name}.ffn_up", N_FF, n)
        self.linear(f"{name}.ffn_down", n, N_FF)
        self.norm(f"{name}.ffn_norm", n)


def add_key(writer: gguf.GGUFWriter, name: str, value: Any) -> None:
    """As the type that clip reads: counts are unsigned."""
    add = {int: writer.add_uint32, float: writer.add_float32, list: writer.add_array, np.int32: writer.add_int32}
    add[type(value)](name, value)


Head = Callable[[Tensors, int], None]  # takes the size of the text model's embeddings


def two(first: str, second: str, n_in: int, n_middle: int | None = None) -> Head:
    """Two products, with an activation between them."""

    def add(tensors: Tensors, n_text: int) -> None:
        tensors.linear(first, n_middle or n_in, n_in)
        tensors.linear(second, n_text, n_middle or n_in)

    return add


def normed(then: Head, n: int, name: str = "mm.input_norm", has_bias: bool = True) -> Head:
    def add(tensors: Tensors, n_text: int) -> None:
        tensors.norm(name, n, has_bias)
        then(tensors, n_text)

    return add
