"""The native cache against the specification: the same tokens through libllama and through a float64 NumPy llama.

After every batch the logits must agree within a tolerance, the counters exactly, and after every cut each head must
keep the set that the reference chooses, but for near-ties.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from support.numpy_llama import NumpyLlama
from support.pair import N_UBATCH, Pair
from support.reference import Rules
from support.tiny import some_tokens
from support.twins import TIE_TOLERANCE, Tally

GROUPS = {1: {"n_head": 2, "n_head_kv": 2}, 3: {"n_head": 6, "n_head_kv": 2}, 4: {"n_head": 8, "n_head_kv": 2}}


def run(path: Path, prompts: list[int], n_single: int, cache_type: str = "f16", **rules) -> Tally:
    """Decode prompts of these lengths, one batch each, then n_single tokens one by one."""
    pair = Pair(path, cache_type, **rules)
    try:
        for i, n_tokens in enumerate(prompts):
            pair.decode(some_tokens(n_tokens, seed=i))
        pair.decode_singly(some_tokens(n_single, seed=99))
    finally:
        pair.close()
    return pair.tally


@pytest.mark.parametrize("fusion", ["sum", "max"])
@pytest.mark.parametrize("cache_type", ["f16", "f32", "q8_0"])
@pytest.mark.parametrize("group", GROUPS)
def test_same_tokens_are_kept_and_same_logits_follow(tiny_llama, group, cache_type, fusion):
    """Over 200 cuts at intervals 1, 7 and 64, keeping 0 and 4, in single tokens and in prompts that find no cells."""
    path = tiny_llama(**GROUPS[group], seed=group)
    common = {"cache_type": cache_type, "fusion": fusion, "window": 8}
    tally = run(path, [20], 160, capacity=32, interval=1, keep=0, **common)
    tally += run(path, [50], 300, capacity=40, interval=7, keep=4, **common)
    tally += run(path, [110, 64, 50, 64, 64, 2, 63], 200, capacity=40, interval=64, keep=4, **common)
    tally.check(n_cuts=200)


@pytest.mark.parametrize("cache_type", ["f16", "q8_0"])
def test_a_head_of_64_and_four_layers(tiny_llama, cache_type):
    """64: llama.cpp rotates what it quantizes."""
    path = tiny_llama(n_layer=4, n_head=4, n_head_kv=1, head_size=64, n_embd=96, seed=7)
    run(path, [30], 150, cache_type, capacity=32, window=8, interval=3, keep=2).check(n_cuts=45)


@pytest.mark.parametrize("cache_type", ["f16", "f32"])
@pytest.mark.parametrize(("votes", "window"), [(1, 1), (1, 16), (3, 8), (8, 8)])
def test_only_the_newest_queries_vote(tiny_llama, votes, window, cache_type):
    path = tiny_llama(**GROUPS[3], seed=3)
    rules = {"capacity": 40, "window": window, "votes": votes, "interval": 5, "keep": 4}
    run(path, [40, 5], 150, cache_type, **rules).check(n_cuts=25)


@pytest.mark.parametrize("fusion", ["sum", "max"])
@pytest.mark.parametrize(("decay", "interval"), [(0.9, 1), (0.9, 7), (0.5, 20)])
def test_scores_are_remembered_with_their_tokens(tiny_llama, decay, interval, fusion):
    path = tiny_llama(**GROUPS[3], seed=3)
    rules = {"capacity": 32, "window": 8, "interval": interval, "keep": 1, "decay": decay, "fusion": fusion}
    run(path, [20, 12], 40 * min(interval, 10), **rules).check(n_cuts=15)


@pytest.mark.parametrize("cache_type", ["f16", "q8_0"])
@pytest.mark.parametrize("policy", ["committees", "h2o"])
@pytest.mark.parametrize(("protect", "interval"), [(-1, 1), (0, 7), (5, 20)])
def test_policies_that_carry_sums(tiny_llama, policy, protect, interval, cache_type):
    path = tiny_llama(**GROUPS[3], seed=3)
    rules = {"capacity": 40, "window": 8, "interval": interval, "keep": 3, "policy": policy, "protect": protect}
    run(path, [20, 12], 40 * min(interval, 10), cache_type, **rules).check(n_cuts=15)


def test_protected_tokens_stay_and_do_not_vote(tiny_llama):
    path = tiny_llama(**GROUPS[3], seed=3)
    run(path, [40, 5], 150, capacity=40, window=4, protect=9, interval=5, keep=4).check(n_cuts=25)


def test_prompt_room_delays_the_cut_to_the_first_single_token(tiny_llama):
    path = tiny_llama(**GROUPS[1], seed=1)
    pair = Pair(path, capacity=32, window=8, interval=4, keep=2, prompt_room=80)
    pair.decode(some_tokens(100))
    assert pair.twin.cache.n_evictions == 0
    pair.decode_singly(some_tokens(60))
    pair.decode(some_tokens(90, seed=2))
    pair.decode(some_tokens(5, seed=3))
    pair.tally.check(n_cuts=15)
    pair.close()


def clear_prompt(path: Path, n_tokens: int, rules: dict) -> list[int]:
    """A prompt without a near-tie in any of its cuts, so that even unseen choices must be the same on both sides."""
    for seed in range(100):
        tokens = some_tokens(n_tokens, seed)
        _, cuts = NumpyLlama(path, Rules(**rules), n_ubatch=N_UBATCH).decode(tokens)
        heads = [head for cut in cuts for layer in cut for head in layer]
        if min(head.margin / head.worst_chosen for head in heads) > TIE_TOLERANCE:
            return tokens
    raise AssertionError("no seed without near-ties")


def test_one_batch_may_cut_many_times(tiny_llama):
    path = tiny_llama(n_layer=1, **GROUPS[1], attention_gain=2.0, seed=1)
    rules = {"capacity": 32, "window": 8, "interval": 10, "keep": 2}
    tokens = clear_prompt(path, 100, rules)
    pair = Pair(path, **rules)
    logits, cuts = pair.twin.decode(tokens)
    assert len(cuts) == 6
    pair.llm.eval(tokens)
    assert (np.sort(pair.llm.retained(layer=0)) == np.sort(pair.twin.cache.retained(0))).all()
    pair.compare_state(logits)
    pair.close()


def test_recency_keeps_the_first_and_the_newest(tiny_llama):
    path = tiny_llama(**GROUPS[3], seed=3)
    rules = {"capacity": 32, "window": 8, "interval": 7, "keep": 4}
    tally = run(path, [30], 120, policy="recency", **rules)
    tally.check(n_cuts=14)
    assert tally.n_near_ties == 0


def test_random_holds_the_rows_that_it_says_it_retains(tiny_llama):
    """Random scores are the native library's own: whatever it keeps, the reference adopts, and logits must agree."""
    path = tiny_llama(**GROUPS[3], seed=3)
    run(path, [30], 120, capacity=32, window=8, interval=7, keep=4, policy="random", seed=5).check(n_cuts=14)
