"""0.1.0's own tests of sessions and their files, as they were."""

import itertools
import subprocess
import sys
from dataclasses import replace

import pytest

from morphkv_cpp import MorphKV, NoMorphKVError, Session
from support.chats import forced, talk
from support.tiny import bytes_of, held

# isort: split
# after morphkv_cpp, which says what libllama is loaded
from llama_cpp import LlamaGrammar

SMALL = MorphKV(capacity=128, window=16, interval=16, keep=2, prompt_room=32)


@pytest.fixture
def saved(open_llama, tmp_path):
    """A chat past its first evictions, and its file."""
    chat = open_llama().session("abc")
    for question in ("one", "two", "three", "four"):
        talk(chat, question)
    chat.save(tmp_path / "chat")
    return chat, tmp_path / "chat"


class TestTurn:
    def test_it_says_what_it_took(self, open_llama):
        with open_llama().session("abc") as chat:
            assert chat.last is None
            talk(chat, "hello")
            assert chat.last.finish_reason == "length"
            assert (chat.last.cached_tokens, chat.last.n_evicted, chat.last.reprocessed) == (0, 0, False)
            assert chat.last.seconds > 0
            assert chat.last.rate_tok_s > 0
            assert chat.n_turns == 1

    def test_the_same_seed_gives_the_same_answer_and_the_default_differs_from_turn_to_turn(self, open_llama):
        answers = []
        for seeds in ((7, 7), (None, None), (None, None)):
            llm = open_llama(seed=3)
            chats = [llm.session("abc") for _ in range(2)]
            answers.append([talk(chat, "x", temperature=2.0, seed=seed) for chat, seed in zip(chats, seeds)])
        assert answers[0][0] == answers[0][1]
        assert answers[1][0] != answers[1][1]
        assert answers[1] == answers[2]

    def test_a_grammar_holds_for_one_answer(self, open_llama):
        with open_llama().session() as chat:
            for _ in range(2):
                grammar = LlamaGrammar.from_string('root ::= "yes" | "no"', verbose=False)
                assert "".join(chat.say("abc?", grammar=grammar, temperature=1.0)) in ("yes", "no")
                assert chat.last.finish_reason == "stop"


class TestPieces:
    def test_they_are_whole_characters(self, open_llama):
        with open_llama().session() as chat:
            tokens = bytes_of("a\u00e9\U0001f600b")
            pieces = list(chat.say("x", max_tokens=len(tokens), logits_processor=forced(tokens)))
        assert pieces == ["a", "\u00e9", "\U0001f600", "b"]

    def test_the_start_of_a_stop_string_is_shown_when_the_answer_ends(self, open_llama):
        with open_llama().session() as chat:
            answer = chat.say("x", stop="END", max_tokens=4, logits_processor=forced(bytes_of("a EN")))
            assert "".join(answer) == "a EN"
            assert chat.last.finish_reason == "length"


class TestInterrupted:
    def test_asking_again_ends_an_answer_that_somebody_still_holds(self, open_llama):
        with open_llama().session() as chat:
            answer = chat.say("hello", logits_processor=forced(itertools.repeat(70)))
            next(answer)
            talk(chat, "again")
            assert next(answer, None) is None
            assert chat.n_turns == 2


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

    def test_a_fork_outlives_its_parent(self, open_llama):
        llm = open_llama()
        with llm.session("abc") as chat:
            talk(chat, "one")
            fork = chat.fork()
        assert len(talk(fork, "two")) > 0


class TestKeep:
    def first(self, chat) -> set[int]:
        """First positions that every head of every layer retains, without a gap."""
        sets = [set(head.tolist()) for layer in range(2) for head in chat.retained(layer)]
        common = set.intersection(*sets)
        return set(itertools.takewhile(lambda pos: pos in common, itertools.count()))

    def chat_on(self, llm, **options) -> Session:
        chat = llm.session("You are a tiny model.", **options)
        for i in range(12):
            talk(chat, f"question {chr(97 + i)}")
        assert chat.cache_stats().n_evictions > 10
        return chat

    def test_the_system_prompt_up_to_the_first_question_stays(self, open_llama):
        llm = open_llama()
        before = "<|im_start|>system\nYou are a tiny model.<|im_end|>\n<|im_start|>user\n"
        n_before = len(llm.tokenize(before.encode(), add_bos=True))
        with self.chat_on(llm) as chat:
            assert chat.cache_stats().keep == n_before
            assert len(self.first(chat)) >= n_before

    @pytest.mark.parametrize(("keep", "n_keep"), [(None, 2), (0, 0), (7, 7), (100, 100)])
    def test_a_number_of_tokens_or_the_settings(self, open_llama, keep, n_keep):
        with self.chat_on(open_llama(), keep=keep) as chat:
            assert chat.cache_stats().keep == n_keep
            assert len(self.first(chat)) >= n_keep


