"""An answer that nobody reads was not asked for, and a warning says so."""

import functools
import gc
import warnings

import pytest

from morphkv_cpp import MorphKV
from support import chats

SMALL = MorphKV(capacity=128, window=16, interval=16, keep=2, prompt_room=32)


talk = functools.partial(chats.talk, temperature=1.5)


class TestUnreadReply:
    def test_it_warns_when_it_is_dropped(self, open_llama):
        chat = open_llama().session()
        with pytest.warns(RuntimeWarning, match=r"say\('hello'\) was not asked, because its answer was not read"):
            chat.say("hello")
        assert (chat.n_tokens, chat.n_turns) == (0, 0)

    def test_it_warns_at_the_next_question_and_once(self, open_llama):
        chat = open_llama().session()
        reply = chat.say("hello")
        with pytest.warns(RuntimeWarning, match="was not asked"):
            talk(chat, "again")
        with warnings.catch_warnings(record=True) as told:
            del reply
            gc.collect()
        assert not told
        assert chat.n_turns == 1

    def test_it_warns_when_the_session_ends(self, open_llama):
        with pytest.warns(RuntimeWarning, match="x{40}[.]{3}'[)] was not asked"), open_llama().session() as chat:
            reply = chat.say("x" * 41)
        assert next(reply, None) is None

    @pytest.mark.filterwarnings("error")
    def test_one_that_was_read_in_part_or_closed_does_not(self, open_llama):
        with open_llama().session() as chat:
            next(chat.say("hello", max_tokens=9))
            chat.say("hello").close()
            for _ in chat.say("hello", max_tokens=3):
                break
            "".join(chat.say("hello", max_tokens=3))
            gc.collect()
