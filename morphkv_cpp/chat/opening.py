"""What a session begins with, and how much of it is never evicted."""

from __future__ import annotations

from collections.abc import Sequence

from ..config import MorphKV
from .keep import Keep
from .model import ChatModel
from .template import ChatTemplate, Message, Rendered


def opening_messages(system: str | None, messages: Sequence[Message] | None) -> list[Message]:
    """The messages that a session begins with. Raises ValueError for those that cannot be."""
    messages = [dict(message) for message in messages or ()]
    if system is not None:
        if messages and messages[0]["role"] == "system":
            raise ValueError("system must be given once, got it as system= and as the first message")
        messages.insert(0, {"role": "system", "content": system})
    if messages and messages[-1]["role"] not in ("system", "assistant"):
        raise ValueError(f"messages must end with an answer (role assistant), got {messages[-1]['role']!r}")
    if messages and messages[0]["role"] == "system" and not isinstance(messages[0]["content"], str):
        raise ValueError(f"the system text must be a str, got {messages[0]['content']!r}")
    return messages


def n_kept(llm: ChatModel, config: MorphKV, template: ChatTemplate, system: str | None, keep: Keep) -> int:
    """How many first tokens of a session `keep` means. Raises ValueError where they leave no room."""
    if keep is None:
        n_keep = config.keep
    elif keep == "system":
        n_keep = max(config.keep, len(tokens_of(llm, template.before_question(system))))
    elif isinstance(keep, int) and not isinstance(keep, bool):
        n_keep = keep
    else:
        raise ValueError(f'keep must be "system", a number of tokens or None, got {keep!r}')
    if not 0 <= n_keep < config.capacity - config.window:
        what = "the system prompt" if keep == "system" else "keep"
        raise ValueError(
            f"{what} must have less than capacity - window tokens to be kept, got {n_keep} with "
            f"{config.capacity} - {config.window}"
        )
    return n_keep


def tokens_of(llm: ChatModel, rendered: Rendered) -> list[int]:
    return llm.tokenize(rendered.text.encode(), add_bos=rendered.add_bos, special=True)
