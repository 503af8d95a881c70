"""RULER's variable tracking, common words and frequent words.

Source: RULER (github.com/NVIDIA/RULER, scripts/data/synthetic: variable_tracking.py, common_words_extraction.py,
freq_words_extraction.py), without its example before the question. Common words are taken from this package's prose,
and where a text needs more, made of syllables.
"""

from __future__ import annotations

import itertools
import random
import re
import string

from .. import prose_sections
from .needles import NOISE
from .shape import Item, Question, Task, Tokens, share_said

N_HOPS = 4
TRACK = "Memorize and track the chain(s) of variable assignment hidden in the following text.\n\n"
TRACK_ASK = (
    "\nQuestion: Find all variables that are assigned the value {query} in the text above. Answer: According to the "
    "chain(s) of variable assignment in the text above, {n} variables are assigned the value {query}, they are: "
)
N_COMMON = 10
# how often a common and another word appears: in texts below and from 4,096 tokens
REPEATS = ((6, 1), (30, 3))
COMMON = (
    "Below is a numbered list of words. In these words, some appear more often than others. Memorize the ones that "
    "appear most often.\n"
)
COMMON_ASK = (
    "\nQuestion: What are the 10 most common words in the above list? Answer: The top 10 words that appear most often "
    "in the list are:"
)
SYLLABLES = "ba ce di fo gu ha ji ko la me ni po qua re su ta vi wo xe yu za bri cla dro fle gra plo sta tre"
ZETA_2 = 1.6449340668482264  # of RULER's alpha, 2
CODED = (
    "Read the following coded text and track the frequency of each coded word. Find the three most frequently appeared "
    "coded words. "
)
CODED_ASK = (
    "\nQuestion: Do not provide any explanation. Please ignore the dots '....'. What are the three most frequently "
    "appeared words in the above coded text? Answer: According to the coded text above, the three most frequently "
    "appeared words are:"
)


def tracked(tokens_of: Tokens, i_item: int, n_tokens: int) -> Item:
    """One chain of five variables in noise."""
    rng = random.Random(f"vt {i_item}")
    names = ["".join(rng.choices(string.ascii_uppercase, k=5)) for _ in range(N_HOPS + 1)]
    value = str(rng.randrange(10000, 99999))
    chain = [f"VAR {names[0]} = {value}", *(f"VAR {b} = VAR {a} " for a, b in itertools.pairwise(names))]
    n_chain = len(tokens_of("\n".join(chain)))
    n_lines = max(1, (n_tokens - n_chain - len(tokens_of(TRACK))) // len(tokens_of(f"\n{NOISE}")))
    lines = [NOISE] * n_lines
    for i, place in enumerate(sorted(rng.choices(range(n_lines), k=len(chain)))):
        lines.insert(place + i, chain[i])
    question = tokens_of(TRACK_ASK.format(query=value, n=len(names)))
    return Item("noise", tokens_of.begin + tokens_of(TRACK + "\n".join(lines)), (Question(question, tuple(names), 40),))


def common(tokens_of: Tokens, i_item: int, n_tokens: int) -> Item:
    rng = random.Random(f"cwe {i_item}")
    found = sorted(set(re.findall(r"\b[a-z]{4,10}\b", " ".join(prose_sections()))))
    words = [word for word in found if word not in COMMON_ASK]
    rng.shuffle(words)
    n_often, n_seldom = REPEATS[n_tokens >= 4096]

    def text(n_listed: int) -> str:
        n_others = max(N_COMMON, (n_listed - N_COMMON * n_often) // n_seldom)
        made = random.Random(f"made {i_item}")
        # a long text has more words than the prose
        more = ["".join(made.choices(SYLLABLES.split(), k=3)) for _ in range(N_COMMON + n_others - len(words))]
        listed = words[:N_COMMON] * n_often + [*words, *more][N_COMMON : N_COMMON + n_others] * n_seldom
        random.Random(f"order {i_item}").shuffle(listed)
        return COMMON + " ".join(f"{i + 1}. {word}" for i, word in enumerate(listed))

    n_listed = n_tokens // 4
    for _ in range(3):
        n_listed = n_listed * n_tokens // len(tokens_of(text(n_listed)))
    question = Question(tokens_of(COMMON_ASK), tuple(words[:N_COMMON]), 80)
    return Item("list", tokens_of.begin + tokens_of(text(n_listed)), (question,))


def frequent(tokens_of: Tokens, i_item: int, n_tokens: int) -> Item:
    """Words of six letters as often as the zeta distribution says; the most frequent one is dots."""
    rng = random.Random(f"fwe {i_item}")
    n_vocabulary = max(20, n_tokens // 50)
    words = ["...", *("".join(rng.choices(string.ascii_lowercase, k=6)) for _ in range(n_vocabulary))]

    def text(n_words: int) -> str:
        listed = [word for k, word in enumerate(words, 1) for _ in range(int(n_words / k**2 / ZETA_2))]
        random.Random(f"order {i_item}").shuffle(listed)
        return CODED + " ".join(listed)

    n_words = 200
    for _ in range(3):  # a rare word appears in long texts alone
        n_words = n_words * n_tokens // len(tokens_of(text(n_words)))
    question = Question(tokens_of(CODED_ASK), tuple(words[1:4]), 40)
    return Item("coded", tokens_of.begin + tokens_of(text(n_words)), (question,))


TASKS = [
    Task(
        "ruler-vt",
        "RULER: all variables that a chain of assignments gives a value (share of five)",
        tracked,
        share_said,
    ),
    Task("ruler-cwe", "RULER: the ten words that a list has most often (share)", common, share_said),
    Task("ruler-fwe", "RULER: the three most frequent coded words (share)", frequent, share_said),
]
