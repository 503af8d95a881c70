"""0.1.0's own tests of Llama, as they were: options, counters, the size of the context, rollback, pickling, states."""

import io
import pickle
from dataclasses import asdict, replace

import numpy as np
import pytest

from morphkv_cpp import CacheStats, Llama, MorphKV, NoMorphKVError
from support.tiny import QUIET, greedy, last_logits, some_tokens

# isort: split
# after morphkv_cpp, which says what libllama is loaded
import llama_cpp

SMALL = MorphKV(capacity=32, window=8, interval=4, keep=2, prompt_room=0)
OPEN = {"n_ctx": 512, "chat_format": None}


@pytest.fixture(scope="module")
def model(tiny_llama):
    return tiny_llama()


class TestOptions:
    @pytest.mark.parametrize(("given", "config"), [(None, None), (False, None), (True, MorphKV()), (SMALL, SMALL)])
    def test_morphkv_is_the_settings_or_none(self, open_llama, given, config):
        assert open_llama(given, n_ctx=4096).morphkv == config

    def test_defaults_with_morphkv(self, model):
        llm = Llama(str(model), morphkv=SMALL, **QUIET)
        assert llm.n_ctx() == 2**31 - 1
        assert llm.context_params.flash_attn_type == llama_cpp.LLAMA_FLASH_ATTN_TYPE_ENABLED
        llm.close()


class TestCache:
    def test_counters_follow_the_tokens(self, open_llama):
        llm = open_llama()
        assert (llm.cache_stats().logical_pos, llm.cache_stats().n_used) == (-1, 0)
        for token in some_tokens(45):
            llm.eval([token])
        stats = llm.cache_stats()
        assert isinstance(stats, CacheStats)
        # cut before token 37, 41 and 45, each time from 36 down to 32
        assert (stats.n_evictions, stats.n_evicted, stats.n_used, stats.logical_pos) == (3, 12, 33, 44)
        assert (stats.capacity, stats.n_limit, stats.n_distant, stats.n_seq_max) == (32, 36, 24, 1)
        assert stats.kv_bytes == 2 * 2 * stats.n_cells * 2 * 32 * 2
        assert stats.evict_ms > 0

    def test_retained_tokens_are_older_than_the_window_and_begin_with_the_kept_ones(self, open_llama):
        llm = open_llama()
        llm.eval(some_tokens(30))
        assert (llm.retained(0) == -1).all()
        llm.eval(some_tokens(70))
        for layer in range(2):
            positions = llm.retained(layer)
            assert (positions.dtype, positions.shape) == (np.int32, (2, 24))
            for head in positions:
                assert {0, 1} <= set(head.tolist())
                assert len(set(head.tolist())) == 24
                assert head.max() < llm.cache_stats().complete_pos

    def test_without_morphkv_there_are_no_counters(self, open_llama):
        llm = open_llama(None)
        with pytest.raises(NoMorphKVError, match="without MorphKV"):
            llm.cache_stats()
        with pytest.raises(NoMorphKVError, match="without MorphKV"):
            llm.retained(0)

    @pytest.mark.parametrize("arguments", [{"layer": 2}, {"layer": -1}, {"layer": 0, "seq_id": 1}])
    def test_what_is_not_there_is_a_value_error(self, open_llama, arguments):
        with pytest.raises(ValueError, match="must be"):
            open_llama().retained(**arguments)

    def test_a_closed_model_says_so(self, open_llama):
        llm = open_llama()
        llm.close()
        llm.close()
        with pytest.raises(ValueError, match="closed"):
            llm.cache_stats()


class TestContextSize:
    """n_ctx is a limit of the text, whatever the native context's size is."""

    def test_the_text_outgrows_its_first_buffer_and_the_native_context(self, model):
        llm, tokens = Llama(model, morphkv=SMALL, **QUIET), some_tokens(10_000)
        assert len(llm.input_ids) < 2000
        for start in range(0, len(tokens), 999):
            llm.eval(tokens[start : start + 999])
        assert llm.n_tokens == llm.cache_stats().logical_pos + 1 == 10_000
        assert llm.input_ids[:10_000].tolist() == tokens
        assert len(llm.input_ids) < 3 * 10_000
        state, other = llm.save_state(), Llama(model, morphkv=SMALL, **QUIET)
        other.load_state(state)
        assert other.input_ids[: other.n_tokens].tolist() == tokens
        for one in (llm, other):
            one.eval([5])
        np.testing.assert_array_equal(last_logits(llm), last_logits(other))
        llm.close()
        other.close()

    def test_a_text_longer_than_the_limit_is_refused_and_nothing_changes(self, open_llama):
        llm = open_llama(n_ctx=100)
        llm.eval(some_tokens(60))
        with pytest.raises(ValueError, match=r"Requested tokens \(101\) exceed context window of 100"):
            llm.eval(some_tokens(41))
        assert llm.n_tokens == llm.cache_stats().logical_pos + 1 == 60
        llm.eval(some_tokens(40))
        with pytest.raises(ValueError, match="exceed context window of 100"):
            llm.create_completion(some_tokens(100))

    @pytest.mark.parametrize("options", [{}, {"n_ctx": 100}, {"logits_all": True}])
    def test_a_pickled_model_has_the_same_limit(self, model, options):
        llm = Llama(model, morphkv=SMALL, **options, **QUIET)
        copy = pickle.loads(pickle.dumps(llm))
        assert copy.n_ctx() == llm.n_ctx()
        assert copy.__getstate__() == llm.__getstate__()
        llm.close()
        copy.close()


