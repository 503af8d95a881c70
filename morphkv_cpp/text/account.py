"""What an answer took, in the words of OpenAI's `usage` and of llama-server's `timings`."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypedDict

from ..cache.archive import Recall
from ..cache.attached import joined
from ..cache.live import Live
from ..cache.reuse import PromptReuse


class CachedTokens(TypedDict):
    cached_tokens: int  # were in the cache already


class PromptTokensDetails(CachedTokens, total=False):
    restored_tokens: int  # of these, gone back to by the archive: not the same bits as evaluated; where there are any


class Usage(TypedDict):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails


class Recalled(TypedDict, total=False):
    recalled_from: dict[str, int]  # of recalled_n, by the path of an attached file; where any is
    reread_n: int  # tokens of attached files that were decoded anew; where any is


class Timings(Recalled):
    """As in llama-server. Counts are in tokens, except evictions_n and recalls_n, which count events."""

    cache_n: int  # of the prompt, in the cache
    restored_n: int  # of these, gone back to by the archive
    prompt_n: int  # of the prompt, evaluated
    prompt_ms: float
    prompt_per_token_ms: float
    prompt_per_second: float
    predicted_n: int
    predicted_ms: float
    predicted_per_token_ms: float
    predicted_per_second: float
    evictions_n: int
    evicted_n: int  # per KV head
    evict_ms: float
    kept_n: int  # cells in use: tokens that each KV head has
    recalls_n: int  # those of the prompt
    recalled_n: int  # summed over layers and KV heads
    recall_ms: float


@dataclass(frozen=True)
class Account:
    usage: Usage
    timings: Timings


class Clock:
    """From before the prompt to the end of its answer."""

    def __init__(self, llm: Live):
        self._llm = llm
        self._before = llm.cache_stats()
        self._start_s = time.perf_counter()
        self._first_s: float | None = None

    def token(self) -> None:
        """A token has come."""
        if self._first_s is None:
            self._first_s = time.perf_counter()

    def account(self, reuse: PromptReuse, n_answer: int, recalls: Sequence[Recall]) -> Account:
        end_s = time.perf_counter()
        first_s = end_s if self._first_s is None else self._first_s
        prompt_ms, predicted_ms = (first_s - self._start_s) * 1e3, (end_s - first_s) * 1e3
        before, after = self._before, self._llm.cache_stats()
        usage: Usage = {
            "prompt_tokens": reuse.n_prompt,
            "completion_tokens": n_answer,
            "total_tokens": reuse.n_prompt + n_answer,
            "prompt_tokens_details": {"cached_tokens": reuse.n_cached},
        }
        if reuse.n_restored > 0:
            usage["prompt_tokens_details"]["restored_tokens"] = reuse.n_restored
        timings: Timings = {
            "cache_n": reuse.n_cached,
            "restored_n": reuse.n_restored,
            "prompt_n": reuse.n_evaluated,
            "prompt_ms": prompt_ms,
            "prompt_per_token_ms": _per(prompt_ms, reuse.n_evaluated),
            "prompt_per_second": _per(1e3 * reuse.n_evaluated, prompt_ms),
            "predicted_n": n_answer,
            "predicted_ms": predicted_ms,
            "predicted_per_token_ms": _per(predicted_ms, n_answer),
            "predicted_per_second": _per(1e3 * n_answer, predicted_ms),
            "evictions_n": after.n_evictions - reuse.n_evictions,
            "evicted_n": after.n_evicted - reuse.n_evicted,
            "evict_ms": after.evict_ms - before.evict_ms,
            "kept_n": after.n_used,
            "recalls_n": len(recalls),
            "recalled_n": sum(recall.n_recalled for recall in recalls),
            "recall_ms": sum(recall.took_ms for recall in recalls),
        }
        if self._llm.archive is not None and self._llm.archive.attach:
            sources = joined(tuple(source for recall in recalls for source in recall.sources))
            timings["recalled_from"] = {source.path: source.n_recalled for source in sources}
            timings["reread_n"] = sum(recall.n_reread for recall in recalls)
        return Account(usage, timings)


def _per(value: float, n: float) -> float:
    return value / n if n else 0.0


def accounted(answer: Any, account: Callable[[], Account | None]) -> Any:
    """A chat's answer, or the last chunk of its stream, with what it took: llama_cpp's chat handlers leave that out.

    account: what the completion behind it has left, once it has ended.
    """
    if isinstance(answer, dict):
        found = account()
        return answer if found is None else {**answer, **asdict(found)}
    return _accounted_chunks(answer, account)


def _accounted_chunks(chunks: Iterator[Any], account: Callable[[], Account | None]) -> Iterator[Any]:
    for chunk in chunks:
        ends = any(choice.get("finish_reason") for choice in chunk.get("choices", ()))
        found = account() if ends else None
        yield chunk if found is None else {**chunk, **asdict(found)}
