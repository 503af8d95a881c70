"""Sessions on tiny models: what a turn costs, who has the cache, how answers end."""

import itertools

import numpy as np
import pytest

from morphkv_cpp import MorphKV, NoMorphKVError, Session
from support.chats import TURN, forced, no_end, talk, text_of
from support.tiny import bytes_of, count_evaluated, held

# isort: split
# after morphkv_cpp, which says what libllama is loaded
from llama_cpp import LlamaGrammar

SMALL = MorphKV(capacity=128, window=16, interval=16, keep=2, prompt_room=32)


class TestTurn:
    def test_only_its_own_tokens_are_evaluated_however_long_the_chat(self, open_llama, monkeypatch):
        llm = open_llama()
        costs = []
        with llm.session("abc") as chat:
            for _ in range(30):
                with monkeypatch.context() as patch:
                    lengths = count_evaluated(llm, patch)
                    talk(chat, "hello")
                costs.append(sum(lengths[:-9]))
                assert chat.last.prompt_tokens == costs[-1]
                assert lengths[:-9] == ([costs[-1]] if len(costs) == 1 else [1, costs[-1] - 1])
                assert lengths[-9:] == [1] * 9
                assert chat.last.completion_tokens == 10
        n_turn = len(llm.tokenize(TURN.format("hello").encode(), add_bos=False))
        # the answer's last token, which is decoded alone, and no space in front
        assert costs[1:] == [n_turn] * 29
        assert chat.last.n_evicted > 0
        assert llm.cache_stats().n_evicted > 10 * n_turn

    def test_the_text_is_the_template_s_around_the_tokens_that_were_sampled(self, open_llama):
        llm = open_llama()
        with llm.session("abc") as chat:
            answers = []
            for question in ("one", "two", "three"):
                start = chat.n_tokens
                talk(chat, question)
                answers.append(text_of(chat)[-10:])
                assert chat.n_tokens == start + chat.last.prompt_tokens + 10 - (1 if start else 0)
            opening = "<|im_start|>system\nabc<|im_end|>\n<|im_start|>user\none<|im_end|>\n<|im_start|>assistant\n"
            wanted = llm.tokenize(opening.encode(), add_bos=True)
            for answer, question in zip(answers, ("two", "three", None)):
                wanted += answer
                if question is not None:
                    # behind an answer no word is the text's first, which would get a space
                    wanted += bytes_of("<") + llm.tokenize(TURN.format(question).encode(), add_bos=False)[2:]
            assert text_of(chat) == wanted

    def test_it_says_what_it_took(self, open_llama):
        with open_llama().session("abc") as chat:
            assert chat.last is None
            talk(chat, "hello")
            assert chat.last.finish_reason == "length"
            assert (chat.last.cached_tokens, chat.last.n_evicted, chat.last.reprocessed) == (0, 0, False)
            assert chat.last.seconds > 0
            assert chat.last.rate_tok_s > 0
            assert chat.n_turns == 1

    def test_an_end_token_is_left_to_the_template(self, open_llama):
        llm = open_llama()
        with llm.session() as chat:
            answer = chat.say("hello", logits_processor=forced([*bytes_of("ok"), llm.token_eos()]))
            assert "".join(answer) == "ok"
            assert chat.last.finish_reason == "stop"
            assert chat.last.completion_tokens == 2
            assert text_of(chat)[-2:] == bytes_of("ok")

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

    def test_drafts_change_nothing(self, open_llama):
        texts = []
        for draft in (None, lambda ids: np.resize(ids[-3:], 4)):
            llm = open_llama(draft_model=draft)
            with llm.session("abc") as chat:
                # odd lengths: an answer ends amid a draft
                answers = [talk(chat, "hello", n) for n in (9, 11, 7, 10, 13, 8)]
                texts.append((answers, text_of(chat)))
        assert texts[0] == texts[1]