class TestRollback:
    def test_a_tail_that_reaches_into_evicted_tokens_is_refused_and_nothing_changes(self, open_llama):
        llm = open_llama()
        llm.eval(some_tokens(80))
        before = llm.cache_stats()
        llm.n_tokens = before.complete_pos
        with pytest.raises(
            RuntimeError, match=f"n_tokens must be above {before.complete_pos}.*, got {before.complete_pos}"
        ):
            llm.eval([5])
        assert replace(llm.cache_stats(), evict_ms=before.evict_ms) == before
        llm.n_tokens = before.complete_pos + 1
        llm.eval([5])
        assert llm.cache_stats().logical_pos == before.complete_pos + 1

    def test_reset_begins_anew(self, open_llama):
        llm, fresh = open_llama(), open_llama()
        llm.eval(some_tokens(80))
        llm.reset()
        for one in (llm, fresh):
            one.eval(some_tokens(20, seed=1))
        assert llm.cache_stats().n_evictions == 0
        np.testing.assert_array_equal(last_logits(llm), last_logits(fresh))


class TestAsLlamaCpp:
    def test_a_pickled_model_is_loaded_with_the_same_settings(self, open_llama):
        llm = open_llama(n_ctx=4096, n_batch=64, seed=7)
        copy = pickle.loads(pickle.dumps(llm))
        assert copy.morphkv == SMALL
        assert copy.__getstate__() == llm.__getstate__()
        assert copy.n_ctx() == 4096
        for one in (llm, copy):
            one.eval(some_tokens(60))
        np.testing.assert_array_equal(last_logits(copy), last_logits(llm))
        copy.close()

    @pytest.mark.parametrize("n_before", [10, 75])
    def test_saved_state_continues_alike(self, open_llama, n_before):
        llm, other = open_llama(), open_llama()
        llm.eval(some_tokens(n_before))
        state = llm.save_state()
        llm.eval(some_tokens(20, seed=1))
        other.load_state(state)
        other.eval(some_tokens(20, seed=1))
        np.testing.assert_array_equal(last_logits(other), last_logits(llm))

    def test_a_draft_model_changes_nothing_but_the_speed(self, open_llama):
        """The draft is wrong every second time, so that tails are taken back."""
        plain = [token for token, _ in zip(open_llama().generate(some_tokens(20), temp=0.0), range(60))]
        text = some_tokens(20) + plain

        def draft(input_ids):
            n = len(input_ids)
            guess = np.array(text[n : n + 2], dtype=np.intc)
            return guess if n % 2 else (guess + 1) % 320

        llm = open_llama(draft_model=draft)
        assert [token for token, _ in zip(llm.generate(some_tokens(20), temp=0.0), range(60))] == plain
        assert llm.cache_stats().n_evictions > 0


class TestState:
    def test_a_pickled_state_goes_on_the_same_elsewhere(self, open_llama):
        llm = open_llama()
        greedy(llm, some_tokens(100), 20)
        file = io.BytesIO()
        pickle.dump(llm.save_state(), file)
        file.seek(0)
        other = open_llama()
        other.eval(some_tokens(77, seed=3))
        other.load_state(pickle.load(file))
        prompt = [*llm.input_ids[: llm.n_tokens].tolist(), *some_tokens(4, seed=5)]
        assert other.input_ids[: other.n_tokens].tolist() == prompt[:-4]
        assert greedy(other, prompt, 40) == greedy(llm, prompt, 40)
        assert other.cache_stats().n_evictions == llm.cache_stats().n_evictions > 20


class TestPrefix:
    def test_the_same_prompt_again_gives_the_same_text(self, open_llama):
        """llama_cpp decodes the last token of a known prompt again, alone: it must not be cut before it has voted."""
        llm = open_llama(replace(SMALL, prompt_room=64))
        first = greedy(llm, some_tokens(80), 1)
        assert greedy(llm, some_tokens(80), 1) == first
        assert llm.cache_stats().n_evictions == 0


def test_numbers_of_numpy_become_plain():
    config = MorphKV(capacity=np.int64(256), window=np.uint8(16), decay=np.float32(0.5), seed=np.uint32(7))
    assert config == MorphKV(capacity=256, window=16, decay=0.5, seed=7)
    assert {type(value) for value in asdict(config).values()} == {int, float, str}
    assert type(MorphKV(decay=0).decay) is float


def test_settings_cannot_change():
    with pytest.raises(AttributeError):
        MorphKV().capacity = 5


def test_settings_survive_pickling_and_are_hashable():
    config = MorphKV(capacity=256, fusion="max", policy="random", seed=3)
    assert pickle.loads(pickle.dumps(config)) == config
    assert len({config, MorphKV(capacity=256, fusion="max", policy="random", seed=3)}) == 1


class TestCompletion:
    def test_a_seed_gives_stocks_answer_before_the_first_eviction(self, model):
        """Of a response all that 0.1.0 had; there are `timings` now."""
        options = {**QUIET, "flash_attn": True}
        models = [
            llama_cpp.Llama(str(model), n_ctx=512, **options),
            Llama(model, morphkv=MorphKV(capacity=256), **options),
        ]
        request = {"prompt": "abc", "max_tokens": 100, "temperature": 1.0, "seed": 4, "repeat_penalty": 1.2}
        request |= {"logit_bias": {"5": -2.0}, "top_k": 50, "stop": ["zq"]}
        stock, ours = (llm.create_completion(**request) for llm in models)
        assert ours["choices"] == stock["choices"]
        assert ours["usage"].pop("prompt_tokens_details") == {"cached_tokens": 0}
        assert ours["usage"] == stock["usage"]
        assert ours["usage"]["completion_tokens"] > 50
        chunks = models[1].create_completion(**request, stream=True)
        assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == ours["choices"][0]["text"]
        for llm in models:
            llm.close()
