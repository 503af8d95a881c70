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

from .clip.ears import EARS, add_ears
from .clip.eyes import add_eyes
from .clip.speaking import SPEAKING, add_speaking
from .clip.tensors import Tensors

# A question and its answer, as MTMDChatHandler writes them.
TEMPLATE = (
    "{% for message in messages %}{{ '[' + message['role'] + ']' }}"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for part in message['content'] %}{{ part['text'] }}{% endfor %}{% endif %}"
    "{{ '[end]' }}{% endfor %}{% if add_generation_prompt %}{{ '[assistant]' }}{% endif %}"
)


# What clip tells by tensors, or by what the file is asked for.
WITHIN = {"mlp_norm": "mlp"}
BOTH = {"qwen2.5o": ("qwen2.5vl_merger", "qwen2a")}


def write_projector(path: Path, kind: str, n_text: int = 64, seed: int = 5, ears: str = "") -> Path:
    """kind: as clip names it, one of EYES or EARS, or another whose projector nobody loads.

    n_text: size of the text model's embeddings. ears: the name of some beside, of which there is no more than that.
    """
    tensors = Tensors(seed)
    writer = gguf.GGUFWriter(path, "clip")
    writer.add_type("mmproj")
    if kind in SPEAKING:
        writer.add_string("clip.audio.projector_type", kind)
        add_speaking(writer, tensors, kind, n_text)
    elif ears:
        writer.add_string("clip.vision.projector_type", kind)
        writer.add_string("clip.audio.projector_type", ears)
        writer.add_clip_has_audio_encoder(True)
    else:
        writer.add_clip_projector_type(WITHIN.get(kind, kind))
    for part in BOTH.get(kind, (kind,)):
        add = add_ears if part in EARS else add_eyes
        add(writer, tensors, part, n_text)
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
