"""Writing token by token."""

import numpy as np
import pytest

from morphkv_cpp import Llama
from morphkv_cpp.text.stream import BanTokens, ForceTokens, StopText, TokenText, end_tokens, write

QUIET = {"n_threads": 1, "n_threads_batch": 1, "verbose": False, "flash_attn": True}


@pytest.fixture(scope="module")
def llm(tiny_llama):
    llm = Llama(tiny_llama(), n_ctx=256, **QUIET)
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


class Bytes:
    """Stands in for a model whose token n is the byte n."""

    def _piece(self, token):
        return bytes([token])


class TestTokenText:
    def test_a_character_is_held_back_until_its_bytes_are_there(self):
        text = TokenText(Bytes())
        assert [text(byte) for byte in b"a\xc3\xa9b"] == ["a", "", "\u00e9", "b"]
        assert text.rest() == ""

    def test_half_a_character_at_the_end_is_shown_as_broken(self):
        text = TokenText(Bytes())
        assert text(0xC3) == ""
        assert text.rest() == "\ufffd"


class TestStopText:
    @pytest.mark.parametrize(
        ("stop", "pieces", "shown"),
        [
            ([], ["ab", "c"], ["ab", "c"]),
            ([""], ["ab"], ["ab"]),
            (["x"], ["axb", "c"], ["a", ""]),
            (["xyz"], ["ax", "y", "z", "b"], ["a", "", "", ""]),
            (["xyz"], ["ax", "yx", "b"], ["a", "xy", "xb"]),
            (["xyz", "y"], ["axyz"], ["a"]),
            (["b", "ab"], ["xab"], ["x"]),
        ],
    )
    def test_what_may_become_a_stop_string_is_held_back(self, stop, pieces, shown):
        text = StopText(stop)
        assert [text(piece) for piece in pieces] == shown
        assert text.n_before == len("".join(shown))
        assert text.rest() == ""

    def test_what_became_none_is_shown_at_the_end(self):
        text = StopText(["xyz"])
        assert (text("axy"), text.rest(), text.found) == ("a", "xy", False)
