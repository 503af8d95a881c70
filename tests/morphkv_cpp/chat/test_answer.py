"""An answer of a session by hand: a token is an index of these pieces."""

import pytest

from morphkv_cpp.chat.answer import Answer


def shown(pieces: list[bytes], stop=(), n_most: int = 99) -> tuple[list[str], Answer]:
    """What each token shows, and the end of the answer."""
    answer = Answer(lambda token: pieces[token], stop, n_most)
    texts = []
    for token in range(len(pieces)):
        answer.add(token)
        texts.append(answer.take_piece())
        if answer.finish_reason:
            return texts, answer
    answer.end("stop")
    return [*texts, answer.take_piece()], answer


@pytest.mark.parametrize(
    ("stop", "pieces", "texts"),
    [
        ([], [b"ab", b"c"], ["ab", "c", ""]),
        ([""], [b"ab"], ["ab", ""]),
        (["x"], [b"axb"], ["a"]),
        (["xyz"], [b"ax", b"y", b"z"], ["", "", "a"]),
        (["xyz"], [b"ax", b"yx", b"b"], ["", "ax", "yxb", ""]),
        (["xyz", "y"], [b"axyz"], ["a"]),
        (["b", "ab"], [b"xab"], ["x"]),
        (["xyz"], [b"axy"], ["", "axy"]),
        (["\u00e9"], [b"a\xc3", b"\xa9b"], ["", "a"]),
        ([], [b"a\xc3", b"\xa9b"], ["", "a\u00e9b", ""]),
        ([], [b"a\xffb", b"\xc3"], ["ab", "", ""]),
    ],
)
def test_text_comes_in_whole_characters_up_to_a_stop_string(stop, pieces, texts):
    assert shown(pieces, stop)[0] == texts


def test_the_last_token_ends_what_is_held_back():
    texts, answer = shown([b"ax", b"y", b"z"], ["xyz"], n_most=2)
    assert (texts, answer.finish_reason, answer.n_behind_stop) == (["", "axy"], "length", 0)


@pytest.mark.parametrize(
    ("pieces", "n_behind"), [([b"ab", b"xy", b"z"], 2), ([b"ax", b"y", b"z"], 2), ([b"axyz"], 0), ([b"xyz"], 1)]
)
def test_tokens_that_belong_to_the_stop_string_alone_are_counted(pieces, n_behind):
    assert shown(pieces, ["xyz"])[1].n_behind_stop == n_behind
