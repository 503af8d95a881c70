"""What a chat asks of a cache: many questions about one context, a rule of long ago, and answers without loops."""

from __future__ import annotations

import random

from ..recall import first_word
from ..remember import document_facts
from .facts import among_prose, asked
from .shape import FIRST_WORD, Item, Question, Task, Tokens, first_word_is_right
from .sources import text_of

N_TURNS = 5
RULE = "System: When the user says {asked}, answer with the one word {answer}.\n\n"
RULED = "\n\nUser: {asked}\n\nAssistant:"
SIGNALS = {"signal": "lantern", "harbour": "copper", "umbrella": "violin", "compass": "ginger", "window": "marble"}
N_WRITTEN = 256
N_GRAM = 4
GO_ON = "\n\nThe account goes on, at length and without a repetition:\n\n"


def five_questions(tokens_of: Tokens, i_item: int, n_tokens: int) -> Item:
    """Facts all over the context; five are asked for, one after the other, none of which was known when it was read.

    Source: the shape of SCBench (Li et al., 2412.10319), multi-turn.
    """
    stated = document_facts(i_item)
    tokens = among_prose(tokens_of, f"turns {i_item}", n_tokens, [fact.line for fact in stated], n_tokens - 64)
    chosen = random.Random(f"turns {i_item}").sample(stated, N_TURNS)
    return Item("prose", tokens, tuple(asked(tokens_of, fact) for fact in chosen), in_turn=True)


def instruction(tokens_of: Tokens, i_item: int, n_tokens: int) -> Item:
    """Rules in the system prompt, other turns, and then what the rules are about."""
    chosen = random.Random(f"rules {i_item}").sample(sorted(SIGNALS), 3)
    rules = "".join(RULE.format(asked=word, answer=SIGNALS[word]) for word in chosen)
    tokens = tokens_of.begin + tokens_of(rules)
    tokens += text_of(tokens_of, "chat", f"rules {i_item}", n_tokens - len(tokens))[len(tokens_of.begin) :]
    questions = (
        Question(tokens_of(RULED.format(asked=word.capitalize())), (SIGNALS[word],), 6, FIRST_WORD) for word in chosen
    )
    return Item("chat", tokens, tuple(questions))


def long_answer(tokens_of: Tokens, i_item: int, n_tokens: int) -> Item:
    question = Question(tokens_of(GO_ON), n_answer=N_WRITTEN, temp=0.8)
    return Item("prose", text_of(tokens_of, "prose", f"long answer {i_item}", n_tokens), (question,))


def share_of_new(question: Question, said: str) -> float:
    """Of the runs of four words, how many are different ones. An answer of fewer words repeats nothing."""
    words = said.split()
    runs = [tuple(words[i : i + N_GRAM]) for i in range(len(words) - N_GRAM + 1)]
    return len(set(runs)) / len(runs) if runs else 1.0


def rule_was_kept(question: Question, said: str) -> float:
    return float(first_word(said) == question.expected[0])


TASKS = [
    Task("five-questions", "SCBench's shape: five questions, one after the other, over one context", five_questions,
         first_word_is_right),
    Task("instruction", "a rule of the system prompt, needed many turns later", instruction, rule_was_kept),
    Task("repetition", "a long answer: different runs of four words among all (higher: less repeated)", long_answer,
         share_of_new),
]  # fmt: skip
