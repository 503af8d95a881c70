"""Tiny random projectors as clip's loader wants them, pictures and sounds, and messages with them."""

from __future__ import annotations

import base64
import io
import struct
import wave
import zlib
from pathlib import Path

import gguf
import numpy as np

PATCH, IMAGE, N_INSIDE, N_FF = 8, 32, 32, 96
# A question and its answer, as MTMDChatHandler writes them.
TEMPLATE = (
    "{% for message in messages %}{{ '[' + message['role'] + ']' }}"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for part in message['content'] %}{{ part['text'] }}{% endfor %}{% endif %}"
    "{{ '[end]' }}{% endfor %}{% if add_generation_prompt %}{{ '[assistant]' }}{% endif %}"
)


def write_projector(path: Path, kind: str, n_text: int = 64, seed: int = 5) -> Path:
    """kind: as clip names it, one of support.vision.KINDS but gemma3, or "ultravox", which hears.

    n_text: size of the text model's embeddings.
    """
    tensors = Tensors(seed)
    writer = gguf.GGUFWriter(path, "clip")
    writer.add_type("mmproj")
    writer.add_clip_projector_type(kind)
    if kind == "ultravox":
        _add_ears(writer, tensors, n_text)
    else:
        _add_eyes(writer, tensors, kind, n_text)
    for name, tensor in tensors.items():
        writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


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

    def block(self, name: str) -> None:
        """A layer as CLIP has it."""
        for part in ("attn_q", "attn_k", "attn_v", "attn_out"):
            self.linear(f"{name}.{part}", N_INSIDE, N_INSIDE)
        self.linear(f"{name}.ffn_up", N_FF, N_INSIDE)
        self.linear(f"{name}.ffn_down", N_INSIDE, N_FF)
        for part in ("ln1", "ln2"):
            self.norm(f"{name}.{part}")


