"""Tiny random models that see, or hear: of each kind of positions and layers, and of each way to make tokens of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from upstream.server_models import write_gemma3

from morphkv_cpp.models.synthetic import write_tiny_llama

from . import heads
from .hybrids import write_tiny_hybrid
from .projectors import write_projector


@dataclass(frozen=True)
class Kind:
    """What a picture of 64 x 48 becomes."""

    n_tokens: int
    n_positions: int
    text: str = "llama"
    n_pieces: int = 1


# By the projector's name. Tokens of gemma3's attend both ways; idefics3's come in tiles with words between them; lfm2's
# text model has recurrent layers, qwen3vl's takes more of an image in its first layer.
KINDS = {
    "gemma3": Kind(36, 36, "gemma3"),
    "janus_pro": Kind(16, 16),
    "idefics3": Kind(20, 20, n_pieces=5),
    "lfm2": Kind(70, 70, "lfm2"),
    "qwen2vl_merger": Kind(12, 4, "qwen2vl"),
    "qwen2.5vl_merger": Kind(12, 4, "qwen2vl"),
    "qwen3vl_merger": Kind(12, 4, "qwen3vl"),
}

# What two seconds of sound become; chat handlers of llama_cpp read none.
WITH_SOUND = KINDS | {"ultravox": Kind(25, 25)}


def write_vision(folder: Path, kind: str) -> tuple[Path, Path]:
    """A model and its projector."""
    model, projector = folder / f"{kind}.gguf", folder / f"mmproj-{kind}.gguf"
    if kind == "gemma3":
        write_gemma3(model, projector)
        return model, projector
    text = WITH_SOUND[kind].text
    if text == "lfm2":
        write_tiny_hybrid(model)
    elif text == "qwen3vl":
        write_qwen3vl(model)
    elif text == "qwen2vl":
        write_tiny_llama(model, architecture="qwen2vl", rope_sections=(4, 6, 6, 0))
    else:
        # what libmtmd puts between idefics3's tiles
        write_tiny_llama(model, special=("\n", "\n\n", "<fake_token_around_image>", "<global-img>"))
    return model, write_projector(projector, kind)


def write_qwen3vl(path: Path, seed: int = 0) -> Path:
    """Two layers, the first of which adds what the projector has made for it."""
    weights = heads.Weights(seed)
    n_q, n_kv = heads.N_HEAD * heads.HEAD_SIZE, heads.N_HEAD_KV * heads.HEAD_SIZE
    weights.matrix("token_embd", heads.N_VOCAB, heads.N_EMBD, 8.0)
    weights.matrix("output", heads.N_VOCAB, heads.N_EMBD)
    weights.norm("output_norm")
    for i in range(2):
        block = f"blk.{i}"
        weights.norm(f"{block}.attn_norm")
        weights.norm(f"{block}.ffn_norm")
        weights.norm(f"{block}.attn_q_norm", heads.HEAD_SIZE)
        weights.norm(f"{block}.attn_k_norm", heads.HEAD_SIZE)
        weights.matrix(f"{block}.attn_q", n_q, heads.N_EMBD)
        weights.matrix(f"{block}.attn_k", n_kv, heads.N_EMBD)
        weights.matrix(f"{block}.attn_v", n_kv, heads.N_EMBD)
        weights.matrix(f"{block}.attn_output", heads.N_EMBD, n_q)
        weights.feed_forward(block, 1.0)
    keys = heads.sizes(2) | {"rope.dimension_sections": [4, 6, 6, 0], "n_deepstack_layers": 1}
    return heads.write(path, "qwen3vl", keys, weights)
