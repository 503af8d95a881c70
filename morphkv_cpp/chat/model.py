"""What chats need of a Llama beyond its text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from llama_cpp.llama_chat_format import LlamaChatCompletionHandler

from ..cache.evals import Evals
from ..cache.one_thread import OneThread
from ..text.model import TextModel


class ChatModel(TextModel, Protocol):
    """As cache.live.Live: what begins with an underscore is not for users."""

    chat_format: str
    chat_handler: LlamaChatCompletionHandler | None
    _chat_handlers: Mapping[str, LlamaChatCompletionHandler]  # those in the model's file, by format
    _one_thread: OneThread
    _evals: Evals | None  # with MorphKV

    def reset(self) -> None: ...
