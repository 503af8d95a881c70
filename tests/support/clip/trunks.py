"""What patches go through before they are projected."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .tensors import IMAGE, N_FF, N_GRID, N_INSIDE, PATCH, Tensors

HALVES, MERGED = {"projector.scale_factor": 2}, {"spatial_merge_size": 2}
PIXELS = {"image_min_pixels": 256, "image_max_pixels": 4096}


@dataclass(frozen=True)
class Trunk:
    """What patches go through before they are projected. keys: what the file says of it, behind clip.vision."""

    n_block: int = 1
    patch: tuple[int, ...] | None = None  # or (n_inside, 3, patch_size, patch_size)
    has_patch_bias: bool = True
    n_frames: int = 1  # a picture is that many of a film
    positions: tuple[int, ...] | None = (N_GRID,)  # learned
    before: tuple[int, ...] | None = None  # tokens that are no patch
    has_means: bool = True  # norms take them off
    is_joined: bool = False  # Q, K and V in one
    is_gated: bool = False
    image: int = IMAGE
    patch_size: int = PATCH
    n_inside: int = N_INSIDE
    n_head: int = 2
    keys: Mapping[str, Any] = field(default_factory=dict)

    def add(self, tensors: Tensors) -> None:
        patch = self.patch or (self.n_inside, 3, self.patch_size, self.patch_size)
        for i in range(self.n_frames):
            tensors.matrix("v.patch_embd.weight" + f".{i}" * bool(i), *patch)
        if self.has_patch_bias:
            tensors.bias("v.patch_embd.bias", self.n_inside)
        if self.positions is not None:
            tensors.matrix("v.position_embd.weight", *self.positions, self.n_inside)
        if self.before is not None:
            tensors.vector("v.class_embd", *self.before, self.n_inside)
        for i in range(self.n_block):
            self._add_block(tensors, f"v.blk.{i}")
        tensors.norm("v.post_ln", self.n_inside, has_bias=self.has_means)

    def _add_block(self, tensors: Tensors, block: str) -> None:
        tensors.block(block, self.n_inside)
        if self.is_gated:
            tensors.linear(f"{block}.ffn_gate", N_FF, self.n_inside)
        if not self.has_means:
            del tensors[f"{block}.ln1.bias"], tensors[f"{block}.ln2.bias"]
        if self.is_joined:
            for end in ("weight", "bias"):
                parts = [tensors.pop(f"{block}.attn_{x}.{end}") for x in "qkv"]
                tensors[f"{block}.attn_qkv.{end}"] = np.concatenate(parts)
