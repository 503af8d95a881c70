"""What turns sound into tokens, tiny and random, by kinds of projectors, as clip's loader wants it."""

from __future__ import annotations

from typing import Any

import gguf
import numpy as np

from .conformers import CONFORMERS
from .ear import N_CHANNEL, N_HIDDEN, N_MEL, Ear
from .tensors import N_FF, N_INSIDE, Tensors, add_key
from .voices import VOICES

N_FRAMES = 1500


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


def _dots(tensors: Tensors, n_text: int) -> None:
    _qwen3(tensors, n_text)
    del tensors["a.position_embd.weight"], tensors["a.post_ln.bias"]
    for part in ("ln1", "ln2"):
        del tensors[f"a.blk.0.{part}.bias"]
    for end in ("weight", "bias"):
        tensors[f"mm.a.mlp.3.{end}"] = tensors.pop(f"mm.a.mlp.2.{end}")
    tensors.norm("mm.a.norm_pre")


def _mimo(tensors: Tensors, n_text: int) -> None:
    """Frames become the nearest of some codes, in steps; groups of codes attend to each other."""
    n_code, n_bin = MIMO["rvq.num_quantizers"], max(MIMO["rvq.codebook_size"])
    for i in (1, 2):
        tensors.block(f"a.blk.{i}")
    tensors.conv("a.downsample.conv", N_INSIDE, N_INSIDE, 2, is_half=True)
    tensors.norm("a.downsample.norm")
    for name in ("a.rvq.codebook", "mm.a.code_embd"):
        tensors.vector(f"{name}.weight", n_code, n_bin, N_INSIDE)
    block = "mm.a.local_blk.0"
    tensors.block(block)
    tensors.matrix(f"{block}.ffn_gate.weight", N_FF, N_INSIDE)
    for part in ("attn_out", "ffn_up", "ffn_down", "ln1", "ln2"):
        del tensors[f"{block}.{part}.bias"]
    tensors.norm("mm.a.local_norm", has_bias=False)
    tensors.matrices(a__mlp__1=(N_HIDDEN, MIMO["local_group_size"] * N_INSIDE), a__mlp__2=(n_text, N_HIDDEN))


MIMO: dict[str, Any] = {
    "rvq.num_quantizers": 2,
    "rvq.codebook_size": [24, 16],
    "window_size": 8,
    "wa_pattern_mode": [-1, 0, -1],
    "local_block_count": 1,
    "local_group_size": 4,
}

# By clip's names.
EARS: dict[str, Ear] = {
    "ultravox": Ear(_ultravox, True, keys={"projector.stack_factor": 60}),
    "voxtral": Ear(_voxtral, True, keys={"projector.stack_factor": 30}),
    "meralion": Ear(_meralion, True, keys={"projector.stack_factor": 60}),
    "glma": Ear(_glm, True, keys={"projector.stack_factor": 60}),
    "qwen2a": Ear(_qwen2, True),
    "musicflamingo": Ear(_flamingo, True),
    "qwen3a": Ear(_qwen3),
    "gemma4a": Ear(_conformer),
    "gemma4ua": Ear(_gemma4, n_block=0),
    "dots3note_a": Ear(_dots),
    "mimo_audio": Ear(_mimo, True, n_block=3, keys=MIMO),
    **CONFORMERS,
    **VOICES,
}


def add_ears(writer: gguf.GGUFWriter, tensors: Tensors, kind: str, n_text: int) -> None:
    """kind: one of EARS."""
    ear = EARS[kind]
    if ear.is_whisper:
        _whisper(tensors)
    ear.add(tensors, n_text)
    writer.add_clip_has_audio_encoder(True)
    writer.add_audio_num_mel_bins(ear.n_mel)
    writer.add_audio_embedding_length(N_INSIDE)
    writer.add_audio_feed_forward_length(N_FF)
    writer.add_audio_projection_dim(n_text)
    writer.add_audio_block_count(ear.n_block)
    writer.add_audio_head_count(2)
    writer.add_audio_attention_layernorm_eps(1e-5)
    for key, value in ear.keys.items():
        add_key(writer, f"clip.audio.{key}", value)
