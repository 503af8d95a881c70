"""Sessions that go back: undone, answered again, edited; and what a failure leaves. On tiny models."""

import numpy as np
import pytest

from morphkv_cpp import Archive, Llama, MorphKV, StateError
from morphkv_cpp.cache import saved_file
from support.chats import forced, no_end, talk, text_of
from support.tiny import QUIET, bytes_of, held

SMALL = MorphKV(capacity=128, window=16, interval=16, keep=2, prompt_room=32)
QUESTIONS = ("one", "two " * 20, "three", "four and more", "five", "six")


# which need not be the same bits
EXACT = Archive("ram", restore=False)


@pytest.fixture(params=[None, EXACT], ids=["", "ram"])
def open_pair(request, open_llama):
    """Two Llamas alike, without an archive and with one that they do not go back by."""
    return lambda **options: [open_llama(archive=request.param, **options) for _ in range(2)]


def chat_of(llm, questions=QUESTIONS, system="abc"):
    chat = llm.session(system)
    for question in questions:
        talk(chat, question)
    return chat


def is_same(chat, other) -> None:
    """The same text in the same cache: what was archived too, and what answers come."""
    assert chat.history() == other.history()
    assert text_of(chat) == text_of(other)
    for field in ("n_archived", "n_evictions", "n_evicted", "complete_pos", "logical_pos", "n_used"):
        assert getattr(chat.cache_stats(), field) == getattr(other.cache_stats(), field), field
    for layer in range(2):
        np.testing.assert_array_equal(chat.retained(layer), other.retained(layer))
    assert talk(chat, "go on", temperature=1.5, seed=5) == talk(other, "go on", temperature=1.5, seed=5)


class TestUndo:
    @pytest.mark.parametrize("n_back", [1, 3, 5])
    def test_the_chat_is_what_it_was(self, open_pair, n_back):
        back, straight = open_pair()
        chat, same = chat_of(back), chat_of(straight, QUESTIONS[:-n_back])
        assert chat.cache_stats().n_evictions > 5
        for _ in range(n_back):
            chat.undo()
        assert (chat.n_turns, chat.last.prompt_tokens) == (same.n_turns, same.last.prompt_tokens)
        talk(chat, "and now")
        talk(same, "and now")
        assert chat.last.again_tokens == 0
        is_same(chat, same)

    def test_to_the_beginning(self, open_pair):
        back, straight = open_pair()
        chat = chat_of(back)
        for _ in QUESTIONS:
            chat.undo()
        assert chat.history() == [{"role": "system", "content": "abc"}]
        assert (chat.n_turns, chat.n_tokens, chat.last) == (0, 0, None)
        with pytest.raises(StateError, match="nothing has been asked in this session yet"):
            chat.undo()
        same = straight.session("abc")
        for one in (chat, same):
            talk(one, "another one")
        is_same(chat, same)

    def test_without_checkpoints_the_text_is_evaluated_again_and_that_is_told(self, open_pair):
        back, straight = open_pair(ctx_checkpoints=0)
        chat, same = chat_of(back), chat_of(straight, QUESTIONS[:2])
        for _ in range(4):
            chat.undo()
        n_tokens = chat.n_tokens
        assert n_tokens == same.n_tokens
        for one in (chat, same):
            talk(one, "and now")
        assert chat.last.again_tokens == n_tokens - 1
        assert chat.last.prompt_tokens == n_tokens + same.last.prompt_tokens - 1
        assert (same.last.again_tokens, chat.history()[:-1]) == (0, same.history()[:-1])
        assert text_of(chat)[:-10] == text_of(same)[:-10]
        assert chat.cache_stats().keep == same.cache_stats().keep

    def test_from_the_last_checkpoint_before(self, open_llama):
        chat = chat_of(open_llama())
        checkpoints = chat._text.checkpoints
        del checkpoints._all[3:]
        n_checkpoint = len(checkpoints._all[-1].ids)
        chat.undo()
        n_tokens = chat.n_tokens
        talk(chat, "and now")
        assert chat.last.again_tokens == n_tokens - 1 - n_checkpoint > 64

    def test_few_checkpoints_are_the_newest(self, open_llama):
        chat = chat_of(open_llama(ctx_checkpoints=2))
        chat.undo()
        assert chat._text.n_held == chat.n_tokens - 1
        chat.undo()
        n_tokens = chat.n_tokens
        talk(chat, "and now")
        assert chat.last.again_tokens == n_tokens - 1

    def test_a_session_that_waits_aside_can_be_undone(self, open_llama):
        llm, other = open_llama(), open_llama()
        chat, same = chat_of(llm), chat_of(other, QUESTIONS[:-1])
        llm.create_completion("abcabc", max_tokens=4)
        chat.undo()
        for one in (chat, same):
            talk(one, "and now")
        is_same(chat, same)

    def test_checkpoints_of_another_use_of_the_llama_do_not_matter(self, open_pair):
        llm, other = open_pair()
        first, second = llm.session("abc"), llm.session("xyz")
        for question in QUESTIONS:
            talk(first, question)
            talk(second, question)
        same = chat_of(other, QUESTIONS[:-2])
        for _ in range(2):
            first.undo()
        talk(second, "hello")
        for one in (first, same):
            talk(one, "and now")
        is_same(first, same)

    def test_a_fork_goes_back_alone(self, open_pair):
        back, straight = open_pair()
        chat, same = chat_of(back), chat_of(straight, QUESTIONS[:-2])
        fork = chat.fork()
        fork.undo()
        fork.undo()
        assert (fork.n_turns, chat.n_turns) == (4, 6)
        for one in (fork, same):
            talk(one, "and now")
        is_same(fork, same)
        whole = chat_of(straight)
        assert talk(chat, "at last") == talk(whole, "at last")


