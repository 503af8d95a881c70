"""Sessions that go back, with a real model and an archive: what is evaluated, and the same bits."""

import pytest

from morphkv_cpp import Llama, MorphKV
from support.tiny import QUIET

pytestmark = pytest.mark.demo

N_TURNS = 40
THINGS = "the sea,mountains,bread,old clocks,trains,gardens,winter,music,horses,maps".split(",")


@pytest.fixture(scope="module")
def chat(demo_model):
    """Tests take copies."""
    with Llama(demo_model, morphkv=MorphKV(capacity=512, prompt_room=0), archive="auto", **QUIET) as llm:
        chat = llm.session(system="You are a helpful assistant.")
        for i in range(N_TURNS):
            chat.ask(f"Tell me one short thing about {THINGS[i % 10]}, number {i}.", max_tokens=24, temperature=0.0)
        assert chat.n_tokens > 3 * 512
        yield chat


def ask(pieces) -> str:
    return "".join(pieces)


def test_what_is_evaluated(chat):
    n_before = chat.n_tokens
    with chat.fork() as fork:
        ask(fork.regenerate(max_tokens=24, temperature=1.0))
        assert fork.last.prompt_tokens <= 64
    for n_back in (1, 2, 3, 10):
        with chat.fork() as fork:
            ask(fork.edit(-n_back, "Tell me about rain.", max_tokens=24, temperature=0.0))
            assert fork.last.prompt_tokens <= 32 + 64
            assert fork.last.again_tokens == 0
            assert fork.n_turns == N_TURNS - n_back + 1
    assert chat.n_tokens == n_before


def test_the_same_bits_as_if_nothing_had_come_behind(chat):
    with chat.fork() as straight, chat.fork() as back:
        for i in range(3):
            back.ask(f"Tell me about {THINGS[i]}.", max_tokens=24)
        for _ in range(3):
            back.undo()
        assert back.history() == straight.history()
        options = {"max_tokens": 40, "temperature": 1.0, "seed": 7}
        assert back.ask("And now?", **options) == straight.ask("And now?", **options)
