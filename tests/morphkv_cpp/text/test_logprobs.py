"""The likeliest tokens, against a plain sort of the vocabulary."""

import numpy as np
import pytest

from morphkv_cpp.text.logprobs import TokenLogprobs, as_completion, token_logprobs


class Letters:
    """Stands in for a model whose token n is the n-th letter; the last two tokens are halves of a character."""

    @staticmethod
    def logits_to_logprobs(logits):
        return logits - np.log(np.exp(logits).sum())

    def _piece(self, token):
        return b"abcd\xc3\xa9"[token : token + 1]


def test_a_token_and_the_likeliest_others():
    logits = np.log(np.array([0.1, 0.2, 0.3, 0.2, 0.15, 0.05], dtype=np.float32))
    note = token_logprobs(Letters(), 0, logits, 7, 2)
    assert (note.text, note.offset) == ("a", 7)
    assert note.logprob == note.top["a"] == pytest.approx(np.log(0.1))
    assert list(note.top) == ["c", "d", "a"]  # of b and d, equally likely, the higher id
    assert type(note.logprob) is float


@pytest.mark.parametrize("n_top", [0, 1, 2, 3, 4, 5, 6, 99, -1, -6, -99])
def test_as_many_as_a_slice_of_all_has(n_top):
    logits = np.array([1.0, 3.0, 2.0, 3.0, 2.0, 2.0], dtype=np.float32)
    order = sorted(zip(logits.tolist(), range(6)), reverse=True)
    expected = [i for _, i in order[:n_top]]
    note = token_logprobs(Letters(), 5, logits, 0, n_top)
    names = [bytes([b"abcd"[i]]).decode() if i < 4 else "" for i in expected]
    assert list(note.top) == list(dict.fromkeys([*names, ""]))


def test_the_form_of_a_completion():
    notes = [TokenLogprobs("a", 0, None, None), TokenLogprobs("b", 1, -0.5, {"b": -0.5})]
    assert as_completion(notes, 10) == {
        "tokens": ["a", "b"],
        "text_offset": [10, 11],
        "token_logprobs": [None, -0.5],
        "top_logprobs": [None, {"b": -0.5}],
    }
