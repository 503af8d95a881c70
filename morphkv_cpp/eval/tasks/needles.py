"""Needles in a haystack as RULER makes them: magic numbers of keys, in noise or in prose.

Source: RULER (Hsieh et al., 2404.06654; github.com/NVIDIA/RULER, scripts/data/synthetic/niah.py): templates and
counts are its own. Its essays are this package's prose, its keys come from smaller lists of words.
"""

from __future__ import annotations

import random
from collections.abc import Callable

from ..recall import sentences
from ..remember import filler
from .facts import hash_of
from .shape import Item, Question, Task, Tokens, share_said

BEFORE = (
    "Some special magic numbers are hidden within the following text. Make sure to memorize it. I will quiz you about "
    "the numbers afterwards.\n"
)
ASK = (
    "\nWhat are all the special magic numbers for {query} mentioned in the provided text? The special magic numbers "
    "for {query} mentioned in the provided text are"
)
NEEDLE = "One of the special magic numbers for {key} is: {value}."
NOISE = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."
ADJECTIVES = "brave calm dusty eager faint gentle hollow idle jolly keen lively mellow narrow odd proud quiet rapid shy"
NOUNS = "anchor basket candle donkey engine feather garden hammer island jacket kettle ladder mirror needle orchard"
N_ANSWER = 64  # RULER's 128 are more than four numbers of seven digits take


def _needles(rng: random.Random, n_keys: int, n_values: int) -> dict[str, list[str]]:
    keys = rng.sample([f"{a}-{n}" for a in ADJECTIVES.split() for n in NOUNS.split()], n_keys)
    return {key: [str(rng.randrange(10**6, 10**7)) for _ in range(n_values)] for key in keys}


def hidden(tokens_of: Tokens, seed: str, n_tokens: int, lines: list[str], is_noise: bool) -> list[int]:
    """Sentences up to n_tokens, the lines in random order at random depths."""
    rng = random.Random(seed)
    budget = n_tokens - len(tokens_of(BEFORE)) - sum(len(tokens_of(f" {line}")) for line in lines)
    prose, text, n = (sentences(f"{NOISE} ") if is_noise else filler(hash_of(seed))), [], 0
    while n < budget:
        sentence = next(prose, None)
        if sentence is None:
            prose = sentences(f"{NOISE} ")
            continue
        text.append(sentence.strip())
        n += len(tokens_of(f" {sentence.strip()}"))
    for line in rng.sample(lines, len(lines)):
        text.insert(rng.randrange(len(text) + 1), line)
    return tokens_of.begin + tokens_of(BEFORE + " ".join(text))


def _maker(
    name: str, n_keys: int = 1, n_values: int = 1, n_queries: int = 1, is_noise: bool = False
) -> Callable[[Tokens, int, int], Item]:
    def make(tokens_of: Tokens, i_item: int, n_tokens: int) -> Item:
        seed = f"{name} {i_item}"
        rng = random.Random(seed)
        needles = _needles(rng, n_keys, n_values)
        lines = [NEEDLE.format(key=key, value=value) for key, values in needles.items() for value in values]
        asked = rng.sample(sorted(needles), n_queries)
        query = ", ".join(asked[:-1]) + ", and " + asked[-1] if n_queries > 1 else asked[0]
        expected = tuple(value for key in asked for value in needles[key])
        question = Question(tokens_of(ASK.format(query=query)), expected, N_ANSWER if len(expected) > 1 else 24)
        tokens = hidden(tokens_of, seed, n_tokens, lines, is_noise)
        return Item("noise" if is_noise else "prose", tokens, (question,))

    return make


def task(name: str, about: str, **counts: int) -> Task:
    return Task(f"ruler-{name}", about, _maker(name, **counts), share_said)  # type: ignore[arg-type]


TASKS = [
    task("niah-single", "RULER: one magic number, in noise", is_noise=True),
    task("niah-multikey", "RULER: the magic number of one of four keys, in prose", n_keys=4),
    task("niah-multivalue", "RULER: four magic numbers of one key, in prose (share)", n_values=4),
    task("niah-multiquery", "RULER: the magic numbers of four keys, in prose (share)", n_keys=4, n_queries=4),
]
