"""What turns pictures into tokens, tiny and random, by kinds of projectors, as clip's loader wants it."""

from __future__ import annotations

import gguf

from .convolving import CONVOLVING
from .gemma import GEMMA
from .llava import LLAVA
from .merging import MERGING
from .tensors import N_FF, Head, Tensors, add_key
from .tiling import TILING
from .trunks import Trunk

# By clip's names.
EYES: dict[str, tuple[Trunk, Head]] = LLAVA | MERGING | TILING | CONVOLVING | GEMMA


def add_eyes(writer: gguf.GGUFWriter, tensors: Tensors, kind: str, n_text: int) -> None:
    """kind: one of EYES; what is not there (hunyuanvl) gets janus_pro's, which nobody loads."""
    trunk, add_head = EYES.get(kind, EYES["janus_pro"])
    trunk.add(tensors)
    add_head(tensors, n_text)
    writer.add_clip_has_vision_encoder(True)
    writer.add_vision_image_size(trunk.image)
    writer.add_vision_patch_size(trunk.patch_size)
    writer.add_vision_embedding_length(trunk.n_inside)
    writer.add_vision_feed_forward_length(N_FF)
    writer.add_vision_projection_dim(n_text)
    writer.add_vision_block_count(trunk.n_block)
    writer.add_vision_head_count(trunk.n_head)
    writer.add_vision_attention_layernorm_eps(1e-6)
    writer.add_vision_image_mean([0.5] * 3)
    writer.add_vision_image_std([0.5] * 3)
    for key, value in trunk.keys.items():
        add_key(writer, key if key.startswith("clip.") else f"clip.vision.{key}", value)
    if trunk.is_gated:
        writer.add_vision_use_silu(True)
    else:
        writer.add_vision_use_gelu(True)
