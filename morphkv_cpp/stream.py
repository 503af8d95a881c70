"""Writing token by token: what `generate`, the demo and its stock counterpart share.

Their loop is their own: stock llama_cpp.Llama.create_completion turns all tokens back into text at every token, which
would be timed with the cache.
"""

import codecs
from collections.abc import Iterable, Iterator

import llama_cpp
import numpy as np

from . import Llama


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


def end_tokens(llm: Llama) -> list[int]:
    """Every token that ends a generation."""
    vocab = llm._model.vocab
    return [token for token in range(llm.n_vocab()) if llama_cpp.llama_vocab_is_eog(vocab, token)]


def write(llm: Llama, prompt: list[int], n_predict: int, processors: Iterable = (), **sampling) -> Iterator[int]:
    """Tokens after the prompt: n_predict of them (-1: no limit), or fewer where one ends the text or n_ctx is full.

    `sampling` as in Llama.generate(). Raises ValueError for a prompt that leaves no place for an answer.
    """
    n_room = llm.n_ctx() - len(prompt)
    if not prompt or n_room < 1:
        raise ValueError(f"a prompt must have 1..{llm.n_ctx() - 1} tokens in this context, got {len(prompt)}")
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


class TokenText:
    """Text of tokens as they come; a character whose bytes are spread over several tokens is held back until whole."""

    def __init__(self, llm: Llama):
        self._llm = llm
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def __call__(self, token: int) -> str:
        return self._decoder.decode(self._llm._piece(token))

    def rest(self) -> str:
        """What is still held back at the end of the text."""
        return self._decoder.decode(b"", final=True)
