"""Sessions on tiny models: what a turn costs, how answers end, what is refused."""

import itertools

import numpy as np
import pytest

from morphkv_cpp import MorphKV, NoMorphKVError
from support.chats import TURN, forced, talk, text_of
from support.tiny import bytes_of, count_evaluated

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
            with pytest.warns(RuntimeWarning, match="its answer was not read"):
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
                with pytest.raises(RuntimeError, match="cannot continue: its cache was emptied, 0 of"):
                    attempt()


class TestRefusals:
    def test_a_llama_without_morphkv(self, open_llama):
        with pytest.raises(NoMorphKVError, match="a session needs MorphKV"):
            open_llama(None).session()

    def test_a_closed_session(self, open_llama):
        llm = open_llama()
        with llm.session("abc") as chat:
            talk(chat, "one")
        for attempt in (lambda: chat.say("x"), chat.fork, lambda: chat.save("x"), lambda: chat.retained(0)):
            with pytest.raises(RuntimeError, match="the session cannot continue: it is closed"):
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
