"""Layers split over two RPC servers, devices whose memory is another process's: what the CPU gives and keeps.

The servers run the same kernels of the same build, so tokens kept are equal, near-ties included.
"""

from __future__ import annotations

from contextlib import closing

import numpy as np
import pytest

from morphkv_cpp import Llama, MorphKV
from morphkv_cpp.config import native_params
from support.numpy_llama import NumpyLlama
from support.reference import Rules
from support.tiny import QUIET, last_logits, some_tokens
from support.twins import Tally

N_LAYER = 4
LOGITS_TOLERANCE = 1e-4  # sums are split differently where graphs are
CACHE_TYPES = {"f16": 1, "q8_0": 8}  # as in ggml.h
GROUPS = {
    1: {"n_head": 2, "n_head_kv": 2},
    3: {"n_head": 6, "n_head_kv": 2, "head_size": 64},
}  # 64: quantized keys are rotated
REBASED = MorphKV(capacity=40, window=8, interval=7, keep=4, prompt_room=30, rope_limit=120)
OTHER = {"keep": 2, "votes": 3, "decay": 0.5, "fusion": "max"}
DECAYING = MorphKV(capacity=40, window=8, interval=7, prompt_room=30, rope_limit=120, **OTHER)
BY_BOTH = MorphKV(capacity=44, window=8, interval=7, prompt_room=30, rope_limit=120, keep=2, policy="committees")


def open_llama(path, config, **options) -> Llama:
    return Llama(path, morphkv=config, n_ubatch=16, **QUIET, **options)


class Both:
    """The same text here, on the CPU, and there, on servers."""

    def __init__(self, path, config, rpc_servers, **options):
        names = [server.name for server in rpc_servers]
        self.here = open_llama(path, config, **options)
        self.there = open_llama(path, config, rpc_servers=names, tensor_split=[1, 1], **options)

    def eval(self, tokens: list[int]) -> None:
        for llm in (self.here, self.there):
            llm.eval(tokens)
        self.compare()

    def eval_singly(self, tokens: list[int]) -> None:
        for token in tokens:
            self.eval([token])

    def compare(self) -> None:
        here, there = self.here.cache_stats(), self.there.cache_stats()
        assert here.n_evictions == there.n_evictions
        assert here.rotary_offset == there.rotary_offset
        np.testing.assert_allclose(last_logits(self.there), last_logits(self.here), rtol=0, atol=LOGITS_TOLERANCE)
        for layer in range(N_LAYER):
            assert (self.here.retained(layer) == self.there.retained(layer)).all()


@pytest.fixture
def both(tiny_llama, rpc_servers):
    opened = []

    def make(config=REBASED, group=3, **options):
        path = tiny_llama(n_layer=N_LAYER, **GROUPS[group], seed=group)
        opened.append(Both(path, config, rpc_servers, **options))
        return opened[-1]

    yield make
    for pair in opened:
        pair.here.close()
        pair.there.close()


@pytest.mark.parametrize("config", [REBASED, DECAYING, BY_BOTH], ids=["sum", "max, decay", "committees"])
@pytest.mark.parametrize("cache_type", CACHE_TYPES)
@pytest.mark.parametrize("group", GROUPS)
def test_same_tokens_are_kept_and_same_logits_follow(both, group, cache_type, config):
    """Prompts that are cut on their way, single tokens, rollback, and rebases."""
    pair = both(config, group, type_k=CACHE_TYPES[cache_type], type_v=CACHE_TYPES[cache_type])
    pair.eval(some_tokens(200))
    pair.eval_singly(some_tokens(150, seed=1))
    for llm in (pair.here, pair.there):
        llm.n_tokens -= 2
    pair.eval_singly(some_tokens(40, seed=2))
    pair.eval(some_tokens(25, seed=3))
    pair.eval_singly(some_tokens(30, seed=4))
    stats = pair.there.cache_stats()
    assert stats.n_evictions > 20
    assert stats.n_rebases > 2


@pytest.mark.parametrize("where", [{"offload_kqv": False}, {"n_gpu_layers": 3}], ids=["cache here", "two layers here"])
def test_a_part_of_the_cache_may_stay_here(both, where):
    pair = both(type_k=8, type_v=8, **where)
    pair.eval(some_tokens(100))
    pair.eval_singly(some_tokens(100, seed=1))
    assert pair.there.cache_stats().n_rebases > 0


@pytest.mark.parametrize("cache_type", CACHE_TYPES)
def test_a_state_goes_on_here_and_there(both, cache_type):
    pair = both(type_k=CACHE_TYPES[cache_type], type_v=CACHE_TYPES[cache_type])
    pair.eval(some_tokens(100))
    pair.eval_singly(some_tokens(100, seed=1))
    of_here, of_there = pair.here.save_state(), pair.there.save_state()
    pair.eval_singly(some_tokens(60, seed=2))
    expected = last_logits(pair.there)
    # each goes on with the other's
    pair.here.load_state(of_there)
    pair.there.load_state(of_here)
    pair.eval_singly(some_tokens(60, seed=2))
    np.testing.assert_allclose(last_logits(pair.there), expected, rtol=0, atol=LOGITS_TOLERANCE)
    # and with its own, bit for bit
    pair.there.load_state(of_there)
    pair.there.eval(some_tokens(5, seed=2))
    first = last_logits(pair.there)
    pair.there.load_state(of_there)
    pair.there.eval(some_tokens(5, seed=2))
    assert (last_logits(pair.there) == first).all()


def test_servers_keep_what_the_reference_keeps(tiny_llama, rpc_servers):
    path = tiny_llama(n_layer=N_LAYER, n_head=6, n_head_kv=2, seed=3)
    rules = Rules(**native_params(REBASED))
    twin, tally = NumpyLlama(path, rules, n_ubatch=16), Tally()
    names = [server.name for server in rpc_servers]
    # closed in any case: ggml ends the process where a server goes before what is on it
    with closing(open_llama(path, REBASED, rpc_servers=names, tensor_split=[1, 1])) as llm:
        for tokens in [some_tokens(60), *([token] for token in some_tokens(150, seed=1))]:
            llm.eval(tokens)
            kept = [llm.retained(layer) for layer in range(N_LAYER)]
            expected, cuts = twin.decode(tokens, adopt=lambda layer, head, kept=kept: kept[layer][head])
            for cut in cuts:
                tally.compare_cut(cut, rules)
            tally.compare_logits(last_logits(llm), expected, f"after {twin.n_past} tokens")
        assert llm.cache_stats().n_rebases > 0
    tally.check(n_cuts=15)
