"""A chat of 100 turns with the demo model."""

from collections.abc import Iterator
from dataclasses import replace

import pytest

from morphkv_cpp import Llama, MorphKV, Session, Turn
from support.chats import TURN
from support.tiny import QUIET

# isort: split
# after morphkv_cpp, which says what libllama is loaded
from llama_cpp import LlamaGrammar


@pytest.mark.demo
class TestHundredTurns:
    """A chat of 100 turns about other things; what the system prompt says is asked for in copies of it."""

    # RoPE's positions stay below twice the capacity, so that the system prompt is never far away.
    CONFIG = MorphKV(capacity=256, window=64, interval=32, prompt_room=64, rope_limit=512)
    FACTS = (
        ("What is the capital of Zubrowka?", "The capital of Zubrowka is ", ("Lutz", "Brenn", "Krakow", "Halden")),
        (
            "Who is the president of Zubrowka?",
            "The president of Zubrowka is ",
            ("Anna Fisher", "John Baker", "Eva Novak"),
        ),
        ("What is the currency of Zubrowka?", "The currency of Zubrowka is the ", ("klubeck", "zloty", "crown")),
        (
            "What is the highest mountain?",
            "The highest mountain of Zubrowka is the ",
            ("Gabelmeister", "Kopriva", "Rigi"),
        ),
        (
            "What is the national dish?",
            "The national dish of Zubrowka is ",
            ("goulash", "pierogi", "dumplings", "trout"),
        ),
    )
    THINGS = "the sea,a river,bread,winter,a horse,music,the moon,iron,a letter,sleep,salt,a clock,gold,rain".split(",")
    QUESTIONS = ("Say something about {}.", "Do you like {}?", "Describe {} in one sentence.")

    def n_right(self, chat: Session) -> int:
        """How many facts are chosen among their alternatives."""
        n = 0
        for question, start, choices in self.FACTS:
            words = " | ".join(f'"{choice}"' for choice in choices)
            grammar = LlamaGrammar.from_string(f'root ::= "{start}" ({words}) "."', verbose=False)
            with chat.fork() as fork:
                n += "".join(fork.say(question, temperature=0.0, grammar=grammar)) == f"{start}{choices[0]}."
        return n

    def turns(self, chat: Session) -> Iterator[tuple[str, Turn]]:
        for i in range(1, 101):
            question = self.QUESTIONS[i % 3].format(self.THINGS[i % len(self.THINGS)])
            "".join(chat.say(question, max_tokens=10, temperature=0.0))
            yield question, chat.last

    @pytest.fixture
    def open_demo(self, demo_model):
        opened = []

        def make(**changes):
            config = replace(self.CONFIG, **changes)
            opened.append(Llama(demo_model, morphkv=config, **QUIET))
            return opened[-1]

        yield make
        for llm in opened:
            llm.close()

    @pytest.fixture
    def system(self):
        return " ".join(f"{start}{choices[0]}." for _, start, choices in self.FACTS)

    def test_the_system_prompt_is_known_and_a_turn_costs_what_it_did(self, open_demo, system):
        llm = open_demo()
        with llm.session(system) as chat:
            turns = self.turns(chat)
            _, before = next(turns)
            n_first = self.n_right(chat)
            for question, turn in turns:
                # an answer's last token is decoded with the next question, where the model did not end it itself
                n_own = len(llm.tokenize(TURN.format(question).encode(), add_bos=False, special=True))
                assert turn.prompt_tokens == n_own + (before.finish_reason == "length")
                before = turn
            n_last = self.n_right(chat)
            stats = chat.cache_stats()
        assert chat.n_turns == 100
        assert (n_first, n_last) == (5, 5)
        assert stats.n_evictions > 50
        assert stats.logical_pos > 8 * stats.n_limit

    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("changes", "keep"),
        [({}, None), ({"capacity": 8192, "rope_limit": -1}, "system"), ({"rope_limit": -1}, "system")],
        ids=["unprotected", "full cache", "far positions"],
    )
    def test_otherwise_it_is_not_known(self, open_demo, system, changes, keep):
        """Without protection it was evicted; across 2,700 positions the demo model cannot look, with any cache."""
        with open_demo(**changes).session(system, keep=keep) as chat:
            list(self.turns(chat))
            # two are what chance gives
            assert self.n_right(chat) <= 2


@pytest.mark.demo
class TestAFactOfLongAgo:
    """Stated at turn 2 and asked at turn 100, when nothing but the archive has it."""

    THINGS = (
        "the sea,mountains,bread,old clocks,trains,gardens,winter,music,horses,maps,tea,stars,bridges,letters".split(
            ","
        )
    )
    THINGS += "markets,wool,glass,rivers,chess,birds".split(",")

    @pytest.mark.parametrize("archive", ["ram", None])
    def test_it_is_answered_with_an_archive(self, demo_model, archive):
        config = MorphKV(capacity=512, prompt_room=0)
        llm = Llama(demo_model, morphkv=config, archive=archive, **QUIET)
        chat = llm.session(system="You are a helpful assistant.")
        for i in range(1, 100):
            question = f"Tell me one short thing about {self.THINGS[i % 20]}, number {i}."
            if i == 2:
                question = "Please remember this: the password of the night porter is walnut."
            "".join(chat.say(question, max_tokens=24, temperature=0.0))
        assert chat.n_tokens > 6 * config.capacity
        answer = "".join(chat.say("What is the password of the night porter?", max_tokens=16, temperature=0.0))
        assert ("walnut" in answer) == (archive is not None)
        assert (chat.last.n_recalled > 0) == (archive is not None)
        llm.close()
