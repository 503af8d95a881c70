"""What turns sound into tokens, tiny and random, by kinds of projectors, as clip's loader wants it."""

from __future__ import annotations

import gguf
import numpy as np

from .tensors import N_FF, N_INSIDE, Head, Tensors

N_MEL, N_FRAMES, N_HIDDEN, N_CHANNEL = 16, 1500, 48, 8


def _whisper(tensors: Tensors) -> None:
    """Its encoder, of 30 seconds at once."""
    for i, n_in in ((1, N_MEL), (2, N_INSIDE)):
        tensors.matrix(f"a.conv1d.{i}.weight", N_INSIDE, n_in, 3)
        tensors[f"a.conv1d.{i}.weight"] = tensors[f"a.conv1d.{i}.weight"].astype(np.float16)
        tensors.bias(f"a.conv1d.{i}.bias", N_INSIDE, 1)
    tensors.matrix("a.position_embd.weight", N_FRAMES, N_INSIDE)
    tensors.block("a.blk.0")
    del tensors["a.blk.0.attn_k.bias"]
    tensors.norm("a.post_ln")


def _ultravox(tensors: Tensors, n_text: int) -> None:
    tensors.norm("mm.a.norm_pre", 60 * N_INSIDE, has_bias=False)
    tensors.matrices(a__mlp__1=(2 * N_HIDDEN, 60 * N_INSIDE), a__mlp__2=(n_text, N_HIDDEN))  # with gates
    tensors.norm("mm.a.norm_mid", N_HIDDEN, has_bias=False)


def _voxtral(tensors: Tensors, n_text: int) -> None:
    tensors.matrices(a__mlp__1=(N_HIDDEN, 30 * N_INSIDE), a__mlp__2=(n_text, N_HIDDEN))


def _meralion(tensors: Tensors, n_text: int) -> None:
    tensors.norm("mm.a.norm_pre", 60 * N_INSIDE)
    for i, (n_out, n_in) in enumerate(((N_HIDDEN, 60 * N_INSIDE), *[(N_HIDDEN, N_HIDDEN)] * 2, (n_text, N_HIDDEN))):
        tensors.linear(f"mm.a.mlp.{i}", n_out, n_in)


def _glm(tensors: Tensors, n_text: int) -> None:
    """And a token before a sound and one behind it."""
    tensors.norm("mm.a.norm_pre")
    tensors.linear("mm.a.mlp.1", N_HIDDEN, 60 * N_INSIDE)
    tensors.linear("mm.a.mlp.2", n_text, N_HIDDEN)
    for name in ("v.boi", "v.eoi"):
        tensors.vector(name, n_text)


def _qwen2(tensors: Tensors, n_text: int) -> None:
    tensors.linear("mm.a.fc", n_text, N_INSIDE)


def _flamingo(tensors: Tensors, n_text: int) -> None:
    tensors.linear("mm.a.mlp.1", N_HIDDEN, N_INSIDE)
    tensors.linear("mm.a.mlp.2", n_text, N_HIDDEN)


def _qwen3(tensors: Tensors, n_text: int) -> None:
    """One second at once, seen as a picture."""
    for i in (1, 2, 3):
        tensors.matrix(f"a.conv2d.{i}.weight", N_CHANNEL, 1 if i == 1 else N_CHANNEL, 3, 3)
        tensors.bias(f"a.conv2d.{i}.bias", N_CHANNEL)
    tensors.matrix("a.conv_out.weight", N_INSIDE, N_CHANNEL * N_MEL // 8)
    tensors.matrix("a.position_embd.weight", 13, N_INSIDE)
    tensors.block("a.blk.0")
    tensors.norm("a.post_ln")
    _flamingo(tensors, n_text)


def _conformer(tensors: Tensors, n_text: int) -> None:
    """Gemma 4's: a block attends between two networks and a convolution."""
    for i in (0, 1):
        tensors.matrix(f"a.conv1d.{i}.weight", N_CHANNEL, N_CHANNEL if i else 1, 3, 3)
    tensors.matrix("a.input_projection.weight", N_INSIDE, N_CHANNEL * N_MEL // 4)
    block = "a.blk.0"
    tensors.block(block)
    for name in ("ffn_norm", "ffn_norm_1", "conv_norm"):
        tensors.norm(f"{block}.{name}", has_bias=False)
    for name, n_out, n_in in (
        ("attn_k_rel", N_INSIDE, N_INSIDE),
        ("conv_pw1", 2 * N_INSIDE, N_INSIDE),
        ("conv_dw", N_INSIDE, 5),
        ("conv_pw2", N_INSIDE, N_INSIDE),
        ("ffn_up_1", N_FF, N_INSIDE),
        ("ffn_down_1", N_INSIDE, N_FF),
    ):
        tensors.matrix(f"{block}.{name}.weight", n_out, n_in)
    tensors.matrices(a__input_projection=(n_text, N_INSIDE))


def _gemma4(tensors: Tensors, n_text: int) -> None:
    """Samples are projected at once."""
    tensors.matrices(a__input_projection=(n_text, 640))


# By clip's names: whether its encoder is Whisper's, how many of its frames are one, and what makes tokens of them.
EARS: dict[str, tuple[bool, int, Head]] = {
    "ultravox": (True, 60, _ultravox),
    "voxtral": (True, 30, _voxtral),
    "meralion": (True, 60, _meralion),
    "glma": (True, 60, _glm),
    "qwen2a": (True, 0, _qwen2),
    "musicflamingo": (True, 0, _flamingo),
    "qwen3a": (False, 0, _qwen3),
    "gemma4a": (False, 0, _conformer),
    "gemma4ua": (False, 0, _gemma4),
}


def add_ears(writer: gguf.GGUFWriter, tensors: Tensors, kind: str, n_text: int) -> None:
    """kind: one of EARS."""
    is_whisper, n_joined, add_head = EARS[kind]
    if is_whisper:
        _whisper(tensors)
    add_head(tensors, n_text)
    writer.add_clip_has_audio_encoder(True)
    writer.add_audio_num_mel_bins(N_MEL)
    writer.add_audio_embedding_length(N_INSIDE)
    writer.add_audio_feed_forward_length(N_FF)
    writer.add_audio_projection_dim(n_text)
    writer.add_audio_block_count(0 if kind == "gemma4ua" else 1)
    writer.add_audio_head_count(2)
    writer.add_audio_attention_layernorm_eps(1e-5)
    if n_joined:
        writer.add_audio_stack_factor(n_joined)
