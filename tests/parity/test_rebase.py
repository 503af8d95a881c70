"""Rotary rebase against the NumPy model: keys are turned on the native side and there, and logits stay together."""

from __future__ import annotations

import pytest

from support.pair import CACHE_TYPES, Pair
from support.tiny import some_tokens


@pytest.mark.parametrize("cache_type", CACHE_TYPES)
def test_twenty_rebases_of_single_tokens(tiny_llama, cache_type):
    pair = Pair(tiny_llama(seed=3), cache_type, capacity=40, window=8, interval=7, keep=4, rope_limit=100)
    pair.decode_singly(some_tokens(1200))
    pair.tally.check(n_cuts=150)
    assert pair.llm.cache_stats().n_rebases >= 20
    pair.close()


def test_twenty_rebases_of_prompts_and_tokens(tiny_llama):
    """Batches cut once at most, so that what is kept can be seen; several rebase between their micro-batches."""
    path = tiny_llama(n_head=6, n_head_kv=2, seed=5)
    pair = Pair(path, capacity=40, window=8, interval=7, keep=2, prompt_room=30, rope_limit=90)
    for i in range(150):
        pair.decode(some_tokens((29, 3, 17)[i % 3], seed=i))
        pair.decode_singly(some_tokens(3, seed=100 + i))
    pair.tally.check(n_cuts=120)
    assert pair.llm.cache_stats().n_rebases >= 20
    pair.close()


def test_before_the_first_eviction_there_is_nothing_to_rebase(tiny_llama):
    pair = Pair(tiny_llama(seed=3), capacity=40, window=8, interval=7, rope_limit=47)
    pair.decode(some_tokens(47))
    assert pair.llm.cache_stats().n_rebases == 0
    pair.decode_singly(some_tokens(100, seed=1))
    # at the limit's lowest, every cut is followed by a rebase
    assert pair.llm.cache_stats().n_rebases == pair.llm.cache_stats().n_evictions > 10
    pair.close()
