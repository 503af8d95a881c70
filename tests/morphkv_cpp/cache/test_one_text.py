"""A decode that fails or is interrupted: the Llama knows what its cache holds; on tiny models."""

import pytest

from morphkv_cpp import MorphKV
from support.tiny import greedy, held, some_tokens

SMALL = MorphKV(capacity=32, window=8, interval=4, keep=2, prompt_room=0)
OPEN = {"n_ctx": 512}


class TestFailure:
    def fail(self, llm, monkeypatch, n_done: int | None, batches: int = 0):
        """The decode after so many batches fails: its first n_done tokens stay in the cache, or None: it is cleared."""
        decode, calls = llm._ctx.decode, []

        def failing(batch):
            if len(calls) < batches:
                calls.append(batch)
                return decode(batch)
            if n_done is None:
                llm._ctx.kv_cache_clear()
            elif n_done:
                batch.batch.n_tokens = n_done
                decode(batch)
            raise RuntimeError("llama_decode returned -3")

        monkeypatch.setattr(llm._ctx, "decode", failing)

    def test_a_cleared_cache_is_noticed(self, open_llama, monkeypatch):
        llm, fresh = open_llama(), open_llama()
        llm.eval(some_tokens(50))
        with monkeypatch.context() as patch:
            self.fail(llm, patch, None)
            with pytest.raises(RuntimeError, match="llama_decode returned -3"):
                llm.eval([5])
        assert llm.n_tokens == 0
        assert greedy(llm, some_tokens(50), 10) == greedy(fresh, some_tokens(50), 10)

    @pytest.mark.parametrize(("batches", "n_done"), [(0, 0), (0, 7), (1, 0), (1, 9)])
    def test_what_was_decoded_before_the_failure_is_kept(self, open_llama, monkeypatch, batches, n_done):
        llm, fresh = open_llama(n_batch=16), open_llama(n_batch=16)
        for one in (llm, fresh):
            one.eval(some_tokens(20))
        more = some_tokens(40, seed=1)
        with monkeypatch.context() as patch:
            self.fail(llm, patch, n_done, batches)
            with pytest.raises(RuntimeError, match="llama_decode returned -3"):
                llm.eval(more)
        assert llm.n_tokens == 20 + 16 * batches + n_done
        assert held(llm) == (some_tokens(20) + more)[: llm.n_tokens]
        llm.eval(more[llm.n_tokens - 20 :])
        assert greedy(llm, some_tokens(20) + more + [5], 10) == greedy(llm, some_tokens(20) + more + [5], 10)

    @pytest.mark.parametrize("n_done", [0, 12, 40])
    def test_ctrl_c_before_tokens_are_counted_is_noticed(self, open_llama, monkeypatch, n_done):
        llm = open_llama()
        llm.eval(some_tokens(50))
        more = some_tokens(40, seed=1)
        with monkeypatch.context() as patch:
            decode = llm._ctx.decode

            def interrupted(batch):
                batch.batch.n_tokens = n_done
                if n_done:
                    decode(batch)
                raise KeyboardInterrupt

            patch.setattr(llm._ctx, "decode", interrupted)
            with pytest.raises(KeyboardInterrupt):
                llm.eval(more)
        assert llm.n_tokens == llm.cache_stats().logical_pos + 1 == 50 + n_done
        assert held(llm) == (some_tokens(50) + more)[: llm.n_tokens]

    def test_the_reason_of_the_native_library_is_told(self, open_llama, monkeypatch):
        llm = open_llama()
        self.fail(llm, monkeypatch, 0)
        monkeypatch.setattr("morphkv_cpp.bridge.last_error", lambda: "eviction failed: why")
        with pytest.raises(RuntimeError, match="llama_decode returned -3: eviction failed: why"):
            llm.eval([5])
