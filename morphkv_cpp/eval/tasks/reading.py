"""Perplexity and KL divergence to the full cache, over texts of four kinds."""

from .shape import Item, Task, Tokens
from .sources import KINDS, text_of


def make(tokens_of: Tokens, i_item: int, n_tokens: int) -> Item:
    kind = KINDS[i_item % len(KINDS)]
    return Item(kind, text_of(tokens_of, kind, i_item // len(KINDS), n_tokens))


TASKS = [Task("perplexity", "perplexity, and KL divergence to the full cache", make)]