def test_with_recurrent_layers_too(tiny_hybrid):
    options = {"morphkv": SMALL, "chat_format": "chatml", **QUIET}
    with Llama(tiny_hybrid, **options) as back, Llama(tiny_hybrid, **options) as straight:
        chat, same = chat_of(back), chat_of(straight, QUESTIONS[:3])
        for _ in range(3):
            chat.undo()
        for one in (chat, same):
            talk(one, "a long question " * 12)
        assert chat.last.again_tokens == 0
        answer = talk_again(chat)
        assert chat.last.prompt_tokens == 1
        assert answer == same.history()[-1]["content"]
        assert text_of(chat) == text_of(same)
        assert talk(chat, "go on", temperature=1.5, seed=5) == talk(same, "go on", temperature=1.5, seed=5)


class TestRegenerate:
    @pytest.mark.parametrize("question", ["short", "a long question " * 12])
    def test_another_answer_takes_the_place_of_the_last(self, open_llama, question):
        llm = open_llama()
        chat = chat_of(llm, [*QUESTIONS, question])
        before, n_turns = chat.history(), chat.n_turns
        options = {"max_tokens": 10, "logits_processor": no_end(llm)}
        again = "".join(chat.regenerate(temperature=3.0, seed=1, **options))
        assert chat.history() == [*before[:-1], {"role": "assistant", "content": again}]
        assert again != before[-1]["content"]
        assert chat.n_turns == n_turns
        assert chat.last.prompt_tokens <= 64
        # greedily it is the first one
        assert "".join(chat.regenerate(temperature=0.0, **options)) == before[-1]["content"]
        assert chat.history() == before

    def test_the_first_answer_of_all(self, open_llama):
        llm = open_llama()
        chat = chat_of(llm, ["a long question " * 12])
        answer = talk_again(chat)
        assert chat.last.prompt_tokens == 1
        assert answer == chat_of(open_llama(), ["a long question " * 12]).history()[-1]["content"]

    def test_of_messages_that_the_session_began_with(self, open_llama):
        messages = [{"role": "user", "content": "one"}, {"role": "assistant", "content": "xyz"}]
        chat, same = open_llama().session(messages=messages), open_llama().session()
        assert talk_again(chat) == talk(same, "one")
        is_same(chat, same)

    def test_nothing_to_answer_again(self, open_llama):
        chat = open_llama().session("abc")
        with pytest.raises(StateError, match="nothing has been answered in this session yet"):
            chat.regenerate()


def talk_again(chat, **options) -> str:
    options = {"temperature": 0.0, "max_tokens": 10, "logits_processor": no_end(chat._llm)} | options
    return "".join(chat.regenerate(**options))


def talk_instead(chat, turn, text, **options) -> str:
    options = {"temperature": 0.0, "max_tokens": 10, "logits_processor": no_end(chat._llm)} | options
    return "".join(chat.edit(turn, text, **options))


