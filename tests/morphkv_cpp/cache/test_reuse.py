"""What a prompt has in common with the cache, and what is evaluated again; on tiny models."""

from dataclasses import replace

import numpy as np
import pytest

from morphkv_cpp import Llama, MorphKV, PromptReuse
from morphkv_cpp.cache.reuse import common_prefix, prompt_reuse
from support.tiny import QUIET, count_evaluated, greedy, some_tokens

SMALL = MorphKV(capacity=32, window=8, interval=4, keep=2, prompt_room=0)
OPEN = {"n_ctx": 512}


@pytest.fixture
def llm(tiny_llama):
    llm = Llama(str(tiny_llama()), morphkv=SMALL, n_ctx=512, ctx_checkpoints=0, **QUIET)
    yield llm
    llm.close()


@pytest.mark.parametrize(
    ("a", "b", "n"), [([], [], 0), ([1], [], 0), ([1, 2], [1, 2], 2), ([1, 2, 3], [1, 2], 2), ([1, 2], [1, 3, 2], 1)]
)
def test_common_prefix(a, b, n):
    assert common_prefix(a, b) == common_prefix(np.array(a), b) == common_prefix(b, a) == n


class TestPromptReuse:
    @pytest.mark.parametrize("n_text", [20, 150])
    def test_it_says_what_generate_will_evaluate(self, llm, monkeypatch, n_text):
        """Before the first eviction and after many: prompts that leave the text at every place."""
        llm.eval(some_tokens(n_text))
        state, text = llm.save_state(), some_tokens(n_text)
        reused = set()
        for n_common in range(n_text + 1):
            llm.load_state(state)
            prompt = [*text[:n_common], 2, 2]
            foreseen = prompt_reuse(llm, prompt)
            with monkeypatch.context() as patch:
                lengths = count_evaluated(llm, patch)
                next(llm.generate(prompt, temp=0.0))
            assert llm.last_prompt == foreseen
            assert (foreseen.n_prompt, foreseen.n_common) == (n_common + 2, n_common)
            assert foreseen.n_evaluated == sum(lengths)
            assert foreseen.reprocessed == (n_common > 0 and foreseen.n_cached == 0)
            reused.add(foreseen.n_cached)
        assert 0 in reused
        assert n_text in reused

    def test_of_a_known_prompt_the_last_token_is_decoded_again(self, llm):
        llm.eval(some_tokens(20))
        assert prompt_reuse(llm, some_tokens(20)) == PromptReuse(n_prompt=20, n_common=20, n_cached=20)
        assert prompt_reuse(llm, some_tokens(20)[:15]) == PromptReuse(n_prompt=15, n_common=15, n_cached=14)
        llm.load_state(llm.save_state())
        assert prompt_reuse(llm, some_tokens(20)) == PromptReuse(n_prompt=20, n_common=20, n_cached=19)

    def test_an_empty_cache_and_an_empty_prompt(self, llm):
        assert prompt_reuse(llm, [1, 2, 3]) == PromptReuse(n_prompt=3, n_common=0, n_cached=0)
        llm.eval([1, 2, 3])
        assert prompt_reuse(llm, []) == PromptReuse(n_prompt=0, n_common=0, n_cached=0)


class TestLastPrompt:
    def test_a_chat_that_comes_back_as_messages_is_told(self, llm):
        messages = [{"role": "user", "content": "abc"}]
        assert llm.last_prompt is None
        llm.create_chat_completion(messages, max_tokens=8)
        assert llm.last_prompt.n_cached == 0
        assert not llm.last_prompt.reprocessed
        n_first = llm.last_prompt.n_prompt
        response = llm.create_chat_completion([{"role": "user", "content": "abx"}], max_tokens=60)
        assert 0 < llm.last_prompt.n_cached < n_first
        assert response["usage"]["prompt_tokens_details"] == {"cached_tokens": llm.last_prompt.n_cached}
        # by now the place where the two part was evicted
        llm.create_chat_completion(messages, max_tokens=8)
        assert llm.last_prompt.reprocessed
        assert llm.last_prompt.n_evaluated == n_first

    def test_without_morphkv_there_is_nothing_to_tell(self, tiny_llama):
        llm = Llama(str(tiny_llama()), **QUIET)
        next(llm.generate([1, 2, 3]))
        assert llm.last_prompt is None
        llm.close()

    def test_tokens_can_still_be_sent_to_generate(self, tiny_llama):
        # it samples behind each of them
        options = {"n_ctx": 512, "n_threads": 1, "n_threads_batch": 1, "verbose": False, "logits_all": True}
        llm = Llama(str(tiny_llama()), morphkv=SMALL, **options)
        tokens = llm.generate([1, 5, 6], temp=0.0)
        next(tokens)
        tokens.send([7, 8, 9])
        assert llm.input_ids[4 : llm.n_tokens].tolist() == [7, 8, 9]
        llm.close()


