"""What a session begins with, and how much of it is never evicted."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, Literal

from ..cache.archive import RAM
from ..config import MorphKV
from ..errors import NoRoomError
from .history import History
from .keep import Keep
from .model import ChatModel
from .template import ChatTemplate, Message, Rendered

logger = logging.getLogger("morphkv_cpp")

SessionKeep = Keep | Literal["auto"]
MOST = 4  # times the capacity of the settings: as large may "auto" make it
ENDS = ("system", "assistant", "user", "tool")


def opening_history(system: str | None, messages: Sequence[Message] | None) -> History:
    """The messages that a session begins with; those behind the last answer wait for one.

    Raises ValueError for messages that cannot be.
    """
    messages = [dict(message) for message in messages or ()]
    if system is not None:
        if messages and messages[0]["role"] == "system":
            raise ValueError("system must be given once, got it as system= and as the first message")
        messages.insert(0, {"role": "system", "content": system})
    if messages and messages[-1]["role"] not in ENDS:
        raise ValueError(f"messages must end with the role {', '.join(ENDS)}, got {messages[-1]['role']!r}")
    if messages and messages[0]["role"] == "system" and not isinstance(messages[0]["content"], str):
        raise ValueError(f"the system text must be a str, got {messages[0]['content']!r}")
    n_opening = len(messages)
    while n_opening > 0 and messages[n_opening - 1]["role"] in ("user", "tool"):
        n_opening -= 1
    return History(tuple(messages[:n_opening]), pending=tuple(messages[n_opening:]))


def n_kept(
    llm: ChatModel, config: MorphKV, template: ChatTemplate, system: str | None, keep: SessionKeep, **options: Any
) -> int:
    """How many first tokens of a session `keep` means; options: of the template, e.g. tools.

    Raises ValueError where they leave no room.
    """
    if keep is None:
        n_keep = config.keep
    elif keep in ("system", "auto"):
        n_keep = max(config.keep, len(tokens_of(llm, template.before_question(system, **options))))
    elif isinstance(keep, int) and not isinstance(keep, bool):
        n_keep = keep
    else:
        raise ValueError(f'keep must be "system", "auto", a number of tokens or None, got {keep!r}')
    if n_keep < 0:
        raise ValueError(f"keep must not be negative, got {n_keep}")
    if n_keep >= config.capacity - config.n_recent:
        what = "the system prompt" if isinstance(keep, str) else "keep"
        enough = config.capacity + n_keep - config.keep  # as much room beside it as beside the settings' own
        raise NoRoomError(
            f"{what} must have less than capacity - window tokens to be kept, got {n_keep} with "
            f"{config.capacity} - {config.n_recent}: MorphKV(capacity={enough}), or --capacity {enough}, keeps it all",
            n_keep,
            enough,
        )
    return n_keep


def raise_capacity(llm: ChatModel, error: NoRoomError) -> None:
    """Give the Llama a cache with the room that lacked; raises the error where that cannot be, or may not."""
    config, archive = llm.morphkv, llm.archive
    if config is None or llm._evals is None or error.capacity > MOST * config.capacity:
        raise error
    if any(text.is_needed for text in llm._evals.texts) or (archive is not None and archive.place != RAM):
        raise error
    llm._leave_text()
    llm.reset()
    llm._clear()
    llm._evals.checkpoints.clear()
    try:
        llm._raise_capacity(error.capacity)
    except ValueError as why:
        raise error from why
    logger.info("session: %d tokens are to be kept, so capacity is %d now", error.n_keep, error.capacity)


def tokens_of(llm: ChatModel, rendered: Rendered) -> list[int]:
    return llm.tokenize(rendered.text.encode(), add_bos=rendered.add_bos, special=True)
