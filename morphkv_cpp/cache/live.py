"""The port: all that cache, text and chat know of a Llama. They are written against it, never against the class."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from llama_cpp import LlamaState
from llama_cpp._internals import LlamaContext

from ..config import MorphKV
from .archive import Archive, Recall
from .stats import CacheStats

TokenIds = npt.NDArray[np.intc]  # (n_tokens,)
Logits = npt.NDArray[np.single]  # (n_tokens, n_vocab)


class CacheHolder(Protocol):
    """A text that the cache belongs to."""

    def leave(self) -> LlamaState | None:
        """The cache is about to change: save the state, and give it."""


class Live(Protocol):
    """A model with a cache of constant size, as the rest of the package sees it: the cache's first sequence.

    What begins with an underscore is not for users.
    """

    n_tokens: int  # that count, of those in the cache
    n_batch: int
    progress: Callable[[int, int], None] | None
    last_recalls: Sequence[Recall]  # of the last prompt
    _holder: Callable[[], CacheHolder | None] | None  # a weak reference
    _requires_eval: bool  # whether the last token's logits are gone
    _seed: int

    @property
    def ctx(self) -> Any:
        """Address of the llama_context; None once closed."""

    @property
    def _ctx(self) -> LlamaContext: ...

    @property
    def morphkv(self) -> MorphKV | None: ...

    @property
    def archive(self) -> Archive | None: ...

    @property
    def input_ids(self) -> TokenIds:
        """Room for the text's ids, of which the first n_tokens count."""

    @property
    def _input_ids(self) -> TokenIds:
        """The first n_tokens ids."""

    @property
    def scores(self) -> Logits: ...

    @property
    def _scores(self) -> Logits: ...

    @property
    def _logits_all(self) -> bool: ...

    def n_ctx(self) -> int: ...

    def n_vocab(self) -> int: ...

    def cache_stats(self) -> CacheStats: ...

    def decode(self, tokens: Sequence[int]) -> None:
        """Decode tokens behind the first n_tokens; what was behind these is taken back."""

    def save_state(self) -> LlamaState: ...

    def _leave_text(self) -> LlamaState | None:
        """To be called before the cache changes; gives the state of the text that it belonged to."""

    def _set_text(self, state: LlamaState) -> None:
        """What the native part of a state does not hold."""

    @property
    def _has_drafts(self) -> bool: ...

    def _recall(self) -> Recall: ...

    def _recall_while_writing(self) -> None: ...

    def _recalled(self, fields: dict[str, Any]) -> Recall:
        """What the native library says of a recall that it has just made."""

    def _clear(self) -> None:
        """Empty the cache."""

    def _is_end(self, token: int) -> bool:
        """Whether the token ends an answer."""

    def retained(self, layer: int) -> npt.NDArray[np.int32]: ...
