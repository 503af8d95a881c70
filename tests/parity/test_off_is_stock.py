"""Without a MorphKV config, and with one until the first eviction: the bits of the unpatched library's logits."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from support.tiny import some_tokens

pytest.importorskip("morphkv_cpp")

SCRIPT = Path(__file__).parent / "logits_of.py"
N_DECODE = 64
N_PROMPT = 300  # with what is decoded still below the capacity of the script's MorphKV
F16, Q8_0 = 1, 8  # as in ggml.h


def logits(arm: str, model: Path, tokens: list[int], cache_type: int, out: Path, **environment: str) -> np.ndarray:
    command = [sys.executable, str(SCRIPT), arm, str(model), str(cache_type), str(N_DECODE), str(out)]
    env = {name: value for name, value in os.environ.items() if name != "LLAMA_CPP_LIB_PATH"} | environment
    text = "\n".join(map(str, tokens))
    done = subprocess.run(command, input=text, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return np.load(out)


def compare(model: Path, tokens: list[int], stock_lib_dir: Path, tmp_path: Path, cache_type: int) -> None:
    stock = logits("stock", model, tokens, cache_type, tmp_path / "stock.npy", LLAMA_CPP_LIB_PATH=str(stock_lib_dir))
    assert stock.shape[0] == N_DECODE + 1
    assert np.isfinite(stock).all()
    for arm in ("off", "on"):
        ours = logits(arm, model, tokens, cache_type, tmp_path / f"{arm}.npy")
        assert (ours.view(np.uint32) == stock.view(np.uint32)).all(), f"{arm}: other bits than stock"


@pytest.mark.demo
@pytest.mark.parametrize("cache_type", [F16, Q8_0])
def test_the_demo_model_gives_stock_logits(demo_model, stock_lib_dir, tmp_path, cache_type):
    # any tokens will do: logits are compared, not text
    tokens = np.random.default_rng(0).integers(100, 40000, N_PROMPT).tolist()
    compare(demo_model, tokens, stock_lib_dir, tmp_path, cache_type)


@pytest.mark.parametrize("cache_type", [0, F16, 30, Q8_0, 6, 2])  # f32, f16, bf16, q8_0, q5_0, q4_0
def test_a_tiny_model_gives_stock_logits_with_every_cache_type(tiny_llama, stock_lib_dir, tmp_path, cache_type):
    path = tiny_llama(n_head=6, n_head_kv=2, head_size=64)
    tokens = some_tokens(N_PROMPT)
    compare(path, tokens, stock_lib_dir, tmp_path, cache_type)
