"""Tiny random models that see, or hear: of each kind of positions and layers, and of each way to make tokens of it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from upstream.server_models import write_gemma3

from morphkv_cpp.models.synthetic import write_tiny_llama

from . import heads, more_heads
from .hybrids import write_tiny_hybrid
from .projectors import with_image, with_sound, write_projector


@dataclass(frozen=True)
class Kind:
    """What a picture of 64 x 48 becomes."""

    n_tokens: int
    n_positions: int
    text: str = "llama"
    n_pieces: int = 1
    n_text: int = 64  # of the text model's embeddings
    n_fill: int = 0  # at most so many tokens more, that move its first one to a multiple of 4


# By the projector's name, on a text model of the family that has it, or a llama. Tokens of gemma3's, gemma4v's,
# gemma4uv's and deepseek4v's attend both ways; those with several pieces come in tiles, with words between them or
# without; qwen3vl's text model takes more of an image in its first layer, granite's in its second; lfm2's and
# nemotron's have recurrent layers.
KINDS = {
    "gemma3": Kind(36, 36, "gemma3"),
    "janus_pro": Kind(16, 16),
    "idefics3": Kind(20, 20, n_pieces=5),
    "lfm2": Kind(70, 70, "lfm2"),
    "qwen2vl_merger": Kind(12, 4, "qwen2vl"),
    "qwen2.5vl_merger": Kind(12, 4, "qwen2vl"),
    "qwen3vl_merger": Kind(12, 4, "qwen3vl"),
}
MORE_KINDS = {
    "mlp": Kind(16, 16),
    "phi4": Kind(48, 48),
    "internvl": Kind(20, 20, n_pieces=5),
    "llama4": Kind(20, 20, n_pieces=5),
    "cogvlm": Kind(18, 18),
    "nemotron_v2_vl": Kind(4, 4, "nemotron"),
    "kimivl": Kind(12, 12, "glm-flash"),
    "kimik25": Kind(12, 12, "glm-flash"),
    "paddleocr": Kind(12, 4, "qwen2vl"),
    "youtuvl": Kind(12, 4, "qwen2vl"),
    "ling3vl": Kind(12, 4, "qwen2vl"),
    "exaone4_5": Kind(12, 12),
    "adapter": Kind(6, 6),
    "resampler": Kind(30, 30, "llama of 128", n_pieces=5, n_text=128),
    "dots_ocr": Kind(12, 12),
    "pixtral": Kind(14, 14),
    "lightonocr": Kind(12, 12),
    "glm4v": Kind(12, 4, "glm4moe"),
    "gemma3nv": Kind(16, 16),
    "gemma4v": Kind(80, 80, "gemma4"),
    "gemma4uv": Kind(80, 80, "gemma4"),
    "mlp_norm": Kind(16, 16),
    "ldp": Kind(144, 144),
    "ldpv2": Kind(144, 144),
    "dots3note_v": Kind(12, 12),
    "glm5v": Kind(12, 4, "glm4moe"),
    "mimovl": Kind(12, 12),
    "minimax_m3": Kind(12, 12),
    "muse-glimmer": Kind(12, 12),
    "minicpmv4_6": Kind(20, 20, "llama with slices", n_pieces=5),
    "step3vl": Kind(82, 82, "llama with patches", n_pieces=2),
    "granite4_vision": Kind(70, 70, "granite"),
    "deepseekocr": Kind(273, 273),
    "deepseekocr2": Kind(257, 257),
    "yasa2": Kind(64, 64),
    "qwen2.5o": Kind(12, 4, "qwen2vl"),
    "deepseek4v": Kind(22, 22, n_fill=3),
}

# What two seconds of sound become; chat handlers of llama_cpp read none. Whisper's encoders hear 30 seconds at once.
SOUNDS = {"ultravox": Kind(25, 25)}
MORE_SOUNDS = {
    "voxtral": Kind(25, 25),
    "meralion": Kind(25, 25),
    "glma": Kind(27, 27),
    "qwen2a": Kind(750, 750, "qwen2vl"),
    "musicflamingo": Kind(750, 750),
    "qwen3a": Kind(39, 39, "qwen2vl"),
    "gemma4a": Kind(50, 50, "gemma4"),
    "gemma4ua": Kind(50, 50, "gemma4"),
    "dots3note_a": Kind(25, 25),
    "mimo_audio": Kind(13, 13),
    "lfm2a": Kind(26, 26, "lfm2"),
    "parakeet": Kind(26, 26, "nemotron"),
    "granite_speech": Kind(21, 21),
    "qwen3tts_spkenc": Kind(1, 1),
    "pockettts_spkenc": Kind(25, 25),
}
ALL_KINDS = KINDS | MORE_KINDS | SOUNDS | MORE_SOUNDS

BY_SAM = ("deepseekocr", "deepseekocr2")  # which take a second for each picture

# Names that llama.cpp has beside these.
NOT_RUN = {"hunyuanvl", "gemma3na", "qwen3tts_gen", "pockettts_gen"}


def kinds(*slow: Collection[str], of: Collection[str]) -> list[Any]:
    """Parameters of a test: these, and others in tests that are slow."""
    others = [kind for some in slow for kind in some if kind not in of]
    return [*of, *(pytest.param(kind, marks=pytest.mark.slow) for kind in others)]


def shown(kind: str, text: str, *seeds: int) -> list[dict]:
    """Content of a message: pictures or sounds, as the kind wants them, and a text behind them."""
    return (with_sound if kind in SOUNDS | MORE_SOUNDS else with_image)(text, *seeds)


RECURRENT = ("lfm2", "nemotron")  # texts of models with such layers

TEXTS: dict[str, Callable[[Path], object]] = {
    # what libmtmd puts between idefics3's tiles
    "llama": lambda path: write_tiny_llama(path, special=("\n", "\n\n", "<fake_token_around_image>", "<global-img>")),
    "llama of 128": lambda path: write_tiny_llama(
        path, n_embd=128, special=("\n", "<image>", "</image>", "<slice>", "</slice>")
    ),
    "llama with slices": lambda path: write_tiny_llama(
        path, special=("\n", "<image>", "</image>", "<slice>", "</slice>")
    ),
    "llama with patches": lambda path: write_tiny_llama(
        path, special=("<im_start>", "<im_end>", "<patch_start>", "<patch_end>", "<patch_newline>")
    ),
    "lfm2": write_tiny_hybrid,
    "qwen2vl": lambda path: write_tiny_llama(path, architecture="qwen2vl", rope_sections=(4, 6, 6, 0)),
    "qwen3vl": lambda path: write_stacked(
        path, "qwen3vl", {"rope.dimension_sections": [4, 6, 6, 0], "n_deepstack_layers": 1}, has_norms=True
    ),
    "granite": lambda path: write_stacked(path, "granite", {"logit_scale": 1.0, "deepstack_mapping": [-1, 1]}),
    "glm4moe": lambda path: more_heads.write_glm4moe(path, sections=(4, 6, 6, 0)),
    "glm-flash": heads.write_glm_flash,
    "gemma4": lambda path: heads.write_gemma4(path, path.with_suffix(".assistant.gguf")),
    "nemotron": more_heads.write_nemotron,
}


def write_vision(folder: Path, kind: str) -> tuple[Path, Path]:
    """A model and its projector; kind: one of ALL_KINDS."""
    model, projector = folder / f"{kind}.gguf", folder / f"mmproj-{kind}.gguf"
    if kind == "gemma3":
        write_gemma3(model, projector)
        return model, projector
    TEXTS[ALL_KINDS[kind].text](model)
    return model, write_projector(projector, kind, ALL_KINDS[kind].n_text)


def write_stacked(path: Path, architecture: str, keys: Mapping[str, Any], has_norms: bool = False) -> Path:
    """Two layers, one of which adds what the projector has made for it."""
    weights = heads.Weights(seed=0)
    n_q, n_kv = heads.N_HEAD * heads.HEAD_SIZE, heads.N_HEAD_KV * heads.HEAD_SIZE
    weights.matrix("token_embd", heads.N_VOCAB, heads.N_EMBD, 8.0)
    weights.matrix("output", heads.N_VOCAB, heads.N_EMBD)
    weights.norm("output_norm")
    for i in range(2):
        block = f"blk.{i}"
        weights.norm(f"{block}.attn_norm")
        weights.norm(f"{block}.ffn_norm")
        if has_norms:
            weights.norm(f"{block}.attn_q_norm", heads.HEAD_SIZE)
            weights.norm(f"{block}.attn_k_norm", heads.HEAD_SIZE)
        weights.matrix(f"{block}.attn_q", n_q, heads.N_EMBD)
        weights.matrix(f"{block}.attn_k", n_kv, heads.N_EMBD)
        weights.matrix(f"{block}.attn_v", n_kv, heads.N_EMBD)
        weights.matrix(f"{block}.attn_output", heads.N_EMBD, n_q)
        weights.feed_forward(block, 1.0)
    return heads.write(path, architecture, heads.sizes(2) | keys, weights)
