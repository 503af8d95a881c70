"""What a task is: items made by code, questions asked about each, and a score of what was answered."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from morphkv_cpp import Llama

from ..recall import first_word

FIRST_WORD = r"[A-Za-z]+[^A-Za-z]"  # an answer ends behind its first word


class Tokens:
    """Text to tokens and back, of a Llama that need hold nothing but the vocabulary."""

    def __init__(self, llm: Llama):
        self.llm = llm

    def __call__(self, text: str) -> list[int]:
        """Without a beginning of sequence; what looks like a special token is text."""
        return self.llm.tokenize(text.encode(), add_bos=False, special=False)

    @property
    def begin(self) -> list[int]:
        return self.llm.tokenize(b"", add_bos=True)

    def text(self, tokens: Sequence[int]) -> str:
        return self.llm.detokenize(list(tokens)).decode("utf-8", errors="ignore")


@dataclass(frozen=True)
class Question:
    tokens: list[int]
    expected: tuple[str, ...] = ()  # what a right answer says
    n_answer: int = 8  # most tokens that are written
    until: str = ""  # regular expression: the answer ends where it is found
    temp: float = 0.0
    forced: tuple[int, ...] = ()  # each token is drawn behind these, not behind what the model wrote


@dataclass(frozen=True)
class Item:
    kind: str  # of its text
    tokens: list[int]  # read before the questions
    questions: tuple[Question, ...] = ()
    at_cut: bool = False  # the cache is cut once, when the question has voted
    in_turn: bool = False  # each question follows the last answer; otherwise each is asked of the same cache


@dataclass(frozen=True)
class Task:
    """make: the i-th item, whose text has about n_tokens. score: of a question's answer, 0 to 1, higher is better.

    Items take turns in the kinds of text. An item depends on its number, the length and the vocabulary alone.
    """

    name: str
    about: str  # one line for people
    make: Callable[[Tokens, int, int], Item]
    score: Callable[[Question, str], float] | None = None  # None: what is scored is every token of the text

    @property
    def is_perplexity(self) -> bool:
        return self.score is None


def first_word_is_right(question: Question, said: str) -> float:
    return float(first_word(said) == question.expected[0].casefold())


def share_said(question: Question, said: str) -> float:
    """How many of the expected words are in the answer, wherever (RULER's string_match_all)."""
    folded = said.casefold()
    return sum(word.casefold() in folded for word in question.expected) / len(question.expected)
