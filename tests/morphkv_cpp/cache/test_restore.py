"""Going back by the archive to a place that is evicted in part; on tiny models, without checkpoints."""

import logging

import numpy as np
import pytest

from morphkv_cpp import Archive, Llama, MorphKV, Profile, bridge
from support.tiny import QUIET, count_evaluated, greedy, held, last_logits, some_tokens

N_AGAIN = 128  # tokens that are evaluated again before what is new
SMALL = MorphKV(capacity=96, window=8, interval=8, keep=2, prompt_room=0)
TEXT = some_tokens(1500)
EDIT = some_tokens(40, seed=9)


@pytest.fixture
def open_llm(tiny_llama):
    opened = []

    def open_(archive="ram", morphkv=SMALL, **options):
        options = {"ctx_checkpoints": 0, **options}
        opened.append(Llama(str(tiny_llama()), morphkv=morphkv, archive=archive, **options, **QUIET))
        return opened[-1]

    yield open_
    for llm in opened:
        llm.close()


def n_decoded(llm, monkeypatch, prompt):
    with monkeypatch.context() as patch:
        lengths = count_evaluated(llm, patch)
        greedy(llm, prompt, 1)
    return sum(lengths)


@pytest.mark.parametrize("n_common", [300, 700, 1300])
def test_an_edit_costs_the_edit(open_llm, monkeypatch, n_common):
    llm = open_llm(Archive(recall="off"))
    greedy(llm, TEXT, 1)
    assert n_decoded(llm, monkeypatch, [*TEXT[:n_common], *EDIT]) == N_AGAIN + len(EDIT)
    reuse = llm.last_prompt
    assert (reuse.n_common, reuse.n_cached) == (n_common, n_common - N_AGAIN)
    assert reuse.n_restored == reuse.n_cached


@pytest.mark.parametrize("n_common", [400, 800, 1400])
def test_layers_that_keep_more_go_back_with_the_others(open_llm, monkeypatch, n_common):
    """At 400 none has been cut, at 800 one of them."""
    large = MorphKV(capacity=500, window=8, interval=16, prompt_room=0, layers=Profile((1.0, 2.0)))
    llm = open_llm(Archive(recall="off"), morphkv=large)
    stats = llm.cache_stats()
    assert 400 < stats.min_capacity < 800 - N_AGAIN < stats.max_capacity < 1400 - N_AGAIN
    greedy(llm, TEXT, 1)
    assert n_decoded(llm, monkeypatch, [*TEXT[:n_common], *EDIT]) == N_AGAIN + len(EDIT)
    assert llm.last_prompt.n_restored == n_common - N_AGAIN
    if n_common - N_AGAIN < stats.min_capacity:
        other = open_llm(None, morphkv=None, n_ctx=2048)
        other.eval([*TEXT[:n_common], *EDIT])
        assert np.abs(last_logits(llm) - last_logits(other)).max() < 0.05
    greedy(llm, [*TEXT[:n_common], *EDIT, *TEXT], 1)  # and on


def test_it_is_told(open_llm):
    llm = open_llm()
    llm.create_completion(TEXT, max_tokens=1)
    answer = llm.create_completion([*TEXT[:700], *EDIT], max_tokens=1)
    details = answer["usage"]["prompt_tokens_details"]
    assert details == {"cached_tokens": 572, "restored_tokens": 572}
    assert answer["timings"]["restored_n"] == 572
    again = llm.create_completion([*TEXT[:700], *EDIT, *EDIT], max_tokens=1)
    assert "restored_tokens" not in again["usage"]["prompt_tokens_details"]


def test_it_is_near_what_the_text_was(open_llm):
    """At a place before the first eviction all tokens are there: nothing but rounding is between."""
    llm, other = (
        open_llm(Archive(recall="off"), type_k=0, type_v=0),
        open_llm(Archive(recall="off"), type_k=0, type_v=0),
    )
    greedy(llm, TEXT, 1)
    ids = TEXT[:90]
    bridge.restore(llm.ctx, ids)
    llm.n_tokens = 90
    other.eval(ids)
    for one in (llm, other):
        one.eval(EDIT[:3])
    np.testing.assert_allclose(last_logits(llm), last_logits(other), atol=1e-4)


def test_the_text_goes_on_and_back_again(open_llm, monkeypatch):
    llm = open_llm()
    greedy(llm, TEXT, 1)
    history = list(TEXT)
    for i, n_common in enumerate((1200, 600, 1000, 300)):
        history = [*history[:n_common], *some_tokens(500, seed=20 + i)]
        greedy(llm, history, 30)
        assert llm.last_prompt.n_restored == n_common - N_AGAIN
        assert np.isfinite(last_logits(llm)).all()
        stats = llm.cache_stats()
        assert stats.n_archived == stats.logical_pos + 1 - (stats.n_used - stats.n_distant)
        assert stats.n_archive_lost == 0


def test_what_was_behind_is_gone(open_llm):
    """Neither slots nor pages have it: the archive of an edited text is that of one that never had another end."""
    llm, other = open_llm(Archive(recall="off")), open_llm(Archive(recall="off"))
    edited = [*TEXT[:700], *some_tokens(600, seed=7)]
    greedy(llm, TEXT, 1)
    greedy(llm, edited, 1)
    greedy(other, edited, 1)
    assert llm.last_prompt.n_restored > 0 == other.last_prompt.n_restored
    for one in (llm, other):
        stats = one.cache_stats()
        assert stats.n_archived == len(edited) - (stats.n_used - stats.n_distant)
    for layer in range(2):
        kept = llm.retained(layer)
        assert kept.min() >= 0
        assert kept.max() < len(edited) - SMALL.window


