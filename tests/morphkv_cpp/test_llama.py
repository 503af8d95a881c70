"""Llama: options, refusals, counters, rollback, pickling; on tiny random models."""

import gc
import os
import pickle
import sys
import types
from dataclasses import replace

import numpy as np
import pytest

from morphkv_cpp import CacheStats, InvalidError, Llama, MorphKV, NoMorphKVError, UnsupportedError
from morphkv_cpp.text.write import ForceTokens
from support.tiny import QUIET, last_logits, some_tokens

# isort: split
# after morphkv_cpp, which says what libllama is loaded
import llama_cpp

SMALL = MorphKV(capacity=32, window=8, interval=4, keep=2, prompt_room=0)
OPEN = {"n_ctx": 512}


@pytest.fixture(autouse=True)
def no_noise_from_finalizers(monkeypatch):
    """An exception in __del__ only prints; here it fails the test."""
    unraisable = []
    monkeypatch.setattr(sys, "unraisablehook", unraisable.append)
    yield
    gc.collect()
    assert not [str(report.exc_value) for report in unraisable]


@pytest.fixture(scope="module")
def model(tiny_llama):
    return tiny_llama()


class TestOptions:
    @pytest.mark.parametrize(("given", "config"), [(None, None), (False, None), (True, MorphKV()), (SMALL, SMALL)])
    def test_morphkv_is_the_settings_or_none(self, open_llama, given, config):
        assert open_llama(given, n_ctx=4096).morphkv == config

    @pytest.mark.parametrize("given", [{"capacity": 32}, 1, "on", np.True_])
    def test_another_type_is_refused(self, model, given):
        with pytest.raises(TypeError, match="morphkv must be a MorphKV, a bool or None, got"):
            Llama(str(model), morphkv=given, **QUIET)

    def test_defaults_with_morphkv(self, model):
        llm = Llama(str(model), morphkv=SMALL, **QUIET)
        assert llm.n_ctx() == 2**31 - 1
        assert llm.context_params.flash_attn_type == llama_cpp.LLAMA_FLASH_ATTN_TYPE_ENABLED
        llm.close()

    @pytest.mark.parametrize("options", [{"logits_all": True}, {"draft_model": lambda ids: ids[:0]}])
    def test_stored_logits_bound_the_context(self, model, options):
        llm = Llama(str(model), morphkv=SMALL, **options, **QUIET)
        assert llm.n_ctx() == 8192
        assert llm.scores.shape == (8192, 320)
        llm.close()

    def test_defaults_without_morphkv_are_those_of_llama_cpp(self, model):
        ours, stock = Llama(str(model), **QUIET), llama_cpp.Llama(str(model), **QUIET)
        state = ours.__getstate__()
        assert state.pop("morphkv") is None
        assert state == stock.__getstate__()
        ours.close()
        stock.close()

    def test_a_path_of_any_kind_is_accepted(self, model):
        for path in (model, os.fsencode(model)):
            Llama(path, morphkv=SMALL, **QUIET).close()

    def test_the_batch_does_not_grow_with_the_context(self, open_llama, monkeypatch):
        made = []
        original = llama_cpp.llama_batch_init
        monkeypatch.setattr(llama_cpp.llama_cpp, "llama_batch_init", lambda *a: made.append(a) or original(*a))
        assert open_llama(n_ctx=1 << 20).n_ctx() == 1 << 20
        open_llama(None)
        assert made == [(512, 0, 1), (512, 0, 512)]


