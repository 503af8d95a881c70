"""What a session begins with: a chat that comes back as text, and what is kept; on tiny models."""

import itertools
from dataclasses import replace

import pytest

from morphkv_cpp import MorphKV, NoRoomError, Session
from support.chats import TURN, forced, talk, text_of
from support.tiny import bytes_of, count_evaluated, held

SMALL = MorphKV(capacity=128, window=16, interval=16, keep=2, prompt_room=32)


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

    def test_a_number_out_of_range_is_a_sentence(self, open_llama):
        with pytest.raises(ValueError, match="keep must not be negative, got -1"):
            open_llama().session(keep=-1)
        sentence = r"keep must have less than .* to be kept, got 112 .*: MorphKV\(capacity=238\)"
        with pytest.raises(NoRoomError, match=sentence) as found:
            open_llama().session(keep=112)
        assert open_llama(replace(SMALL, capacity=found.value.capacity)).session(keep=112)

    @pytest.mark.parametrize("archive", [None, "ram"])
    def test_auto_makes_the_cache_larger_where_that_is_needed(self, open_llama, archive):
        llm = open_llama(archive=archive)
        llm.create_completion("abc" * 50, max_tokens=4)
        with llm.session("abc", keep="auto") as chat:
            talk(chat, "x")
            assert chat.cache_stats().capacity == SMALL.capacity
        system = "abcd" * 50
        with llm.session(system, keep="auto") as chat:
            for i in range(8):
                talk(chat, f"question {i}" * 4)
            stats = chat.cache_stats()
            assert stats.keep > 200
            assert SMALL.capacity + 200 - 2 < stats.capacity == llm.morphkv.capacity < 4 * SMALL.capacity
            assert (stats.n_evictions > 0, stats.n_archived > 0) == (True, archive is not None)
            # as if it had been opened so
            other = open_llama(llm.morphkv, archive=archive)
            with other.session(system) as same:
                for i in range(8):
                    talk(same, f"question {i}" * 4)
                assert talk(chat, "y") == talk(same, "y")
                assert text_of(chat) == text_of(same)
            # not while another chat needs the cache that there is, and not beyond a bound
            for n in (200, 300):
                with pytest.raises(NoRoomError, match="the system prompt must have less than"):
                    llm.session("abcd" * n, keep="auto")
            assert talk(chat, "z")
        assert llm.create_completion("abc", max_tokens=4)["usage"]["completion_tokens"] > 0

    @pytest.mark.parametrize("keep", ["all", True, 1.5])
    def test_another_value_is_a_sentence(self, open_llama, keep):
        with pytest.raises(ValueError, match='keep must be "system", "auto", a number of tokens or None, got'):
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
            ({"messages": [{"role": "cook", "content": "x"}]}, r"must end with the role system, .*, got 'cook'"),
            ({"system": "a", "messages": [{"role": "system", "content": "b"}]}, "system must be given once"),
            ({"messages": [{"role": "system", "content": [1]}]}, r"the system text must be a str, got \[1\]"),
            ({"system": b"abc"}, "the system text must be a str, got b'abc'"),
        ],
    )
    def test_what_cannot_be_a_start_is_a_sentence(self, open_llama, options, message):
        with pytest.raises(ValueError, match=message):
            open_llama().session(**options)
