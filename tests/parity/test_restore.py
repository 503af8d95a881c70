"""A state that is restored in a new process goes on bit for bit like the run that was never saved."""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from parity.state_of import go_on, open_llama

pytestmark = pytest.mark.demo

SCRIPT = Path(__file__).parent / "state_of.py"
F16, Q8_0 = 1, 8  # as in ggml.h


def compare(model: Path, folder: Path, cache_type: int, n_threads: int, n_decode: int, n_after: int) -> None:
    """Decode n_decode tokens one by one behind a prompt that fills the cache, save, and go on for n_after."""
    llm = open_llama(str(model), cache_type, n_threads)
    llm.eval(llm.tokenize(b"The lighthouse keeper and her three dogs. " * 100)[:576])
    for token in np.random.default_rng(0).integers(100, 40000, n_decode).tolist():
        llm.eval([token])
    first = 338
    (folder / "state.pickle").write_bytes(pickle.dumps((llm.save_state(), first)))
    evictions = llm.cache_stats().n_evictions
    assert evictions >= n_decode // 64
    tokens, logits = go_on(llm, first, n_after)
    assert llm.cache_stats().n_evictions > evictions
    llm.close()

    command = [sys.executable, SCRIPT, model, cache_type, n_threads, folder / "state.pickle", n_after, folder / "out"]
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    restored = np.load(folder / "out.npz")
    np.testing.assert_array_equal(restored["tokens"], tokens)
    np.testing.assert_array_equal(restored["logits"].view(np.uint32), logits.view(np.uint32))
    print(f"{n_after} tokens and their logits bit-equal, {evictions} evictions before, type {cache_type}")


@pytest.mark.parametrize("cache_type", [F16, Q8_0])
def test_after_a_few_evictions(demo_model, tmp_path, cache_type):
    compare(demo_model, tmp_path, cache_type, n_threads=1, n_decode=150, n_after=80)


@pytest.mark.slow
@pytest.mark.parametrize("n_threads", [1, 2])
@pytest.mark.parametrize("cache_type", [F16, Q8_0])
def test_after_5000_tokens(demo_model, tmp_path, cache_type, n_threads):
    compare(demo_model, tmp_path, cache_type, n_threads, n_decode=5000, n_after=200)
