"""Models of one architecture that differ in what decides how it is served: rope sections, shared K and V, heads.

test-llama-archs writes one of each, with rope sections that no published file has.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from archs.rewrite import rewrite
from gguf import GGUFReader

from morphkv_cpp.models.synthetic import write_tiny_llama

# positions of several coordinates (M-RoPE), if the file has sections: these have them all, and those some
WITH_SECTIONS = ("paddleocr", "qwen2vl", "qwen3tts", "qwen3vl", "qwen3vlmoe", "qwen35", "qwen35moe")
WITH_OR_WITHOUT = ("bailingmoe3", "glm4", "glm4moe", "hunyuan_vl")
# norms with weights behind the rotation, which a rebase has to undo
NORM_BEHIND = ("hunyuan-dense", "hunyuan-moe", "hunyuan_vl", "maincoder")
SECTIONS = "rope.dimension_sections"

# what the model is that test-llama-archs writes, where there are others
WRITTEN = {
    "deci": "equal heads",
    "deepseek2": "compressed keys (MLA)",
    "mimo2": "K and V of one size",
    **dict.fromkeys(WITH_OR_WITHOUT, "rope sections"),
}


def path_of(folder: Path, architecture: str, variant: str, kind: str = "more") -> Path:
    return folder / f"{architecture}-{kind}{'@' + variant if variant else ''}.gguf"


def names_of(path: Path) -> tuple[str, str]:
    """Architecture and variant of a model."""
    stem, _, variant = path.stem.partition("@")
    return stem.rsplit("-", 1)[0], variant


def real_norms(path: Path) -> None:
    """Weights of norms of keys and queries as published, all about 1; written, some are nearly 0."""
    reader = GGUFReader(path, "r+")
    rng = np.random.default_rng(0)
    for tensor in reader.tensors:
        if tensor.name.endswith((".attn_k_norm.weight", ".attn_q_norm.weight")):
            tensor.data[:] = rng.uniform(0.5, 1.5, tensor.data.shape)
    reader.data.flush()


def has_norm_behind(path: Path) -> bool:
    return names_of(path)[0] in NORM_BEHIND


def has_compressed_keys(path: Path) -> bool:
    """MLA: one head of compressed keys, of which attention takes a part as values."""
    return any(tensor.name.endswith(".attn_k_b.weight") for tensor in GGUFReader(path).tensors)


def write_variants(folder: Path) -> None:
    """Give the models of test-llama-archs in the folder their variants' names, and write some more."""
    for path in sorted(folder.glob("*.gguf")):
        architecture, kind = path.stem.rsplit("-", 1)
        if architecture in WITH_SECTIONS + WITH_OR_WITHOUT:
            real_sections(path)
        if architecture in NORM_BEHIND:
            real_norms(path)
        if architecture in WITH_OR_WITHOUT:
            rewrite(path, path_of(folder, architecture, "no rope sections", kind), keys={SECTIONS: None})
        path.rename(path_of(folder, architecture, WRITTEN.get(architecture, ""), kind))
    write_deci(path_of(folder, "deci", "layers without KV heads"))


def real_sections(path: Path) -> None:
    """As published: the last of four is 0, and they are half of a head together; written, each is a quarter."""
    reader = GGUFReader(path, "r+")
    (field,) = (field for name, field in reader.fields.items() if name.endswith(SECTIONS))
    sections = [field.parts[i] for i in field.data]
    if sections[3][0] != 0:
        published = published_sections(path.stem.rsplit("-", 1)[0], 2 * int(sections[0][0]))
        for part, n in zip(sections, published):
            part[0] = n
    reader.data.flush()


def published_sections(architecture: str, n_pairs: int) -> tuple[int, int, int, int]:
    """Qwen 3.5: 11, 11, 10 of 32; Qwen 3 VL: 24, 20, 20 of 64, both interleaved; the others: 16, 24, 24 of 64."""
    if architecture.startswith("qwen35"):
        third = -(-n_pairs // 3)
        return third, third, n_pairs - 2 * third, 0
    if architecture.startswith("qwen3"):
        return n_pairs * 3 // 8, n_pairs * 5 // 16, n_pairs * 5 // 16, 0
    return n_pairs // 4, n_pairs * 3 // 8, n_pairs * 3 // 8, 0


def write_deci(path: Path, n_heads=(4, 4, 0, 4), n_heads_kv=(4, 0, 0, 4)) -> None:
    """As Nemotron 51B: layers of attention, of a matrix in its place, of neither, and of attention again."""
    n_layer = len(n_heads)
    write_tiny_llama(path, n_layer=n_layer, n_head=4, n_head_kv=4, n_embd=128, head_size=32)
    parts = {
        "attn_q": n_heads_kv,
        "attn_k": n_heads_kv,
        "attn_v": n_heads_kv,
        "attn_norm": n_heads,
        "attn_output": n_heads,
    }
    left_out = {f"blk.{i}.{part}.weight": None for part, ns in parts.items() for i in range(n_layer) if ns[i] == 0}
    keys = {"attention.head_count": list(n_heads), "attention.head_count_kv": list(n_heads_kv)}
    rewrite(path, path, keys=keys, tensors=left_out, architecture="deci")
