"""Rotary rebase against the NumPy model: keys are turned on the native side and there, and logits stay together."""

from __future__ import annotations

from dataclasses import asdict

import numpy as np
import pytest
from numpy_llama import NumpyLlama
from twins import Tally

import morphkv_cpp
from morphkv_cpp.reference import Rules

# isort: split
# after morphkv_cpp, which says what libllama is loaded
import llama_cpp

N_UBATCH = 16
CACHE_TYPES = {"f32": 0, "f16": 1}  # as in ggml.h


def some_tokens(n_tokens: int, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).integers(3, 320, n_tokens).tolist()


class Pair:
    """A native sequence and its NumPy twin."""

    def __init__(self, path, cache_type: str = "f16", **rules):
        self.rules = Rules(**rules)
        self.llm = morphkv_cpp.Llama(
            str(path),
            morphkv=morphkv_cpp.MorphKV(**asdict(self.rules)),
            n_batch=512,
            n_ubatch=N_UBATCH,
            n_threads=1,
            n_threads_batch=1,
            type_k=CACHE_TYPES[cache_type],
            type_v=CACHE_TYPES[cache_type],
            verbose=False,
        )
        self.twin = NumpyLlama(path, self.rules, cache_type=cache_type, n_ubatch=N_UBATCH)
        self.tally = Tally()

    def decode(self, tokens: list[int]) -> None:
        self.llm.eval(tokens)
        retained = [self.llm.retained(layer=layer) for layer in range(self.twin.n_layer)]
        logits, cuts = self.twin.decode(tokens, adopt=lambda layer, head: retained[layer][head])
        for cut in cuts:
            self.tally.compare_cut(cut, self.rules)
        stats, cache = self.llm.cache_stats(), self.twin.cache
        assert (stats.rotary_offset, stats.n_rebases) == (cache.rotary_offset, cache.n_rebases)
        assert (stats.n_evictions, stats.logical_pos) == (cache.n_evictions, cache.newest_position)
        assert stats.logical_pos - stats.rotary_offset < self.rules.rope_limit
        pointer = llama_cpp.llama_get_logits_ith(self.llm.ctx, -1)
        native = np.ctypeslib.as_array(pointer, shape=(self.twin.n_vocab,))
        self.tally.compare_logits(native, logits, f"after {self.twin.n_past} tokens, {cache.n_rebases} rebases")


@pytest.mark.parametrize("cache_type", CACHE_TYPES)
def test_twenty_rebases_of_single_tokens(tiny_llama, cache_type):
    pair = Pair(tiny_llama(seed=3), cache_type, capacity=40, window=8, interval=7, keep=4, rope_limit=100)
    for token in some_tokens(1200):
        pair.decode([token])
    pair.tally.check(n_cuts=150)
    assert pair.llm.cache_stats().n_rebases >= 20
    pair.llm.close()


def test_twenty_rebases_of_prompts_and_tokens(tiny_llama):
    """Batches cut once at most, so that what is kept can be seen; several rebase between their micro-batches."""
    path = tiny_llama(n_head=6, n_head_kv=2, seed=5)
    pair = Pair(path, capacity=40, window=8, interval=7, keep=2, prompt_room=30, rope_limit=90)
    for i in range(150):
        pair.decode(some_tokens((29, 3, 17)[i % 3], seed=i))
        for token in some_tokens(3, seed=100 + i):
            pair.decode([token])
    pair.tally.check(n_cuts=120)
    assert pair.llm.cache_stats().n_rebases >= 20
    pair.llm.close()


def test_before_the_first_eviction_there_is_nothing_to_rebase(tiny_llama):
    pair = Pair(tiny_llama(seed=3), capacity=40, window=8, interval=7, rope_limit=47)
    pair.decode(some_tokens(47))
    assert pair.llm.cache_stats().n_rebases == 0
    for token in some_tokens(100, seed=1):
        pair.decode([token])
    # at the limit's lowest, every cut is followed by a rebase
    assert pair.llm.cache_stats().n_rebases == pair.llm.cache_stats().n_evictions > 10
    pair.llm.close()
