"""States of a Llama with MorphKV: each is taken whole, and loaded whole or not at all."""

from __future__ import annotations

from collections.abc import Callable
from typing import NoReturn

import numpy as np
from llama_cpp import LlamaState

from .. import bridge
from ..errors import StateError
from .live import Live


def check(llm: Live, state: LlamaState) -> None:
    """Raise StateError unless all but the native part can be this Llama's; TypeError for what is no state."""
    if not isinstance(state, LlamaState):
        raise TypeError(f"state must be a LlamaState, got {type(state).__name__}")
    if not is_int(state.n_tokens) or not 0 <= state.n_tokens <= llm.n_ctx():
        refuse(f"n_tokens must be in 0..{llm.n_ctx()}, got {state.n_tokens!r}")
    ids = np.asarray(state.input_ids)
    if ids.ndim != 1 or ids.dtype.kind not in "iu" or len(ids) < state.n_tokens:
        refuse(f"input_ids must be {state.n_tokens} integers, got {ids.dtype} {ids.shape}")
    if llm._logits_all:
        rows, most = np.asarray(state.scores), llm.scores.shape
        if rows.dtype.kind != "f" or rows.ndim != 2 or rows.shape[0] > most[0] or rows.shape[1] != most[1]:
            refuse(f"scores must be floats (up to {most[0]}, {most[1]}), got {rows.dtype} {rows.shape}")
    if not is_int(state.seed):
        refuse(f"seed must be an integer, got {state.seed!r}")
    if state.llama_state_size != len(state.llama_state):
        refuse(f"llama_state must have {state.llama_state_size} bytes, got {len(state.llama_state)}")


def is_int(value: object) -> bool:
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def refuse(why: str) -> NoReturn:
    raise StateError(
        f"Failed to set llama state data: it is damaged, or was saved with another model or other settings: {why}"
    )


def load(llm: Live, data: bytes, fits: Callable[[int], bool], before: LlamaState | None) -> None:
    """Load the native part, of which fits(tokens in it) must hold; else raise StateError, and the cache is as it was.

    before: the state of now, to go back to; None: it is taken here.
    """
    here = None if before is None else before.llama_state
    if here is None and llm.cache_stats().logical_pos >= 0:
        here = bridge.state(llm.ctx)
    load_own(llm, data)
    n_cache = llm.cache_stats().logical_pos + 1
    if fits(n_cache):
        return
    if here is None:
        llm._clear()
    else:
        load_own(llm, here)
    refuse(f"n_tokens does not fit a cache of {n_cache} tokens")


def load_own(llm: Live, data: bytes) -> None:
    """Load a native part that save_state has given. Raises StateError, and the cache is as it was."""
    try:
        bridge.set_state(llm.ctx, data)
    except bridge.MorphKVError as error:
        refuse(str(error))
