"""What llama.cpp has for an architecture beside text: images, and heads that draft (MTP)."""

from __future__ import annotations

import re
from pathlib import Path

from archs import variants

# What MorphKV does not serve of it; native/README.md says why. `make archs` writes the list anew.
WITHOUT_IMAGES = {"hunyuan_vl"}
WITHOUT_MTP = {"mimo2", "step35"}
WITHOUT_MTP_WITH_MROPE = {"glm4moe"}

# Those whose published models come with a projector for images (tools/mtmd); what a library cannot know of a GGUF.
WITH_IMAGES = {
    "bailingmoe3": "Ling 3 VL",
    "cogvlm": "CogVLM",
    "deepseek2": "Kimi-VL, Kimi K2.5",
    "deepseek2-ocr": "DeepSeek-OCR",
    "ernie4_5": "PaddleOCR-VL, early files",
    "exaone4": "EXAONE 4.5",
    "gemma3": "Gemma 3",
    "gemma3n": "Gemma 3n",
    "gemma4": "Gemma 4",
    "glm4": "GLM-4.1V",
    "glm4moe": "GLM-4.5V",
    "granite": "Granite Vision",
    "hunyuan_vl": "HunyuanOCR",
    "internlm2": "InternVL",
    "lfm2": "LFM2-VL",
    "llama": "LLaVA, SmolVLM, Pixtral",
    "llama4": "Llama 4",
    "mimo2": "MiMo-VL",
    "mistral3": "Ministral 3, Mistral Small 3",
    "mistral4": "Mistral Small 4",
    "muse-glimmer": "Muse Glimmer",
    "nemotron_h": "Nemotron Nano v2 VL",
    "paddleocr": "PaddleOCR-VL",
    "phi3": "Phi-4 multimodal",
    "qwen2": "InternVL, MiniCPM-V, dots.ocr",
    "qwen2vl": "Qwen 2 VL, 2.5 VL",
    "qwen3": "InternVL, MiniCPM-V",
    "qwen35": "Qwen 3.5",
    "qwen35moe": "Qwen 3.5",
    "qwen3vl": "Qwen 3 VL",
    "qwen3vlmoe": "Qwen 3 VL",
}


def images_of(architecture: str, has_mrope: bool) -> str:
    """As in Architecture.images."""
    is_text_alone = architecture in variants.WITH_OR_WITHOUT and not has_mrope
    if architecture not in WITH_IMAGES or is_text_alone:
        return ""
    kind = "M-RoPE" if has_mrope else "one position"
    return "no" if architecture in WITHOUT_IMAGES else kind


def mtp_of(architecture: str, source: Path, has_mrope: bool) -> str:
    """As in Architecture.mtp. source: llama.cpp's folder src."""
    kind = "inside" if plain(architecture) in with_heads(source) else ""
    if (source / "models" / f"{architecture}-assistant.cpp").is_file():
        kind = "beside"
    without = WITHOUT_MTP | WITHOUT_MTP_WITH_MROPE if has_mrope else WITHOUT_MTP
    return "no" if kind and architecture in without else kind


def with_heads(source: Path) -> set[str]:
    """Architectures whose graph has a kind of its own for their heads, without what separates words."""
    models = (source / "models").glob("*.cpp")
    return {plain(path.stem) for path in models if "LLM_GRAPH_TYPE_DECODER_MTP" in path.read_text()}


def plain(name: str) -> str:
    return re.sub("[-_.]", "", name)
