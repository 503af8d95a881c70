"""A model's chat template, turn by turn: what create_chat_completion would write, without writing the history again.

A turn is rendered behind a stand-in history of one question and one answer, so that it costs the same at any depth.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import jinja2
from llama_cpp.llama_chat_format import LlamaChatCompletionHandler, get_chat_completion_handler

from .media import text_handler
from .model import ChatModel

Message = dict[str, Any]  # {"role": ..., "content": ...}, as create_chat_completion takes it

# No blanks at the ends, which templates trim, and nothing that a template looks for.
SYSTEM, QUESTION, ANSWER = "stand-in-system", "stand-in-question", "stand-in-answer"
HISTORY: list[Message] = [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": ANSWER}]


class Rendered(NamedTuple):
    text: str
    add_bos: bool  # whether the tokenizer is to put a BOS in front
    stop: tuple[str, ...]  # strings that end an answer, where a token does not


class ChatTemplate:
    """What a chat handler of llama_cpp writes: a whole conversation's start, or one later turn of it.

    handler: anything that create_chat_completion accepts and that renders text.
    name: of the handler, for errors.

    A system text is said once, at the start; templates that know no system role get it in front of the first question.
    """

    def __init__(self, handler: LlamaChatCompletionHandler, name: str = "chat handler"):
        self._handler = handler
        self._name = name
        self._has_system_role = self._knows_system_role()

    @classmethod
    def of(cls, llm: ChatModel) -> ChatTemplate:
        """The one that llm.create_chat_completion uses."""
        # the expression of create_chat_completion
        name = str(llm.chat_format)
        handler = (
            text_handler(llm) or llm.chat_handler or llm._chat_handlers.get(name) or get_chat_completion_handler(name)
        )
        return cls(handler, "chat_handler" if llm.chat_handler else f"chat_format {llm.chat_format!r}")

    def opening(self, messages: Sequence[Message], asked: str | Sequence[Message], **options: Any) -> Rendered:
        """The messages, what is asked, and the start of its answer. A system text is the first message, if any."""
        return self._render(self._with_system([*messages, *_asked(asked)]), **options)

    def before_question(self, system: str | None, **options: Any) -> Rendered:
        """What precedes the first question: the system text, or the default that the template puts in its place."""
        return self.before_first([] if system is None else [{"role": "system", "content": system}], **options)

    def before_first(self, messages: Sequence[Message], **options: Any) -> Rendered:
        """What precedes the question behind these messages; options: of the handler, e.g. tools."""
        rendered = self.opening(messages, QUESTION, **options)
        # the last one: the system text may hold anything
        return rendered._replace(text=rendered.text[: self._find(QUESTION, rendered.text.rfind(QUESTION))])

    def turn(self, asked: str | Sequence[Message], **options: Any) -> Rendered:
        """What follows an answer: its end, what is asked, and the start of the next answer."""
        rendered = self._render([*HISTORY, *_asked(asked)], **options)
        return rendered._replace(text=self._behind_answer(rendered.text))

    def as_history(
        self, before: Sequence[Message] | None, said: Sequence[Message], asked: Sequence[Message], **options: Any
    ) -> Rendered | None:
        """What the template makes of `said`, up to the end of its last answer, once `asked` follows.

        before: what the chat began with, where `said` follows it at once; else None, and the text begins behind an
        answer. None where all answers are still as they were written, and where it cannot be told.
        """
        try:
            head = HISTORY if before is None else before
            rendered = self._render(self._with_system([*head, *said, *_asked(asked)]), **options)
            text, end = rendered.text, self.turn(asked, **options).text
            if before is None:
                text = self._behind_answer(text)
        except (ValueError, TypeError, LookupError, jinja2.TemplateError):
            return None
        if not text.endswith(end):
            return None
        text, position = text[: -len(end)], 0
        for answer in (message["content"].strip() for message in said if message["role"] == "assistant"):
            position = text.find(answer, position)
            if position < 0:
                return rendered._replace(text=text)
            position += len(answer)
        return None

    def _behind_answer(self, text: str) -> str:
        return text[self._find(ANSWER, text.find(ANSWER)) + len(ANSWER) :]

    def _with_system(self, messages: list[Message]) -> list[Message]:
        if self._has_system_role or messages[0]["role"] != "system":
            return messages
        system, first, *others = messages
        return [{**first, "content": f"{system['content']}\n\n{first['content']}"}, *others]

    def _knows_system_role(self) -> bool:
        try:
            text = self._render([{"role": "system", "content": SYSTEM}, {"role": "user", "content": QUESTION}]).text
        except (ValueError, TypeError, jinja2.TemplateError):
            return False
        # some drop it without a word
        return SYSTEM in text

    def _find(self, what: str, position: int) -> int:
        if position < 0:
            raise ValueError(f"{self._name} must write every message as it is; it leaves out {what!r}")
        return position

    def _render(self, messages: list[Message], **options: Any) -> Rendered:
        recorder = _Recorder()
        messages = [_with_plain_calls(message) for message in messages]
        try:
            self._handler(llama=cast(Any, recorder), messages=cast(Any, messages), **options)
        except _Recorded:
            return Rendered(recorder.text, recorder.add_bos, recorder.stop)
        except AttributeError as error:
            raise ValueError(
                f"{self._name} does more than render text, which a session cannot follow: {error}"
            ) from error
        raise ValueError(f"{self._name} must end in a completion")


def _asked(asked: str | Sequence[Message]) -> list[Message]:
    return [{"role": "user", "content": asked}] if isinstance(asked, str) else list(asked)


def _with_plain_calls(message: Message) -> Message:
    """Templates write a call's arguments as JSON, as which the API has them already."""
    if not message.get("tool_calls"):
        return message
    calls = []
    for call in message["tool_calls"]:
        arguments = call["function"]["arguments"]
        try:
            arguments = json.loads(arguments) if isinstance(arguments, str) else arguments
        except ValueError:
            pass  # as the model wrote them
        calls.append({**call, "function": {**call["function"], "arguments": arguments}})
    return {**message, "content": message.get("content") or "", "tool_calls": calls}


class _Recorded(Exception):
    pass


class _Recorder:
    """Stands in for the Llama that a chat handler completes with: records the text, and goes no further."""

    verbose = False
    text = ""
    add_bos = True
    stop: tuple[str, ...] = ()

    def tokenize(self, text: bytes, add_bos: bool = True, special: bool = False) -> list[int]:
        self.text, self.add_bos = text.decode(), add_bos
        return []

    def create_completion(self, prompt: list[int] | str, stop: str | list[str] | None = None, **_: Any) -> None:
        # a text is tokenized by create_completion itself, with a BOS
        if isinstance(prompt, str):
            self.text = prompt
        self.stop = (stop,) if isinstance(stop, str) else tuple(stop or ())
        raise _Recorded