class TestPieces:
    def test_they_are_whole_characters(self, open_llama):
        with open_llama().session() as chat:
            tokens = bytes_of("a\u00e9\U0001f600b")
            pieces = list(chat.say("x", max_tokens=len(tokens), logits_processor=forced(tokens)))
        assert pieces == ["a", "\u00e9", "\U0001f600", "b"]

    @pytest.mark.parametrize("text", [b"a\xc3", b"a\xffb", b"\xe2\x82a\xf0\x9f", b"\xc3\xa9\x80 \xe2\x82\xac"])
    def test_an_answer_is_the_text_that_a_completion_gives_for_its_tokens(self, open_llama, text):
        llm = open_llama()
        tokens, options = [*(3 + byte for byte in text), llm.token_eos()], {"max_tokens": 20}
        with llm.session() as chat:
            said = "".join(chat.say("x", logits_processor=forced(tokens), **options))
        completion = llm.create_completion("x", logits_processor=forced(tokens), **options)
        chunks = llm.create_completion("x", logits_processor=forced(tokens), stream=True, **options)
        streamed = "".join(chunk["choices"][0]["text"] for chunk in chunks)
        assert said == completion["choices"][0]["text"] == streamed == text.decode(errors="ignore")

    @pytest.mark.parametrize("stop", ["END", ["?", "END"]])
    def test_a_stop_string_ends_the_answer_and_is_taken_back(self, open_llama, stop):
        llm = open_llama()
        with llm.session() as chat:
            pieces = list(chat.say("x", stop=stop, logits_processor=forced(bytes_of("EN or END, never"))))
            assert "".join(pieces) == "EN or "
            assert chat.last.finish_reason == "stop"
            assert text_of(chat)[-6:] == bytes_of("EN or ")
            talk(chat, "y")
            assert chat.last.prompt_tokens == len(llm.tokenize(TURN.format("y").encode(), add_bos=False)) - 1

    def test_the_start_of_a_stop_string_is_shown_when_the_answer_ends(self, open_llama):
        with open_llama().session() as chat:
            answer = chat.say("x", stop="END", max_tokens=4, logits_processor=forced(bytes_of("a EN")))
            assert "".join(answer) == "a EN"
            assert chat.last.finish_reason == "length"

    def test_the_end_mark_of_the_template_stops_where_the_model_has_no_token_for_it(self, open_llama):
        llm = open_llama()
        with llm.session() as chat:
            assert "".join(chat.say("x", logits_processor=forced(bytes_of("ok<|im_end|>")))) == "ok"
            assert text_of(chat)[-2:] == bytes_of("ok")


