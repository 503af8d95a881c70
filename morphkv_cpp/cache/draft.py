"""Speculative decoding on a cache that evicts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
from llama_cpp.llama_speculative import LlamaDraftModel

from .. import bridge
from ..config import MorphKV
from .archive import Archive
from .stats import CacheStats

N_MOST = 31  # with the token before it a batch that the native library takes for a draft (MORPHKV_DRAFT_MAX)


class DraftUpToEviction(LlamaDraftModel):
    """A draft model whose drafts end where the next eviction, rebase or recall falls due.

    So these fall between the same tokens as without a draft: tokens that may be taken back never vote nor ask, and the
    greedy text is the same, but for rounding.
    """

    def __init__(
        self,
        stats: Callable[[], CacheStats],
        config: MorphKV,
        archive: Archive | None,
        draft_model: LlamaDraftModel,
    ):
        self._stats = stats
        self._config = config
        self._archive = archive
        self._draft_model = draft_model

    def __call__(self, input_ids: npt.NDArray[np.intc], /, **kwargs: Any) -> npt.NDArray[np.intc]:
        n_most = self._n_most()
        if n_most <= 0:
            return np.empty(0, dtype=np.intc)
        return self._draft_model(input_ids, **kwargs)[:n_most]

    def _n_most(self) -> int:
        stats = self._stats()
        n_tokens = stats.logical_pos + 1
        # The draft goes into one batch with the token before it. Where an eviction is due already, that token comes
        # alone, as the eviction may wait for it.
        n_most = min(stats.min_capacity + self._config.interval - stats.n_used - 1, N_MOST)
        if stats.rope_limit > 0:
            n_most = min(n_most, stats.rope_limit - (n_tokens - stats.rotary_offset) - 1)
        if self._archive is not None and self._archive.recall == "auto":
            n_most = min(n_most, bridge.WRITE_STEP - n_tokens % bridge.WRITE_STEP - 1)
        elif self._archive is not None and not isinstance(self._archive.recall, str):
            # it comes behind a batch: so does the token that it is due behind
            n_period = self._archive.recall * self._config.interval
            n_most = min(n_most, n_period - n_tokens % n_period - 2)
        return n_most
