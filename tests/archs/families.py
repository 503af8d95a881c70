"""The model families that people run most, as tables of what is done for them: docs/models.md and README.md.

    python tests/archs/families.py     print both

A row joins its architectures: a cell has what any of them has, in their order.
"""

from __future__ import annotations

from morphkv_cpp.architectures import Architecture, architectures

# by how many run them: family, architectures, and the variant where only one is meant
FAMILIES: list[tuple[str, tuple[str, ...], str]] = [
    ("Qwen 3.5, 3.6, 3.8", ("qwen35",), ""),
    ("Qwen 3.5, 3.6, 3.8 MoE", ("qwen35moe",), ""),
    ("Gemma 4", ("gemma4",), ""),
    ("Qwen 3 VL", ("qwen3vl", "qwen3vlmoe"), ""),
    ("Qwen 2 VL, 2.5 VL", ("qwen2vl",), ""),
    ("gpt-oss", ("gpt-oss",), ""),
    ("Gemma 3, 3n", ("gemma3", "gemma3n"), ""),
    ("GLM 4.7 Flash, DeepSeek 2 and 3", ("deepseek2",), "compressed keys (MLA)"),
    ("Mistral Small 4", ("mistral4",), ""),
    ("Nemotron 3", ("nemotron_h", "nemotron_h_moe"), ""),
    ("LFM2", ("lfm2", "lfm2moe"), ""),
    ("Granite 4", ("granitehybrid",), ""),
    ("Qwen3-Next", ("qwen3next",), ""),
    ("GLM 4.5V", ("glm4moe",), "rope sections"),
    ("PaddleOCR-VL, HunyuanOCR, DeepSeek-OCR", ("paddleocr", "hunyuan_vl", "deepseek2-ocr"), ""),
    ("Llama 4", ("llama4",), ""),
    ("Kimi Linear", ("kimi-linear",), ""),
    ("Qwen 4", ("qwen4exp",), ""),
    ("DeepSeek 4", ("deepseek4",), ""),
    ("MiniMax M3", ("minimax-m3",), ""),
    ("GLM 5", ("glm-dsa",), ""),
    ("Qwen 2.5, 3", ("qwen2", "qwen3", "qwen3moe"), ""),
    ("Llama 3", ("llama",), ""),
    ("Ministral 3", ("mistral3",), ""),
    ("Phi 4", ("phi3",), ""),
    ("GLM 4.5 Air", ("glm4moe",), "no rope sections"),
]

# README has no room for each
SHORT: list[tuple[str, tuple[str, ...]]] = [
    ("Qwen 2.5 and 3, Llama 3, Ministral 3, Phi 4", ("qwen2", "qwen3", "qwen3moe", "llama", "mistral3", "phi3")),
    ("Qwen 3.5, 3.6 and 3.8, Qwen3-Next", ("qwen35", "qwen35moe", "qwen3next")),
    ("Gemma 3, 3n and 4", ("gemma3", "gemma3n", "gemma4")),
    ("gpt-oss, Llama 4", ("gpt-oss", "llama4")),
    ("Qwen 2.5 VL and 3 VL, OCR models", ("qwen2vl", "qwen3vl", "qwen3vlmoe", "paddleocr", "hunyuan_vl")),
    ("GLM 4.5 Air and 4.5V", ("glm4moe",)),
    ("GLM 4.7 Flash, DeepSeek 3, Mistral Small 4", ("deepseek2", "mistral4")),
    (
        "Nemotron 3, LFM2, Granite 4, Kimi Linear",
        ("nemotron_h", "nemotron_h_moe", "lfm2", "lfm2moe", "granitehybrid", "kimi-linear"),
    ),
    ("Qwen 4, DeepSeek 4, MiniMax M3, GLM 5", ("qwen4exp", "deepseek4", "minimax-m3", "glm-dsa")),
]

COLUMNS = "cut | rebased | archived | goes back | images | MTP"
CUT = {"all": "every layer", "refused": "refused"}


def cut(each: Architecture) -> str:
    return CUT.get(each.support, each.why)


def cells(names: tuple[str, ...], variant: str = "") -> str:
    chosen = [each for each in architectures() if each.name in names and variant in ("", each.variant)]
    if {each.name for each in chosen} != set(names):
        raise ValueError(f"each must be an architecture of the list, got {names}")

    def joined(values: list[str]) -> str:
        found = dict.fromkeys(value for value in values if value)
        return ", ".join(found) or "-"

    columns = [
        [cut(each) for each in chosen],
        [each.is_rebased for each in chosen],
        [each.is_archived for each in chosen],
        [each.goes_back for each in chosen],
        [each.images for each in chosen],
        [each.mtp for each in chosen],
    ]
    return " | ".join(map(joined, columns))


def full() -> list[str]:
    head = [f"| family | architecture | {COLUMNS} |", "|---" * 8 + "|"]
    rows = []
    for family, names, variant in FAMILIES:
        shown = ", ".join(f"`{name}`" for name in names)
        rows.append(f"| {family} | {shown} | {cells(names, variant)} |")
    return head + rows


def short() -> list[str]:
    return [f"| family | {COLUMNS} |", "|---" * 7 + "|"] + [f"| {name} | {cells(names)} |" for name, names in SHORT]


def summary() -> str:
    """How many architectures there are, by their names."""
    cached = [each for each in architectures() if each.is_served or each.support == "refused"]
    served = {each.name for each in cached if each.is_served}
    whole = served - {each.name for each in cached if each.limits()}
    n = len({each.name for each in cached})
    return f"Of the {n} that have a KV cache, {len(served)} work, {len(whole)} of them without any of the limits below."


def reasons() -> list[str]:
    """Of each architecture with a KV cache that is not whole: why, and which these are."""
    found: dict[str, list[str]] = {}
    for each in architectures():
        why = each.why if each.support == "refused" else "; ".join(each.limits()) if each.is_served else ""
        if why and each.name not in found.get(why, []):
            found.setdefault(why, []).append(each.name)
    rows = [f"| {why} | {', '.join(f'`{name}`' for name in names)} |" for why, names in sorted(found.items())]
    return ["| what | architectures |", "|---|---|", *rows]


if __name__ == "__main__":
    print("\n".join([summary(), "", *full(), "", *reasons(), "", *short()]))
