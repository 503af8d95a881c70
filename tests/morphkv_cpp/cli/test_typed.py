"""What is typed while an answer is written; in a terminal: test_chat.py."""

import pytest

from morphkv_cpp.cli.typed import TypedAhead, line_of


@pytest.mark.parametrize(
    ("keys", "line"),
    [
        (b"", ""),
        (b"abc", "abc"),
        (b"abc\r", "abc"),
        (b"ab\ncd\n", "ab\ncd"),
        (b"abx\x7fc\x1b[A\x1b[1;5C\x1bOP", "abc"),
        ("\u00e9\x03".encode(), "\u00e9"),
        (b"\x7f\x7fa", "a"),
        (b"\xc3", ""),
    ],
)
def test_what_is_typed_during_an_answer_becomes_a_line(keys, line):
    assert line_of(keys) == line


def test_without_a_terminal_nothing_is_kept():
    typed = TypedAhead()
    with typed.kept():
        pass
    assert typed.take() == ""
