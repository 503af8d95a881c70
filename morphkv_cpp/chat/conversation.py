"""The text of a session and what was said in it: how both grow, and go back together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from ..cache.live_text import LiveText
from ..cache.text_snapshot import TextSnapshot
from ..config import MorphKV
from ..errors import NoMorphKVError, NoRoomError, SessionEndedError, StateError
from ..text.tokens import tokens_behind
from .asking import Asked, put, refuse_unknown
from .history import Exchange, History
from .media import text_of
from .model import ChatModel
from .opening import SessionKeep, n_kept, opening_history, raise_capacity, tokens_of
from .template import ChatTemplate, Message, Rendered

NEEDS = "a session needs MorphKV: open the model with Llama(..., morphkv=True)"


class Conversation:
    """What a session is made of. The history and the text's tokens say the same, but before the first question."""

    def __init__(self, llm: ChatModel, history: History, keep: SessionKeep):
        if llm.morphkv is None or llm._evals is None:
            raise NoMorphKVError(NEEDS)
        self.llm = llm
        self.text = LiveText(llm, llm._evals.checkpoints.another())
        self.text.refuse_ended()
        self.template = ChatTemplate.of(llm)
        self.history = history
        has_system = bool(history.opening) and history.opening[0]["role"] == "system"
        self.system: str | None = history.opening[0]["content"] if has_system else None
        self.tools: Sequence[dict[str, Any]] | None = None
        self.is_answering = False
        self.keep = keep
        self.n_keep = self._n_kept(None)
        llm._evals.texts.add(self.text)

    def fork(self) -> Conversation:
        copy = Conversation.__new__(Conversation)
        copy.__dict__.update(self.__dict__, text=self.text.copy(), is_answering=False)
        if self.llm._evals is not None:
            self.llm._evals.texts.add(copy.text)
        return copy

    @property
    def _options(self) -> dict[str, Any]:
        return {} if self.tools is None else {"tools": self.tools}

    def ask(self, asked: Sequence[Message], n_before: int | None) -> tuple[Rendered, Asked, int]:
        """Put messages behind the text's first n_before tokens (None: all), with the template's words around them.

        What was rendered, what it took, and where it begins in the text.
        """
        text = self.text
        is_first = not text.begun or n_before == 0
        messages, images = self._as_text([*self.history.opening, *asked] if is_first else asked)
        n_opening = len(messages) - len(asked)
        if is_first:
            rendered, n_before = self.template.opening(messages[:n_opening], messages[n_opening:], **self._options), 0
        else:
            rendered = self.template.turn(messages, **self._options)
            n_before = text.n_tokens if n_before is None else n_before
        return rendered, put(self.llm, text, rendered, images, n_before, self.n_keep), n_before

    def add(self, exchange: Exchange) -> None:
        self.history = self.history.with_exchange(exchange)

    def wait_for(self, message: Message) -> None:
        """Put a message to the model with the next ones."""
        self.history = replace(self.history, pending=(*self.history.pending, message))

    def use_tools(self, tools: Sequence[dict[str, Any]] | None) -> None:
        """Templates name tools at a chat's beginning, so all is evaluated again where they change."""
        n_keep = self._n_kept(tools)
        if self.text.begun:
            self._refuse_untold("its tools cannot be changed")
            self.history = self.history.as_opening()
            self.text.begin_anew()
        self.tools, self.n_keep = tools, n_keep

    def back_to(self, i_message: int) -> None:
        """Forget a message and all behind it."""
        history, n_before = self.history.before(i_message)
        if n_before is None or (n_before == 0 and self.text.begun):
            self._refuse_untold("it cannot go back so far")
            self.text.begin_anew()
        elif n_before > 0 and not self.text.go_back(n_before):
            refuse_unknown(n_before)
        self.history = history

    def question(self, turn: int) -> int:
        """Where in the history's messages a user's is, by its index among these. Raises ValueError where it is not."""
        questions = [i for i, message in enumerate(self.history.messages) if message["role"] == "user"]
        if not -len(questions) <= turn < len(questions):
            self._refuse_untold("it cannot go back so far")
            if not questions:
                raise StateError("nothing has been asked in this session yet")
            raise ValueError(f"turn must be in {-len(questions)}..{len(questions) - 1}, got {turn}")
        return questions[turn]

    def refuse_unanswered(self) -> None:
        if not any(message["role"] == "assistant" for message in self.history.messages):
            self._refuse_untold("the last of them cannot be answered again")
            raise StateError("nothing has been answered in this session yet")

    def without_answer(self) -> tuple[Sequence[Message], int | None]:
        """Take the last answer out of the history: what it was an answer to, and where in the text that begins."""
        last = self.history.last
        if last is not None:
            self.history = replace(self.history, exchanges=self.history.exchanges[:-1], pending=())
            return last.asked, last.n_before
        self.text.begin_anew()
        answers = [i for i, message in enumerate(self.history.opening) if message["role"] == "assistant"]
        history = opening_history(None, self.history.opening[: answers[-1]])
        self.history = replace(history, n_opening=max(self.history.n_opening - 1, 0))
        return history.pending, None

    def snapshot(self) -> Callable[[], bool]:
        """A function that brings back all that is now."""
        history, tools, n_keep, seed = self.history, self.tools, self.n_keep, self.llm._seed
        text = TextSnapshot(self.text)

        def put_back() -> bool:
            self.history, self.tools, self.n_keep, self.llm._seed = history, tools, n_keep, seed
            text.put_back(self.text)
            return True

        return put_back

    def mark(self) -> Callable[[], bool]:
        """The same, where the text only grows until then; says whether that could be."""
        n_tokens, begun, seed = self.text.n_tokens, self.text.begun, self.llm._seed

        def put_back() -> bool:
            try:
                if not begun:
                    self.text.begin_anew()
                elif not self.text.go_back(n_tokens):
                    return False
            except SessionEndedError:
                return False
            self.llm._seed = seed
            return True

        return put_back

    def show_as_history(self, asked: Sequence[Message]) -> None:
        """Templates may leave out of an answer what the model thought, once the next question comes.

        Beside an image thoughts stay, as it would be evaluated again.
        """
        stretch = self.history.stretch() if self.text.begun else ()
        said = [message for one in stretch for message in one.as_written]
        if not said:
            return
        n_before = stretch[0].n_before
        before = self.history.opening if n_before == 0 else None
        if any(isinstance(message.get("content"), list) for message in [*(before or ()), *said, *asked]):
            return
        rendered = self.template.as_history(before, said, asked, **self._options)
        if rendered is not None:
            words = tokens_of(self.llm, rendered) if n_before == 0 else tokens_behind(self.llm, rendered.text)
            self.text.change(n_before, words)

    @property
    def config(self) -> MorphKV:
        if self.llm.morphkv is None:
            raise NoMorphKVError(NEEDS)
        return self.llm.morphkv

    def _n_kept(self, tools: Sequence[dict[str, Any]] | None) -> int:
        options = {} if tools is None else {"tools": tools}
        try:
            return n_kept(
                self.llm, self.llm.least_morphkv or self.config, self.template, self.system, self.keep, **options
            )
        except NoRoomError as error:
            if self.keep != "auto":
                raise
            raise_capacity(self.llm, error)
            return error.n_keep

    def _as_text(self, messages: Sequence[Message]) -> tuple[list[Message], list[str]]:
        """Messages whose images are markers in the text, and the images' URLs."""
        texts, images = [], []
        for message in messages:
            if not isinstance(message.get("content"), str) and message.get("content") is not None:
                words, urls = text_of(self.llm, message["content"])
                message = {**message, "content": words}
                images += urls
            texts.append(message)
        return texts, images

    def _refuse_untold(self, what: str) -> None:
        if self.history.n_untold > 0:
            raise StateError(
                f"of this session's first {self.history.n_untold} turns its file holds no messages, so {what}"
            )
