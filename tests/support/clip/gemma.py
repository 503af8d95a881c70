"""Gemma's eyes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .tensors import N_INSIDE, PATCH, Head, Tensors
from .trunks import HALVES, Trunk

TABLES = (2, 64)  # of rows and of columns


@dataclass(frozen=True)
class Mobile(Trunk):
    """MobileNet V5: two stages, each of half the size; the second has a block of convolutions and one that attends."""

    patch_size: int = 2  # so that clip counts the tokens that there are
    n_inside: int = 64  # as the text model

    def add(self, tensors: Tensors) -> None:
        n = self.n_inside

        def point(name: str, n_out: int, n_in: int) -> None:
            tensors.matrix(f"{name}.weight", n_out, n_in, 1, 1)

        def depth(name: str, n_channel: int) -> None:
            tensors.matrix(f"{name}.weight", n_channel, 1, 3, 3)
            tensors[f"{name}.weight"] = tensors[f"{name}.weight"].astype(np.float16)

        tensors.matrix("v.conv_stem.conv.weight", N_INSIDE, 3, 3, 3)
        tensors.norm("v.conv_stem.bn", has_bias=False)
        tensors.matrix("v.blk.0.0.conv_exp.weight", n, N_INSIDE, 3, 3)
        point("v.blk.0.0.conv_pwl", n, n)
        for name in ("dw_start", "dw_mid"):
            depth(f"v.blk.1.0.{name}.conv", n)
        for name in ("pw_exp", "pw_proj"):
            point(f"v.blk.1.0.{name}.conv", n, n)
        for name, n_out in (("query", n), ("key", N_INSIDE), ("value", N_INSIDE), ("output", n)):
            point(f"v.blk.1.1.attn.{name}.proj", n_out, n)
        tensors.norm("v.blk.1.1.norm", n, has_bias=False)
        for name in ("exp", "proj"):
            point(f"v.msfa.ffn.pw_{name}.conv", n, n)
        tensors.norm("v.msfa.norm", n, has_bias=False)


def _gemma4(tensors: Tensors, n_text: int) -> None:
    tensors.matrices(input_projection=(n_text, N_INSIDE))


def _unified(tensors: Tensors, n_text: int) -> None:
    """Pixels are projected at once."""
    for i, n in enumerate((3 * (2 * PATCH) ** 2, N_INSIDE, N_INSIDE), start=1):
        tensors.norm(f"v.patch_norm.{i}", n)
    _gemma4(tensors, n_text)


def _gemma3n(tensors: Tensors, n_text: int) -> None:
    tensors.norm("mm.soft_emb_norm", n_text, has_bias=False)
    tensors.matrices(input_projection=(n_text, n_text))


GEMMA: dict[str, tuple[Trunk, Head]] = {
    "gemma3nv": (Mobile(), _gemma3n),
    "gemma4v": (
        Trunk(positions=TABLES, has_patch_bias=False, has_means=False, keys=HALVES),
        _gemma4,
    ),
    "gemma4uv": (
        Trunk(n_block=0, patch=(N_INSIDE, 3 * (2 * PATCH) ** 2), positions=TABLES, keys=HALVES),
        _unified,
    ),
}
