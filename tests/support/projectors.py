"""Tiny random projectors as clip's loader wants them, pictures, and chat handlers that read them."""

from __future__ import annotations

import base64
import struct
import zlib
from pathlib import Path

import gguf
import numpy as np

PATCH, N_VISION, N_FF = 8, 32, 96
# A question and its answer, as MTMDChatHandler writes them.
TEMPLATE = (
    "{% for message in messages %}{{ '[' + message['role'] + ']' }}"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for part in message['content'] %}{{ part['text'] }}{% endfor %}{% endif %}"
    "{{ '[end]' }}{% endfor %}{% if add_generation_prompt %}{{ '[assistant]' }}{% endif %}"
)


def write_projector(path: Path, kind: str, n_text: int = 64, seed: int = 5) -> Path:
    """kind: "janus_pro", 16 tokens an image, or "qwen2vl_merger", one for 16 x 16 pixels in rows and columns.

    n_text: size of the text model's embeddings.
    """
    rng, tensors = np.random.default_rng(seed), {}

    def matrix(name: str, *shape: int) -> None:
        n_in = int(np.prod(shape[1:]))
        tensors[name] = (rng.standard_normal(shape) / np.sqrt(n_in)).astype(np.float32)

    def linear(name: str, n_out: int, n_in: int) -> None:
        matrix(f"{name}.weight", n_out, n_in)
        tensors[f"{name}.bias"] = (0.1 * rng.standard_normal(n_out)).astype(np.float32)

    def norm(name: str) -> None:
        tensors[f"{name}.weight"] = rng.uniform(0.8, 1.2, N_VISION).astype(np.float32)
        tensors[f"{name}.bias"] = (0.1 * rng.standard_normal(N_VISION)).astype(np.float32)

    is_qwen, image_size = kind.startswith("qwen"), 32
    matrix("v.patch_embd.weight", N_VISION, 3, PATCH, PATCH)
    if is_qwen:
        matrix("v.patch_embd.weight.1", N_VISION, 3, PATCH, PATCH)
    else:
        tensors["v.patch_embd.bias"] = (0.1 * rng.standard_normal(N_VISION)).astype(np.float32)
        matrix("v.position_embd.weight", (image_size // PATCH) ** 2, N_VISION)
    for name in ("attn_q", "attn_k", "attn_v", "attn_out"):
        linear(f"v.blk.0.{name}", N_VISION, N_VISION)
    linear("v.blk.0.ffn_up", N_FF, N_VISION)
    linear("v.blk.0.ffn_down", N_VISION, N_FF)
    for name in ("v.blk.0.ln1", "v.blk.0.ln2", "v.post_ln"):
        norm(name)
    n_in = 4 * N_VISION if is_qwen else N_VISION
    linear("mm.0", n_in, n_in)
    linear("mm.2" if is_qwen else "mm.1", n_text, n_in)

    writer = gguf.GGUFWriter(path, "clip")
    writer.add_type("mmproj")
    writer.add_clip_has_vision_encoder(True)
    writer.add_clip_projector_type(kind)
    writer.add_vision_image_size(image_size)
    writer.add_vision_patch_size(PATCH)
    writer.add_vision_embedding_length(N_VISION)
    writer.add_vision_feed_forward_length(N_FF)
    writer.add_vision_projection_dim(n_text)
    writer.add_vision_block_count(1)
    writer.add_vision_head_count(2)
    writer.add_vision_attention_layernorm_eps(1e-6)
    writer.add_vision_image_mean([0.5] * 3)
    writer.add_vision_image_std([0.5] * 3)
    writer.add_vision_use_gelu(True)
    for name, tensor in tensors.items():
        writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def png(seed: int, width: int = 64, height: int = 48) -> bytes:
    """A picture of random colours."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    rows = b"".join(b"\0" + row.tobytes() for row in pixels)  # 0: no filter

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)  # 8 bits, RGB
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def data_url(seed: int, **size: int) -> str:
    return "data:image/png;base64," + base64.b64encode(png(seed, **size)).decode()


def with_image(text: str, *seeds: int, **size: int) -> list[dict]:
    """Content of a message: pictures, and a text behind them."""
    images = [{"type": "image_url", "image_url": {"url": data_url(seed, **size)}} for seed in seeds]
    return [*images, {"type": "text", "text": text}]
