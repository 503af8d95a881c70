"""Layers with capacities of their own, against the specification."""

from __future__ import annotations

import pytest

from morphkv_cpp import Profile
from morphkv_cpp.profile import KeepAll
from support.pair import Pair
from support.tiny import some_tokens

# 500 + 12 are two steps of 256 cells in each layer: one in layer 0, three in layer 1
SIZES = {"capacity": 500, "interval": 12, "window": 8, "keep": 2}
LAYER_1 = Profile((1.0, 2.0))


@pytest.mark.parametrize(
    "cache_type, more",
    [
        ("f16", {}),
        ("f16", {"rope_limit": 800}),
        ("f16", {"decay": 0.5}),
        ("f16", {"policy": "committees", "protect": 20}),
        ("q8_0", {}),
    ],
)
def test_each_layer_keeps_the_tokens_that_the_reference_keeps(tiny_llama, cache_type, more):
    """To where the small layer is cut alone, and then both; batches that each find no cell."""
    pair = Pair(tiny_llama(n_head=4, n_head_kv=2, seed=5), cache_type, profile=LAYER_1, **SIZES, **more)
    try:
        assert pair.twin.capacities == (244, 756)
        pair.decode(some_tokens(256))
        for i in range(40):
            pair.decode(some_tokens(12, seed=i + 1))
        assert pair.llm.retained(1).max() == -1  # all is there still
        for i in range(12):
            pair.decode(some_tokens(12, seed=i + 100))
        pair.decode_singly(some_tokens(30, seed=99))
        assert pair.llm.retained(1).min() >= 0
        assert pair.twin.cache.n_rebases > 0 or "rope_limit" not in more
    finally:
        pair.close()
    print(pair.tally)
    # sets of 748 have more near-ties than those of 24 for which Tally.check() is meant
    assert pair.tally.n_cuts >= 50
    assert pair.tally.n_near_ties <= 0.05 * pair.tally.n_choices
    assert pair.tally.n_reordered <= 0.05 * pair.tally.n_moved


def test_layers_that_keep_all_and_what_becomes_of_them_behind_the_last_position(tiny_llama):
    """Layer 1 holds 300 tokens; then it is cut, too, and all is rebased."""
    sizes = {"capacity": 64, "interval": 12, "window": 8, "keep": 2, "rope_limit": 312}
    pair = Pair(tiny_llama(n_head=4, n_head_kv=2, seed=5), profile=KeepAll(LAYER_1, 1), **sizes)
    try:
        assert pair.twin.capacities == (64, 300)
        pair.decode(some_tokens(76))
        for i in range(18):
            pair.decode(some_tokens(12, seed=i + 1))
        assert pair.llm.retained(1).max() == -1
        for i in range(12):
            pair.decode(some_tokens(12, seed=i + 100))
        pair.decode_singly(some_tokens(30, seed=99))
        assert pair.llm.retained(1).min() >= 0
        assert pair.twin.cache.n_rebases > 0
    finally:
        pair.close()
    assert pair.tally.n_cuts >= 30
    assert pair.tally.n_near_ties <= 0.05 * pair.tally.n_choices


def test_what_is_taken_back_goes_on_as_the_reference(tiny_llama):
    pair = Pair(tiny_llama(n_head=4, n_head_kv=2, seed=5), profile=LAYER_1, **SIZES)
    try:
        pair.decode(some_tokens(256))
        pair.decode(some_tokens(12, seed=1))
        pair.decode_singly(some_tokens(8, seed=2))
        position = pair.twin.n_past - 5
        assert pair.twin.cache.remove_tail(position)
        pair.llm.n_tokens = position
        assert pair.llm._ctx.kv_cache_seq_rm(-1, position, -1)
        pair.decode_singly(some_tokens(30, seed=3))
    finally:
        pair.close()
    pair.tally.check(n_cuts=3)
