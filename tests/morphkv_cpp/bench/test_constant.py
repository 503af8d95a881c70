"""A long run: what counts as growth, and that a small one shows none."""

import numpy as np
import pytest

from morphkv_cpp import Llama, MorphKV
from morphkv_cpp.bench.constant import (
    ConstantRun,
    Sample,
    late_and_early,
    resident_bytes,
    run_constant,
)
from morphkv_cpp.bench.decode import endless_tokens
from support.tiny import FLASH


def sample(n_tokens: int, seconds: float = 1.0, rss: int = 100, kv: int = 50, used: int = 10) -> Sample:
    return Sample(n_tokens, seconds, rss, kv, 16, used)


class TestGrowth:
    def test_memory_counts_from_the_2000th_token(self):
        run = ConstantRun(
            500, samples=[sample(500, rss=10), sample(2000, rss=100), sample(2500, rss=130), sample(3000, rss=90)]
        )
        assert run.rss_growth_bytes == 30

    def test_kv_bytes_and_cells_may_not_grow_at_all(self):
        run = ConstantRun(1000, samples=[sample(1000, used=9), sample(2000, used=10), sample(3000, kv=51, used=12)])
        assert run.kv_growth_bytes == 1
        assert run.n_used_growth == 2


class TestSpeed:
    def test_a_rate_is_of_the_middle_block(self):
        run = ConstantRun(250, samples=[sample(250 * i, seconds) for i, seconds in enumerate([1, 2, 99], start=1)])
        assert run.rate(0, 750) == 125


def test_prompts_and_single_tokens_take_turns(tiny_llama):
    llm = Llama(
        tiny_llama(), morphkv=MorphKV(capacity=64, window=8, interval=20, prompt_room=0, rope_limit=200), **FLASH
    )
    run = run_constant(llm, endless_tokens(llm), 6000, 20, lambda sample: None, n_prompt=480)
    assert [sample.n_tokens for sample in run.samples] == list(range(500, 6001, 500))
    assert (run.n_early, run.n_step, len(run.late)) == (5000, 500, 3)
    assert llm.cache_stats().n_rebases > 40
    llm.close()


def test_resident_memory_follows_what_this_process_holds():
    before = resident_bytes()
    held = np.ones(32_000_000)  # 256 MB: what else is freed meanwhile is less
    assert 200e6 < resident_bytes() - before < 300e6
    assert held.all()


def test_a_run_of_3000_tokens_grows_nowhere(tiny_llama):
    llm = Llama(tiny_llama(), morphkv=MorphKV(capacity=64, window=8, interval=20, prompt_room=0), **FLASH)
    run = run_constant(llm, endless_tokens(llm), 3000, 20, lambda sample: None)
    llm.close()
    assert len(run.samples) == 150
    assert run.samples[-1].n_tokens == 3000
    assert run.kv_growth_bytes == 0
    assert run.n_used_growth == 0
    assert run.samples[-1].n_used <= 84
    assert run.rss_growth_bytes < 8e6


class TestTheEndIsComparedWithAShortText:
    @pytest.fixture
    def moments(self, tiny_llama):
        llm = Llama(tiny_llama(), morphkv=MorphKV(capacity=64, window=8, interval=20, prompt_room=0), **FLASH)
        run = run_constant(llm, endless_tokens(llm), 2700, 20, lambda sample: None)
        yield late_and_early(llm, run, lambda sample: None)
        llm.close()

    @pytest.fixture
    def starts(self, moments, monkeypatch):
        """Position at which each batch begins, and its size."""
        starts = []
        decode = moments.llm._ctx.decode
        monkeypatch.setattr(
            moments.llm._ctx,
            "decode",
            lambda batch: (starts.append((moments.llm.n_tokens, batch.n_tokens())), decode(batch)),
        )
        return starts

    def test_in_one_context(self, moments):
        assert (moments.late.n_tokens, moments.early.n_tokens) == (2700, 2000)
        assert moments.late.llama_state_size == moments.early.llama_state_size

    def test_in_turns_each_from_where_it_was(self, moments, starts):
        turns = []
        speed = moments.speed_kept(250, turns.append)
        assert turns == ["late", "early", "early", "late"] * 2 + ["late", "early"]  # the first of each does not count
        late, early = [(n, 1) for n in range(2700, 2950)], [(n, 1) for n in range(2000, 2250)]
        assert starts == (late + early + early + late) * 2 + late + early
        assert speed.low <= speed.middle <= speed.high

    def test_and_for_prompts(self, moments, starts):
        speed = moments.prompt_speed_kept(lambda name: None)
        late, early = (2700, 20), (2000, 20)  # 20: the interval
        assert starts == [late, early, early, late] * 4 + [late, early]
        assert speed.low <= speed.middle <= speed.high