class TestRefusals:
    """Every refusal leaves the process as it was: the next call works."""

    @pytest.fixture(autouse=True)
    def next_call_works(self, open_llama):
        yield
        assert open_llama(None).morphkv is None
        with pytest.raises(NoMorphKVError):
            open_llama(None).cache_stats()  # nothing was left pending
        llm = open_llama()
        llm.eval(some_tokens(50))
        assert llm.cache_stats().n_evictions > 0

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"flash_attn": False}, "flash_attn must be True with MorphKV, got False"),
            ({"embedding": True}, "embedding must be False with MorphKV, got True"),
        ],
    )
    def test_options_that_exclude_morphkv(self, open_llama, options, message):
        with pytest.raises(ValueError, match=message):
            open_llama(**options)

    def test_a_context_smaller_than_the_cache(self, open_llama):
        with pytest.raises(InvalidError, match=r"n_ctx must be at least .* = 2048, got 512: leave n_ctx out"):
            open_llama(MorphKV())

    @pytest.mark.parametrize("error", [ValueError, RuntimeError])
    def test_a_kv_type_that_cannot_be_moved(self, open_llama, error):
        with pytest.raises(error, match="K/V type"):
            open_llama(type_k=llama_cpp.GGML_TYPE_Q4_1, type_v=llama_cpp.GGML_TYPE_Q4_1)

    def test_a_context_without_a_cache(self, open_llama):
        with pytest.raises(UnsupportedError, match="no KV cache of a known kind"):
            open_llama(vocab_only=True)

    def test_a_model_that_cannot_be_served_is_named(self, open_llama):
        with pytest.raises(UnsupportedError, match="architecture 'llama': its attention is not causal"):
            open_llama(kv_overrides={"llama.attention.causal": False})

    def test_a_refused_model_is_freed_at_once(self, open_llama, monkeypatch):
        freed = []
        original = llama_cpp.llama_model_free
        monkeypatch.setattr(
            llama_cpp.llama_cpp, "llama_model_free", lambda model: freed.append(model) or original(model)
        )
        with pytest.raises(UnsupportedError) as held:  # its traceback would keep the model alive
            open_llama(kv_overrides={"llama.attention.causal": False})
        assert len(freed) == 1
        assert held.value.__context__ is not None

    def test_how_much_is_loaded_is_told(self, open_llama):
        told = []
        open_llama(load_progress=told.append)
        assert told == sorted(told)
        assert (told[0], told[-1]) == (0.0, 1.0)

    def test_what_the_listener_raises_ends_the_loading(self, model):
        def stop(share):
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            Llama(model, load_progress=stop, **QUIET, **OPEN)

    def test_a_missing_file(self, tmp_path):
        with pytest.raises(ValueError, match="Model path does not exist"):
            Llama(str(tmp_path / "none.gguf"), morphkv=SMALL, **QUIET)

    def test_a_missing_file_after_a_refusal_is_not_taken_for_it(self, open_llama, tmp_path):
        with pytest.raises(UnsupportedError):
            open_llama(kv_overrides={"llama.attention.causal": False})
        with pytest.raises(ValueError, match="Model path does not exist"):
            Llama(str(tmp_path / "none.gguf"), morphkv=SMALL, **QUIET)

    @pytest.mark.parametrize("path", [3, None, ["a.gguf"]])
    def test_a_path_of_another_type(self, path):
        with pytest.raises(TypeError, match="PathLike"):
            Llama(path, morphkv=SMALL, **QUIET)

    def test_no_path(self):
        with pytest.raises(TypeError, match="model_path"):
            Llama(morphkv=SMALL)

    def test_options_of_another_type(self, open_llama):
        with pytest.raises(TypeError):
            open_llama(n_ctx="many")

    @pytest.mark.parametrize("n_bytes", [0, 3, 100, 10_000, -1])
    def test_a_truncated_file(self, model, tmp_path, n_bytes):
        path = tmp_path / "cut.gguf"
        path.write_bytes(model.read_bytes()[:n_bytes])
        with pytest.raises(ValueError, match="Failed to load model from file"):
            Llama(str(path), morphkv=SMALL, **QUIET)

    @pytest.mark.parametrize(
        ("offset", "content"),
        [
            (0, b"GGML"),
            (4, b"\xff\xff\xff\xff"),
            (8, b"\xff" * 8),
            (16, b"\xff" * 8),
            (24, b"\xff" * 8),
            (60, b"\xff" * 40),
        ],
    )
    def test_a_corrupt_file(self, model, tmp_path, offset, content):
        path = tmp_path / "corrupt.gguf"
        spoilt = bytearray(model.read_bytes())
        spoilt[offset : offset + len(content)] = content
        path.write_bytes(spoilt)
        with pytest.raises(ValueError, match="Failed to load model from file"):
            Llama(str(path), morphkv=SMALL, **QUIET)


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

    def n_native(self, llm) -> int:
        assert llm.context_params.n_ctx == llama_cpp.llama_n_ctx(llm.ctx)
        return llama_cpp.llama_n_ctx(llm.ctx)

    @pytest.mark.parametrize("n_ctx", [36, 512, 100_000, 2**31 - 1])
    def test_the_native_context_is_as_trained(self, open_llama, n_ctx):
        llm = open_llama(n_ctx=n_ctx)
        assert llm.n_ctx() == n_ctx
        assert self.n_native(llm) == 8192

    @pytest.mark.parametrize(("n_batch", "n_native"), [(64, 512), (1024, 1024)])
    def test_the_native_context_has_room_for_all_cells_and_a_batch(self, tiny_llama, n_batch, n_native):
        path = tiny_llama(context_length=128)
        llm = Llama(path, morphkv=replace(SMALL, capacity=300, prompt_room=200), n_batch=n_batch, **QUIET)
        assert self.n_native(llm) == n_native
        llm.eval(some_tokens(2000))
        assert llm.cache_stats().n_evictions > 0
        llm.close()

    def test_llama_cpp_warns_of_no_context_beyond_the_trained_one(self, open_llama, capfd):
        open_llama(n_ctx=1 << 20, verbose=True)
        assert "n_ctx_seq" in capfd.readouterr().err
        open_llama(n_ctx=1 << 20, verbose=True)
        assert "overflow" not in capfd.readouterr().err

    def test_zero_is_the_trained_context(self, open_llama):
        llm = open_llama(n_ctx=0)
        assert llm.n_ctx() == self.n_native(llm) == 8192

    @pytest.mark.parametrize("n_ctx", [-1, 2**31])
    def test_a_size_out_of_range_is_refused(self, open_llama, n_ctx):
        with pytest.raises(ValueError, match=f"n_ctx must be in 0..2147483647, got {n_ctx}"):
            open_llama(n_ctx=n_ctx)

    def test_a_size_below_the_cells_is_refused(self, tiny_llama):
        path = tiny_llama(context_length=256)
        with pytest.raises(ValueError, match=r"n_ctx must be at least .* = 2048, got 40: leave n_ctx out"):
            Llama(path, morphkv=MorphKV(), n_ctx=40, **QUIET)
        with pytest.raises(
            InvalidError, match=r"got 1024 \+ 1024 with a context of 256 \(n_ctx=0 is .* leave n_ctx out"
        ):
            Llama(path, morphkv=MorphKV(), n_ctx=0, **QUIET)

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

    def test_logits_that_are_stored_are_not_reserved_otherwise(self, open_llama):
        assert open_llama(n_ctx=1 << 20).scores.shape == (512, 320)
        assert open_llama(n_ctx=2048, logits_all=True).scores.shape == (2048, 320)

    def test_a_text_longer_than_the_limit_is_refused_and_nothing_changes(self, open_llama):
        llm = open_llama(n_ctx=100)
        llm.eval(some_tokens(60))
        with pytest.raises(ValueError, match=r"Requested tokens \(101\) exceed context window of 100"):
            llm.eval(some_tokens(41))
        assert llm.n_tokens == llm.cache_stats().logical_pos + 1 == 60
        llm.eval(some_tokens(40))
        with pytest.raises(ValueError, match="exceed context window of 100"):
            llm.create_completion(some_tokens(100))

    def test_an_answer_ends_at_the_limit(self, open_llama):
        never = {llama_cpp.llama_vocab_eos(open_llama()._model.vocab): -np.inf}
        for max_tokens in (None, 0, 1000):
            answer = open_llama(n_ctx=100).create_completion("abc", max_tokens=max_tokens, logit_bias=never)
            assert answer["usage"]["total_tokens"] == 100
            assert answer["choices"][0]["finish_reason"] == "length"

    def test_without_a_limit_an_answer_ends_where_the_model_ends_it(self, model):
        llm = Llama(model, morphkv=SMALL, **QUIET)
        force = llama_cpp.LogitsProcessorList([ForceTokens([*some_tokens(9000), llm.token_eos()])])
        answer = llm.create_completion("abc", max_tokens=None, temperature=0.0, logits_processor=force)
        assert answer["usage"]["completion_tokens"] == 9000
        assert answer["choices"][0]["finish_reason"] == "stop"
        llm.close()

    @pytest.mark.parametrize("options", [{}, {"n_ctx": 100}, {"logits_all": True}])
    def test_a_pickled_model_has_the_same_limit(self, model, options):
        llm = Llama(model, morphkv=SMALL, **options, **QUIET)
        copy = pickle.loads(pickle.dumps(llm))
        assert copy.n_ctx() == llm.n_ctx()
        assert copy.__getstate__() == llm.__getstate__()
        llm.close()
        copy.close()


