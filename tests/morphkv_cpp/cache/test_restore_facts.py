"""What a real model answers after an edit far back: what was before it comes back, and nothing of what was behind."""

import pytest

from morphkv_cpp import Llama, MorphKV
from morphkv_cpp.eval import facts
from morphkv_cpp.eval.recall import QUESTION, first_word
from morphkv_cpp.eval.remember import answer, filler, taken_back

pytestmark = [pytest.mark.demo, pytest.mark.slow]

CONFIG = MorphKV(capacity=512, window=32, interval=128, prompt_room=0)
N_TEXTS, N_FACTS, N_GONE = 4, 16, 8  # of each text
N_STEP = 56  # tokens from fact to fact, at least
N_TOKENS = 3000  # up to the edit
N_BEHIND = 500  # what is edited away, beside the facts
EDIT = "All of this was written down last winter, and then read once more.\n\n"


def tokens_of(llm, text):
    return llm.tokenize(text.encode(), add_bos=False)


def text_with(llm, seed, stated, n_tokens):
    """Prose that states these facts in its beginning."""
    tokens, left = [], list(stated)
    for sentence in filler(seed):
        if len(tokens) >= n_tokens:
            return tokens[:n_tokens]
        tokens += tokens_of(llm, f" {sentence}")
        if left and len(tokens) >= N_STEP * (len(stated) - len(left)):
            tokens += tokens_of(llm, f"\n\n{left.pop(0).line}\n\n")
    return tokens


def answered(llm, asked):
    """Which of these facts are answered behind the text as it is, each from there."""
    right = []
    for fact in asked:
        with taken_back(llm):
            said = answer(llm, tokens_of(llm, QUESTION.format(subject=fact.subject)))
        if first_word(said) == fact.answer.casefold():
            right.append(fact)
    return right


def read(llm, prompt):
    """Have the cache hold a prompt, as a completion does, and nothing behind it."""
    next(llm.generate(prompt, temp=0.0))


def test_facts_after_an_edit(demo_model):
    """Each text is read once: questions are asked from a place that is come back to, before and after the edit.

    What is edited away is asked for before it is read, too: the model may guess a colour.
    """
    n_evaluated, n_restored, leaked = 0, 0, []
    n_asked = N_TEXTS * N_FACTS
    all_gone = facts()[n_asked:]
    with Llama(demo_model, morphkv=CONFIG, archive="ram", ctx_checkpoints=0, n_threads=2, verbose=False) as llm:
        for i in range(N_TEXTS):
            stated, gone = facts()[N_FACTS * i : N_FACTS * (i + 1)], all_gone[N_GONE * i : N_GONE * (i + 1)]
            text = [llm.token_bos(), *text_with(llm, i, stated, N_TOKENS - 1)]
            behind = text_with(llm, 100 + i, gone, N_BEHIND + 20 * N_GONE)
            edited = [*text, *tokens_of(llm, EDIT)]
            assert behind[0] != edited[len(text)]

            llm.reset()
            llm.eval(text)
            with taken_back(llm):
                read(llm, edited)
                assert llm.last_prompt.n_cached == N_TOKENS
                n_evaluated += len(answered(llm, stated))
                guessed = answered(llm, gone)
            llm.eval(behind)
            read(llm, edited)
            assert llm.last_prompt.n_restored == N_TOKENS - 128
            n_restored += len(answered(llm, stated))
            leaked += [fact for fact in answered(llm, gone) if fact not in guessed]
            print(
                f"of {N_FACTS * (i + 1)} facts {n_evaluated} evaluated, {n_restored} restored; of "
                f"{N_GONE * (i + 1)} that were edited away {leaked}, guessed {guessed}",
                flush=True,
            )
    assert n_asked >= 60
    assert n_evaluated > 0.6 * n_asked
    assert n_restored >= 0.95 * n_evaluated
    assert leaked == []