class TestRefusals:
    def test_a_llama_without_morphkv(self, open_llama):
        with pytest.raises(NoMorphKVError, match="a session needs MorphKV"):
            open_llama(None).session()

    def test_a_closed_session(self, open_llama):
        llm = open_llama()
        with llm.session("abc") as chat:
            talk(chat, "one")
        for attempt in (lambda: chat.say("x"), chat.fork, lambda: chat.save("x"), lambda: chat.retained(0)):
            with pytest.raises(RuntimeError, match=r"the session cannot .*: it is closed"):
                attempt()
        chat.close()
        assert llm.n_tokens > 0

    @pytest.mark.parametrize(
        ("arguments", "options", "error", "message"),
        [
            ((7,), {}, TypeError, "text must be a str, got 7"),
            (("x",), {"max_tokens": 0}, ValueError, "max_tokens must be at least 1 or None, got 0"),
        ],
    )
    def test_questions_that_are_none(self, open_llama, arguments, options, error, message):
        with open_llama().session() as chat, pytest.raises(error, match=message):
            chat.say(*arguments, **options)

    def test_nothing_to_tell_before_the_first_question(self, open_llama, tmp_path):
        with open_llama().session() as chat:
            for attempt in (chat.cache_stats, lambda: chat.retained(0), lambda: chat.save(tmp_path / "x")):
                with pytest.raises(RuntimeError, match="nothing has been said in this session yet"):
                    attempt()

    def test_a_chat_that_fills_n_ctx(self, open_llama):
        llm = open_llama(n_ctx=256)
        with llm.session("abc") as chat:
            talk(chat, "one", 1000)
            assert chat.last.finish_reason == "length"
            assert chat.n_tokens == 256
            with pytest.raises(ValueError, match=r"the chat must stay below n_ctx=256 tokens, got \d+"):
                talk(chat, "two")
            assert chat.n_tokens == 256


class TestLoad:
    def test_the_chat_goes_on_the_same(self, open_llama, saved):
        chat, path = saved
        llm = open_llama()
        llm.eval([5, 6, 7])
        again = llm.load_session(path)
        assert (again.system, again.n_turns, again.n_tokens) == ("abc", 4, chat.n_tokens)
        of_context = {"scratch_bytes": 0, "evict_ms": 0, "seq_evict_ms": 0}
        assert replace(again.cache_stats(), **of_context) == replace(chat.cache_stats(), **of_context)
        for question in ("five", "six", "seven"):
            for options in ({}, {"temperature": 1.5}):
                assert talk(again, question, **options) == talk(chat, question, **options)
        assert again.last.prompt_tokens == chat.last.prompt_tokens

    def test_in_another_process_too(self, saved, tiny_llama, tmp_path):
        chat, path = saved
        code = (
            "import sys; from morphkv_cpp import Llama, MorphKV\n"
            "llm = Llama(sys.argv[1], morphkv=MorphKV(128, 16, 16, 2, 32), n_threads=1, n_threads_batch=1,"
            " verbose=False, chat_format='chatml')\n"
            "print(ascii(''.join(llm.load_session(sys.argv[2]).say('five', max_tokens=20, temperature=0.0))))"
        )
        command = [sys.executable, "-c", code, str(tiny_llama()), str(path)]
        result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
        assert result.stdout.strip() == ascii("".join(chat.say("five", max_tokens=20, temperature=0.0)))

    def test_other_sessions_of_the_llama_are_not_disturbed(self, open_llama, saved):
        _, path = saved
        llm, other = open_llama(), open_llama()
        chat, same = llm.session("xyz"), other.session("xyz")
        for one in (chat, same):
            talk(one, "one")
        talk(llm.load_session(path), "two")
        assert talk(chat, "three") == talk(same, "three")


class TestRefusedFiles:
    @pytest.mark.parametrize(
        ("other", "what"),
        [
            ({"shape": {"seed": 1}}, "model"),
            ({"shape": {"n_head_kv": 1}}, "model"),
            ({"morphkv": replace(SMALL, interval=17)}, "settings"),
            ({"chat_format": "llama-3"}, "chat template"),
        ],
        ids=["weights", "heads", "settings", "template"],
    )
    def test_another_model_or_settings(self, open_llama, saved, other, what):
        _, path = saved
        llm = open_llama(**other)
        llm.eval([5, 6, 7])
        with pytest.raises(ValueError, match=f"chat was saved with (an)?other {what}: "):
            llm.load_session(path)
        assert llm.n_tokens == 3