def test_checkpoints_go_before(open_llm):
    """They are the same bits."""
    llm = open_llm(ctx_checkpoints=32)
    greedy(llm, TEXT[:700], 30)
    greedy(llm, TEXT, 30)
    greedy(llm, [*TEXT[:700], *EDIT], 1)
    assert llm.last_prompt.n_restored == 0
    assert llm.last_prompt.n_cached >= 699


def test_a_far_checkpoint_does_not(open_llm):
    llm = open_llm(ctx_checkpoints=32)
    greedy(llm, TEXT[:300], 30)
    greedy(llm, TEXT, 30)
    greedy(llm, [*TEXT[:1200], *EDIT], 1)
    assert llm.last_prompt.n_restored == 1200 - N_AGAIN
    # and then it is still one of this text
    greedy(llm, [*TEXT[:300], *EDIT], 1)
    assert llm.last_prompt.n_restored == 0
    assert llm.last_prompt.n_cached >= 299


@pytest.mark.parametrize("archive", [None, Archive(restore=False)])
def test_not_without(open_llm, archive):
    llm = open_llm(archive)
    greedy(llm, TEXT, 1)
    greedy(llm, [*TEXT[:700], *EDIT], 1)
    assert (llm.last_prompt.n_restored, llm.last_prompt.n_cached) == (0, 0)


def test_an_archive_that_lacks_the_place(open_llm, caplog):
    llm = open_llm(Archive(max_bytes=100_000))
    greedy(llm, TEXT, 1)
    assert llm.cache_stats().n_archive_lost > 0
    with caplog.at_level(logging.INFO, logger="morphkv_cpp"):
        greedy(llm, [*TEXT[:300], *EDIT], 1)
    assert llm.last_prompt.n_cached == 0
    assert "the archive cannot bring back what a prompt shares" in caplog.text
    assert "does not have the token at position" in caplog.text


class TestAChangedBeginning:
    """Sliding windows, clocks in system prompts, summaries, a tool's result left out."""

    def test_the_oldest_part_left_out(self, open_llm, monkeypatch):
        llm = open_llm(Archive(recall="off"))
        greedy(llm, TEXT, 1)
        n = n_decoded(llm, monkeypatch, [*TEXT[:50], *TEXT[250:], *EDIT])
        assert n == N_AGAIN + len(EDIT)
        reuse = llm.last_prompt
        assert (reuse.n_common, reuse.n_restored) == (50, reuse.n_cached)
        assert reuse.n_evaluated == n
        assert held(llm) == [*TEXT[:50], *TEXT[250:], *EDIT]

    @pytest.mark.parametrize("n_new", [1, 16, 300])
    def test_something_else_in_its_place(self, open_llm, monkeypatch, n_new):
        llm = open_llm(Archive(recall="off"))
        greedy(llm, TEXT, 1)
        new = some_tokens(n_new, seed=31)
        n = n_decoded(llm, monkeypatch, [*TEXT[:20], *new, *TEXT[220:], *EDIT])
        assert n == n_new + N_AGAIN + len(EDIT) == llm.last_prompt.n_evaluated

    def test_the_text_goes_on(self, open_llm):
        llm, text = open_llm(), list(TEXT)
        greedy(llm, text, 1)
        for i in range(6):
            text = [*text[:30], *text[130:], *some_tokens(150, seed=40 + i)]
            greedy(llm, text, 20)
            assert llm.last_prompt.n_restored > 1000
            assert np.isfinite(last_logits(llm)).all()
            stats = llm.cache_stats()
            assert stats.n_archived == stats.logical_pos + 1 - (stats.n_used - stats.n_distant)

    def test_rows_are_those_of_the_passage(self, open_llm):
        """Values know no position: those of recent cells are the ones that a text without the change would have."""
        llm = open_llm(Archive(recall="off"))
        greedy(llm, TEXT, 1)
        greedy(llm, [*TEXT[:50], *TEXT[250:]], 1)
        assert llm.last_prompt.n_restored > 0
        kept = llm.retained(0)
        assert kept.min() == 0
        assert kept.max() < len(TEXT) - 200

    def test_what_was_left_out_is_gone(self, open_llm):
        llm = open_llm()
        greedy(llm, TEXT, 1)
        greedy(llm, [*TEXT[:50], *TEXT[250:]], 1)
        stats = llm.cache_stats()
        assert stats.n_archived == len(TEXT) - 200 - (stats.n_used - stats.n_distant)

    def test_another_text_is_evaluated(self, open_llm, monkeypatch):
        llm = open_llm(Archive(recall="off"))
        greedy(llm, TEXT, 1)
        other = [*TEXT[:20], *some_tokens(900, seed=50)]
        assert n_decoded(llm, monkeypatch, other) == len(other)

    def test_a_decode_that_fails(self, open_llm, monkeypatch, caplog):
        """What is left of the text can be gone on from."""
        llm = open_llm(Archive(recall="off"))
        greedy(llm, TEXT, 1)

        def fail(*_):
            raise bridge.NativeError("no memory")

        prompt = [*TEXT[:50], *TEXT[250:], *EDIT]
        with monkeypatch.context() as patch, caplog.at_level(logging.INFO, logger="morphkv_cpp"):
            patch.setattr(bridge.Passage, "put", fail)
            greedy(llm, prompt, 1)
        assert "no memory" in caplog.text
        assert held(llm) == prompt
        assert llm.last_prompt.n_cached == 50


def test_restore_is_a_bool():
    with pytest.raises(TypeError, match="restore must be True or False, got 1"):
        Archive(restore=1)
