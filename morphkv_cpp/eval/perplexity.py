"""Perplexity of texts that stream through the cache in chunks, and paired comparisons of caches.

A chunk is as long as the eviction interval: with no prompt room the cache is then cut before every chunk, as it is
when the tokens come one by one. Differences between caches are taken token by token on the same texts.
"""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import numpy.typing as npt

from morphkv_cpp import Llama, MorphKV
from morphkv_cpp.extras import needs_extra

Values = npt.NDArray[np.float64]  # -log p, token by token

N_BLOCK = 128  # neighbouring tokens have errors in common: the noise is that of the means of such blocks


class Estimate(NamedTuple):
    mean: float
    error: float  # standard error; NaN where it cannot be told


class _ChunkLogits:
    """Stands in for Llama.scores, which has a row for every position of the context: holds the newest chunk's alone."""

    def __init__(self, n_chunk: int, n_vocab: int):
        self.rows = np.empty((n_chunk, n_vocab), dtype=np.float32)

    def __getitem__(self, index: tuple[slice, slice]) -> npt.NDArray[np.float32]:
        positions, _ = index
        return self.rows[: positions.stop - positions.start]


def open_for_nll(model: Path, morphkv: MorphKV | None, n_tokens: int, n_chunk: int, **llama_options: Any) -> Llama:
    """A model whose eval() leaves the logits of all tokens of a chunk in `scores.rows`."""
    n_ctx = n_tokens + n_chunk
    if morphkv is not None:
        n_ctx = max(n_ctx, morphkv.capacity + max(morphkv.interval, morphkv.prompt_room))
    options = {**llama_options, "n_ctx": n_ctx, "n_batch": n_chunk, "n_ubatch": n_chunk}
    llm = Llama(model, morphkv=morphkv, **options)
    llm._logits_all = True  # given to Llama(), it would have made room for n_ctx rows
    llm.scores = _ChunkLogits(n_chunk, llm.n_vocab())  # type: ignore[assignment]
    return llm


def nll(logits: npt.NDArray[np.float32], targets: npt.NDArray[np.int64]) -> Values:
    """-log p of the targets (n,), float64, from the logits (n, n_vocab)."""
    top = logits.max(axis=1).astype(np.float64)
    total = np.exp(logits - top[:, None]).sum(axis=1)
    values: Values = np.log(total) + top - logits[np.arange(len(targets)), targets]
    return values


def stream_nll(llm: Llama, tokens: Sequence[int], on_chunk: Callable[[int], None] = lambda n: None) -> Values:
    """-log p of every token but the first, float64 (n_tokens - 1,); `llm` comes from open_for_nll()."""
    llm.reset()
    chunk_logits = cast(_ChunkLogits, llm.scores)
    targets = np.asarray(tokens[1:])
    values = []
    for start in range(0, len(targets), llm.n_batch):
        chunk = tokens[start : min(start + llm.n_batch, len(targets))]
        llm.eval(chunk)
        values.append(nll(chunk_logits.rows[: len(chunk)], targets[start : start + len(chunk)]))
        on_chunk(len(chunk))
    return np.concatenate(values)


def block_means(values: Values, n_block: int = N_BLOCK) -> Values:
    """Means over consecutive blocks of about n_block values."""
    n_blocks = max(1, round(len(values) / n_block))
    return np.array([block.mean() for block in np.array_split(values, n_blocks)])


def standard_error(means: Values) -> float:
    with needs_extra("bench"):
        from scipy.stats import sem

    return float(sem(means)) if len(means) > 1 else math.nan


def perplexity(values: Values) -> Estimate:
    """exp of the mean, with its standard error over blocks of tokens."""
    mean = float(np.exp(values.mean()))
    return Estimate(mean, mean * standard_error(block_means(values)))


def buckets(values: Values, n_bucket: int) -> list[tuple[int, int, Estimate]]:
    """(first, behind the last, perplexity) for each stretch of n_bucket positions; `values` starts at position 1."""
    edges = range(0, len(values) + 1, n_bucket)
    rows = ((max(edge, 1), min(edge + n_bucket, len(values) + 1)) for edge in edges)
    return [(first, end, perplexity(values[first - 1 : end - 1])) for first, end in rows if end > first]


class Difference(NamedTuple):
    """Mean -log p of one cache less that of another on the same tokens; positive: the first one is worse."""

    mean: float
    block_error: float  # standard error as the blocks of tokens within the texts scatter
    text_error: float  # as the means of the texts scatter; NaN with a single text

    @property
    def error(self) -> float:
        """The larger of the two."""
        return float(np.nanmax([self.block_error, self.text_error]))

    @property
    def in_errors(self) -> float:
        if self.error == 0.0:
            return math.copysign(math.inf, self.mean) if self.mean else 0.0
        return self.mean / self.error


def difference(first: Sequence[Values], second: Sequence[Values], n_skip: int) -> Difference:
    """Of two caches, each with one array of -log p a text, whose first n_skip are left out. Texts weigh the same."""
    deltas = [a[n_skip:] - b[n_skip:] for a, b in zip(first, second)]
    if not all(len(delta) > N_BLOCK for delta in deltas):
        raise ValueError(f"a text must have more than {n_skip} + {N_BLOCK} tokens to be compared on")
    text_means = np.array([delta.mean() for delta in deltas])
    block_errors = np.array([standard_error(block_means(delta)) for delta in deltas])
    block_error = float(np.sqrt(np.square(block_errors).sum())) / len(deltas)
    return Difference(float(text_means.mean()), block_error, standard_error(text_means))
