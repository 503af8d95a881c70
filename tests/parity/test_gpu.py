"""The cache on a GPU that is present: what the reference and the CPU keep, up to counted near-ties.

Its kernels round otherwise than the CPU's, so a token may be kept in place of one whose score is as good as equal.
"""

from __future__ import annotations

from contextlib import closing
from dataclasses import asdict

import numpy as np
import pytest
from numpy_llama import NumpyLlama
from twins import Tally

from morphkv_cpp import Archive, Llama, MorphKV, bridge
from morphkv_cpp.reference import Rules

# isort: split
# after morphkv_cpp, which says what libllama is loaded
import llama_cpp

GPUS = [device["name"] for device in bridge.devices() if device["is_gpu"]]
pytestmark = pytest.mark.skipif(not GPUS, reason="ggml found no GPU: build with one of its backends, on such a machine")

N_LAYER = 4
CACHE_TYPES = {"f16": 1, "q8_0": 8}  # as in ggml.h
GROUPS = {1: {"n_head": 2, "n_head_kv": 2, "head_size": 64}, 4: {"n_head": 8, "n_head_kv": 2, "head_size": 128}}
REBASED = MorphKV(capacity=40, window=8, interval=7, keep=4, prompt_room=30, rope_limit=120)
DECAYING = MorphKV(
    capacity=40, window=8, interval=7, prompt_room=30, rope_limit=120, keep=2, votes=3, decay=0.5, fusion="max"
)
CONFIGS = {"sum": REBASED, "max, decay": DECAYING}
# A near-tie that falls the other way is carried on, as later layers and cuts follow from it.
OTHER_SHARE = 0.05


def some_tokens(n_tokens: int, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).integers(3, 320, n_tokens).tolist()


def open_llama(path, config, n_gpu_layers, **options) -> Llama:
    options = {"n_ubatch": 16, "n_threads": 1, "n_threads_batch": 1, "verbose": False, **options}
    return Llama(path, morphkv=config, n_gpu_layers=n_gpu_layers, **options)


def logits(llm: Llama) -> np.ndarray:
    pointer = llama_cpp.llama_get_logits_ith(llm.ctx, -1)
    return np.array(np.ctypeslib.as_array(pointer, shape=(llm.n_vocab(),)))


def share_of_others(here: Llama, there: Llama) -> float:
    n_other = n_kept = 0
    for layer in range(N_LAYER):
        for kept_here, kept_there in zip(here.retained(layer), there.retained(layer)):
            n_other += len(np.setdiff1d(kept_here, kept_there))
            n_kept += len(kept_here)
    return n_other / n_kept


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("group", GROUPS)
def test_a_gpu_keeps_what_the_reference_keeps(tiny_llama, group, config):
    path = tiny_llama(n_layer=N_LAYER, **GROUPS[group], seed=group)
    rules = Rules(**asdict(config))
    twin, tally = NumpyLlama(path, rules, n_ubatch=16), Tally()
    with closing(open_llama(path, config, -1)) as llm:
        for tokens in [some_tokens(60), *([token] for token in some_tokens(200, seed=1))]:
            llm.eval(tokens)
            kept = [llm.retained(layer) for layer in range(N_LAYER)]
            expected, cuts = twin.decode(tokens, adopt=lambda layer, head, kept=kept: kept[layer][head])
            for cut in cuts:
                tally.compare_cut(cut, rules)
            tally.compare_logits(logits(llm), expected, f"after {twin.n_past} tokens")
        assert llm.cache_stats().n_rebases > 0
    print(tally)
    tally.check(n_cuts=20)


@pytest.mark.parametrize("cache_type", CACHE_TYPES)
@pytest.mark.parametrize("group", GROUPS)
def test_a_gpu_keeps_what_the_cpu_keeps(tiny_llama, group, cache_type):
    """Prompts that are cut on their way, single tokens, rollback, rebases, a state from there and a recall."""
    path = tiny_llama(n_layer=N_LAYER, **GROUPS[group], seed=group)
    config = MorphKV(capacity=100, window=8, interval=7, keep=4, prompt_room=30, rope_limit=300)
    kind = CACHE_TYPES[cache_type]
    here, there = (open_llama(path, config, n, type_k=kind, type_v=kind, archive=Archive(share=1)) for n in (0, -1))
    with closing(here), closing(there):
        shares = []

        def compare() -> None:
            mine, theirs = here.cache_stats(), there.cache_stats()
            assert (mine.n_evictions, mine.rotary_offset) == (theirs.n_evictions, theirs.rotary_offset)
            assert mine.n_archived == theirs.n_archived
            shares.append(share_of_others(here, there))

        def eval_both(tokens: list[int]) -> None:
            here.eval(tokens)
            there.eval(tokens)
            compare()

        eval_both(some_tokens(400))
        for token in some_tokens(150, seed=1):
            eval_both([token])
        for llm in (here, there):
            llm.n_tokens -= 2
        eval_both(some_tokens(25, seed=3))
        assert here.recall().n_archived == there.recall().n_archived > 0
        compare()
        eval_both(some_tokens(30, seed=4))
        assert there.cache_stats().n_rebases > 2
        print(f"{there.cache_stats().n_evictions} cuts, share of others {np.mean(shares):.4f}, last {shares[-1]:.4f}")
        assert np.mean(shares) <= OTHER_SHARE
        # the CPU goes on with the GPU's state: what was kept is the same bytes
        state = there.save_state()
        here.load_state(state)
        assert share_of_others(here, there) == 0
        eval_both(some_tokens(30, seed=5))
        assert np.abs(logits(here) - logits(there)).max() < 0.05 * np.abs(logits(here)).max()
        # and the GPU, with its own, bit for bit
        there.load_state(state)
        there.eval(some_tokens(20, seed=6))
        first = logits(there)
        there.load_state(state)
        there.eval(some_tokens(20, seed=6))
        assert (logits(there) == first).all()