class TestInterrupted:
    def test_an_answer_that_is_left_stays_as_far_as_it_came(self, open_llama):
        llm, other = open_llama(), open_llama()
        with llm.session("abc") as chat, other.session("abc") as same:
            for n, _ in enumerate(chat.say("hello", logits_processor=forced(bytes_of("abcdefgh"))), start=1):
                if n == 5:
                    break
            assert chat.last.finish_reason == "interrupted"
            assert chat.last.completion_tokens == 5
            "".join(same.say("hello", max_tokens=5, logits_processor=forced(bytes_of("abcde"))))
            assert talk(chat, "go on") == talk(same, "go on")
            assert text_of(chat) == text_of(same)

    def test_asking_again_ends_an_answer_that_somebody_still_holds(self, open_llama):
        with open_llama().session() as chat:
            answer = chat.say("hello", logits_processor=forced(itertools.repeat(70)))
            next(answer)
            talk(chat, "again")
            assert next(answer, None) is None
            assert chat.n_turns == 2

    def test_an_answer_that_nobody_reads_was_not_asked_for(self, open_llama):
        with open_llama().session() as chat:
            with pytest.warns(RuntimeWarning, match="nobody read its answer"):
                chat.say("hello")
            assert (chat.n_tokens, chat.n_turns, chat.last) == (0, 0, None)

    @pytest.mark.parametrize("before", [False, True], ids=["after", "before"])
    @pytest.mark.parametrize("at", [0, 1, 2, 7])
    def test_ctrl_c_anywhere_leaves_a_chat_that_goes_on(self, open_llama, monkeypatch, at, before):
        """During the two batches of the prompt, or at a token; before or after llama.cpp has decoded it."""
        llm, other = open_llama(n_batch=64), open_llama(n_batch=64)
        with llm.session("abc" * 10) as chat:
            talk(chat, "hello")
            decode, calls = llm._ctx.decode, []

            def interrupted(batch):
                calls.append(batch)
                if len(calls) - 1 != at:
                    return decode(batch)
                if not before:
                    decode(batch)
                raise KeyboardInterrupt

            monkeypatch.setattr(llm._ctx, "decode", interrupted)
            with pytest.raises(KeyboardInterrupt):
                talk(chat, "xyz" * 20)
            assert chat.last.finish_reason == "interrupted"
            monkeypatch.setattr(llm._ctx, "decode", decode)
            talk(chat, "and now?")
            # the same text in one go
            text = text_of(chat)
            words = llm.detokenize(text).decode(errors="replace")
            assert words.count("xyz" * 20) == 1
            assert words.count("<|im_start|>assistant") == 3
            other.eval(text[:-1])
            assert other.cache_stats().logical_pos == llm.cache_stats().logical_pos

    def test_a_failed_decode_leaves_a_chat_that_goes_on(self, open_llama, monkeypatch):
        llm = open_llama()
        with llm.session("abc") as chat:
            talk(chat, "hello")
            with monkeypatch.context() as patch:
                patch.setattr(llm._ctx, "decode", lambda batch: (_ for _ in ()).throw(RuntimeError("decode failed")))
                with pytest.raises(RuntimeError, match="decode failed"):
                    talk(chat, "more")
            n_tokens = chat.n_tokens
            talk(chat, "again")
            # nothing of the question that failed
            assert chat.last.prompt_tokens < len(llm.tokenize(TURN.format("again").encode())) + len("more")
            assert chat.n_tokens == n_tokens - 1 + chat.last.prompt_tokens + 10

    def test_a_chat_whose_cache_was_emptied_says_so(self, open_llama, monkeypatch):
        llm = open_llama()
        with llm.session("abc") as chat:
            talk(chat, "hello")

            def emptied(batch):
                llm._ctx.kv_cache_clear()
                raise RuntimeError("decode failed")

            with monkeypatch.context() as patch:
                patch.setattr(llm._ctx, "decode", emptied)
                with pytest.raises(RuntimeError, match="decode failed"):
                    talk(chat, "more")
            for attempt in (lambda: chat.say("x"), chat.fork, lambda: chat.save("x")):
                with pytest.raises(RuntimeError, match="cannot go on: its cache was emptied, 0 of"):
                    attempt()


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
        with alone.session(chat.system, keep=chat._n_keep) as again:
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

    def test_at_least_what_the_settings_keep(self, open_llama):
        llm = open_llama(MorphKV(capacity=128, window=16, interval=16, keep=90, prompt_room=32))
        with llm.session() as chat:
            talk(chat, "x")
            assert chat.cache_stats().keep == 90

    def test_every_session_has_its_own(self, open_llama):
        llm = open_llama()
        with self.chat_on(llm, keep=40) as chat, self.chat_on(llm, keep=10) as other:
            for one in (chat, other):
                talk(one, "x")
            assert (chat.cache_stats().keep, other.cache_stats().keep) == (40, 10)

    def test_a_system_prompt_without_room_is_a_sentence(self, open_llama):
        with pytest.raises(
            ValueError,
            match=r"the system prompt must have less than capacity - window tokens .*, got \d+ with 128 - 16",
        ):
            open_llama().session("abc " * 50)

    @pytest.mark.parametrize("keep", [-1, 112])
    def test_a_number_out_of_range_is_a_sentence(self, open_llama, keep):
        with pytest.raises(
            ValueError, match=f"keep must have less than capacity - window tokens to be kept, got {keep}"
        ):
            open_llama().session(keep=keep)

    @pytest.mark.parametrize("keep", ["all", True, 1.5])
    def test_another_value_is_a_sentence(self, open_llama, keep):
        with pytest.raises(ValueError, match='keep must be "system", a number of tokens or None, got'):
            open_llama().session(keep=keep)


