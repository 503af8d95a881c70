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

import numpy as np

from morphkv_cpp import Llama, MorphKV, bridge
from morphkv_cpp.bench.depths import MORPHKV, STOCK, DepthPoint
from morphkv_cpp.models.shape_files import write_shape
from morphkv_cpp.models.shapes import SHAPES
from morphkv_cpp.plots.decode import plot_decode
from morphkv_cpp.plots.figure import check_plot

# isort: split
# after morphkv_cpp, which says what libllama is loaded
import llama_cpp

SHAPE = SHAPES["8b"]
CONFIG = MorphKV(capacity=2048, window=32, interval=128, prompt_room=0)
N_DECODED = 512


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
    write_shape(given.model, SHAPE, SHAPE.n_layer)
    rows = []
    for depth in given.depths:
        for config in (None, CONFIG):
            rows.append(measure(given.model, depth, config))
            print(json.dumps(rows[-1]), flush=True)
    if given.plot:
        plot(given.plot, rows)
