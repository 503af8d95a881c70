"""Log probabilities of an answer's tokens, in the form that llama_cpp and OpenAI's completions give them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from ..cache.live import Logits
from .model import TextModel


class TokenLogprobs(NamedTuple):
    """One token."""

    text: str
    offset: int  # characters of the text before it
    logprob: float | None
    top: dict[str, float] | None  # most likely tokens, the likeliest first, and the token itself


def token_logprobs(llm: TextModel, token: int, logits: Logits, offset: int, n_top: int) -> TokenLogprobs:
    """logits: (n_vocab,), from which the token was drawn."""
    logprobs = llm.logits_to_logprobs(logits)
    text = token_text(llm, token)
    top = {token_text(llm, i): float(logprobs[i]) for i in _likeliest(logprobs, n_top)}
    top[text] = float(logprobs[token])
    return TokenLogprobs(text, offset, top[text], top)


def token_text(llm: TextModel, token: int) -> str:
    return llm._piece(token).decode("utf-8", errors="ignore")


def as_completion(tokens: Sequence[TokenLogprobs], first_offset: int) -> dict[str, list[Any]]:
    """llama_cpp's CompletionLogprobs."""
    return {
        "tokens": [token.text for token in tokens],
        "text_offset": [first_offset + token.offset for token in tokens],
        "token_logprobs": [token.logprob for token in tokens],
        "top_logprobs": [token.top for token in tokens],
    }


def _likeliest(logprobs: Logits, n: int) -> list[int]:
    """The n most likely tokens, the likeliest first; of equally likely ones that with the higher id."""
    candidates = np.arange(len(logprobs))
    if 0 < n < len(logprobs):
        # a full sort of the vocabulary would take longer than many a model's decode
        lowest = np.partition(logprobs, -n)[-n]
        candidates = np.flatnonzero(logprobs >= lowest)
    order = np.lexsort((candidates, logprobs[candidates]))[::-1]
    likeliest: list[int] = candidates[order][:n].tolist()
    return likeliest