class TestEdit:
    @pytest.mark.parametrize("turn", [0, 1, 3, -1])
    def test_the_chat_is_as_if_it_had_been_asked_so(self, open_pair, turn):
        back, straight = open_pair()
        chat, same = chat_of(back), chat_of(straight, QUESTIONS[:turn])
        assert talk_instead(chat, turn, "another question") == talk(same, "another question")
        assert (chat.n_turns, chat.last.again_tokens) == (same.n_turns, 0)
        is_same(chat, same)

    def test_a_question_among_the_messages_that_it_began_with(self, open_llama):
        so_far = [{"role": "system", "content": "abc"}]
        for i in range(3):
            so_far += [{"role": "user", "content": f"question {i}"}, {"role": "assistant", "content": f"answer {i}"}]
        chat = open_llama().session(messages=so_far)
        talk(chat, "one")
        same = open_llama().session(messages=so_far[:3])
        assert talk_instead(chat, 1, "another question") == talk(same, "another question")
        is_same(chat, same)

    @pytest.mark.parametrize("turn", [6, -7])
    def test_a_turn_that_is_none(self, open_llama, turn):
        chat = chat_of(open_llama())
        with pytest.raises(ValueError, match=rf"turn must be in -6\.\.5, got {turn}"):
            chat.edit(turn, "x")


class TestGhosts:
    """What was edited away is not archived, so nothing can recall it."""

    @pytest.mark.parametrize("way", ["undo", "edit", "regenerate"])
    def test_the_archive_is_that_of_a_chat_that_never_had_it(self, open_llama, way):
        llm, other = open_llama(archive="ram"), open_llama(archive="ram")
        fact = "the password of the night porter is walnut, and nobody knows it " * 3
        chat, same = chat_of(llm, QUESTIONS[:3]), chat_of(other, QUESTIONS[:3])
        if way == "regenerate":
            talk(chat, "tell me", len(fact), logits_processor=forced(bytes_of(fact)))
            assert chat.history()[-1]["content"] == fact
            talk(same, "tell me")
            talk_again(chat)
        else:
            talk(chat, fact)
            for question in QUESTIONS:
                talk(chat, question)
            n_archived = chat.cache_stats().n_archived
            if way == "undo":
                for _ in range(len(QUESTIONS) + 1):
                    chat.undo()
                talk(chat, "hello")
            else:
                talk_instead(chat, 3, "hello")
            assert chat.cache_stats().n_archived < n_archived
            talk(same, "hello")
        assert not any("walnut" in str(message) for message in chat.history())
        for question in QUESTIONS:
            answers = [talk(one, question) for one in (chat, same)]
            assert chat.cache_stats().n_archived == same.cache_stats().n_archived
            # an answer that is given again recalls again: other tokens may be in the cache, but none that are gone
            assert answers[0] == answers[1] or way == "regenerate"
        assert text_of(chat)[:-10] == text_of(same)[:-10] or way == "regenerate"
        assert llm.save_state().llama_state == other.save_state().llama_state or way == "regenerate"
        assert chat.cache_stats().n_recalled > 0


CHANGES = {
    "regenerate": talk_again,
    "edit": lambda chat, **options: talk_instead(chat, 2, "another question", **options),
    "first": lambda chat, **options: talk_instead(chat, 0, "another question", **options),
}


