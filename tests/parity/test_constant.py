"""However much is decoded, the cache stays as large as it was, and what stands beside K and V stays small."""

from __future__ import annotations

import numpy as np
import pytest

from support.tiny import QUIET, some_tokens

morphkv_cpp = pytest.importorskip("morphkv_cpp")


def test_cells_and_bytes_do_not_grow_over_thousands_of_tokens(tiny_llama):
    path = tiny_llama(n_head=6, n_head_kv=2)
    morphkv = morphkv_cpp.MorphKV(capacity=64, window=16, interval=16, prompt_room=64)
    llm = morphkv_cpp.Llama(str(path), morphkv=morphkv, n_ubatch=64, **QUIET)
    tokens = some_tokens(6000)
    llm.eval(tokens[:3000])
    early = llm.cache_stats()
    for token in tokens[3000:]:
        llm.eval([token])
        assert llm.cache_stats().n_used <= early.n_limit
    late = llm.cache_stats()
    for name in ("n_cells", "kv_bytes", "extra_bytes", "scratch_bytes"):
        assert getattr(late, name) == getattr(early, name), name
    assert late.logical_pos == 5999
    assert late.n_evicted == 6000 - late.n_used
    assert late.n_evictions - early.n_evictions == pytest.approx(3000 / 16, abs=2)
    llm.close()


@pytest.mark.demo
@pytest.mark.parametrize("prompt_room", [0, 1024])
def test_what_stands_beside_k_and_v_is_small(demo_model, prompt_room):
    morphkv = morphkv_cpp.MorphKV(capacity=1024, window=32, interval=128, prompt_room=prompt_room, layers="equal")
    llm = morphkv_cpp.Llama(str(demo_model), morphkv=morphkv, **QUIET)
    n_prompt = llm.cache_stats().n_limit
    llm.eval(np.random.default_rng(0).integers(100, 40000, n_prompt).tolist())
    llm.eval([100])
    stats = llm.cache_stats()
    assert stats.n_evictions == 1
    assert stats.n_used == 1025
    assert stats.extra_bytes < 0.10 * stats.kv_bytes
    assert 0 < stats.scratch_bytes < 0.15 * stats.kv_bytes
    llm.close()
