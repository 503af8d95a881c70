"""A prompt that is asked again asks an archive for nothing more: its answer begins where the first one did."""

import itertools
from dataclasses import replace

import pytest

from morphkv_cpp import Archive, Llama, MorphKV
from support.tiny import QUIET, last_logits, some_tokens

SMALL = MorphKV(capacity=64, window=16, interval=8, keep=2, prompt_room=0)
PROMPT = some_tokens(300)


@pytest.fixture(params=["llama", "hybrid"])
def open_llm(request, tiny_llama, tiny_hybrid):
    opened = []

    def make(**options):
        model = tiny_llama() if request.param == "llama" else tiny_hybrid
        opened.append(Llama(str(model), morphkv=SMALL, **{"archive": "ram"} | options, **QUIET))
        return opened[-1]

    make.kind = request.param
    yield make
    for llm in opened:
        llm.close()


def begin(llm, prompt=PROMPT, n_answer=1):
    """Logits behind a prompt and what a layer's slots hold, its greedy answer, and how many recalls there were."""
    tokens = llm.generate(prompt, temp=0.0)
    answer = [next(tokens)]
    bits = last_logits(llm).tobytes(), llm.retained(1).tobytes()  # the layer attends in both models
    answer += itertools.islice(tokens, n_answer - 1)
    tokens.close()
    return bits, answer, len(llm.last_recalls)


# 9 tokens make one eviction, behind which the prompt's end is still there; 60 leave nothing of it. The mark of a text
# with recurrent layers is exact until an eviction.
@pytest.mark.parametrize("n_answer", [1, 4, 9, 60])
def test_its_answer_begins_from_the_same_bits(open_llm, n_answer):
    if open_llm.kind == "hybrid" and n_answer > 4:
        pytest.skip("a mark is gone behind evictions")
    llm = open_llm()
    bits, answer, n_recalls = begin(llm, n_answer=n_answer)
    assert n_recalls == llm.cache_stats().n_recalls == 2
    for _ in range(2):
        assert begin(llm, n_answer=n_answer) == (bits, answer, 0)
        assert llm.cache_stats().n_recalls == 2
        assert llm.last_prompt.n_evaluated <= 1


def test_a_new_word_asks(open_llm):
    llm = open_llm()
    _, answer, _ = begin(llm, n_answer=4)
    assert begin(llm, [*PROMPT, 270])[2] > 0
    assert begin(llm, [*PROMPT, *answer, 271])[2] > 0
    assert begin(llm, [*PROMPT, *answer, 271])[2] == 0


def test_other_settings_ask(open_llm):
    llm = open_llm()
    begin(llm, n_answer=2)
    llm.archive = replace(llm.archive, share=0.5)
    assert begin(llm)[2] > 0


def test_what_was_not_recalled_yet_is(open_llm):
    llm = open_llm(archive=Archive(recall="off"))
    begin(llm, n_answer=2)
    assert llm.cache_stats().n_recalls == 0
    llm.archive = replace(llm.archive, recall="prompt")
    assert begin(llm)[2] > 0


def test_a_state_from_before_the_recall_asks(open_llm):
    llm = open_llm()
    llm.archive = replace(llm.archive, recall="off")
    llm.eval(PROMPT[:-1])
    state = llm.save_state()
    llm.reset()
    llm._clear()
    llm.archive = replace(llm.archive, recall="prompt")
    begin(llm)
    llm.load_state(state)
    assert begin(llm)[2] > 0