class TestFailures:
    """A change that fails leaves the chat as it was."""

    @pytest.fixture(params=CHANGES.values(), ids=CHANGES)
    def change(self, request):
        return request.param

    @pytest.mark.parametrize("at", [0, 4])
    def test_decoding_fails(self, open_pair, monkeypatch, change, at):
        llm, other = open_pair()
        chat, same = chat_of(llm), chat_of(other)
        before = (chat.history(), chat.n_tokens, chat.n_turns, chat.last, llm._seed)
        decode, calls = llm._ctx.decode, []

        def failing(batch):
            calls.append(batch)
            if len(calls) > at:
                raise RuntimeError("llama_decode returned -3")
            decode(batch)

        with monkeypatch.context() as patch:
            patch.setattr(llm._ctx, "decode", failing)
            with pytest.raises(RuntimeError, match="llama_decode returned -3"):
                change(chat)
        assert (chat.history(), chat.n_tokens, chat.n_turns, chat.last, llm._seed) == before
        assert held(llm) + chat._text.ahead == text_of(same)
        answers = [talk(one, "and now") for one in (chat, same)]
        # with an archive, what was lost is evaluated again
        if llm.archive is None:
            assert answers[0] == answers[1]
            is_same(chat, same)

    def test_an_interrupted_prompt(self, open_llama, monkeypatch, change):
        llm, other = open_llama(), open_llama()
        chat, same = chat_of(llm), chat_of(other)

        def interrupted(batch):
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(llm._ctx, "decode", interrupted)
            with pytest.raises(KeyboardInterrupt):
                change(chat)
        is_same(chat, same)

    def test_an_answer_that_nobody_reads(self, open_llama):
        llm, other = open_llama(), open_llama()
        chat, same = chat_of(llm), chat_of(other)
        with pytest.warns(RuntimeWarning, match=r"edit\(1, 'x'\) was not asked, because its answer was not read"):
            chat.edit(1, "x")
        with pytest.warns(RuntimeWarning, match=r"regenerate\(\) was not asked"):
            chat.regenerate()
        is_same(chat, same)

    def test_a_wrong_option(self, open_llama):
        llm, other = open_llama(), open_llama()
        chat, same = chat_of(llm), chat_of(other)
        with pytest.raises(TypeError, match="beam"):
            talk_instead(chat, 1, "x", beam=3)
        with pytest.raises(ValueError, match="max_tokens must be at least 1"):
            chat.edit(1, "x", max_tokens=0)
        is_same(chat, same)

    def test_one_that_is_stopped_later_stays_as_far_as_it_came(self, open_llama):
        chat = chat_of(open_llama())
        for piece in chat.edit(1, "x", logits_processor=forced(bytes_of("abcdef"))):
            if piece == "c":
                break
        assert chat.history()[-2:] == [{"role": "user", "content": "x"}, {"role": "assistant", "content": "abc"}]
        assert (chat.last.finish_reason, chat.n_turns) == ("interrupted", 2)


class TestFiles:
    def test_a_loaded_session_goes_back_by_evaluating_again(self, open_pair, tmp_path):
        llm, other = open_pair()
        chat = chat_of(llm)
        chat.save(tmp_path / "chat")
        again = other.load_session(tmp_path / "chat")
        assert again.history() == chat.history()
        for one in (chat, again):
            for _ in range(3):
                one.undo()
            talk(one, "and now")
        assert again.history()[:-1] == chat.history()[:-1]
        assert text_of(again)[:-10] == text_of(chat)[:-10]
        assert again.last.again_tokens > 0 == chat.last.again_tokens

    def test_of_an_old_file_only_what_came_since(self, open_llama, tmp_path):
        chat = chat_of(open_llama())
        chat.save(tmp_path / "chat")
        header, ids, state = saved_file.read(tmp_path / "chat", "session")
        for key in ("history", "tools", "archive type", "cache types", "model name"):
            del header[key]
        saved_file.write(tmp_path / "chat", "session", saved_file.Contents(header, ids[-160:], state))
        again = open_llama().load_session(tmp_path / "chat")
        assert (again.n_turns, again.history()) == (6, [])
        for attempt in (again.undo, again.regenerate, lambda: again.edit(0, "x")):
            with pytest.raises(StateError, match="of this session's first 6 turns its file holds no messages"):
                attempt()
        for one in (chat, again):
            talk(one, "seven")
            talk(one, "eight")
            one.undo()
            assert one.n_turns == 7
            talk(one, "nine")
        assert again.history() == chat.history()[-4:]
        with pytest.raises(StateError, match=r"nothing has been asked|its file holds no messages"):
            [again.undo() for _ in range(3)]

    @pytest.mark.parametrize(
        "history", [5, "x", "[]", "[[], [], [], 0, 0]", '[[{"role": 5}], [], [], 6, 0]', "[" * 10**5]
    )
    def test_a_history_that_is_a_lie(self, open_llama, tmp_path, history):
        chat_of(open_llama()).save(tmp_path / "chat")
        contents = saved_file.read(tmp_path / "chat", "session")
        saved_file.write(tmp_path / "chat", "session", contents._replace(header=contents.header | {"history": history}))
        with pytest.raises(ValueError, match="history"):
            open_llama().load_session(tmp_path / "chat")
