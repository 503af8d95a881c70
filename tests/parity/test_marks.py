"""With recurrent layers a prompt's end is read twice, too: it goes back to a mark."""

from __future__ import annotations

import numpy as np
import pytest

from morphkv_cpp import Archive, Llama, MorphKV
from support.hybrids import write_fact_hybrid
from support.tiny import FLASH, QUIET, greedy, last_logits

# isort: split
# after morphkv_cpp, which says what libllama is loaded
import llama_cpp

SMALL = MorphKV(capacity=128, window=16, interval=16, keep=2, prompt_room=64)
N_FACTS, N_TEXT = 6, 1500
# Tokens: a is followed by one that means b, and b by c. Others are fillers.
A, MEANS_B, B, C, ASKS, OTHERS = 10, 20, 30, 40, 50, 100


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    asks = {ASKS + i: A + i for i in range(N_FACTS)}
    means = {MEANS_B + i: B + i for i in range(N_FACTS)}
    return str(write_fact_hybrid(tmp_path_factory.mktemp("facts") / "facts.gguf", asks, means))


@pytest.fixture(scope="module")
def text() -> list[int]:
    """Two facts for each question, far from each other and from the text's end."""
    tokens = np.random.default_rng(0).integers(OTHERS, 320, N_TEXT)
    for i in range(N_FACTS):
        tokens[100 + 64 * i : 102 + 64 * i] = A + i, MEANS_B + i
        tokens[600 + 64 * i : 602 + 64 * i] = B + i, C + i
    return tokens.tolist()


def question(i: int) -> list[int]:
    return [ASKS + i] * 10


def test_a_second_reading_recalls_what_one_recall_alone_does_not(model, text):
    """What is asked for second is known once what is asked for first has come back."""
    stock = llama_cpp.Llama(model, n_ctx=2048, **FLASH)
    llm = Llama(model, morphkv=SMALL, archive="ram", n_ctx=2048, **QUIET)
    llm.eval(text)
    before = llm.save_state()
    right = {"full": 0, "off": 0, "once": 0, "twice": 0}
    for i in range(N_FACTS):
        stock.reset()
        stock._ctx.kv_cache_clear()
        stock.eval([*text, *question(i)])
        right["full"] += int(np.argmax(last_logits(stock))) == C + i
        for name, settings in (("off", {"recall": "off"}), ("once", {"redo": 0}), ("twice", {})):
            llm.archive = Archive("ram", **settings)
            llm.load_state(before)
            right[name] += greedy(llm, [*text, *question(i)], 1) == [C + i]
            assert len(llm.last_recalls) == {"off": 0, "once": 1, "twice": 2}[name]
    assert right.pop("once") <= 1  # a page that the first recall brought for something else
    assert right == {"full": N_FACTS, "off": 0, "twice": N_FACTS}
    stock.close()
    llm.close()
