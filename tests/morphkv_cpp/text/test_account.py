"""What an answer says of itself: usage as OpenAI's, timings as llama-server's."""

import pytest

from morphkv_cpp import MorphKV
from morphkv_cpp.text.account import Timings, Usage

SMALL = MorphKV(capacity=64, window=8, interval=8, keep=2, prompt_room=0)
MESSAGES = [{"role": "user", "content": "Tell a long story. " * 8}]


def check(answer: dict, n_cached: int) -> None:
    usage, timings = answer["usage"], answer["timings"]
    assert set(usage) == set(Usage.__annotations__)
    assert set(timings) == set(Timings.__annotations__) - {"recalled_from", "reread_n"}  # of files that are attached
    assert usage["prompt_tokens_details"]["cached_tokens"] == timings["cache_n"] == n_cached
    assert timings["prompt_n"] == usage["prompt_tokens"] - n_cached
    assert timings["predicted_n"] == usage["completion_tokens"] >= 20
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    assert timings["prompt_per_second"] == pytest.approx(1e3 * timings["prompt_n"] / timings["prompt_ms"])
    assert timings["predicted_per_token_ms"] == pytest.approx(timings["predicted_ms"] / timings["predicted_n"])


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_counts_its_tokens_and_evictions(open_llama, stream):
    llm = open_llama()
    request = {"max_tokens": 20, "temperature": 0.0, "logit_bias": {str(llm.token_eos()): -1e9}, "stream": stream}
    for ask in (
        lambda: llm.create_chat_completion(MESSAGES, **request),
        lambda: llm.create_completion("Tell a long story. " * 8, **request),
    ):
        llm.reset()
        llm._ctx.kv_cache_clear()
        before = llm.cache_stats()
        answer = list(ask())[-1] if stream else ask()
        check(answer, n_cached=0)
        after, timings = llm.cache_stats(), answer["timings"]
        assert (timings["evictions_n"], timings["evicted_n"]) == (after.n_evictions, after.n_evicted)
        assert timings["evictions_n"] > 2
        assert timings["kept_n"] == after.n_used < timings["prompt_n"] + timings["predicted_n"]
        assert timings["evict_ms"] == pytest.approx(after.evict_ms - before.evict_ms)
        assert timings["recalls_n"] == 0


def test_a_second_answer_counts_only_its_own(open_llama):
    llm = open_llama()
    prompt = [*range(3, 53)]
    first = llm.create_completion(prompt, max_tokens=20, temperature=0.0, logit_bias={str(llm.token_eos()): -1e9})
    n_before, n_text = llm.cache_stats().n_evictions, llm.n_tokens
    text = [*llm.input_ids[:n_text].tolist(), 7, 8]
    second = llm.create_completion(text, max_tokens=20, temperature=0.0, logit_bias={str(llm.token_eos()): -1e9})
    check(first, 0)
    check(second, n_text)
    assert second["timings"]["evictions_n"] == llm.cache_stats().n_evictions - n_before > 0


def test_what_a_prompt_recalled_is_counted(open_llama):
    llm = open_llama(archive="ram")
    llm.eval([*range(3, 253)])
    text = [*llm.input_ids[: llm.n_tokens].tolist(), *range(100, 140)]
    timings = llm.create_completion(text, max_tokens=5, temperature=0.0)["timings"]
    assert timings["cache_n"] == 250
    assert timings["recalls_n"] == len(llm.last_recalls) == 2
    assert timings["recalled_n"] == sum(recall.n_recalled for recall in llm.last_recalls) > 0
    assert timings["recall_ms"] == sum(recall.took_ms for recall in llm.last_recalls) > 0


def test_stock_answers_are_stocks(open_llama):
    llm = open_llama(None, n_ctx=512)
    answer = llm.create_chat_completion(MESSAGES, max_tokens=2)
    assert "timings" not in answer
    assert set(answer["usage"]) == {"prompt_tokens", "completion_tokens", "total_tokens"}
