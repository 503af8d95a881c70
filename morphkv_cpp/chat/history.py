"""What was said in a session: messages, and where in the text each question begins."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from .template import Message
from .turn import Turn


@dataclass(frozen=True)
class Exchange:
    """Messages that were put to the model together, and its answer."""

    n_before: int  # tokens of the chat before it
    asked: tuple[Message, ...]  # of users and tools
    answer: Message  # as create_chat_completion would give it
    written: str  # the answer as the model wrote it
    turn: Turn | None = None  # None: it is from a file

    @property
    def messages(self) -> list[Message]:
        return [*self.asked, self.answer]

    @property
    def as_written(self) -> list[Message]:
        """With the answer as it stands in the text."""
        return [*self.asked, {"role": "assistant", "content": self.written}]

    @property
    def has_question(self) -> bool:
        return any(message["role"] == "user" for message in self.asked)


@dataclass(frozen=True)
class History:
    """A session's messages. Each change gives another one, so that a change that fails leaves what was."""

    opening: tuple[Message, ...] = ()  # what the session began with; it is said together with the first question
    exchanges: tuple[Exchange, ...] = ()
    pending: tuple[Message, ...] = ()  # of users and tools, not put to the model yet
    n_untold: int = 0  # turns that were in a file of which it holds no messages
    n_opening: int = field(default=0, compare=False)  # turns that became part of the opening

    @property
    def messages(self) -> list[Message]:
        return [*self.opening, *(message for one in self.exchanges for message in one.messages), *self.pending]

    @property
    def n_turns(self) -> int:
        return self.n_untold + self.n_opening + len(self.exchanges)

    @property
    def last(self) -> Exchange | None:
        return self.exchanges[-1] if self.exchanges else None

    def with_exchange(self, exchange: Exchange) -> History:
        return replace(self, exchanges=(*self.exchanges, exchange), pending=())

    def as_opening(self) -> History:
        """The same messages, as if the session had begun with them."""
        n_pending = len(self.pending)
        messages = tuple(self.messages)[: -n_pending or None]
        return History(messages, (), self.pending, self.n_untold, self.n_opening + len(self.exchanges))

    def before(self, i_message: int) -> tuple[History, int | None]:
        """The history up to a message, what was asked with it before it waits; and where the text ends then.

        None: the message is one of the opening, which has to be evaluated again.
        """
        i = len(self.opening)
        if i_message < i:
            n_left = sum(message["role"] == "assistant" for message in self.opening[:i_message])
            return History(self.opening[:i_message], n_opening=min(n_left, self.n_opening)), None
        for i_exchange, one in enumerate(self.exchanges):
            if i_message < i + len(one.asked):
                kept = self.exchanges[:i_exchange]
                return replace(self, exchanges=kept, pending=one.asked[: i_message - i]), one.n_before
            i += len(one.messages)
        return replace(self, pending=self.pending[: i_message - i]), -1

    def stretch(self) -> tuple[Exchange, ...]:
        """The exchanges since a user's last question; templates may show these otherwise once the next one comes."""
        for i in reversed(range(len(self.exchanges))):
            if self.exchanges[i].has_question:
                return self.exchanges[i:]
        return ()

    def as_json(self) -> str:
        exchanges = [[one.n_before, one.asked, one.answer, one.written] for one in self.exchanges]
        return json.dumps([self.opening, exchanges, self.pending, self.n_untold, self.n_opening])

    @classmethod
    def of_json(cls, text: Any) -> History:
        """Raises ValueError for what as_json() did not give."""
        try:
            opening, exchanges, pending, n_untold, n_opening = json.loads(text)
            history = cls(
                _messages(opening),
                tuple(
                    Exchange(_count(n), _messages(asked), _messages([answer])[0], _text(written))
                    for n, asked, answer, written in exchanges
                ),
                _messages(pending),
                _count(n_untold),
                _count(n_opening),
            )
        except (TypeError, ValueError, KeyError, RecursionError) as error:
            raise ValueError(f"it is no history of a chat: {error}") from error
        return history


def _messages(values: Sequence[Any]) -> tuple[Message, ...]:
    for message in values:
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise ValueError(f"a message must have a role, got {message!r}")
        if not isinstance(message.get("content"), (str, list, type(None))):
            raise ValueError(f"a message's content must be a text or parts, got {message['content']!r}")
    return tuple(values)


def _count(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValueError(f"a count must be an integer of at least 0, got {value!r}")
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"a text must be a str, got {value!r}")
    return value
