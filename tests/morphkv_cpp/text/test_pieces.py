"""Bytes, stop texts and characters of an answer as it grows, by hand."""

import pytest

from morphkv_cpp.text.pieces import AnswerText, TokenQueue, TokenText


def text_of(*pieces: bytes, stops=()) -> AnswerText:
    text = AnswerText(stops)
    for piece in pieces:
        text.add(piece)
    return text


class TestTokenText:
    def test_a_character_is_held_back_until_its_bytes_are_there(self):
        text = TokenText(lambda token: bytes([token]))
        assert [text(byte) for byte in b"a\xc3\xa9b"] == ["a", "", "\u00e9", "b"]

    def test_bytes_of_no_character_are_left_out(self):
        text = TokenText(lambda token: bytes([token]))
        assert [text(byte) for byte in b"a\xff\xc3b"] == ["a", "", "", "b"]


class TestAnswerText:
    @pytest.mark.parametrize(
        ("pieces", "waits"),
        [
            ([b"abc", b"d"], [False, False]),
            ([b"abc", b"\xc3", b"\xa9"], [False, True, False]),
            ([b"abc", b"\xf0\x9f", b"\x98", b"\x80"], [False, True, True, False]),
            # waits for two tokens, as two bytes were missing
            ([b"abc\xf0\x9f", b"\x98\x80", b"a"], [True, True, False]),
            # a text of one byte
            ([b"\xc3", b"\xa9"], [False, False]),
            # three tokens at the most
            ([b"abc\xc3", b"\xa9\xc3", b"\xa9\xc3", b"\xa9\xc3", b"\xa9\xc3"], [True, True, True, False, True]),
        ],
    )
    def test_it_waits_for_the_rest_of_a_character(self, pieces, waits):
        text, seen = AnswerText([]), []
        for piece in pieces:
            text.add(piece)
            seen.append(text.waits())
        assert seen == waits

    def test_stop_texts_are_found_in_the_order_given_and_only_once(self):
        text = text_of(b"one two", stops=[b"two", b"three", b"ne"])
        assert text.find_stops() == [4, 1]
        text.add(b" thr")
        assert text.find_stops() == []
        text.add(b"ee")
        assert text.find_stops() == [8]

    def test_what_may_become_a_stop_text_is_held_unless_it_was_shown(self):
        text = text_of(b"abcab", stops=[b"abd", b"babc", b""])
        assert [text.n_held(n_shown) for n_shown in (0, 3, 4, 5)] == [2, 2, 1, 0]
        assert text_of(b"abcab").n_held(0) == 0

    def test_bytes_that_belong_to_no_character_are_left_out(self):
        text = text_of(b"a\xff\xc3", b"\xa9b\xe2\x82")
        assert [text.decode(end) for end in (None, 4, 3, 1)] == ["a\u00e9b", "a\u00e9", "a", "a"]


class TestTokenQueue:
    def queue(self, *pieces: bytes, each_alone=False) -> TokenQueue:
        queue = TokenQueue(each_alone)
        for i, piece in enumerate(pieces):
            queue.add(piece, i)
        return queue

    def test_whole_characters_leave_it_up_to_a_byte(self):
        queue = self.queue(b"a", b"\xf0\x9f", b"\x98\x80b", b"", b"c", b"d\xc3")
        assert list(queue.take(5)) == [("a", 0)]
        assert queue.n_shown == 1
        assert list(queue.take(7)) == [("\U0001f600b", 2), ("", 3), ("c", 4)]
        assert list(queue.take(9)) == []
        queue.add(b"\xa9", 6)
        assert list(queue.take(99)) == [("d\u00e9", 6)]
        assert queue.n_shown == 10

    def test_alone_a_token_has_the_characters_that_it_completes(self):
        queue = self.queue(b"a\xc3", b"\xa9\xe2", b"\x82\xac", each_alone=True)
        assert list(queue.take(4)) == [("a", 0), ("\u00e9", 1)]
        assert list(queue.rest(6)) == [("\u20ac", 2)]

    def test_the_rest_ends_within_a_token(self):
        pieces = (b"ab", b"\xc3", b"\xa9cd", b"e")
        assert list(self.queue(*pieces).rest(5)) == [("ab", 0), ("", 1), ("\u00e9c", 2)]
        assert list(self.queue(*pieces).rest(0)) == [("", 0)]
        assert list(self.queue(*pieces).rest(3)) == [("ab", 0), ("", 1)]
        assert list(self.queue().rest(0)) == []

    def test_a_unit_has_64_tokens_at_most(self):
        queue = self.queue(b"\xc3", *[b"\xa9\xc3"] * 70)
        assert [(len(text), note) for text, note in queue.take(999)] == [(63, 63)]
        assert "".join(text for text, _ in queue.rest(141)) == "\u00e9" * 7
