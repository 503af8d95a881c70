"""Readers: answers leave no trace, and a context shift keeps the first tokens and the newest half."""

from contextlib import closing

import numpy as np
import pytest

from morphkv_cpp.errors import UnsupportedError
from morphkv_cpp.eval.readers import N_KEEP, AtCut, Reader, Shifted, cell_bytes, open_for_logits, open_reader
from morphkv_cpp.eval.suite_arms import parse_suite_arms
from morphkv_cpp.eval.tasks import Question
from support.tiny import QUIET, last_logits, some_tokens

ARMS = {arm.name: arm for arm in parse_suite_arms("full,shift,morphkv,morphkv+archive", 256, 64)}
TOKENS = some_tokens(600)
QUESTION = Question(some_tokens(9, seed=1), ("x",), n_answer=12)
FORCED = Question(some_tokens(9, seed=1), forced=tuple(some_tokens(30, seed=2)))


def opened(model, name: str, n_prompt: int = 0) -> Reader:
    return open_reader(model, ARMS[name], 900, n_prompt, **QUIET)


@pytest.mark.parametrize("name", ARMS)
@pytest.mark.parametrize("question", [QUESTION, FORCED])
def test_an_answer_leaves_no_trace(tiny_llama, name, question):
    with closing(opened(tiny_llama(), name)) as reader:
        reader.read(TOKENS)
        said = []
        for _ in range(2):
            with reader.taken_back():
                said.append(reader.answer(question))
        assert said[0] == said[1]
        if question.forced:
            assert len(said[0]) == 30
            assert set(said[0]) <= set("01")


def test_a_shift_keeps_the_first_tokens_and_the_newest_half(tiny_llama):
    with closing(opened(tiny_llama(), "shift")) as reader:
        assert isinstance(reader, Shifted)
        reader.read(TOKENS[:256])
        assert reader.llm.n_tokens == 256
        reader.eval(TOKENS[256:266])
        n_gone = (256 - N_KEEP) // 2
        assert reader.llm.n_tokens == 266 - n_gone
        assert reader.llm.input_ids[: 266 - n_gone].tolist() == TOKENS[:N_KEEP] + TOKENS[N_KEEP + n_gone : 266]
        shifted = last_logits(reader.llm)
    with closing(opened(tiny_llama(), "full")) as reader:
        # their keys were computed behind other tokens: close to those of the rest alone, and not the same
        reader.read(TOKENS[:N_KEEP] + TOKENS[N_KEEP + n_gone : 266])
        rest = last_logits(reader.llm)
        reader.read(TOKENS[:266])
        whole = last_logits(reader.llm)
    assert 0 < np.abs(shifted - rest).mean() < np.abs(whole - rest).mean()


def test_a_context_that_cannot_be_shifted_is_refused(tiny_llama):
    with closing(opened(tiny_llama(architecture="qwen2vl", rope_sections=(8, 4, 4, 0)), "shift")) as reader:
        reader.read(TOKENS[:256])
        with pytest.raises(UnsupportedError, match=r"whose context llama\.cpp can shift"):
            reader.eval(TOKENS[256:266])


@pytest.mark.parametrize("name", ["full", "shift", "morphkv"])
def test_logits_are_those_of_every_token(tiny_llama, name):
    with closing(open_for_logits(tiny_llama(), ARMS[name], 900, 64, **QUIET)) as reader:
        reader.llm.reset()
        for start in range(0, 512, 64):
            rows = reader.logits(TOKENS[start : start + 64]).copy()
            assert rows.shape == (64, 320)
        assert np.array_equal(rows[-1], last_logits(reader.llm))


def test_a_prompt_is_cut_when_the_question_has_voted(tiny_llama):
    with closing(opened(tiny_llama(), "morphkv", n_prompt=700)) as reader:
        assert isinstance(reader, AtCut)
        reader.read(TOKENS)
        assert reader.llm.cache_stats().n_evictions == 0
        with reader.taken_back():
            reader.answer(QUESTION)
            assert reader.llm.cache_stats().n_evictions == 1
        assert reader.llm.cache_stats().n_used == 600


def test_sampled_answers_differ_from_greedy_ones_and_not_from_themselves(tiny_llama):
    sampled = Question(QUESTION.tokens, n_answer=40, temp=0.8)
    for name in ("full", "shift"):
        with closing(opened(tiny_llama(), name)) as reader:
            said = []
            for question in (sampled, sampled, Question(QUESTION.tokens, n_answer=40)):
                reader.read(TOKENS[:200])
                said.append(reader.answer(question))
            assert said[0] == said[1] != said[2]


def test_an_answer_ends_where_it_is_found(tiny_llama):
    with closing(opened(tiny_llama(), "full")) as reader:
        reader.read(TOKENS)
        with reader.taken_back():
            whole = reader.answer(QUESTION)
        ended = reader.answer(Question(QUESTION.tokens, n_answer=12, until="(?s)."))
        assert 0 < len(ended) < len(whole)
        assert whole.startswith(ended)


def test_a_cell_takes_k_and_v_of_every_layer(tiny_llama):
    # 2 layers, K and V, 2 heads of 32 numbers of 2 bytes
    assert cell_bytes(tiny_llama(), **QUIET) == 2 * 2 * 2 * 32 * 2
