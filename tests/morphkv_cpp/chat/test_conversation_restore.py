"""Sessions that go back by the archive, where no checkpoint is near. On tiny models."""

import numpy as np
import pytest

from morphkv_cpp import Archive, MorphKV
from support.chats import talk, text_of
from support.tiny import last_logits

N_AGAIN = 128  # tokens that are evaluated again before what is new
SMALL = MorphKV(capacity=96, window=8, interval=8, keep=2, prompt_room=0)
QUESTIONS = [f"{i}: " + "what about the trams and the old tiles " * 3 for i in range(8)]


@pytest.fixture
def open_chat(open_llama):
    def open_(archive="ram", n_checkpoints=0):
        llm = open_llama(morphkv=SMALL, archive=archive, ctx_checkpoints=n_checkpoints)
        chat = llm.session("abc")
        for question in QUESTIONS:
            talk(chat, question, 20)
        assert chat.n_tokens > 1000
        return chat

    return open_


def n_new(chat):
    """Of the last turn: tokens that the chat did not have before."""
    return chat.last.prompt_tokens - chat.last.again_tokens


def edit(chat, turn, text="and the river?"):
    return "".join(chat.edit(turn, text, max_tokens=20, temperature=0.0))


@pytest.mark.parametrize("turn", [-1, -2, -3, 3])
def test_an_edit_costs_the_edit(open_chat, turn):
    chat = open_chat()
    n_tokens = chat.n_tokens
    edit(chat, turn)
    assert 0 < chat.last.again_tokens < N_AGAIN
    assert n_new(chat) < 80
    assert 300 < chat.last.restored_tokens < n_tokens
    assert chat.history()[-2]["content"] == "and the river?"
    assert chat.n_turns == (turn % len(QUESTIONS)) + 1


def test_an_answer_that_is_asked_for_again(open_chat):
    chat = open_chat()
    for _ in range(3):
        "".join(chat.regenerate(max_tokens=20))
        assert chat.last.again_tokens < N_AGAIN


def test_undone_and_gone_on_with(open_chat):
    chat = open_chat()
    for _ in range(4):
        chat.undo()
    n_tokens = chat.n_tokens
    talk(chat, "and now", 20)
    assert chat.last.again_tokens < N_AGAIN
    assert chat.last.again_tokens + chat.last.restored_tokens <= n_tokens
    talk(chat, "and then", 20)
    assert (chat.last.again_tokens, chat.last.restored_tokens) == (0, 0)


def test_what_is_gone_from_the_chat_is_gone_from_the_archive(open_chat):
    chat = open_chat()
    edit(chat, 4)
    stats = chat.cache_stats()
    assert stats.logical_pos + 1 == len(text_of(chat)) - len(chat._text.ahead)
    assert stats.n_archived == stats.logical_pos + 1 - (stats.n_used - stats.n_distant)
    assert stats.keep >= SMALL.keep
    for layer in range(2):
        assert chat.retained(layer).max() < stats.logical_pos
    assert np.isfinite(last_logits(chat._llm)).all()


def test_a_checkpoint_goes_before(open_chat):
    chat = open_chat(n_checkpoints=32)
    edit(chat, 4)
    assert (chat.last.again_tokens, chat.last.restored_tokens) == (0, 0)


@pytest.mark.parametrize("archive", [None, Archive("ram", restore=False)], ids=["", "off"])
def test_not_without(open_chat, archive):
    chat = open_chat(archive)
    edit(chat, 4)
    assert chat.last.restored_tokens == 0
    assert chat.last.again_tokens > 300


def test_one_that_waits_aside(open_chat):
    chat = open_chat()
    other = chat._llm.session("another")
    talk(other, "hello", 20)
    edit(chat, 5)
    assert chat.last.restored_tokens > 300
    talk(other, "and you?", 20)
    assert other.last.again_tokens == 0


def test_a_copy_and_a_saved_one(open_chat, tmp_path):
    chat = open_chat()
    copy = chat.fork()
    chat.save(tmp_path / "a.session")
    loaded = chat._llm.load_session(tmp_path / "a.session")
    answers = []
    for one in (chat, copy, loaded):
        answers.append(edit(one, 5))
        assert one.last.restored_tokens > 300
    assert answers[0] == answers[1] == answers[2]
