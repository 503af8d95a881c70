"""Going back by the archive, where a prompt or a session leaves the text at a place without a checkpoint near.

Tokens come back that were evaluated in a context which is not there any more, and cells hold them as the archive does:
the answer is near the one after all had been evaluated, and need not be the same.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

import numpy as np

from .. import bridge
from ..errors import DecodeError
from .live import Live, TokenIds
from .reuse import PromptReuse, prompt_reuse

logger = logging.getLogger("morphkv_cpp")


def restore(llm: Live, prompt: Sequence[int], n_cached: int) -> PromptReuse | None:
    """Have the cache hold what a prompt shares with its text, and say how much of it is there then.

    Where the prompt changes the text's beginning, what is behind the change comes along. n_cached: first tokens of the
    prompt that can be had without this. None where it would save little, or cannot be.
    """
    text = llm._input_ids
    if not _is_possible(llm):
        return None
    plan = bridge.plan_change(text, np.asarray(prompt, dtype=np.intc), n_cached)
    n_first, n_passage = plan["n_first"], plan["n_passage"]
    if n_first == 0:
        return None
    n_common = prompt_reuse(llm, prompt).n_common
    n_held = plan["passage_to"] + n_passage if n_passage else n_first

    def change() -> None:
        passage = bridge.Passage(llm.ctx, plan["passage_first"], n_passage) if n_passage else None
        bridge.restore(llm.ctx, prompt[:n_first])
        if passage is not None:
            llm.n_tokens = n_first
            llm.decode(prompt[n_first : plan["passage_to"]])
            passage.put(llm.ctx, prompt[:n_held])
            llm.input_ids[llm.n_tokens : n_held] = prompt[llm.n_tokens : n_held]

    if not _try(llm, n_held, change):
        return None
    stats, n = llm.cache_stats(), n_first + n_passage
    return PromptReuse(len(prompt), n_common, n, n, stats.n_evictions, stats.n_evicted)


def restore_start(llm: Live, n: int, n_cached: int) -> int:
    """Have the cache hold its text's beginning, up to some tokens before its first n, which are to be evaluated again.

    How many it then holds; 0 where that would save little, or cannot be. Then it is as it was, or empty.
    """
    text = llm._input_ids
    if not _is_possible(llm):
        return 0
    n_first: int = bridge.plan_change(text, np.append(text[:n], np.intc(-1)), n_cached)["n_first"]
    if n_first == 0 or not _try(llm, n_first, lambda: bridge.restore(llm.ctx, text[:n_first].tolist())):
        return 0
    return n_first


def n_restorable(llm: Live, prompt: TokenIds) -> int:
    """First tokens of a prompt that restore() would have back."""
    if not _is_possible(llm):
        return 0
    plan = bridge.plan_change(llm._input_ids, prompt, 0)
    return plan["n_first"] + plan["n_passage"]


def _is_possible(llm: Live) -> bool:
    """Whether there is an archive that may be used so, of words alone."""
    archive, text = llm.archive, llm._input_ids
    return archive is not None and archive.restore and len(text) > 0 and int(text.min()) >= 0


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