class TestPrefix:
    def test_what_is_behind_the_recent_region_is_not_evaluated_again(self, open_llama, monkeypatch, capsys):
        llm = open_llama(verbose=True)
        answer = greedy(llm, some_tokens(60), 20)
        lengths = count_evaluated(llm, monkeypatch)
        # the last token drawn has not been decoded yet; that is done as if the answer went on
        greedy(llm, [*some_tokens(60), *answer, *some_tokens(3, seed=1)], 2)
        assert lengths == [1, 3, 1]
        assert "79 prefix-match hit, remaining 4 prompt tokens to eval" in capsys.readouterr().err

    def test_a_prefix_that_ends_in_the_recent_region_is_a_hit(self, open_llama, monkeypatch):
        llm = open_llama()
        text = [*some_tokens(60), *greedy(llm, some_tokens(60), 20)]
        complete_pos = llm.cache_stats().complete_pos
        lengths = count_evaluated(llm, monkeypatch)
        greedy(llm, [*text[: complete_pos + 1], *some_tokens(3, seed=1)], 1)
        assert lengths == [3]

    def test_one_that_ends_in_evicted_tokens_is_evaluated_from_the_start_and_verbose_says_so(
        self, open_llama, monkeypatch, capsys
    ):
        llm, fresh = open_llama(verbose=True), open_llama()
        text = [*some_tokens(60), *greedy(llm, some_tokens(60), 20)]
        complete_pos = llm.cache_stats().complete_pos
        prompt = [*text[:complete_pos], *some_tokens(3, seed=1)]
        lengths = count_evaluated(llm, monkeypatch)
        assert greedy(llm, prompt, 5) == greedy(fresh, prompt, 5)
        assert lengths[0] == len(prompt)
        assert "re-evaluating full prompt" in capsys.readouterr().err

    def test_the_same_prompt_again_gives_the_same_text(self, open_llama):
        """llama_cpp decodes the last token of a known prompt again, alone: it must not be cut before it has voted."""
        llm = open_llama(replace(SMALL, prompt_room=64))
        first = greedy(llm, some_tokens(80), 1)
        assert greedy(llm, some_tokens(80), 1) == first
        assert llm.cache_stats().n_evictions == 0


class TestMarks:
    """With recurrent layers: rolled back to where the last prompt's answer began, and nowhere else."""

    ROOM = MorphKV(capacity=256, window=32, interval=16, keep=2, prompt_room=0)

    @pytest.fixture(params=[None, "ram"], ids=["", "archive"])
    def hybrid(self, request, tiny_hybrid):
        llm = Llama(str(tiny_hybrid), morphkv=self.ROOM, archive=request.param, **OPEN, **QUIET)
        yield llm
        llm.close()

    @pytest.mark.parametrize("n_prompt", [200, 290])
    def test_an_answer_that_is_asked_for_again_costs_a_token(self, hybrid, monkeypatch, n_prompt):
        """Before the first eviction and after some, of which none comes while the answer is written."""
        prompt = some_tokens(n_prompt)
        first = hybrid.create_completion(prompt, max_tokens=8, temperature=0.0)
        for _ in range(2):
            foreseen = prompt_reuse(hybrid, prompt)
            with monkeypatch.context() as patch:
                lengths = count_evaluated(hybrid, patch)
                again = hybrid.create_completion(prompt, max_tokens=8, temperature=0.0)
            assert again["choices"] == first["choices"]
            assert foreseen == hybrid.last_prompt == PromptReuse(n_prompt, n_prompt, n_prompt - 1)
            assert lengths[0] == 1
            assert sum(lengths) < 64

    def test_a_prompt_that_leaves_the_answer_goes_on_from_where_that_began(self, hybrid, tiny_hybrid, monkeypatch):
        prompt = some_tokens(100)
        answer = greedy(hybrid, prompt, 8)
        other = [*prompt, *answer[:4], *some_tokens(20, seed=1)]
        assert prompt_reuse(hybrid, other) == PromptReuse(124, 104, 99)
        fresh = Llama(str(tiny_hybrid), morphkv=self.ROOM, **OPEN, **QUIET)
        lengths = count_evaluated(hybrid, monkeypatch)
        assert greedy(hybrid, other, 8) == greedy(fresh, other, 8)
        assert sum(lengths) == 25 + 7
        fresh.close()

    def test_it_says_what_generate_will_evaluate(self, hybrid, monkeypatch):
        prompt = some_tokens(90)
        text = [*prompt, *greedy(hybrid, prompt, 9)]
        seen = set()
        for n_common in range(80, 99):
            fork = [*text[:n_common], 2, 2]
            foreseen = prompt_reuse(hybrid, fork)
            with monkeypatch.context() as patch:
                lengths = count_evaluated(hybrid, patch)
                next(hybrid.generate(fork, temp=0.0))
            assert foreseen == hybrid.last_prompt
            assert foreseen.n_evaluated == sum(lengths)
            seen.add(foreseen.n_cached)
            assert greedy(hybrid, prompt, 9) == text[90:]
        assert seen == {0, 89, 98}

    def test_what_lies_between_is_refused_and_the_mark_is_told(self, hybrid):
        greedy(hybrid, some_tokens(60), 5)
        before = hybrid.cache_stats()
        assert (before.mark_pos, before.complete_pos) == (59, 63)
        hybrid.n_tokens = 61
        with pytest.raises(RuntimeError, match=r"n_tokens must be above 63.*, or 59, where it has a mark, got 61"):
            hybrid.eval([5])
        assert hybrid.cache_stats() == before
        hybrid.n_tokens = 59
        hybrid.eval([5])
        assert hybrid.cache_stats().logical_pos == 59
