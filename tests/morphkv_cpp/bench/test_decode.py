"""Turns, ratios, and caches that stay as full as they should; no times are judged."""

import itertools

import pytest

from morphkv_cpp import Llama, MorphKV
from morphkv_cpp.bench.decode import Lane, decode_seconds, endless_tokens, fill, ratio, run_in_turns
from morphkv_cpp.bench.suite import ROWS, Sizes, n_fill, run_suite
from support.tiny import FLASH


@pytest.fixture
def llm(tiny_llama):
    llm = Llama(tiny_llama(), n_ctx=512, n_batch=64, **FLASH)
    yield llm
    llm.close()


def test_a_prompt_goes_in_in_batches(llm):
    seen = []
    fill(llm, endless_tokens(llm), 150, seen.append)
    assert seen == [64, 64, 22]
    assert llm.n_tokens == 150


def test_tokens_do_not_end(llm):
    n = len(llm.tokenize(b"abc"))
    assert len(list(itertools.islice(endless_tokens(llm), 100_000))) == 100_000 > n


def test_decoding_takes_time_and_moves_on(llm):
    fill(llm, endless_tokens(llm), 10)
    assert decode_seconds(llm, endless_tokens(llm), 5) > 0
    assert llm.n_tokens == 15


class FakeLane(Lane):
    def __init__(self, name, rates):
        super().__init__(name, None, iter(()), 1)
        self.coming = iter(rates)

    def turn(self):
        self.rates.append(next(self.coming))


class TestTurns:
    def test_rounds_alternate_and_the_first_does_not_count(self):
        lanes = [FakeLane("a", [9, 1, 2]), FakeLane("b", [9, 3, 4])]
        order = []
        run_in_turns(lanes, 2, order.append)
        assert order == ["a", "b", "b", "a", "a", "b"]
        assert [lane.rates for lane in lanes] == [[1, 2], [3, 4]]

    def test_a_ratio_is_taken_round_by_round(self):
        a, b = FakeLane("a", []), FakeLane("b", [])
        a.rates, b.rates = [10, 20, 90], [10, 10, 30]
        assert ratio(a, b) == (2.0, 1.0, 3.0)

    def test_a_full_cache_goes_back_at_every_lap(self, llm):
        tokens = endless_tokens(llm)
        fill(llm, tokens, 100)
        lane = Lane("stock", llm, tokens, n_turn=20, n_back=100, n_lap=10)
        for _ in range(3):
            lane.turn()
            assert llm.n_tokens == 110
        assert len(lane.rates) == 3

    def test_morphkv_goes_on(self, tiny_llama):
        llm = Llama(tiny_llama(), morphkv=MorphKV(capacity=64, window=8, interval=16, prompt_room=0), **FLASH)
        tokens = endless_tokens(llm)
        fill(llm, tokens, 80)
        Lane("morphkv", llm, tokens, n_turn=32).turn()
        assert llm.n_tokens == 112
        assert llm.cache_stats().n_evictions == 2
        llm.close()


def test_the_suite_gives_every_ratio(tiny_llama):
    morphkv, sizes = MorphKV(capacity=64, window=8, interval=16), Sizes(n_deep=300, n_prompt=200, n_rounds=2)
    filled, turns = [], []
    result = run_suite(tiny_llama(), morphkv, sizes, filled.append, turns.append, **FLASH)
    assert list(result.ratios) == list(ROWS)
    assert sum(filled) == n_fill(morphkv, sizes) == 660
    assert len(turns) == 4 * 3
    assert [len(lane.rates) for lane in result.lanes] == [2] * 4