class TestRollback:
    def test_before_an_eviction_any_tail_can_be_replaced(self, open_llama):
        llm, again = open_llama(), open_llama()
        llm.eval(some_tokens(30))
        llm.n_tokens = 5
        llm.eval(some_tokens(10, seed=1))
        again.eval(some_tokens(30)[:5] + some_tokens(10, seed=1))
        np.testing.assert_array_equal(last_logits(llm), last_logits(again))

    def test_after_an_eviction_a_recent_tail_can_be_replaced(self, open_llama):
        llm, again = open_llama(), open_llama()
        tokens = some_tokens(40)
        for one in (llm, again):
            for token in tokens[:38]:
                one.eval([token])
        expected = last_logits(again)
        assert llm.cache_stats().n_evictions == 1
        llm.eval(some_tokens(1, seed=1))
        llm.n_tokens = 37
        llm.eval(tokens[37:38])
        # the same cells hold the same rows; only the order of the last two writes differs
        np.testing.assert_array_equal(last_logits(llm), expected)

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

    def test_generate_evaluates_anew_what_it_cannot_go_back_to(self, open_llama):
        llm, fresh = open_llama(), open_llama()
        prompt = some_tokens(30)
        first = next(llm.generate(prompt, temp=0.0))
        llm.eval(some_tokens(40, seed=1))
        assert next(llm.generate(prompt, temp=0.0)) == first == next(fresh.generate(prompt, temp=0.0))
        assert llm.cache_stats().n_evictions == 0


