"""Texts of several kinds that every installation has: prose, code, reference, chat and tables."""

from __future__ import annotations

import importlib
import random

from .. import copying, prose_sections
from ..tables import tables
from .shape import Tokens

KINDS = ("prose", "code", "reference", "chat")  # texts to read

ASKED = (
    "Tell me what you know about this.",
    "Go on, please.",
    "What else?",
    "That is new to me. And then?",
    "I see. What came next?",
)


def sections_of(kind: str) -> list[str]:
    """Texts of a kind. code: modules of Python's standard library; reference: what help() shows about the language."""
    if kind == "prose":
        return prose_sections()
    if kind == "reference":
        topics = importlib.import_module("pydoc_data.topics").topics
        return [text.strip() for _, text in sorted(topics.items()) if len(text) > 2000]
    if kind == "chat":
        return [chat(section) for section in prose_sections()]
    return tables() if kind == "table" else copying.sections_of(kind)


def chat(section: str) -> str:
    """A section as a dialogue: a paragraph is an answer."""
    rng = random.Random(section[:40])
    turns = (f"User: {rng.choice(ASKED)}\n\nAssistant: {paragraph}" for paragraph in section.split("\n\n"))
    return "\n\n".join(turns)


def text_of(tokens_of: Tokens, kind: str, seed: object, n_tokens: int) -> list[int]:
    """n_tokens of a kind, whose sections the seed orders, from the beginning of a sequence on."""
    rng = random.Random(f"{kind} {seed}")
    tokens = tokens_of.begin
    while len(tokens) < n_tokens:
        sections = sections_of(kind)
        rng.shuffle(sections)
        for section in sections:
            tokens += tokens_of(f"{section}\n\n")
            if len(tokens) >= n_tokens:
                break
    return tokens[:n_tokens]
