"""Conformers: a layer attends between two networks and a convolution."""

from __future__ import annotations

from typing import Any

import numpy as np

from .ear import N_CHANNEL, N_HIDDEN, N_MEL, Ear
from .tensors import N_FF, N_INSIDE, Tensors

D_HEAD = N_INSIDE // 2
N_KERNEL = 9


def _layer(tensors: Tensors, block: str) -> None:
    tensors.block(block)
    tensors.linear(f"{block}.ffn_up_1", N_FF, N_INSIDE)
    tensors.linear(f"{block}.ffn_down_1", N_INSIDE, N_FF)
    for part in ("ffn_norm", "ffn_norm_1", "norm_conv", "conv_norm"):
        tensors.norm(f"{block}.{part}")
    tensors.linear(f"{block}.conv_pw1", 2 * N_INSIDE, N_INSIDE)  # with gates
    tensors.matrix(f"{block}.conv_dw.weight", N_INSIDE, N_KERNEL)
    tensors.linear(f"{block}.conv_pw2", N_INSIDE, N_INSIDE)


def _halvings(tensors: Tensors) -> None:
    """One of eight frames is left, of as many frequencies."""
    for i, n_in, side in ((0, 1, 3), (2, 1, 3), (3, N_CHANNEL, 1), (5, 1, 3), (6, N_CHANNEL, 1)):
        tensors.conv(f"a.conv1d.{i}", N_CHANNEL, n_in, side, side)
        tensors.bias(f"a.conv1d.{i}.bias", N_CHANNEL, 1, 1)
    tensors.linear("a.pre_encode.out", N_INSIDE, N_CHANNEL * N_MEL // 8)


def _distances(tensors: Tensors, block: str, n_in: int) -> None:
    tensors.matrix(f"{block}.linear_pos.weight", N_INSIDE, n_in)
    for name in ("pos_bias_u", "pos_bias_v"):
        tensors.bias(f"{block}.{name}", 2, D_HEAD)


def _lfm2(tensors: Tensors, n_text: int) -> None:
    block = "a.blk.0"
    _halvings(tensors)
    _layer(tensors, block)
    _distances(tensors, block, 512)  # as clip takes the width to be
    tensors.bias(f"{block}.conv_dw.bias", N_INSIDE)
    tensors.vector("a.position_embd.weight", 1500, n_text)  # of which clip reads the shape
    tensors.norm("mm.a.mlp.0")
    tensors.linear("mm.a.mlp.1", N_HIDDEN, N_INSIDE)
    tensors.linear("mm.a.mlp.3", n_text, N_HIDDEN)


def _parakeet(tensors: Tensors, n_text: int) -> None:
    block = "a.blk.0"
    _halvings(tensors)
    _layer(tensors, block)
    _distances(tensors, block, N_INSIDE)
    tensors.bias(f"{block}.conv_norm_mean", N_INSIDE)
    tensors[f"{block}.conv_norm_var"] = tensors.rng.uniform(0.5, 2.0, N_INSIDE).astype(np.float32)
    tensors["a.mel_filters"] = tensors.rng.uniform(0.0, 1.0, (N_MEL, 257)).astype(np.float32)
    tensors["a.window"] = np.hanning(400).astype(np.float32)
    tensors.norm("mm.a.norm_pre", has_bias=False)
    tensors.matrices(a__mlp__1=(N_HIDDEN, N_INSIDE), a__mlp__2=(n_text, N_HIDDEN))
    for i in (0, 1, 3):  # which clip wants and does not use
        tensors.matrix(f"mm.model.mlp.{i}.weight", 1, 1)


def _granite(tensors: Tensors, n_text: int) -> None:
    """Queries attend to a window of frames, as the first layer and the last one have them, and become the tokens."""
    tensors.linear("a.input_projection", N_INSIDE, N_MEL)
    tensors.linear("a.enc_ctc_out", N_HIDDEN, N_INSIDE)
    tensors.linear("a.enc_ctc_out_mid", N_INSIDE, N_HIDDEN)
    for i in range(2):
        _layer(tensors, f"a.blk.{i}")
        tensors.bias(f"a.blk.{i}.attn_rel_pos_emb", 2 * GRANITE["max_pos_emb"] + 1, D_HEAD)
        tensors.queries(f"a.proj_blk.{i}", N_INSIDE, 2 * N_INSIDE)
    tensors.vector("a.proj_query", GRANITE["projector.window_size"] // GRANITE["projector.downsample_rate"], N_INSIDE)
    tensors.norm("a.proj_norm")
    tensors.linear("a.proj_linear", n_text, N_INSIDE)


GRANITE: dict[str, Any] = {
    "chunk_size": 20,
    "conv_kernel_size": N_KERNEL,
    "max_pos_emb": 32,
    "projector.window_size": 15,
    "projector.downsample_rate": 5,
    "projector.head_count": 2,
    "feature_layer": [1],
}

CONFORMERS: dict[str, Ear] = {
    "lfm2a": Ear(_lfm2),
    "parakeet": Ear(_parakeet, keys={"subsampling_factor": 8, "conv_kernel_size": N_KERNEL}),
    "granite_speech": Ear(_granite, n_block=2, keys=GRANITE),
}
