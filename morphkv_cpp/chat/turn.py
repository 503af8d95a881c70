"""What a question and its answer took."""

from __future__ import annotations

from dataclasses import dataclass

from ..cache.attached import Source


@dataclass(frozen=True)
class Turn:
    """What one question and its answer took. Counts are in tokens."""

    prompt_tokens: int  # evaluated before the answer: the end of the last answer, the question, the template's text
    cached_tokens: int  # of a session's first prompt, those that were in the cache
    completion_tokens: int
    finish_reason: str  # "stop", "length" (max_tokens, or n_ctx is full) or "interrupted"
    n_evicted: int  # per KV head, during the turn
    reprocessed: bool  # some of a session's first prompt was in the cache, but partly evicted: all was evaluated
    seconds: float
    rate_tok_s: float  # of the answer after its first token; 0 if there is none
    n_recalled: int = 0  # tokens recalled from the archive for the question, summed over layers and KV heads
    recall_ms: float = 0.0  # time spent in recalls
    media_tokens: int = 0  # of the question's images; they are evaluated before the answer, besides prompt_tokens
    again_tokens: int = 0  # of prompt_tokens, those of the chat before that had to be evaluated again
    restored_tokens: int = 0  # of the chat before, those that came back by the archive: nearly what was evaluated
    sources: tuple[Source, ...] = ()  # attached files that something was recalled from for the question