class TestAsLlamaCpp:
    def test_without_morphkv_logits_are_bit_equal(self, model):
        ours, stock = Llama(str(model), **QUIET), llama_cpp.Llama(str(model), **QUIET)
        for llm in (ours, stock):
            llm.eval(some_tokens(100))
        np.testing.assert_array_equal(last_logits(ours), last_logits(stock))
        ours.close()
        stock.close()

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

    def test_a_pickled_model_without_morphkv_has_none(self, open_llama):
        copy = pickle.loads(pickle.dumps(open_llama(None)))
        assert copy.morphkv is None
        copy.close()

    def test_embeddings_without_morphkv(self, open_llama):
        ours = open_llama(None, embedding=True)
        vector = ours.embed("a few words")
        assert np.shape(vector)[-1] == ours.n_embd()
        stock = llama_cpp.Llama(ours.model_path, embedding=True, **QUIET)
        np.testing.assert_array_equal(vector, stock.embed("a few words"))
        stock.close()

    def test_from_pretrained_passes_morphkv_on(self, model, monkeypatch):
        hub = types.ModuleType("huggingface_hub")
        hub.utils = types.ModuleType("huggingface_hub.utils")
        hub.utils.validate_repo_id = lambda repo_id: None
        hub.HfFileSystem = lambda: types.SimpleNamespace(ls=lambda repo_id, recursive: [f"{repo_id}/tiny.gguf"])
        hub.hf_hub_download = lambda **options: str(model)
        monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
        monkeypatch.setitem(sys.modules, "huggingface_hub.utils", hub.utils)
        llm = Llama.from_pretrained("someone/tiny", "*.gguf", morphkv=SMALL, **QUIET)
        assert type(llm) is Llama
        assert llm.cache_stats().capacity == 32
        llm.close()

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
