"""Going back by the archive, where a prompt leaves the text at a place that is evicted in part, far from a checkpoint.

Tokens come back that were evaluated in a context which is not there any more, and cells hold them as the archive does:
the answer is near the one after all had been evaluated, and need not be the same.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from .. import bridge
from ..errors import DecodeError
from .live import Live, TokenIds
from .reuse import PromptReuse, common_prefix, prompt_reuse

logger = logging.getLogger("morphkv_cpp")

N_AGAIN = 128  # tokens before what is new that are evaluated again, and then ask the archive
N_LEAST = 128  # tokens; to save fewer is not worth that the bits are others
N_GRAM = 32  # tokens that tell a passage from what is like it


def restore(llm: Live, prompt: Sequence[int], n_cached: int) -> PromptReuse | None:
    """Have the cache hold what a prompt shares with its text, and say how much of it is there then.

    n_cached: first tokens of the prompt that can be had without this. None where it would save little, or cannot be.
    """
    if not _may_restore(llm):
        return None
    reuse = prompt_reuse(llm, prompt)
    n = min(reuse.n_common, reuse.n_prompt - 1) - N_AGAIN
    if n < n_cached + N_LEAST or not _try(llm, n, lambda: bridge.restore(llm.ctx, prompt[:n])):
        return None
    return replace(prompt_reuse(llm, prompt), n_common=reuse.n_common, n_restored=n)


def follow_change(llm: Live, prompt: Sequence[int], n_cached: int) -> PromptReuse | None:
    """Where a prompt changes the text's beginning or leaves out a part: have what is behind the change come along.

    As restore().
    """
    if not _may_restore(llm):
        return None
    reuse = prompt_reuse(llm, prompt)
    n_common = min(reuse.n_common, reuse.n_prompt - 1)
    # first tokens that need not be evaluated without this
    n_first = max(n_cached, n_common - N_AGAIN)
    if n_common == 0 or reuse.n_prompt - n_first < N_AGAIN + N_LEAST:
        return None
    moved = find_moved(llm._input_ids, np.asarray(prompt, dtype=np.intc), n_common)
    if moved is None:
        return None
    n = min(moved.n, reuse.n_prompt - 1 - moved.to) - N_AGAIN
    if n_common + n < n_first + N_LEAST:
        return None

    def change() -> None:
        passage = bridge.Passage(llm.ctx, moved.first, n)
        bridge.restore(llm.ctx, prompt[:n_common])
        llm.n_tokens = n_common
        llm.decode(prompt[n_common : moved.to])
        passage.put(llm.ctx, prompt[: moved.to + n])
        llm.input_ids[llm.n_tokens : moved.to + n] = prompt[llm.n_tokens : moved.to + n]

    if not _try(llm, moved.to + n, change):
        return None
    stats = llm.cache_stats()
    return PromptReuse(reuse.n_prompt, reuse.n_common, n_common + n, n_common + n, stats.n_evictions, stats.n_evicted)


@dataclass(frozen=True)
class Moved:
    """Tokens that a text has from `first` on, and a prompt from `to` on."""

    first: int
    to: int
    n: int


def find_moved(text: TokenIds, prompt: TokenIds, n_common: int) -> Moved | None:
    """The first passage of a prompt behind what it shares with a text that the text has elsewhere."""
    data = text.tobytes()
    for to in range(n_common, len(prompt) - N_GRAM, N_GRAM // 2):
        gram = prompt[to : to + N_GRAM].tobytes()
        at = data.find(gram, n_common * text.itemsize)
        while at >= 0 and at % text.itemsize:
            at = data.find(gram, at + 1)
        if at < 0:
            continue
        first = at // text.itemsize
        n_before = common_prefix(text[n_common:first][::-1], prompt[n_common:to][::-1])
        n_behind = common_prefix(text[first:], prompt[to:])
        return Moved(first - n_before, to - n_before, n_before + n_behind)
    return None


def _may_restore(llm: Live) -> bool:
    archive = llm.archive
    return archive is not None and archive.restore and len(llm._input_ids) > 0 and llm._input_ids.min() >= 0


def _try(llm: Live, n_tokens: int, change: Callable[[], object]) -> bool:
    """Whether the cache holds n_tokens after a change; if not, the text's beginning, or what it was."""
    try:
        change()
    except bridge.UnsupportedError as error:
        logger.debug("%s", error)
        return False
    except (bridge.NativeError, DecodeError) as error:
        logger.info("the archive cannot bring back what a prompt shares with its text: %s", error)
        n_tokens = -1
    llm.n_tokens = llm.cache_stats().logical_pos + 1
    llm._requires_eval = True
    return llm.n_tokens == n_tokens
