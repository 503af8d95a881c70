"""Writing token by token: what `morphkv generate`, the demo and its stock counterpart share.

Their loop is their own: stock llama_cpp.Llama.create_completion turns all tokens back into text at every token, which
would be timed with the cache.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import llama_cpp
import numpy as np

from ..errors import ContextFullError
from .model import TextModel
from .tokens import end_tokens


class BanTokens:
    """Logits processor: these tokens are never drawn."""

    def __init__(self, tokens: Iterable[int]):
        self.tokens = np.fromiter(tokens, dtype=np.int64)

    def __call__(self, input_ids: np.ndarray, scores: np.ndarray) -> np.ndarray:
        scores[self.tokens] = -np.inf
        return scores


class ForceTokens:
    """Logits processor: draws the given tokens in order, through the same sampler as free writing."""

    def __init__(self, tokens: Iterable[int]):
        self.tokens = iter(tokens)

    def __call__(self, input_ids: np.ndarray, scores: np.ndarray) -> np.ndarray:
        scores[:] = -np.inf
        scores[next(self.tokens)] = 0.0
        return scores


def write(
    llm: TextModel, prompt: list[int], n_predict: int, processors: Iterable[Any] = (), **sampling: Any
) -> Iterator[int]:
    """Tokens after the prompt: n_predict of them (-1: no limit), or fewer where one ends the text or n_ctx is full.

    `sampling` as in Llama.generate(). Raises ContextFullError for a prompt that leaves no place for an answer.
    """
    n_room = llm.n_ctx() - len(prompt)
    if not prompt or n_room < 1:
        raise ContextFullError(f"a prompt must have 1..{llm.n_ctx() - 1} tokens in this context, got {len(prompt)}")
    n_most = n_room if n_predict < 0 else min(n_predict, n_room)
    if n_most == 0:
        return
    ends = set(end_tokens(llm))
    processors = llama_cpp.LogitsProcessorList(processors)
    tokens = llm.generate(prompt, logits_processor=processors or None, **sampling)
    for i, token in enumerate(tokens, start=1):
        if token in ends:
            return
        yield token
        if i == n_most:
            return
