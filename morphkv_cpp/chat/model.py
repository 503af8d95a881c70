"""What chats need of a Llama beyond its text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from llama_cpp.llama_chat_format import LlamaChatCompletionHandler

from ..cache.one_thread import OneThread
from ..cache.worker import Worker
from ..config import MorphKV
from ..text.model import TextModel


class ChatModel(TextModel, Protocol):
    """As cache.live.Live: what begins with an underscore is not for users."""

    _one_thread: OneThread
    _worker: Worker

    @property
    def least_morphkv(self) -> MorphKV | None: ...

    @property
    def chat_format(self) -> str | None: ...

    @property
    def chat_handler(self) -> LlamaChatCompletionHandler | None: ...

    @property
    def _chat_handlers(self) -> Mapping[str, LlamaChatCompletionHandler]:
        """Those in the model's file, by format."""

    @property
    def _cache_types(self) -> tuple[int, int]:
        """Of K and V, numbers of ggml.h."""

    def _raise_capacity(self, capacity: int) -> None:
        """Put a larger cache in place of this one, which holds nothing that is needed. Raises ValueError."""

    n_batch: int

    def reset(self) -> None: ...

    def eval(self, tokens: Sequence[int]) -> None: ...
