"""Recall: facts early in a document, a question about one of them at its end, and the first word of the greedy answer.

A document is about 2,560 tokens of prose with 8 one-line facts among its first 512. The cache is cut once, when the
whole prompt is in and its last tokens, those of the question, have voted; the answer sees only what the cut has left.
"""

import dataclasses
import random
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from morphkv_cpp import Llama, MorphKV
from morphkv_cpp.extras import needs_extra

from . import Fact, facts, prose_sections

N_DOCUMENTS = 12
N_FACTS = 8  # per document
N_TOKENS = 2560  # of a prompt, about
N_FACT_TOKENS = 512  # all facts stand before this position
N_STEP_TOKENS = 56  # from fact to fact, at least; leaves room for the longest sentence before the last one
N_SLACK_TOKENS = 30  # half a sentence: prompts are as often longer than N_TOKENS as shorter
N_ANSWER_TOKENS = 6

# The question repeats the fact's own words: a model of 135M parameters copies better than it paraphrases.
QUESTION = "\n\nHere is what was said above, word for word: The {subject} is"


class Document(NamedTuple):
    tokens: list[int]  # prose and facts, without a question
    facts: list[Fact]
    fact_ends: list[int]  # (n_facts,) position behind each fact


class Question(NamedTuple):
    i_document: int
    fact: Fact
    tokens: list[int]


def sentences(text: str) -> Iterator[str]:
    """Sentences in order, each with the space or blank line behind it."""
    for match in re.finditer(r".+?(?:[.!?][\"')]*(?:\s+|$)|$)", text, flags=re.DOTALL):
        if match.group():
            yield match.group()


def build_document(llm: Llama, i_document: int, n_tokens: int = N_TOKENS) -> Document:
    """One document: a seeded choice and order of the prose, the i-th 8 facts spread over the beginning."""

    def count(text: str) -> int:
        return len(llm.tokenize(text.encode(), add_bos=False))

    rng = random.Random(i_document)
    chosen = facts()[i_document * N_FACTS : (i_document + 1) * N_FACTS]
    sections = prose_sections()
    rng.shuffle(sections)

    text, n_text = "", 0
    ends: list[int] = []
    for sentence in sentences("\n\n".join(sections)):
        if n_text >= n_tokens - N_SLACK_TOKENS:
            break
        text += sentence
        n_text = count(text)
        if len(ends) < N_FACTS and n_text >= 30 + N_STEP_TOKENS * len(ends):
            text = f"{text.rstrip()}\n\n{chosen[len(ends)].line}\n\n"
            n_text = count(text)
            ends.append(n_text)
    return Document(llm.tokenize(text.strip().encode()), chosen, ends)


def build(
    llm: Llama, n_documents: int, n_questions: int, n_tokens: int = N_TOKENS
) -> tuple[list[Document], list[Question]]:
    """Documents and, spread evenly over them, questions about a seeded choice of their facts."""
    if not 1 <= n_documents <= N_DOCUMENTS:
        raise ValueError(f"documents must be in 1..{N_DOCUMENTS}, got {n_documents}")
    if not 1 <= n_questions <= n_documents * N_FACTS:
        raise ValueError(f"questions must be in 1..{N_FACTS} x documents, got {n_questions} with {n_documents=}")
    documents, questions = [], []
    for i in range(n_documents):
        n_here = n_questions // n_documents + (i < n_questions % n_documents)
        asked = random.Random(1000 + i).sample(range(N_FACTS), n_here)
        chosen = facts()[i * N_FACTS : (i + 1) * N_FACTS]
        tails = [llm.tokenize(QUESTION.format(subject=f.subject).encode(), add_bos=False) for f in chosen]
        documents.append(build_document(llm, i, n_tokens - max(len(tail) for tail in tails)))
        questions += [Question(i, chosen[j], tails[j]) for j in asked]
    return documents, questions


def first_word(text: str) -> str:
    match = re.search(r"[A-Za-z]+", text)
    return match.group().casefold() if match else ""


def answer(llm: Llama, tokens: list[int]) -> str:
    """Greedy text behind what is cached and `tokens`, with a cache that was cut after all of them had voted.

    A prompt is cut before the second token that comes alone behind it. So that the cut cache has to give even the
    answer's first token, those two and the prompt's last one are taken back, and the last one is decoded again.
    """
    llm.eval(tokens)
    llm.eval(tokens[-1:])
    llm.eval(tokens[-1:])
    llm.n_tokens -= 3
    llm.eval(tokens[-1:])
    written: list[int] = []
    text = ""
    while len(written) < N_ANSWER_TOKENS and not re.search(r"[A-Za-z]+[^A-Za-z]", text):
        written.append(llm.sample(temp=0.0))
        text = llm.detokenize(written).decode("utf-8", errors="ignore")
        llm.eval(written[-1:])
    return text


def run(
    model: Path,
    morphkv: MorphKV | None,
    n_documents: int = N_DOCUMENTS,
    n_questions: int = 60,
    on_answer: Callable[[Question, str, bool], None] = lambda question, text, right: None,
    n_tokens: int = N_TOKENS,
    on_open: Callable[[Llama], None] = lambda llm: None,
    **llama_options: Any,
) -> list[bool]:
    """Right or wrong for each question. The prompt room of `morphkv` is set here; None is the full cache."""
    context = {"n_ctx": n_tokens + 256}
    if morphkv is not None:
        morphkv = dataclasses.replace(morphkv, prompt_room=n_tokens)
        context["n_ctx"] += morphkv.capacity
    llm = Llama(model, morphkv=morphkv, **{**llama_options, **context})
    try:
        on_open(llm)
        return list(_right(llm, *build(llm, n_documents, n_questions, n_tokens), on_answer))
    finally:
        llm.close()


def _right(
    llm: Llama,
    documents: list[Document],
    questions: Iterable[Question],
    on_answer: Callable[[Question, str, bool], None],
) -> Iterator[bool]:
    """A document is decoded once; its state before the question is restored for the next question."""
    i_document = -1
    for question in questions:
        if question.i_document != i_document:
            i_document = question.i_document
            llm.reset()
            llm.eval(documents[i_document].tokens)
            state = llm.save_state()
        else:
            llm.load_state(state)
        text = answer(llm, question.tokens)
        right = first_word(text) == question.fact.answer.casefold()
        on_answer(question, text, right)
        yield right


def wilson(n_right: int, n: int) -> tuple[float, float]:
    """Wilson's 95% interval of a share."""
    with needs_extra("bench"):
        from scipy.stats import binomtest

    interval = binomtest(n_right, n).proportion_ci(method="wilson")
    return float(interval.low), float(interval.high)
