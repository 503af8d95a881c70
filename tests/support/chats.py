"""Sessions on tiny models, which would end an answer anywhere: answers of a length, or of given tokens."""

from __future__ import annotations

from collections.abc import Iterable

from morphkv_cpp import Llama, Session
from morphkv_cpp.text.tokens import end_tokens
from morphkv_cpp.text.write import BanTokens, ForceTokens
from support.tiny import held

# isort: split
# after morphkv_cpp, which says what libllama is loaded
from llama_cpp import LogitsProcessorList

TURN = "<|im_end|>\n<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"  # behind an answer, as chatml has it


def no_end(llm: Llama) -> LogitsProcessorList:
    """No token ends an answer."""
    return LogitsProcessorList([BanTokens(end_tokens(llm))])


def forced(tokens: Iterable[int]) -> LogitsProcessorList:
    return LogitsProcessorList([ForceTokens(tokens)])


def talk(chat: Session, text: str, n_tokens: int | None = 10, **options) -> str:
    """An answer of n_tokens."""
    options = {"temperature": 0.0, "logits_processor": no_end(chat._llm)} | options
    return "".join(chat.say(text, max_tokens=n_tokens, **options))


def text_of(chat: Session) -> list[int]:
    """All tokens of a chat that has the cache."""
    assert chat._text.is_live
    return held(chat._llm) + chat._text.ahead
