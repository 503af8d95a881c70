"""Copying: a passage of prose or code, thousands of tokens of other text, and the passage once more, word for word.

The copy is forced: each token is drawn behind the passage's own, not behind what the model wrote, so that one error
does not hide the next. What counts is the share of tokens that the model would have written greedily.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import random
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import llama_cpp
import numpy as np
import numpy.typing as npt

from morphkv_cpp import Archive, Llama, MorphKV

from . import prose_sections
from .remember import N_CHUNK, taken_back
from .tables import tables

N_BEFORE = 64  # tokens of other text before the passage
N_CUE = 16  # first tokens of the passage, which the question gives
QUESTION = "\n\nHere is what was said above, word for word:\n\n"

FULL = "full"
KINDS = ("prose", "code")

# of Python's standard library
MODULES = (
    "textwrap",
    "shlex",
    "fnmatch",
    "csv",
    "heapq",
    "bisect",
    "calendar",
    "statistics",
    "configparser",
    "cmd",
    "sched",
    "queue",
)


class Document(NamedTuple):
    tokens: list[int]  # up to the question
    question: list[int]  # with the cue
    passage: list[int]  # behind the cue


class Copied(NamedTuple):
    """One copy."""

    kind: str
    n_passage: int
    i_document: int
    arm: str  # full, or what Archive.recall was
    right: list[bool]  # (n_passage - N_CUE,)
    n_recalls: int  # while it was written
    recall_ms: float  # of these


class _Forced:
    """Logits processor: notes whether the token that is to come has the highest logit, and has it drawn."""

    def __init__(self, tokens: Sequence[int]):
        self.tokens = iter(tokens)
        self.right: list[bool] = []

    def __call__(self, _input_ids: npt.NDArray[np.intc], scores: npt.NDArray[np.single]) -> npt.NDArray[np.single]:
        token = next(self.tokens)
        self.right.append(int(np.argmax(scores)) == token)
        scores[:] = -np.inf
        scores[token] = 0.0
        return scores


def sections_of(kind: str) -> list[str]:
    if kind == "prose":
        return prose_sections()
    if kind == "table":
        return tables()
    if kind != "code":
        raise ValueError(f"kinds must be some of {', '.join(KINDS)}, got {kind!r}")
    files = [spec.origin for name in MODULES if (spec := importlib.util.find_spec(name)) and spec.origin]
    return [Path(file).read_text(encoding="utf-8").strip() for file in files]


def build_document(llm: Llama, kind: str, i_document: int, n_passage: int, n_distance: int) -> Document:
    """The passage comes from one section, all else from the others, over and over; a seed chooses and orders them."""

    def tokens_of(text: str) -> list[int]:
        return llm.tokenize(text.encode(), add_bos=False, special=False)

    rng = random.Random(f"copies of {kind} {i_document}")
    texts = sections_of(kind)
    rng.shuffle(texts)
    sections = [tokens_of(f"\n\n{text}") for text in texts]
    i_source = next(i for i, section in enumerate(sections) if len(section) >= n_passage + 2 or i == len(sections) - 1)
    source = sections.pop(i_source)
    first = rng.randrange(2, max(3, len(source) - n_passage + 1))
    passage = source[first : first + n_passage]
    rest: list[int] = []
    while len(rest) < N_BEFORE + n_distance:
        rest += [token for section in sections for token in section]
    gap = tokens_of("\n\n")
    tokens = [*llm.tokenize(b"", add_bos=True), *rest[:N_BEFORE], *gap, *passage, *gap, *rest[N_BEFORE:]]
    n_tokens = len(tokens) - len(rest) + N_BEFORE + n_distance
    return Document(tokens[:n_tokens], [*tokens_of(QUESTION), *passage[:N_CUE]], passage[N_CUE:])


def n_read(n_passage: int, n_distance: int) -> int:
    """Tokens of a document that progress counts: all but its first one and blank lines around the passage."""
    return N_BEFORE + n_passage + n_distance


def copy(llm: Llama, document: Document) -> list[bool]:
    """Right or wrong for each token of the passage behind the cue."""
    forced = _Forced(document.passage)
    processors = llama_cpp.LogitsProcessorList([forced])
    tokens = llm.generate(document.question, reset=False, temp=0.0, logits_processor=processors)
    with closing(tokens):
        for _ in zip(document.passage, tokens):
            pass
    return forced.right


def run(
    model: Path,
    morphkv: MorphKV,
    archive: Archive,
    kinds: Sequence[str],
    n_passages: Sequence[int],
    n_distance: int,
    n_documents: int,
    arms: Sequence[str],
    **llama_options: Any,
) -> Iterator[Copied | int]:
    """Every copy, and in between how many tokens were read. The full cache reads each document for itself."""
    recalls: list[Any] = [int(arm) if arm.isdecimal() else arm for arm in arms if arm != FULL]
    settings = [dataclasses.replace(archive, recall=recall) for recall in recalls]
    cases = [(kind, n, i) for kind in kinds for n in n_passages for i in range(n_documents)]
    if settings:
        with closing(Llama(model, morphkv=morphkv, archive=archive, **llama_options)) as llm:
            yield from _copies(llm, cases, n_distance, settings)
    if FULL in arms:
        n_ctx = n_distance + 2 * max(n_passages) + N_BEFORE + N_CHUNK
        with closing(Llama(model, **{**llama_options, "n_ctx": n_ctx})) as llm:
            yield from _copies(llm, cases, n_distance, [None])


def _copies(
    llm: Llama, cases: Sequence[tuple[str, int, int]], n_distance: int, settings: Sequence[Archive | None]
) -> Iterator[Copied | int]:
    for kind, n_passage, i_document in cases:
        document = build_document(llm, kind, i_document, n_passage, n_distance)
        llm.reset()
        for start in range(0, len(document.tokens), N_CHUNK):
            chunk = document.tokens[start : start + N_CHUNK]
            llm.eval(chunk)
            yield max(0, min(len(chunk), n_read(n_passage, n_distance) - start))
        for setting in settings:
            if setting is None:
                yield Copied(kind, n_passage, i_document, FULL, copy(llm, document), 0, 0.0)
                continue
            with taken_back(llm):
                llm.archive = setting
                before = llm.cache_stats()
                right = copy(llm, document)
                after, of_prompt = llm.cache_stats(), llm.last_recalls
                n_recalls = after.n_recalls - before.n_recalls - len(of_prompt)
                took_ms = after.recall_ms - before.recall_ms - sum(recall.took_ms for recall in of_prompt)
            yield Copied(kind, n_passage, i_document, str(setting.recall), right, n_recalls, took_ms)
