"""What a real model answers after an edit far back: what was before it comes back, and nothing of what was behind."""

import itertools

import pytest

from morphkv_cpp import Llama, MorphKV
from morphkv_cpp.eval import facts
from morphkv_cpp.eval.recall import N_ANSWER_TOKENS, QUESTION, first_word
from morphkv_cpp.eval.remember import build_document

pytestmark = [pytest.mark.demo, pytest.mark.slow]

CONFIG = MorphKV(capacity=512, window=32, interval=128, prompt_room=0)
N_DOCUMENTS = 8
N_TOKENS = 3000  # up to the edit
N_BEHIND = 500  # what is edited away


def ask(llm, state, text, fact):
    """Whether the fact is answered behind a text, from a state of the cache."""
    llm.load_state(state)
    question = llm.tokenize(QUESTION.format(subject=fact.subject).encode(), add_bos=False)
    written = itertools.islice(llm.generate([*text, *question], temp=0.0), N_ANSWER_TOKENS)
    return first_word(llm.detokenize(list(written)).decode(errors="ignore")) == fact.answer.casefold()


def after(llm, text):
    """A state in which it has been evaluated."""
    llm.reset()
    llm.eval(text)
    return llm.save_state()


def test_facts_after_an_edit(demo_model):
    right, n_restored = {"restored": 0, "evaluated": 0, "edited away": 0}, []
    n_questions = 0
    with Llama(demo_model, morphkv=CONFIG, archive="ram", ctx_checkpoints=0, n_threads=2, verbose=False) as llm:
        for i in range(N_DOCUMENTS):
            document = build_document(llm, i, N_TOKENS)
            stated = {fact.subject for fact in document.facts}
            gone = [fact for fact in facts() if fact.subject not in stated][i::N_DOCUMENTS][:8]
            lines = "\n\n".join(fact.line for fact in gone)
            behind = llm.tokenize(f"\n\n{lines}\n\n".encode(), add_bos=False)
            filler = build_document(llm, 100 + i, N_BEHIND).tokens[1:]
            long = after(llm, [*document.tokens, *behind, *filler])
            short = after(llm, document.tokens)
            for fact in document.facts:
                n_questions += 1
                right["restored"] += ask(llm, long, document.tokens, fact)
                n_restored.append(llm.last_prompt.n_restored)
                right["evaluated"] += ask(llm, short, document.tokens, fact)
            for fact in gone:
                right["edited away"] += ask(llm, long, document.tokens, fact)
    print(f"{right} of {n_questions}, restored {min(n_restored)} to {max(n_restored)} tokens")
    assert n_questions >= 60
    assert min(n_restored) == N_TOKENS - 128
    assert right["evaluated"] > 0.7 * n_questions
    assert right["restored"] >= 0.95 * right["evaluated"]
    assert right["edited away"] == 0
