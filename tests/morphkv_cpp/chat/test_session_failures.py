"""Sessions where something fails: what stays in the chat, and whose cache it is; on tiny models."""

import functools

import pytest

from morphkv_cpp import MorphKV, NativeError, bridge
from support import chats

SMALL = MorphKV(capacity=128, window=16, interval=16, keep=2, prompt_room=32)


talk = functools.partial(chats.talk, temperature=1.5)


def fail_at(llm, monkeypatch, at: int, first: bool = False):
    """The decode number `at` from now on fails, `first` before anything is decoded."""
    decode, calls = llm._ctx.decode, []

    def failing(batch):
        calls.append(batch)
        if len(calls) - 1 == at:
            if not first:
                decode(batch)
            raise RuntimeError("llama_decode returned -3")
        return decode(batch)

    monkeypatch.setattr(llm._ctx, "decode", failing)


class TestFailedQuestion:
    """Raised before the answer's first token: the question is taken back."""

    @pytest.mark.parametrize("first", [True, False], ids=["before", "after"])
    @pytest.mark.parametrize("at", [0, 1])
    @pytest.mark.parametrize("n_before", [0, 1, 2, 8])
    def test_the_same_question_again_gives_the_same_answer(self, open_llama, monkeypatch, n_before, at, first):
        """In either of two batches of the prompt, while none of it evicts; in the first turn and in later ones."""
        roomy = MorphKV(capacity=256, window=16, interval=128, keep=2, prompt_room=128)
        llm, other = open_llama(roomy, n_batch=16), open_llama(roomy, n_batch=16)
        chat, same = llm.session("abc"), other.session("abc")
        for one in (chat, same):
            for i in range(n_before):
                talk(one, f"question {i}")
        before = (chat.n_tokens, chat.n_turns, chat.last, llm._seed)
        with monkeypatch.context() as patch:
            fail_at(llm, patch, at, first)
            with pytest.raises(RuntimeError, match="llama_decode returned -3"):
                talk(chat, "hello, what is this?")
        assert (chat.n_tokens, chat.n_turns, chat.last, llm._seed) == before
        assert talk(chat, "hello, what is this?") == talk(same, "hello, what is this?")
        assert chat.n_tokens == same.n_tokens
        assert talk(chat, "and this?") == talk(same, "and this?")

    @pytest.mark.parametrize("ctx_checkpoints", [32, 0])
    def test_a_question_that_has_evicted_is_taken_back_too(self, open_llama, monkeypatch, ctx_checkpoints):
        """To a checkpoint; without, what it has evicted is evaluated again with the next one."""
        llm, other = (open_llama(n_batch=16, ctx_checkpoints=ctx_checkpoints) for _ in range(2))
        chat, same = llm.session("abc"), other.session("abc")
        for one in (chat, same):
            for i in range(9):
                talk(one, f"question {i}")
        before = (chat.n_tokens, chat.n_turns, chat.last, chat.history(), llm._seed)
        with monkeypatch.context() as patch:
            fail_at(llm, patch, 8)
            with pytest.raises(RuntimeError, match="llama_decode returned -3"):
                talk(chat, "a long question " * 12)
        assert (chat.n_tokens, chat.n_turns, chat.last, chat.history(), llm._seed) == before
        answers = [talk(one, "and now?") for one in (chat, same)]
        if ctx_checkpoints:
            assert answers[0] == answers[1]
            assert chat.last.prompt_tokens == same.last.prompt_tokens
        else:
            assert chat.last.again_tokens > 64
        assert chats.text_of(chat)[:-10] == chats.text_of(same)[:-10]

    def test_an_answer_that_has_begun_stays_as_far_as_it_came(self, open_llama, monkeypatch):
        llm, other = open_llama(), open_llama()
        chat, same = llm.session("abc"), other.session("abc")
        with monkeypatch.context() as patch:
            fail_at(llm, patch, 4, first=True)
            with pytest.raises(RuntimeError, match="llama_decode returned -3"):
                talk(chat, "hello", seed=1)
        assert (chat.last.completion_tokens, chat.last.finish_reason, chat.n_turns) == (4, "interrupted", 1)
        talk(same, "hello", 4, seed=1)
        assert talk(chat, "go on", seed=2) == talk(same, "go on", seed=2)

    def test_a_wrong_option_leaves_no_question(self, open_llama):
        chat = open_llama().session("abc")
        talk(chat, "one")
        n_before = chat.n_tokens
        with pytest.raises(TypeError, match="beam"):
            talk(chat, "two", beam=3)
        assert (chat.n_tokens, chat.n_turns) == (n_before, 1)


class TestStateThatCannotBeTaken:
    """E.g. as memory is short, or the archive's file cannot be read."""

    @pytest.fixture
    def chats(self, open_llama):
        """Two sessions on one Llama, the second has the cache; and the same alone."""
        llm, other = open_llama(), open_llama()
        pairs = []
        for system in ("abc", "xyz"):
            pairs.append((llm.session(system), other.session(system)))
            for chat in pairs[-1]:
                talk(chat, "one")
        return llm, pairs

    def fails(self, context):
        raise RuntimeError("Failed to copy llama state data")

    def is_refused(self, context, data):
        raise NativeError("the reason")

    def test_a_file_stays_as_it_was(self, chats, tmp_path, monkeypatch):
        _, (_, (chat, same)) = chats
        chat.save(tmp_path / "chat")
        before = (tmp_path / "chat").read_bytes()
        talk(chat, "two")
        talk(same, "two")
        with monkeypatch.context() as patch:
            patch.setattr(bridge, "state", self.fails)
            with pytest.raises(RuntimeError, match="Failed to copy llama state data"):
                chat.save(tmp_path / "chat")
        assert (tmp_path / "chat").read_bytes() == before
        assert talk(chat, "three") == talk(same, "three")

    def test_nobody_gets_another_one_s_cache(self, chats, monkeypatch):
        llm, ((aside, aside_same), (live, live_same)) = chats
        with monkeypatch.context() as patch:
            patch.setattr(bridge, "state", self.fails)
            attempts = (
                lambda: talk(aside, "two"),
                live.fork,
                llm.save_state,
                lambda: llm.eval([5, 6]),
                lambda: llm.generate([5, 6]).send(None),
                lambda: llm.load_state(aside._text._state),
                lambda: talk(llm.session("new"), "one"),
            )
            for attempt in attempts:
                with pytest.raises(RuntimeError, match="Failed to copy llama state data"):
                    attempt()
            assert live._text.is_live
            assert talk(live, "two") == talk(live_same, "two")
        assert talk(aside, "two") == talk(aside_same, "two")
        assert talk(live, "three") == talk(live_same, "three")

    def test_a_state_that_is_refused_leaves_both_as_they_were(self, chats, monkeypatch):
        _, ((aside, aside_same), (live, live_same)) = chats
        with monkeypatch.context() as patch:
            patch.setattr(bridge, "set_state", self.is_refused)
            with pytest.raises(RuntimeError, match=r"Failed to set llama state data: .*: the reason"):
                talk(aside, "two")
        assert talk(live, "two") == talk(live_same, "two")
        assert talk(aside, "two") == talk(aside_same, "two")
