"""Who has the cache: sessions, forks and other use of one Llama do not disturb each other; on tiny models."""

import itertools

import numpy as np
import pytest

from morphkv_cpp import MorphKV, Session
from support.chats import forced, no_end, talk
from support.tiny import bytes_of, held

SMALL = MorphKV(capacity=128, window=16, interval=16, keep=2, prompt_room=32)


class TestWhoHasTheCache:
    QUESTIONS = ("one", "two", "three", "four", "five", "six")

    def alone(self, llm, system) -> list[str]:
        with llm.session(system) as chat:
            return [talk(chat, question) for question in self.QUESTIONS]

    def test_several_sessions_do_not_disturb_each_other(self, open_llama):
        llm = open_llama()
        wanted = [self.alone(open_llama(), system) for system in ("abc", "xyz")]
        chats = [llm.session(system) for system in ("abc", "xyz")]
        got = [[talk(chat, question) for chat in chats] for question in self.QUESTIONS]
        assert [list(answers) for answers in zip(*got)] == wanted

    @pytest.mark.parametrize(
        "use",
        [
            lambda llm: llm.create_completion("abcabc", max_tokens=4),
            lambda llm: llm.create_chat_completion([{"role": "user", "content": "x"}], max_tokens=4),
            lambda llm: llm.eval([5, 6, 7]),
            lambda llm: (llm.reset(), llm.eval([5, 6, 7])),
            lambda llm: llm.reset(),
            lambda llm: setattr(llm, "n_tokens", 3),
            lambda llm: (setattr(llm, "n_tokens", 0), llm.eval([5])),
            lambda llm: next(llm.generate([9, 9, 9])),
            lambda llm: next(llm.generate(held(llm)[:-3])),
            lambda llm: llm.load_state(llm.save_state()),
            lambda llm: talk(llm.session("other"), "x"),
        ],
        ids="completion chat eval fresh reset n_tokens rolled generate prefix state session".split(),
    )
    def test_other_use_of_the_llama_is_noticed(self, open_llama, use):
        llm = open_llama()
        wanted = self.alone(open_llama(), "abc")
        with llm.session("abc") as chat:
            got = []
            for question in self.QUESTIONS:
                got.append(talk(chat, question))
                use(llm)
        assert got == wanted

    def test_a_state_is_copied_only_when_the_cache_changes_hands(self, open_llama, monkeypatch):
        llm, copies = open_llama(), []
        save_state = llm.save_state
        monkeypatch.setattr(llm, "save_state", lambda: copies.append(1) or save_state())
        with llm.session("abc") as chat:
            for question in self.QUESTIONS:
                talk(chat, question)
            assert not copies
            llm.eval([5])
            llm.eval([6])
            assert len(copies) == 1
        llm.eval([7])
        assert len(copies) == 1

    def test_a_session_that_is_gone_costs_nothing(self, open_llama, monkeypatch):
        llm = open_llama()
        talk(llm.session("abc"), "one")
        monkeypatch.setattr(llm, "save_state", None)
        llm.eval([5])

    def test_other_use_during_an_answer_ends_it_with_a_sentence(self, open_llama):
        llm, other = open_llama(), open_llama()
        with llm.session("abc") as chat, other.session("abc") as same:
            answer = chat.say("one", logits_processor=forced(bytes_of("abcdef")))
            assert [next(answer), next(answer)] == ["a", "b"]
            llm.eval([5, 6])
            with pytest.raises(RuntimeError, match="used for something else while an answer was being written"):
                next(answer)
            assert chat.last.finish_reason == "interrupted"
            "".join(same.say("one", max_tokens=2, logits_processor=forced(bytes_of("ab"))))
            assert talk(chat, "two") == talk(same, "two")

    def test_stats_are_the_session_s_own(self, open_llama):
        llm = open_llama()
        with llm.session("abc") as chat:
            for question in self.QUESTIONS:
                talk(chat, question)
            stats, retained = chat.cache_stats(), chat.retained(0)
            llm.eval([5])
            llm.reset()
            llm.eval([6])
            assert chat.cache_stats() == stats
            np.testing.assert_array_equal(chat.retained(0), retained)


@pytest.mark.parametrize("seed", range(4))
def test_whatever_happens_between_turns_each_chat_is_as_if_alone(open_llama, tmp_path, seed):
    """Turns, answers left early, forks, files and other use at random; then each chat again, on a Llama of its own."""
    random = np.random.default_rng(seed)
    llm, alone = open_llama(), open_llama()

    def turn(chat: Session, question: str, n_read: int) -> str:
        processors = no_end(chat._llm)
        answer = chat.say(question, max_tokens=9, temperature=0.0, logits_processor=processors)
        return "".join(itertools.islice(answer, n_read))

    chats = [(llm.session("abc"), []), (llm.session("xyz", keep=50), [])]
    for i in range(80):
        which = random.integers(len(chats))
        chat, turns = chats[which]
        what = random.integers(10)
        if what < 6 or not turns:
            question, n_read = f"question {'x' * random.integers(20)}", int(random.integers(1, 12))
            turns.append((question, n_read, turn(chat, question, n_read)))
        elif what == 6 and len(chats) < 6:
            chats.append((chat.fork(), turns.copy()))
        elif what == 7:
            chat.save(tmp_path / "chat")
            chat.close()
            chats[which] = (llm.load_session(tmp_path / "chat"), turns)
        elif what == 8:
            llm.eval(random.integers(3, 320, 30).tolist())
        else:
            next(llm.generate(random.integers(3, 320, 200).tolist()))
        if i % 20 == 19:
            llm.reset()
    assert len(chats) > 3
    for chat, turns in chats:
        # not one token of another chat may be reused: it would differ in its last bits
        alone.reset()
        with alone.session(chat.system, keep=chat._talk.n_keep) as again:
            assert [(question, n_read, turn(again, question, n_read)) for question, n_read, _ in turns] == turns
            assert again.n_tokens == chat.n_tokens
            assert chat.cache_stats().n_evicted == again.cache_stats().n_evicted


class TestFork:
    def test_both_go_on_from_here_and_apart(self, open_llama):
        llm, other = open_llama(), open_llama()
        with llm.session("abc") as chat, other.session("abc") as same:
            for one in (chat, same):
                for question in ("one", "two", "three", "four"):
                    talk(one, question)
            with chat.fork() as fork:
                assert talk(fork, "something else") != ""
                assert [talk(chat, q) for q in ("five", "six")] == [talk(same, q) for q in ("five", "six")]
                talk(fork, "and more")
                assert (chat.n_turns, fork.n_turns) == (6, 6)
            assert talk(chat, "seven") == talk(same, "seven")

    def test_the_same_question_gets_the_same_answer(self, open_llama):
        with open_llama().session("abc") as chat:
            talk(chat, "one")
            with chat.fork() as fork:
                assert talk(fork, "two", temperature=1.5) == talk(chat, "two", temperature=1.5)

    def test_before_the_first_question(self, open_llama):
        with open_llama().session("abc") as chat, chat.fork() as fork:
            assert talk(fork, "one") == talk(chat, "one")

    def test_a_fork_outlives_its_parent(self, open_llama):
        llm = open_llama()
        with llm.session("abc") as chat:
            talk(chat, "one")
            fork = chat.fork()
        assert len(talk(fork, "two")) > 0
