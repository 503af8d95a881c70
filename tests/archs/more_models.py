"""Random-weight models of architectures that upstream's test-llama-archs does not write.

Which tensors a model has, and of which shapes, llama.cpp itself says: it names what it misses or finds wrong in a file,
until the file loads.
"""

from __future__ import annotations

import re
from pathlib import Path

import morphkv_cpp  # noqa: F401  (says first which libllama is loaded)

# isort: split
import llama_cpp
import numpy as np
from gguf import GGUFWriter

from support.log import log_to

N_LAYER = 6

# keys of every model, without the architecture's name
KEYS = {
    "vocab_size": 128,
    "context_length": 256,
    "embedding_length": 64,
    "block_count": N_LAYER,
    "feed_forward_length": 96,
    "attention.head_count": 2,
    "attention.head_count_kv": 1,
    "attention.key_length": 32,
    "attention.value_length": 32,
    "attention.layer_norm_rms_epsilon": 1e-5,
    "attention.sliding_window": 32,
    "rope.dimension_count": 32,
}

GEMMA4 = {
    "attention.sliding_window_pattern": [True, True, True, False, True, False],
    "attention.key_length": 64,
    "attention.value_length": 64,
    "rope.dimension_count": 64,
    "rope.dimension_count_swa": 32,
    "attention.key_length_swa": 32,
    "attention.value_length_swa": 32,
    "rope.freq_base_swa": 10000.0,
    "embedding_length_per_layer_input": 16,
}

# what an architecture, or a variant of it, needs beside
MODELS = {
    ("bitnet", ""): {},
    ("gemma3n", ""): {"block_count": 25},  # the last has no window, and the K and V of layer 19
    ("gemma4", "shared K and V"): GEMMA4 | {"attention.shared_kv_layers": 2},
    ("gemma4", "no shared K and V"): GEMMA4 | {"attention.shared_kv_layers": 0},
    ("apertus", ""): {"xielu.alpha_n": 0.8, "xielu.alpha_p": 0.8, "xielu.beta": 0.5, "xielu.eps": 1e-6},
    ("step35", ""): {
        "attention.sliding_window_pattern": [True, False, True, False, True, False],
        "rope.freq_base_swa": 10000.0,
        "expert_count": 4,
        "expert_used_count": 2,
        "expert_feed_forward_length": 32,
        "leading_dense_block_count": 0,
    },
    ("deepseek2-ocr", ""): {
        "attention.head_count_kv": 2,
        "expert_count": 4,
        "expert_used_count": 2,
        "expert_feed_forward_length": 32,
        "expert_shared_count": 1,
        "leading_dense_block_count": N_LAYER,
    },
    # as old files of DeepSeek V2 are
    ("deepseek2", "whole keys, K and V of other sizes"): {
        "attention.head_count_kv": 2,
        "attention.key_length": 48,
        "attention.value_length": 32,
        "attention.q_lora_rank": 0,
        "attention.kv_lora_rank": 40,
        "rope.dimension_count": 16,
        "expert_feed_forward_length": 32,
        "expert_shared_count": 1,
        "leading_dense_block_count": N_LAYER,
    },
    ("plm", ""): {
        "attention.head_count_kv": 2,
        "attention.key_length": 48,
        "attention.kv_lora_rank": 40,
        "rope.dimension_count": 16,
    },
    ("mimo2", "K and V of other sizes"): {
        "attention.key_length": 48,
        "attention.sliding_window_pattern": [True, False, True, False, True, False],
        "rope.freq_base_swa": 10000.0,
        "expert_count": 4,
        "expert_used_count": 2,
        "expert_feed_forward_length": 32,
    },
}


def write(path: Path, architecture: str, keys: dict, shapes: dict[str, list[int]], seed: int | None) -> None:
    """shapes: ggml's, fastest axis first. seed: None for zeros."""
    rng = None if seed is None else np.random.default_rng(seed)
    writer = GGUFWriter(path, architecture)
    writer.add_string("tokenizer.ggml.model", "no_vocab")
    for key, value in keys.items():
        add = {int: writer.add_uint32, float: writer.add_float32, list: writer.add_array}[type(value)]
        add(key if key.startswith("xielu.") else f"{architecture}.{key}", value)
    for name, shape in shapes.items():
        mean = float("norm" in name and len(shape) == 1)
        values = rng.normal(mean, 0.1, shape[::-1]) if rng else np.zeros(shape[::-1])
        writer.add_tensor(name, values.astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write_model(path: Path, architecture: str, variant: str) -> None:
    log: list[str] = []
    callback = llama_cpp.llama_log_callback(lambda level, text, data: log.append(text.decode(errors="replace")))
    keys = KEYS | MODELS[architecture, variant]
    shapes: dict[str, list[int]] = {}
    for _ in range(300):
        write(path, architecture, keys, shapes, None)
        log.clear()
        with log_to(callback):
            model = llama_cpp.llama_model_load_from_file(str(path).encode(), llama_cpp.llama_model_default_params())
        if model:
            llama_cpp.llama_model_free(model)
            write(path, architecture, keys, shapes, 1)
            return
        ask(architecture, "".join(log), keys, shapes)
    raise AssertionError(f"{architecture}: more questions than tensors")


def ask(architecture: str, log: str, keys: dict, shapes: dict[str, list[int]]) -> None:
    """Notes what the log says is missing or wrong: a tensor's name, then its shape, of all layers at once."""
    missing = re.search(r"tensor '([^']+)' not found", log)
    wrong = re.search(r"tensor '([^']+)' has wrong shape; expected\s+([\d, ]+), got", log)
    if not (missing or wrong):
        raise AssertionError(f"{architecture}: {log[-500:]}")
    name = (wrong or missing).group(1)
    shape = [int(n) for n in wrong.group(2).split(",") if n.strip()] if wrong else [1]
    of_layer = re.match(r"blk\.0\.(.+)", name)
    for each in [f"blk.{i}.{of_layer[1]}" for i in range(keys["block_count"])] if of_layer else [name]:
        shapes[each] = shape
