"""Gemma 3 270M, a real model with sliding windows in 15 of its 18 layers; optional, as it has to be fetched."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

morphkv_cpp = pytest.importorskip("morphkv_cpp")

from morphkv_cpp.eval.perplexity import open_for_nll, stream_nll  # noqa: E402

PROSE = Path(morphkv_cpp.__file__).parent / "eval" / "data" / "prose"
N_TOKENS = 3300
N_SKIP = 1000
CUT = morphkv_cpp.MorphKV(capacity=512, interval=64, prompt_room=0)


@pytest.mark.slow
def test_a_long_text_is_read_nearly_as_with_a_full_cache(gemma_model):
    text = "\n\n".join(path.read_text() for path in sorted(PROSE.glob("*.txt")))
    perplexity = {}
    for name, morphkv in (("full", None), ("morphkv", CUT)):
        llm = open_for_nll(
            gemma_model, morphkv, N_TOKENS, 32, n_threads=1, n_threads_batch=1, flash_attn=True, verbose=False
        )
        values = stream_nll(llm, llm.tokenize(text.encode())[:N_TOKENS])
        perplexity[name] = float(np.exp(values[N_SKIP:].mean()))
        if morphkv:
            stats = llm.cache_stats()
            assert stats.n_evictions > 40
            assert stats.n_used <= stats.n_limit == 576
            # 3 layers attend to all, 15 have a window of 512 and a micro-batch
            assert [llm.retained(layer).shape for layer in (5, 11, 17)] == [(1, 480)] * 3
            assert stats.kv_bytes == 2 * 2 * 256 * (3 * 768 + 15 * 768)
        llm.close()
    # measured: 30.76 and 31.35
    assert perplexity["morphkv"] < 1.05 * perplexity["full"], perplexity
