"""-log p of a text that streams through the cache."""

import math

import numpy as np
import pytest

from morphkv_cpp import Llama, MorphKV
from morphkv_cpp.eval.perplexity import (
    Difference,
    block_means,
    buckets,
    difference,
    nll,
    open_for_nll,
    perplexity,
    standard_error,
    stream_nll,
)
from support.tiny import FLASH

TOKENS = [1, *np.random.default_rng(0).integers(3, 300, 299).tolist()]


class TestNll:
    def test_equal_logits_are_a_fair_die(self):
        assert nll(np.zeros((2, 6), dtype=np.float32), np.array([0, 5])).tolist() == pytest.approx([math.log(6)] * 2)

    def test_huge_logits_do_not_overflow(self):
        logits = np.array([[1e4, 1e4 - 1]], dtype=np.float32)
        assert nll(logits, np.array([1]))[0] == pytest.approx(1 + math.log(1 + math.exp(-1)))


@pytest.fixture(scope="module")
def stock(tiny_llama):
    """-log p of the tokens, from the logits of one call."""
    llm = Llama(tiny_llama(), n_ctx=512, logits_all=True, **FLASH)
    llm.eval(TOKENS)
    values = nll(llm.scores[: len(TOKENS) - 1], np.array(TOKENS[1:]))
    llm.close()
    return values


class TestStream:
    # K and V are f16, and flash attention sums in another order where the batch has another size
    TOLERANCE = 1e-2

    def test_chunks_give_what_one_batch_gives(self, tiny_llama, stock):
        llm = open_for_nll(tiny_llama(), None, len(TOKENS), 7, **FLASH)
        seen = []
        values = stream_nll(llm, TOKENS, seen.append)
        llm.close()
        assert values.dtype == np.float64
        assert sum(seen) == len(values) == len(TOKENS) - 1
        np.testing.assert_allclose(values, stock, atol=self.TOLERANCE)

    def test_there_is_one_cut_a_chunk_as_when_tokens_come_one_by_one(self, tiny_llama, stock):
        morphkv = MorphKV(capacity=64, window=8, interval=16, prompt_room=0)
        llm = open_for_nll(tiny_llama(), morphkv, len(TOKENS), 16, **FLASH)
        values = stream_nll(llm, TOKENS)
        n_evictions = llm.cache_stats().n_evictions
        llm.close()
        # 299 tokens in chunks of 16; 64 + 16 cells hold the first five
        assert n_evictions == math.ceil(299 / 16) - 5
        np.testing.assert_allclose(values[:79], stock[:79], atol=self.TOLERANCE)
        assert np.abs(values[96:] - stock[96:]).max() > 10 * self.TOLERANCE

        one_by_one = Llama(tiny_llama(), morphkv=morphkv, **FLASH)
        for token in TOKENS[:-1]:
            one_by_one.eval([token])
        assert one_by_one.cache_stats().n_evictions == n_evictions
        one_by_one.close()

    def test_a_second_text_starts_from_nothing(self, tiny_llama):
        llm = open_for_nll(
            tiny_llama(), MorphKV(capacity=64, window=8, interval=16, prompt_room=0), len(TOKENS), 16, **FLASH
        )
        first, second = stream_nll(llm, TOKENS), stream_nll(llm, TOKENS)
        llm.close()
        assert first.tolist() == second.tolist()


class TestEstimates:
    def test_blocks_are_of_about_the_size_asked_for(self):
        assert block_means(np.arange(6.0), 2).tolist() == [0.5, 2.5, 4.5]
        assert len(block_means(np.arange(7.0), 2)) == 4
        assert block_means(np.arange(3.0), 100).tolist() == [1.0]

    def test_the_error_of_a_mean_is_the_scatter_over_the_root_of_n(self):
        assert standard_error(np.array([1.0, 3.0])) == pytest.approx(1.0)
        assert math.isnan(standard_error(np.array([1.0])))

    def test_perplexity_is_the_exponential_of_the_mean(self):
        values = np.concatenate([np.full(128, 1.0), np.full(128, 3.0)])
        mean, error = perplexity(values)
        assert mean == pytest.approx(math.exp(2))
        assert error == pytest.approx(math.exp(2) * 1.0)

    def test_buckets_count_positions_in_the_text(self):
        # positions 1..5; the first token has no -log p
        rows = buckets(np.log([2.0, 4.0, 4.0, 8.0, 8.0]), 2)
        assert [(first, end) for first, end, _ in rows] == [(1, 2), (2, 4), (4, 6)]
        assert [ppl.mean for _, _, ppl in rows] == pytest.approx([2, 4, 8])


class TestDifference:
    def test_texts_weigh_the_same_and_the_beginning_is_left_out(self):
        base = [np.zeros(310), np.zeros(910)]
        worse = [np.full(310, 1.0), np.full(910, 3.0)]
        worse[0][:10] = 99
        d = difference(worse, base, 10)
        assert d.mean == pytest.approx(2.0)
        assert d.block_error == pytest.approx(0.0)
        assert d.text_error == pytest.approx(1.0)

    def test_noise_that_both_share_does_not_count(self):
        noise = np.random.default_rng(1).normal(size=1280)
        d = difference([noise + 0.1], [noise], 0)
        assert d.mean == pytest.approx(0.1)
        assert d.error < 1e-12  # rounding alone
        assert math.isnan(d.text_error)

    def test_the_larger_error_counts(self):
        assert Difference(1.0, 0.25, 0.5).in_errors == 2.0
        assert Difference(1.0, 0.25, math.nan).in_errors == 4.0

    def test_without_noise_any_difference_counts_and_none_does_not(self):
        assert Difference(-0.1, 0.0, 0.0).in_errors == -math.inf
        assert Difference(0.0, 0.0, 0.0).in_errors == 0.0

    def test_a_text_too_short_to_tell_is_refused(self):
        with pytest.raises(ValueError, match=r"more than 100 \+ 128 tokens"):
            difference([np.zeros(200)], [np.zeros(200)], 100)
