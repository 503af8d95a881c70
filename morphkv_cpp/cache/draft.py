"""Speculative decoding on a cache that evicts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
from llama_cpp.llama_speculative import LlamaDraftModel

from ..config import MorphKV
from .stats import CacheStats


class DraftUpToEviction(LlamaDraftModel):
    """A draft model whose drafts end where the next eviction falls due.

    So evictions fall between the same tokens as without a draft: tokens that may be taken back never vote, and the
    greedy text is the same.
    """

    def __init__(self, stats: Callable[[], CacheStats], config: MorphKV, draft_model: LlamaDraftModel):
        self._stats = stats
        self._config = config
        self._draft_model = draft_model

    def __call__(self, input_ids: npt.NDArray[np.intc], /, **kwargs: Any) -> npt.NDArray[np.intc]:
        stats = self._stats()
        # The draft goes into one batch with the token before it. Where an eviction is due already, that token comes
        # alone, as the eviction may wait for it.
        n_free = stats.min_capacity + self._config.interval - stats.n_used - 1
        if n_free <= 0:
            return np.empty(0, dtype=np.intc)
        return self._draft_model(input_ids, **kwargs)[:n_free]
