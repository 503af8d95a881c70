#!/usr/bin/env python3
"""Decoding in a model of the shape of Llama 3 8B on a GPU, random Q4_0 weights: stock llama.cpp against MorphKV.

    bench_8b.py FILE.gguf [--plot FILE.svg] [DEPTH ...]

Writes the model, 4.5 GB, into the file first. One line of JSON for each depth and cache; the plot is of the same rows.
"""

from __future__ import annotations

import argparse
import json
import time
from contextlib import closing
from pathlib import Path

import gguf
import numpy as np

from morphkv_cpp import Llama, MorphKV, bridge
from morphkv_cpp.bench.depths import MORPHKV, STOCK, DepthPoint
from morphkv_cpp.models import synthetic
from morphkv_cpp.plots.decode import plot_decode
from morphkv_cpp.plots.figure import check_plot

# isort: split
# after morphkv_cpp, which says what libllama is loaded
import llama_cpp

SHAPE = synthetic.TinyLlamaShape(
    n_layer=32, n_embd=4096, n_head=32, n_head_kv=8, head_size=128, n_ff=14336, n_vocab=4096, context_length=2**18
)
CONFIG = MorphKV(capacity=2048, window=32, interval=128, prompt_room=0)
N_DECODED = 512
N_ROWS = 64  # random rows, repeated: what they hold does not change the speed


def random_q4_0(n_out: int, n_in: int, gain: float = 1.0) -> np.ndarray:
    """Rows of blocks of 32 values: a scale in f16 and 4 bits each; inputs of size 1 give outputs of about the gain."""
    blocks = np.random.default_rng(0).integers(0, 256, (N_ROWS, n_in // 32, 18), dtype=np.uint8)
    scale = np.array([gain / np.sqrt(n_in) / 4.6], dtype=np.float16)
    blocks[:, :, :2] = scale.view(np.uint8)
    return np.tile(blocks.reshape(N_ROWS, -1), (n_out // N_ROWS, 1))


def write_model(path: str) -> None:
    s = SHAPE
    n_q, n_kv = s.n_head * s.head_size, s.n_head_kv * s.head_size
    writer = gguf.GGUFWriter(path, "llama")
    synthetic._add_sizes(writer, s)
    synthetic._add_vocabulary(writer, s.n_vocab)

    def add(name: str, n_out: int, n_in: int, gain: float = 1.0) -> None:
        kind = gguf.GGMLQuantizationType.Q4_0
        writer.add_tensor(f"{name}.weight", random_q4_0(n_out, n_in, gain), raw_dtype=kind)

    add("token_embd", s.n_vocab, s.n_embd)
    for i in range(s.n_layer):
        for name, n_out, n_in, gain in (
            ("attn_q", n_q, s.n_embd, s.attention_gain),
            ("attn_k", n_kv, s.n_embd, s.attention_gain),
            ("attn_v", n_kv, s.n_embd, 1.0),
            ("attn_output", s.n_embd, n_q, 1.0),
            ("ffn_gate", s.n_ff, s.n_embd, 1.0),
            ("ffn_up", s.n_ff, s.n_embd, 1.0),
            ("ffn_down", s.n_embd, s.n_ff, 1.0),
        ):
            add(f"blk.{i}.{name}", n_out, n_in, gain)
        for name in ("attn_norm", "ffn_norm"):
            writer.add_tensor(f"blk.{i}.{name}.weight", np.ones(s.n_embd, np.float32))
    writer.add_tensor("output_norm.weight", np.ones(s.n_embd, np.float32))
    add("output", s.n_vocab, s.n_embd)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def measure(path: str, depth: int, config: MorphKV | None) -> dict[str, object]:
    options = {"n_gpu_layers": -1, "flash_attn": True, "verbose": False, "n_batch": 512, "n_ubatch": 512}
    if config is None:
        options["n_ctx"] = depth + N_DECODED + 32
    with closing(Llama(path, morphkv=config, **options)) as llm:
        tokens = np.random.default_rng(1).integers(300, 4000, depth + N_DECODED + 16).tolist()
        for start in range(0, depth, 512):
            llm.eval(tokens[start : min(start + 512, depth)])
        for token in tokens[depth : depth + 16]:
            llm.eval([token])
        llama_cpp.llama_synchronize(llm.ctx)
        before = llm.cache_stats() if config else None
        start_s = time.perf_counter()
        for token in tokens[depth + 16 :]:
            llm.eval([token])
        llama_cpp.llama_synchronize(llm.ctx)
        seconds = time.perf_counter() - start_s
        row = {
            "depth": depth,
            "cache": "morphkv" if config else "stock",
            "tok_s": round(N_DECODED / seconds, 1),
            "kv_mib": round(bridge.kv_bytes(llm.ctx) / 2**20),
        }
        if before is not None:
            after = llm.cache_stats()
            n = after.n_evictions - before.n_evictions
            evict_ms = after.evict_ms - before.evict_ms
            row |= {"evictions": n, "ms_each": round(evict_ms / n, 2), "share": round(evict_ms / 1e3 / seconds, 4)}
        return row


def plot(path: Path, rows: list[dict]) -> None:
    names = {"morphkv": MORPHKV, "stock": STOCK}
    points = [DepthPoint(names[row["cache"]], row["depth"], row["kv_mib"] * 2**20, [row["tok_s"]]) for row in rows]
    plot_decode(path, f"Shape of Llama 3 8B: MorphKV (capacity {CONFIG.capacity:,}) and stock llama.cpp", points)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("--plot", type=Path)
    parser.add_argument("depths", nargs="*", type=int, default=[2048, 32768, 131072])
    given = parser.parse_args()
    if given.plot:
        check_plot(given.plot)
    write_model(given.model)
    rows = []
    for depth in given.depths:
        for config in (None, CONFIG):
            rows.append(measure(given.model, depth, config))
            print(json.dumps(rows[-1]), flush=True)
    if given.plot:
        plot(given.plot, rows)
