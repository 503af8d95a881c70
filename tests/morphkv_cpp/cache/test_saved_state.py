"""Saving and restoring, as hosts of llama_cpp.Llama know them; on tiny models."""

import io
import pickle
from dataclasses import replace

import numpy as np
import pytest

from morphkv_cpp import MorphKV
from support.tiny import count_evaluated, greedy, held, some_tokens

# isort: split
# after morphkv_cpp, which says what libllama is loaded
import llama_cpp

SMALL = MorphKV(capacity=32, window=8, interval=4, keep=2, prompt_room=0)
OPEN = {"n_ctx": 512}


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
        prompt = [*held(llm), *some_tokens(4, seed=5)]
        assert held(other) == prompt[:-4]
        assert greedy(other, prompt, 40) == greedy(llm, prompt, 40)
        assert other.cache_stats().n_evictions == llm.cache_stats().n_evictions > 20

    def test_its_size_is_constant_but_for_the_token_ids(self, open_llama):
        llm, sizes = open_llama(n_ctx=4096), []
        for n_tokens in (32 + 4 * 20 + 1, 4 * 100, 4 * 400):
            llm.eval(some_tokens(n_tokens))
            state = llm.save_state()
            sizes.append(len(state.llama_state))
            assert len(pickle.dumps(state)) - len(state.llama_state) < 4 * state.n_tokens + 1000
        assert len(set(sizes)) == 1

    @pytest.mark.parametrize(
        "other",
        [
            {"morphkv": replace(SMALL, interval=5)},
            {"morphkv": None},
            {"type_k": 8, "type_v": 8},
            {"shape": {"n_head_kv": 1}},
        ],
        ids=["interval", "without", "q8_0", "heads"],
    )
    def test_a_state_of_other_settings_or_another_model_is_refused_and_nothing_changes(self, open_llama, other):
        llm = open_llama()
        stranger = open_llama(**({"shape": {"n_head": 4, "head_size": 64}} | other))
        for one in (llm, stranger):
            one.eval(some_tokens(90))
        before, stats = llm.save_state(), llm.cache_stats()
        with pytest.raises(RuntimeError, match="another model or other settings"):
            llm.load_state(stranger.save_state())
        after = llm.save_state()
        assert (after.llama_state, after.n_tokens) == (before.llama_state, before.n_tokens)
        np.testing.assert_array_equal(after.input_ids, before.input_ids)
        assert llm.cache_stats() == stats

    @pytest.mark.parametrize("held", [90, 0], ids=["a text", "nothing"])
    @pytest.mark.parametrize(
        "change",
        [
            {"llama_state": lambda state: state.llama_state[:-5]},
            {"llama_state": lambda state: state.llama_state[:-5], "llama_state_size": lambda s: s.llama_state_size - 5},
            {"llama_state": lambda s: s.llama_state + b"x", "llama_state_size": lambda s: s.llama_state_size + 1},
            {"llama_state": lambda _: b"", "llama_state_size": lambda _: 0},
            {"llama_state_size": lambda _: 7},
            {"n_tokens": lambda state: state.n_tokens + 1, "input_ids": lambda _: np.zeros(200, dtype=np.intc)},
            {"n_tokens": lambda _: -1},
            {"n_tokens": lambda _: 600},
            {"n_tokens": lambda _: "5"},
            {"input_ids": lambda state: state.input_ids[:-1]},
            {"input_ids": lambda state: state.input_ids[None]},
            {"input_ids": lambda state: state.input_ids.astype(float)},
            {"input_ids": lambda _: None},
            {"seed": lambda _: None},
        ],
        ids="cut shorter longer empty size text negative above word ids rows floats none seed".split(),
    )
    def test_a_state_that_does_not_fit_together_is_refused_and_nothing_changes(self, open_llama, change, held):
        llm, other = open_llama(), open_llama()
        llm.eval(some_tokens(held, seed=1))
        other.eval(some_tokens(100))
        state = other.save_state()
        for field, value in change.items():
            setattr(state, field, value(other.save_state()))
        before, stats, requires_eval = llm.save_state(), llm.cache_stats(), llm._requires_eval
        with pytest.raises(RuntimeError, match="Failed to set llama state data: it is damaged, or was saved with"):
            llm.load_state(state)
        after = llm.save_state()
        assert (after.llama_state, after.n_tokens, after.seed) == (before.llama_state, before.n_tokens, before.seed)
        np.testing.assert_array_equal(after.input_ids, before.input_ids)
        assert llm.cache_stats() == stats
        assert llm._requires_eval == requires_eval
        llm.load_state(other.save_state())
        assert greedy(llm, some_tokens(100), 30) == greedy(other, some_tokens(100), 30)

    @pytest.mark.parametrize(
        "scores", [None, np.zeros((600, 320), np.single), np.zeros((5, 7), np.single), np.zeros(320, np.single)]
    )
    def test_logits_that_do_not_fit_are_refused_and_nothing_changes(self, open_llama, scores):
        llm, other = open_llama(logits_all=True), open_llama(logits_all=True)
        llm.eval(some_tokens(50, seed=1))
        other.eval(some_tokens(60))
        state = other.save_state()
        state.scores = scores
        before, rows = llm.save_state(), llm.scores[:60].copy()
        with pytest.raises(RuntimeError, match="scores must be floats"):
            llm.load_state(state)
        assert llm.save_state().llama_state == before.llama_state
        np.testing.assert_array_equal(llm.scores[:60], rows)

    def test_logits_of_a_state_are_left_where_none_are_kept(self, open_llama):
        llm, other = open_llama(), open_llama(logits_all=True)
        other.eval(some_tokens(60))
        state = other.save_state()
        state.scores = np.zeros((600, 320), np.single)
        llm.load_state(state)
        assert llm.n_tokens == 60

    def test_what_is_no_state_is_refused(self, open_llama):
        llm = open_llama()
        llm.eval(some_tokens(20))
        with pytest.raises(TypeError, match="state must be a LlamaState, got bytes"):
            llm.load_state(b"abc")
        assert llm.n_tokens == 20

    def test_a_text_that_was_taken_back_is_saved_as_it_is(self, open_llama):
        llm, other = open_llama(), open_llama()
        llm.eval(some_tokens(60))
        llm.n_tokens -= 3
        other.load_state(llm.save_state())
        assert other.n_tokens == 57
        prompt = [*some_tokens(57), 5]
        assert greedy(other, prompt, 20) == greedy(llm, prompt, 20)

    def test_nothing_is_no_state(self, open_llama, monkeypatch):
        """llama.cpp gives 0 bytes where it fails, and takes 0 bytes for a success."""
        llm = open_llama()
        llm.eval(some_tokens(60))
        monkeypatch.setattr(llama_cpp, "llama_state_get_size", lambda _: 0)
        with pytest.raises(RuntimeError, match=r"llama\.cpp gave 0 bytes of a state of 0"):
            llm.save_state()

    def test_logits_are_saved_where_all_are_kept(self, open_llama):
        llm, other = open_llama(logits_all=True), open_llama(logits_all=True)
        llm.eval(some_tokens(60))
        other.load_state(pickle.loads(pickle.dumps(llm.save_state())))
        np.testing.assert_array_equal(other.scores[:60], llm.scores[:60])

    def test_a_ram_cache_brings_back_what_was_evicted(self, open_llama, monkeypatch):
        llm, fresh = open_llama(), open_llama()
        llm.set_cache(llama_cpp.LlamaRAMCache())
        texts = [some_tokens(70, seed=1), some_tokens(50, seed=2)]
        for text in texts:
            llm.create_completion(text, max_tokens=5, temperature=0.0)
        assert llm.cache.cache_size > 0
        lengths = count_evaluated(llm, monkeypatch)
        # goes on behind the first text, which the second has replaced
        longer = [*texts[0], *greedy(fresh, texts[0], 5)[:4], *some_tokens(9, seed=3)]
        llm.create_completion(longer, max_tokens=5, temperature=0.0)
        assert lengths[0] == 9
        fresh.eval(longer[74:])
        assert llm.input_ids[83 : llm.n_tokens].tolist() == greedy(fresh, longer, 5)[:4]
