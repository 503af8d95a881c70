"""Facts stated in one line each among prose, and what is asked about them."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from .. import Fact, facts
from ..recall import N_ANSWER_TOKENS, QUESTION, first_word
from ..remember import document_facts, filler
from .shape import FIRST_WORD, Item, Question, Task, Tokens, first_word_is_right, share_said

N_SPREAD = 512  # facts stand before this position
N_ASKED = 4  # questions of an item
N_SEVERAL = 3  # facts in one question
ABSENT = (
    "\n\nQuestion: What is the {subject}? If the text above does not say it, answer with the word unknown.\nAnswer:"
)
SEVERAL = "\n\nHere is what was said above about the {names}, word for word: The {first} is"


def among_prose(tokens_of: Tokens, seed: object, n_tokens: int, lines: Sequence[str], n_spread: int) -> list[int]:
    """n_tokens of prose, with the lines at even distances among its first n_spread tokens."""
    tokens, rest = tokens_of.begin, list(lines)
    step = n_spread / (len(lines) + 1)
    for sentence in filler(hash_of(seed)):
        if len(tokens) >= n_tokens and not rest:
            return tokens[:n_tokens]
        tokens += tokens_of(f" {sentence}")
        if rest and len(tokens) >= step * (len(lines) - len(rest) + 1):
            tokens += tokens_of(f"\n\n{rest.pop(0)}\n\n")
    raise AssertionError("the prose has no end")


def hash_of(seed: object) -> int:
    """The same in every process."""
    return random.Random(str(seed)).randrange(2**31)


def asked(tokens_of: Tokens, fact: Fact) -> Question:
    return Question(tokens_of(QUESTION.format(subject=fact.subject)), (fact.answer,), N_ANSWER_TOKENS, FIRST_WORD)


def plain(tokens_of: Tokens, i_item: int, n_tokens: int, at_cut: bool = False) -> Item:
    """Eight facts, each of another kind; some are asked for."""
    stated = document_facts(i_item)
    tokens = among_prose(tokens_of, f"plain {i_item}", n_tokens, [fact.line for fact in stated], N_SPREAD)
    chosen = random.Random(i_item).sample(stated, N_ASKED)
    return Item("prose", tokens, tuple(asked(tokens_of, fact) for fact in chosen), at_cut=at_cut)


def plain_at_cut(tokens_of: Tokens, i_item: int, n_tokens: int) -> Item:
    return plain(tokens_of, i_item, n_tokens, at_cut=True)


def several(tokens_of: Tokens, i_item: int, n_tokens: int) -> Item:
    stated = document_facts(i_item)
    tokens = among_prose(tokens_of, f"several {i_item}", n_tokens, [fact.line for fact in stated], N_SPREAD)
    chosen = random.Random(i_item).sample(stated, N_SEVERAL)
    names = ", the ".join(fact.subject for fact in chosen)
    question = tokens_of(SEVERAL.format(names=names, first=chosen[0].subject))
    return Item("prose", tokens, (Question(question, tuple(fact.answer for fact in chosen), 48),))


def updated(tokens_of: Tokens, i_item: int, n_tokens: int) -> Item:
    """Each fact is stated, and changed later; the newest counts."""
    stated = document_facts(i_item)[:N_ASKED]
    rng = random.Random(f"updates of {i_item}")
    others = {
        fact: rng.choice([f.answer for f in alike(fact) if f.answer != fact.answer and f.answer[0].isalpha()])
        for fact in stated
    }
    lines = [fact.line for fact in stated] + [f"The {f.subject} is now {answer}." for f, answer in others.items()]
    tokens = among_prose(tokens_of, f"updated {i_item}", n_tokens, lines, N_SPREAD)
    questions = tuple(
        Question(tokens_of(QUESTION.format(subject=f.subject) + " now"), (answer,), N_ANSWER_TOKENS, FIRST_WORD)
        for f, answer in others.items()
    )
    return Item("prose", tokens, questions)


def kind_of(fact: Fact) -> str:
    return fact.subject.partition(" of ")[0].split()[-1]


def alike(fact: Fact) -> list[Fact]:
    """The facts of the same kind, itself too: mottoes, passwords, names."""
    return [other for other in facts() if kind_of(other) == kind_of(fact)]


def look_alikes(tokens_of: Tokens, i_item: int, n_tokens: int) -> Item:
    """Six facts of one kind, of which some are asked for."""
    rng = random.Random(f"look-alikes {i_item}")
    kinds = sorted({kind_of(fact) for fact in facts() if len(alike(fact)) >= 6})
    kind = kinds[i_item % len(kinds)]
    stated = rng.sample([fact for fact in facts() if kind_of(fact) == kind], 6)
    tokens = among_prose(tokens_of, f"alike {i_item}", n_tokens, [fact.line for fact in stated], N_SPREAD)
    return Item("prose", tokens, tuple(asked(tokens_of, fact) for fact in rng.sample(stated, N_ASKED)))


def absent(tokens_of: Tokens, i_item: int, n_tokens: int) -> Item:
    """Eight facts are stated, and others asked for."""
    stated = document_facts(i_item)
    tokens = among_prose(tokens_of, f"absent {i_item}", n_tokens, [fact.line for fact in stated], N_SPREAD)
    said = {fact.subject for fact in stated}
    others = random.Random(f"absent {i_item}").sample([f for f in facts() if f.subject not in said], N_ASKED)
    questions = (tokens_of(ABSENT.format(subject=fact.subject)) for fact in others)
    return Item("prose", tokens, tuple(Question(q, ("unknown",), N_ANSWER_TOKENS, FIRST_WORD) for q in questions))


def says_unknown(question: Question, said: str) -> float:
    return float(first_word(said) in ("unknown", "not", "no", "unspecified"))


def task(name: str, about: str, make: Callable[[Tokens, int, int], Item]) -> Task:
    return Task(f"facts-{name}", about, make, first_word_is_right)


TASKS = [
    task(
        "cut",
        "facts early in a prompt, asked for at its end: the cache is cut when the question has voted",
        plain_at_cut,
    ),
    task("gone", "facts among a text's first 512 tokens, asked for much later", plain),
    Task("facts-several", "three such facts in one question (share of the three)", several, share_said),
    task("updated", "facts that were changed later: the newest counts", updated),
    task("alike", "one of six facts of the same kind", look_alikes),
    Task("facts-absent", "facts that the text does not state: the answer must be unknown", absent, says_unknown),
]
