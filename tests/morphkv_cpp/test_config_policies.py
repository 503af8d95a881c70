"""A text goes its way whatever ranks its tokens: archive, recalls, states, forks, edits; on tiny models."""

from dataclasses import replace

import numpy as np
import pytest

from morphkv_cpp import Archive, MorphKV
from morphkv_cpp.config import POLICIES
from support.tiny import greedy, held, some_tokens

SMALL = MorphKV(capacity=96, window=16, interval=8, keep=4, prompt_room=0)

each_policy = pytest.mark.parametrize("policy", POLICIES)


@each_policy
def test_an_answer_is_written_with_recalls(open_llama, policy):
    llm = open_llama(morphkv=replace(SMALL, policy=policy), archive=Archive())
    greedy(llm, some_tokens(500), 40)
    greedy(llm, held(llm) + some_tokens(20, seed=2), 40)
    stats = llm.cache_stats()
    assert stats.n_recalls > 2
    assert stats.n_recalled > 0
    assert stats.n_distant == 96 - replace(SMALL, policy=policy).n_recent
    assert all((llm.retained(layer)[:, :4] == np.arange(4)).all() for layer in range(2))


@each_policy
def test_a_saved_text_goes_on_as_the_text_itself(open_llama, policy):
    config = replace(SMALL, policy=policy, seed=3)
    llm, other = (open_llama(morphkv=config, archive=Archive(recall="prompt")) for _ in range(2))
    greedy(llm, some_tokens(300), 20)
    other.load_state(llm.save_state())
    prompt = held(llm) + some_tokens(5, seed=4)
    assert greedy(other, prompt, 60) == greedy(llm, prompt, 60)
    for layer in range(2):
        np.testing.assert_array_equal(llm.retained(layer), other.retained(layer))


@each_policy
def test_what_is_taken_back_has_never_been_there(open_llama, policy):
    llm, other = (open_llama(morphkv=replace(SMALL, policy=policy)) for _ in range(2))
    text = some_tokens(203)
    llm.eval(text)
    other.eval(text)
    other.eval([7, 8])
    assert llm.cache_stats().n_evictions == other.cache_stats().n_evictions > 0
    prompt = text + some_tokens(6, seed=5)
    assert greedy(other, prompt, 30) == greedy(llm, prompt, 30)


@each_policy
def test_an_edit_far_back_goes_on_from_the_archive(open_llama, policy):
    llm = open_llama(morphkv=replace(SMALL, policy=policy), archive=Archive(recall="prompt"))
    greedy(llm, some_tokens(600), 10)
    changed = some_tokens(400) + some_tokens(30, seed=6)
    assert len(greedy(llm, changed, 20)) == 20
    assert llm.last_prompt.n_cached > 0
    assert llm.cache_stats().n_used <= 96 + 8


def test_sums_are_counted(open_llama):
    """Four bytes for each of 80 slots, two KV heads and two layers, and what aligns them."""
    plain, summed = (
        open_llama(morphkv=replace(SMALL, policy=policy, protect=0)).cache_stats() for policy in ("morphkv", "h2o")
    )
    assert summed.kv_bytes == plain.kv_bytes
    assert 4 * 80 * 2 * 2 <= summed.extra_bytes - plain.extra_bytes <= 4 * 80 * 2 * 2 + 512
