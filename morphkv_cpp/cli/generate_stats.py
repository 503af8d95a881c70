"""What `morphkv generate` tells of a text that it has written: a line, or fields for JSON."""

from collections.abc import Sequence
from dataclasses import dataclass

from .. import Archive, CacheStats, Llama, MorphKV, bridge
from .show import mebibytes


@dataclass(frozen=True)
class Written:
    """A text after a prompt, and what it took. Counts are in tokens."""

    morphkv: MorphKV | None  # None with --stock
    archive: Archive | None
    text: str
    finish_reason: str  # "stop", "length" (--predict, or n_ctx is full) or "interrupted"
    n_prompt: int
    prompt_s: float | None  # until the first token was written; None where none was
    n_written: int
    rate_tok_s: float | None  # of the tokens behind the first one
    n_ctx: int
    n_ctx_train: int
    kv_bytes: int
    cache: CacheStats | None  # None with --stock

    def sentence(self) -> str:
        """One line."""
        n_tokens = self.n_prompt + self.n_written
        parts = [f"{self.n_prompt} prompt tokens"]
        if self.prompt_s is not None:
            parts[0] += f" in {self.prompt_s:.2f} s"
        rate = "" if self.rate_tok_s is None else f" at {self.rate_tok_s:.1f} tok/s"
        parts.append(f"{self.n_written} written{rate}")
        if n_tokens >= self.n_ctx:
            parts.append(f"stopped: n_ctx={self.n_ctx} is full")
        if n_tokens > self.n_ctx_train:
            parts.append(f"past the {self.n_ctx_train} tokens of the trained context, where quality ends")
        parts.append(f"K+V {mebibytes(self.kv_bytes)}")
        if stats := self.cache:
            parts.append(f"{stats.n_used} of {stats.n_limit} cells in use")
            parts.append(f"{stats.n_evictions} evictions, {stats.evict_ms / max(stats.n_evictions, 1):.1f} ms each")
            if self.archive is not None:
                parts.append(f"{stats.n_archived} tokens archived in {mebibytes(stats.archive_bytes)}")
                parts.append(f"{stats.n_recalls} recalls in {stats.recall_ms:.0f} ms")
        return "; ".join(parts)


def written(
    llm: Llama, text: str, n_prompt: int, times: Sequence[float], n_predict: int, is_interrupted: bool
) -> Written:
    """times: the start, then one for each token written, in seconds; the first token's time is the prompt's."""
    n_written = len(times) - 1
    is_full = n_prompt + n_written >= llm.n_ctx()
    ended = "length" if n_written == n_predict or is_full else "stop"
    return Written(
        morphkv=llm.morphkv,
        archive=llm.archive,
        text=text,
        finish_reason="interrupted" if is_interrupted else ended,
        n_prompt=n_prompt,
        prompt_s=times[1] - times[0] if n_written else None,
        n_written=n_written,
        rate_tok_s=(n_written - 1) / (times[-1] - times[1]) if n_written > 1 else None,
        n_ctx=llm.n_ctx(),
        n_ctx_train=llm._model.n_ctx_train(),
        kv_bytes=bridge.kv_bytes(llm.ctx),
        cache=None if llm.morphkv is None else llm.cache_stats(),
    )