def _add_eyes(writer: gguf.GGUFWriter, tensors: Tensors, kind: str, n_text: int) -> None:
    is_qwen, is_qwen25, is_qwen3 = kind.startswith("qwen"), kind.startswith("qwen2.5"), kind.startswith("qwen3")
    n_block = 2 if is_qwen25 else 1
    tensors.matrix("v.patch_embd.weight", N_INSIDE, 3, PATCH, PATCH)
    if is_qwen:
        tensors.matrix("v.patch_embd.weight.1", N_INSIDE, 3, PATCH, PATCH)
    if not is_qwen or is_qwen3:
        tensors.bias("v.patch_embd.bias", N_INSIDE)
        tensors.matrix("v.position_embd.weight", (IMAGE // PATCH) ** 2, N_INSIDE)
    for i in range(n_block):
        tensors.block(f"v.blk.{i}")
    tensors.norm("v.post_ln")
    n_joined = 4 * N_INSIDE  # of two rows and two columns
    if is_qwen25:
        for i in range(n_block):
            tensors.linear(f"v.blk.{i}.ffn_gate", N_FF, N_INSIDE)
        for name in [name for name in tensors if name.endswith(("ln.bias", "ln1.bias", "ln2.bias"))]:
            del tensors[name]  # norms without a mean
        writer.add_vision_n_wa_pattern(2)  # the first layer attends in windows
    elif is_qwen3:
        parts = [{end: tensors.pop(f"v.blk.0.attn_{x}.{end}") for end in ("weight", "bias")} for x in "qkv"]
        for end in ("weight", "bias"):
            tensors[f"v.blk.0.attn_qkv.{end}"] = np.concatenate([part[end] for part in parts])
        # what the text model's first layer adds to its own
        tensors.norm("v.deepstack.0.norm", n_joined)
        tensors.linear("v.deepstack.0.fc1", n_joined, n_joined)
        tensors.linear("v.deepstack.0.fc2", n_text, n_joined)
    if is_qwen:
        tensors.linear("mm.0", n_joined, n_joined)
        tensors.linear("mm.2", n_text, n_joined)
    elif kind == "idefics3":
        tensors.matrix("mm.model.fc.weight", n_text, n_joined)
        writer.add_vision_projector_scale_factor(2)
        writer.add_vision_preproc_image_size(2 * IMAGE)  # in tiles, and all of it as one
    elif kind == "lfm2":
        tensors.norm("mm.input_norm", n_joined)
        tensors.linear("mm.1", n_joined, n_joined)
        tensors.linear("mm.2", n_text, n_joined)
        writer.add_vision_projector_scale_factor(2)
    else:
        tensors.linear("mm.0", N_INSIDE, N_INSIDE)
        tensors.linear("mm.1", n_text, N_INSIDE)

    writer.add_clip_has_vision_encoder(True)
    writer.add_vision_image_size(IMAGE)
    writer.add_vision_patch_size(PATCH)
    writer.add_vision_embedding_length(N_INSIDE)
    writer.add_vision_feed_forward_length(N_FF)
    writer.add_vision_projection_dim(n_text)
    writer.add_vision_block_count(n_block)
    writer.add_vision_head_count(2)
    writer.add_vision_attention_layernorm_eps(1e-6)
    writer.add_vision_image_mean([0.5] * 3)
    writer.add_vision_image_std([0.5] * 3)
    if is_qwen25:
        writer.add_vision_use_silu(True)
    else:
        writer.add_vision_use_gelu(True)


def _add_ears(writer: gguf.GGUFWriter, tensors: Tensors, n_text: int) -> None:
    """Whisper's encoder, of 30 seconds at once, and a projector that joins 60 of its frames: 25 tokens."""
    n_mel, n_frames, n_joined, n_hidden = 16, 1500, 60, 48
    for i, n_in in ((1, n_mel), (2, N_INSIDE)):
        tensors.matrix(f"a.conv1d.{i}.weight", N_INSIDE, n_in, 3)
        tensors[f"a.conv1d.{i}.weight"] = tensors[f"a.conv1d.{i}.weight"].astype(np.float16)
        tensors.bias(f"a.conv1d.{i}.bias", N_INSIDE, 1)
    tensors.matrix("a.position_embd.weight", n_frames, N_INSIDE)
    tensors.block("a.blk.0")
    del tensors["a.blk.0.attn_k.bias"]
    tensors.norm("a.post_ln")
    tensors.norm("mm.a.norm_pre", n_joined * N_INSIDE, has_bias=False)
    tensors.matrix("mm.a.mlp.1.weight", 2 * n_hidden, n_joined * N_INSIDE)  # with gates
    tensors.norm("mm.a.norm_mid", n_hidden, has_bias=False)
    tensors.matrix("mm.a.mlp.2.weight", n_text, n_hidden)

    writer.add_clip_has_audio_encoder(True)
    writer.add_audio_num_mel_bins(n_mel)
    writer.add_audio_embedding_length(N_INSIDE)
    writer.add_audio_feed_forward_length(N_FF)
    writer.add_audio_projection_dim(n_text)
    writer.add_audio_block_count(1)
    writer.add_audio_head_count(2)
    writer.add_audio_attention_layernorm_eps(1e-5)
    writer.add_audio_stack_factor(n_joined)


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


def wav(seed: int, seconds: float = 2.0) -> bytes:
    """A sound of some tones."""
    rng, rate = np.random.default_rng(seed), 16000
    time = np.arange(int(seconds * rate)) / rate
    tones = sum(np.sin(2 * np.pi * frequency * time) for frequency in rng.uniform(100, 3000, 5))
    out = io.BytesIO()
    with wave.open(out, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes((tones * 6000).astype(np.int16).tobytes())
    return out.getvalue()


def with_sound(text: str, *seeds: int) -> list[dict]:
    """Content of a message: sounds, and a text behind them."""
    data = [base64.b64encode(wav(seed)).decode() for seed in seeds]
    sounds = [{"type": "input_audio", "input_audio": {"data": each, "format": "wav"}} for each in data]
    return [*sounds, {"type": "text", "text": text}]