class TestMessages:
    """A chat that comes back as text."""

    SO_FAR = (
        {"role": "system", "content": "abc"},
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": "xyz"},
    )

    def test_all_is_evaluated_where_the_cache_knows_nothing(self, open_llama):
        llm = open_llama()
        with llm.session(messages=self.SO_FAR) as chat:
            assert chat.system == "abc"
            talk(chat, "two")
            opening = "<|im_start|>system\nabc<|im_end|>\n<|im_start|>user\none<|im_end|>\n<|im_start|>assistant\nxyz"
            prompt = llm.tokenize((opening + TURN.format("two")).encode(), add_bos=True)
            assert held(llm)[: len(prompt)] == prompt
            assert (chat.last.prompt_tokens, chat.last.cached_tokens) == (len(prompt), 0)
            assert not chat.last.reprocessed

    def test_what_the_cache_holds_is_not_evaluated_again(self, open_llama, monkeypatch):
        llm = open_llama(MorphKV(capacity=256, window=16, interval=16, prompt_room=32))
        "".join(llm.session("abc").say("one", max_tokens=3, logits_processor=forced(bytes_of("xyz"))))
        lengths = count_evaluated(llm, monkeypatch)
        with llm.session(messages=self.SO_FAR) as chat:
            talk(chat, "two")
            # "xyz" comes back as other tokens than were sampled
            assert lengths[0] == chat.last.prompt_tokens < chat.last.cached_tokens
            assert not chat.last.reprocessed

    def test_an_end_among_the_recent_tokens_is_rolled_back_to(self, open_llama):
        llm = open_llama()
        chat = llm.session("abc", keep=10)
        for question in ("one", "two", "three", "four"):
            talk(chat, question)
        known = text_of(chat)
        start = llm.cache_stats().complete_pos + 5
        assert start > 100
        with llm.session("abc", keep=10) as again:
            again._text.begin([*known[:start], *bytes_of("!?")], 10)
            assert (again._text.n_held, again._text.ahead) == (start, bytes_of("!?"))

    def test_another_end_is_evaluated_from_the_start_and_told(self, open_llama, caplog):
        caplog.set_level("INFO", logger="morphkv_cpp")
        llm = open_llama()
        chat = llm.session("abc")
        for question in ("one", "two", "three", "four"):
            talk(chat, question)
        with llm.session(messages=self.SO_FAR) as again:
            talk(again, "two")
            assert again.last.reprocessed
            assert again.last.cached_tokens == 0
        assert "tokens known, whose start was known but is evicted in part" in caplog.text

    def test_a_cache_that_kept_less_is_evaluated_from_the_start(self, open_llama):
        llm = open_llama()
        chat = llm.session("abc", keep=4)
        for question in ("one", "two", "three", "four"):
            talk(chat, question)
        known = text_of(chat)
        with llm.session("abc", keep=40) as again:
            again._text.begin([*known, 5], 40)
            assert again._text.n_held == 0
            talk(again, "x")
            assert again.cache_stats().keep == 40

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"messages": [{"role": "user", "content": "x"}]}, r"must end with an answer .*, got 'user'"),
            ({"system": "a", "messages": [{"role": "system", "content": "b"}]}, "system must be given once"),
            ({"messages": [{"role": "system", "content": [1]}]}, r"the system text must be a str, got \[1\]"),
            ({"system": b"abc"}, "the system text must be a str, got b'abc'"),
        ],
    )
    def test_what_cannot_be_a_start_is_a_sentence(self, open_llama, options, message):
        with pytest.raises(ValueError, match=message):
            open_llama().session(**options)


class TestRefusals:
    def test_a_llama_without_morphkv(self, open_llama):
        with pytest.raises(NoMorphKVError, match="a session needs MorphKV"):
            open_llama(None).session()

    def test_a_closed_session(self, open_llama):
        llm = open_llama()
        with llm.session("abc") as chat:
            talk(chat, "one")
        for attempt in (lambda: chat.say("x"), chat.fork, lambda: chat.save("x"), lambda: chat.retained(0)):
            with pytest.raises(RuntimeError, match="the session cannot go on: it is closed"):
                attempt()
        chat.close()
        assert llm.n_tokens > 0

    def test_a_closed_llama(self, open_llama):
        llm = open_llama()
        chat, aside = llm.session("abc"), llm.session("abc")
        talk(aside, "one")
        talk(chat, "one")
        answer = chat.say("two", logits_processor=forced(itertools.repeat(70)))
        next(answer)
        llm.close()
        answer.close()
        assert chat.last.finish_reason == "interrupted"
        for one in (chat, aside):
            for attempt in (lambda one=one: talk(one, "x"), one.fork, lambda one=one: one.save("x"), one.cache_stats):
                with pytest.raises(RuntimeError, match="Llama is closed"):
                    attempt()
            one.close()
        with pytest.raises(RuntimeError, match="its Llama is closed"):
            llm.session("abc")

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

    def test_a_session_that_answers_cannot_be_copied(self, open_llama, tmp_path):
        with open_llama().session() as chat:
            answer = chat.say("x", logits_processor=forced(itertools.repeat(70)))
            next(answer)
            for attempt in (chat.fork, lambda: chat.save(tmp_path / "x")):
                with pytest.raises(RuntimeError, match=r"cannot be .* while it answers"):
                    attempt()
            answer.close()
            chat.fork()

    def test_an_unknown_option(self, open_llama):
        with open_llama().session() as chat:
            with pytest.raises(TypeError, match="beam"):
                "".join(chat.say("x", beam=3))
            talk(chat, "y")

    def test_a_chat_that_fills_n_ctx(self, open_llama):
        llm = open_llama(n_ctx=256)
        with llm.session("abc") as chat:
            talk(chat, "one", 1000)
            assert chat.last.finish_reason == "length"
            assert chat.n_tokens == 256
            with pytest.raises(ValueError, match=r"the chat must stay below n_ctx=256 tokens, got \d+"):
                talk(chat, "two")
            assert chat.n_tokens == 256
