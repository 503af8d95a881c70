"""Facts long gone: stated among a text's first 512 tokens, asked for thousands of tokens later.

A text is streamed once through a cache of constant size. At each length of interest it is asked about its facts: the
cache is brought back to that point after each question. Subjects and answers are matched anew by each document's seed,
so that only the document tells them. A document has one fact of a kind (a name, a colour, a home town ...): this is
about what a cache holds, and a small model mixes up what is alike even where it sees all. The prose around them is that
of this package, its sentences shuffled anew each time it has been used up, or another text.
"""

from __future__ import annotations

import contextlib
import dataclasses
import random
import re
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

from morphkv_cpp import Archive, Llama, MorphKV, bridge

from . import Fact, facts, prose_sections
from .recall import N_ANSWER_TOKENS, QUESTION, first_word, sentences

N_FACTS = 8  # per document
N_FACT_TOKENS = 512  # all facts stand before this position
N_STEP_TOKENS = 56  # from fact to fact, at least
N_CHUNK = 512  # tokens that are decoded at once
N_ROOM = 128  # tokens for a question and its answer
RECALL, OFF, FULL = "recall", "off", "full"


class Document(NamedTuple):
    tokens: list[int]
    facts: list[Fact]


class Asked(NamedTuple):
    """One question, asked behind the first n_tokens of a document."""

    i_document: int
    n_tokens: int
    arm: str  # with recall, with it off, or stock llama.cpp with a full cache
    fact: Fact
    answer: str
    right: bool
    recall_ms: float  # of all its recalls


def document_facts(i_document: int) -> list[Fact]:
    """8 facts of a document, each of another kind; subjects and answers of a kind are matched anew."""
    kinds: dict[str, list[Fact]] = {}
    for fact in facts():
        kinds.setdefault(fact.subject.partition(" of ")[0].split()[-1], []).append(fact)
    rng = random.Random(f"facts of {i_document}")
    chosen = rng.sample(sorted(kinds), N_FACTS)
    return [Fact(rng.choice(kinds[kind]).subject, rng.choice(kinds[kind]).answer) for kind in chosen]


def filler(i_document: int, text: str | None = None) -> Iterator[str]:
    """Sentences without end: those of the text, else of this package's prose, shuffled anew each time round."""
    rng = random.Random(f"prose of {i_document}")
    if text is None:
        sections = prose_sections()
        rng.shuffle(sections)
        text = "\n\n".join(sections)
    all_sentences = [sentence.rstrip() for sentence in sentences(text)]
    while True:
        yield from all_sentences
        rng.shuffle(all_sentences)


def build_document(llm: Llama, i_document: int, n_tokens: int, text: str | None = None) -> Document:
    """A document of n_tokens, whose facts are spread over its first 512."""

    def tokens_of(sentence: str) -> list[int]:
        return llm.tokenize(sentence.encode(), add_bos=False, special=False)

    chosen = document_facts(i_document)
    tokens, n_stated = llm.tokenize(b"", add_bos=True), 0
    for sentence in filler(i_document, text):
        if len(tokens) >= n_tokens:
            break
        tokens += tokens_of(f" {sentence}")
        if n_stated < N_FACTS and len(tokens) >= 20 + N_STEP_TOKENS * n_stated:
            tokens += tokens_of(f"\n\n{chosen[n_stated].line}\n\n")
            n_stated += 1
    return Document(tokens[:n_tokens], chosen)


def asked_facts(i_document: int, n_documents: int, n_questions: int) -> list[int]:
    """Which facts of a document are asked for: n_questions in all, spread evenly."""
    n_here = n_questions // n_documents + (i_document < n_questions % n_documents)
    return random.Random(f"questions of {i_document}").sample(range(N_FACTS), n_here)


def answer(llm: Llama, question: Sequence[int]) -> str:
    """Greedy text behind what is cached and the question."""
    written: list[int] = []
    for token in llm.generate(question, reset=False, temp=0.0):
        written.append(token)
        text = llm.detokenize(written).decode("utf-8", errors="ignore")
        if len(written) >= N_ANSWER_TOKENS or re.search(r"[A-Za-z]+[^A-Za-z]", text):
            return text
    return ""


def run(
    model: Path,
    morphkv: MorphKV,
    archive: Archive,
    lengths: Sequence[int],
    n_documents: int,
    n_questions: int,
    arms: Sequence[str] = (RECALL, OFF),
    text: str | None = None,
    **llama_options: Any,
) -> Iterator[Asked | int]:
    """Every question at every length, and in between how many tokens were decoded.

    The full cache reads its own copy of each document.
    """
    if not 1 <= n_questions <= n_documents * N_FACTS:
        raise ValueError(f"questions must be in 1..{N_FACTS} x documents, got {n_questions} with {n_documents=}")
    evicting = [arm for arm in arms if arm != FULL]
    if evicting:
        llm = Llama(model, morphkv=morphkv, archive=archive if RECALL in evicting else None, **llama_options)
        with closing(llm):
            yield from _ask_all(llm, archive, evicting, lengths, n_documents, n_questions, text)
    if FULL in arms:
        options = {**llama_options, "n_ctx": max(lengths) + N_ROOM}
        with closing(Llama(model, **options)) as llm:
            yield from _ask_all(llm, archive, [FULL], lengths, n_documents, n_questions, text)


def _ask_all(
    llm: Llama,
    archive: Archive,
    arms: Sequence[str],
    lengths: Sequence[int],
    n_documents: int,
    n_questions: int,
    text: str | None,
) -> Iterator[Asked | int]:
    for i in range(n_documents):
        document = build_document(llm, i, max(lengths), text)
        llm.reset()
        n_done = 0
        for n_tokens in sorted(lengths):
            for start in range(n_done, n_tokens, N_CHUNK):
                chunk = document.tokens[start : min(start + N_CHUNK, n_tokens)]
                llm.eval(chunk)
                yield len(chunk)
            n_done = n_tokens
            for j in asked_facts(i, n_documents, n_questions):
                fact = document.facts[j]
                question = llm.tokenize(QUESTION.format(subject=fact.subject).encode(), add_bos=False)
                for arm in arms:
                    with taken_back(llm):
                        if arm == RECALL:
                            llm.archive = archive
                        elif llm.archive is not None:
                            llm.archive = dataclasses.replace(archive, recall="off")
                        said = answer(llm, question)
                        right = first_word(said) == fact.answer.casefold()
                        recall_ms = sum(recall.took_ms for recall in llm.last_recalls)
                    yield Asked(i, n_tokens, arm, fact, said, right, recall_ms)


@contextlib.contextmanager
def taken_back(llm: Llama) -> Iterator[None]:
    """What is done in here, a recall too, is undone."""
    n_tokens = llm.n_tokens
    checkpoint = None if llm.morphkv is None else bridge.checkpoint(llm.ctx)
    yield
    if checkpoint is not None:
        bridge.set_checkpoint(llm.ctx, checkpoint)
    llm.n_tokens = n_tokens
