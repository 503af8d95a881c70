"""Writing token by token."""

import numpy as np
import pytest

from morphkv_cpp import Llama
from morphkv_cpp.text.tokens import end_tokens
from morphkv_cpp.text.write import BanTokens, ForceTokens, write
from support.tiny import FLASH


@pytest.fixture(scope="module")
def llm(tiny_llama):
    llm = Llama(tiny_llama(), n_ctx=256, **FLASH)
    yield llm
    llm.close()


class TestWrite:
    def test_as_many_tokens_as_asked_for(self, llm):
        tokens = list(write(llm, [1, 5, 6], 7, [BanTokens(end_tokens(llm))], temp=0.0))
        assert len(tokens) == 7

    def test_an_end_token_ends_the_text_and_is_not_part_of_it(self, llm):
        end = end_tokens(llm)[0]
        assert list(write(llm, [1, 5, 6], 7, [ForceTokens([8, 9, end])], temp=0.0)) == [8, 9]

    def test_without_a_limit_the_text_ends_with_the_context(self, llm):
        tokens = list(write(llm, [1] * 200, -1, [BanTokens(end_tokens(llm))], temp=0.0))
        assert len(tokens) == 256 - 200

    def test_nothing_asked_for_is_nothing_written(self, llm):
        assert list(write(llm, [1, 5], 0)) == []

    @pytest.mark.parametrize("n_prompt", [0, 256])
    def test_a_prompt_that_leaves_no_place_is_refused(self, llm, n_prompt):
        with pytest.raises(ValueError, match=f"1..255 tokens in this context, got {n_prompt}"):
            next(write(llm, [1] * n_prompt, 3))


def test_end_tokens_are_those_of_the_vocabulary(llm):
    assert end_tokens(llm) == [llm.token_eos()]


def test_banned_tokens_have_no_chance():
    scores = BanTokens([1, 3])(np.array([0]), np.zeros(4, dtype=np.float32))
    assert scores.tolist() == [0, -np.inf, 0, -np.inf]
