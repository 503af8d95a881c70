"""Chats without end: each turn appends its own tokens to a live cache; earlier turns are never evaluated again."""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ..cache.live_text import LiveText
from ..cache.one_thread import OneThread, guarded
from ..cache.stats import CacheStats
from ..errors import BusyError, StateError
from .answering import Change, How, answer, how_of
from .conversation import Conversation
from .media import Content
from .messages import start, tool_message, user_message
from .model import ChatModel
from .opening import SessionKeep, opening_history
from .reply import AsyncReply, Reply
from .session_save import save_session
from .template import Message
from .tool_calls import Tool
from .turn import Turn


@guarded(
    turn="edit regenerate say undo",
    run="cache_stats close fork retained save tool_result",
)
class Session:
    """A chat on a live cache that continues from turn to turn. Made by Llama.session and Llama.load_session.

    >>> with llm.session(system="You are brief.") as chat:
    ...     for piece in chat.say("Why is the sky blue?"):
    ...         print(piece, end="", flush=True)

    system: the system prompt. None: what the chat template puts there, if anything.
    keep: which tokens are never evicted. "system": everything before the first question, and at least the settings'
        `keep`; "auto": as "system", and where that does not fit, the Llama gets a cache that is up to 4 times as large,
        unless it has other chats; a number: this many first tokens; None: the settings' `keep`.
    messages: a chat so far, as create_chat_completion takes it. Where it ends with a user's or a tool's message,
        `say()` without a text answers that. If the cache holds a start of it that ends within the recent tokens, only
        the rest is evaluated; otherwise all is, and `last.reprocessed` is True.
    tools: what the model may call, as create_chat_completion takes it; see `say`.

    A turn evaluates only its own tokens: the template's text for this question, after the tokens that were sampled.
    Where the template leaves out of older answers what the model thought, the last answer is evaluated again without.
    `last` says what the last turn took, `history()` what was said.

    `undo`, `edit` and `regenerate` go back in the chat, to a checkpoint where there is one: the Llama's
    `ctx_checkpoints`, at each turn's end. Then the chat goes on bit for bit as if nothing had come behind it. Else the
    tokens behind the checkpoint before are evaluated again, with the next question: `last.again_tokens`. With an
    archive at most 128 are, and those before come back by it, not the same bits: `last.restored_tokens`. What is gone
    from the chat is gone from the archive.

    A Llama has one live cache, which the active session uses. Switching sessions saves the inactive one's state in
    memory; it is as large as the cache. The same happens when the Llama is used for something else between two turns
    (generate, eval, load_state and whatever calls them): the session continues as if nothing had happened. Changes made
    to the context without the Llama's methods are not noticed. One thread at a time, as for the Llama.

    Raises NoMorphKVError for a Llama without MorphKV, and ValueError for a `keep` that leaves no room, and for a chat
    handler that does not render text.
    """

    def __init__(
        self,
        llm: ChatModel,
        system: str | None = None,
        *,
        keep: SessionKeep = "system",
        messages: Sequence[Message] | None = None,
        tools: Sequence[Tool] | None = None,
    ):
        self._talk = Conversation(llm, opening_history(system, messages), keep)
        if tools:
            self._talk.use_tools(tools)
        self._answering: Callable[[], Reply | None] | None = None

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """End the session and free its state. The cache stays as it is."""
        self._stop_answering()
        self._text.end("it is closed")

    @property
    def _llm(self) -> ChatModel:
        return self._talk.llm

    @property
    def _text(self) -> LiveText:
        return self._talk.text

    @property
    def _one_thread(self) -> OneThread:
        return self._llm._one_thread

    @property
    def system(self) -> str | None:
        """The system prompt that was given."""
        return self._talk.system

    @property
    def last(self) -> Turn | None:
        """What the last turn took; None before the first, and where that was in a file."""
        exchange = self._talk.history.last
        return None if exchange is None else exchange.turn

    @property
    def n_turns(self) -> int:
        """Answers so far."""
        return self._talk.history.n_turns

    @property
    def n_tokens(self) -> int:
        """Length of the chat so far."""
        return self._text.n_tokens

    def history(self) -> list[Message]:
        """The messages so far, as create_chat_completion takes them; of an old file only those since it was loaded.

        An answer has its text, with what the model thought, and `tool_calls` where it calls tools.
        """
        return [dict(message) for message in self._talk.history.messages]

    def cache_stats(self) -> CacheStats:
        """State of the session's cache."""
        self._text.refuse_ended()
        self._refuse_silent()
        return self._text.stats()

    def retained(self, layer: int) -> npt.NDArray[np.int32]:
        """As Llama.retained, of the session's cache, which becomes the live one."""
        self._refuse_silent()
        self._text.take()
        return self._llm.retained(layer)

    def say(
        self,
        text: Content | None = None,
        *,
        max_tokens: int | None = None,
        stop: str | Sequence[str] = (),
        temperature: float = 0.2,
        seed: int | None = None,
        tools: Sequence[Tool] | None = None,
        tool_choice: Any = None,
        **sampling: Any,
    ) -> Reply:
        """Ask, and yield the answer in pieces of whole characters. The model runs only while pieces are read.

        text: the question, or a list of its parts, as in a message of create_chat_completion: {"type": "text",
            "text": ...} and {"type": "image_url", "image_url": {"url": ...}}. Images need a Llama with an
            MTMDChatHandler, or another chat handler of llama_cpp that reads them. They are evaluated once, and
            evicted and recalled as words are. None: the answer to what waits for one, e.g. results of tools.
        max_tokens: limit of the answer; None: until the model ends it.
        stop: strings that end the answer; they are not part of it.
        seed: None: the next one of a series that the Llama's seed starts, as in create_completion.
        tools: from now on; None: those so far. Templates name them at the beginning, so where they change the whole
            chat is evaluated again. Calls in the answer are in `history()[-1].get("tool_calls")`; give their results to
            `tool_result`.
        tool_choice: as in create_chat_completion: the answer is the named tool's arguments.
        sampling: other keywords of Llama.generate, such as top_k, top_p, min_p, repeat_penalty, grammar,
            logits_processor.

        If you stop reading (break, close, Ctrl-C), what was written so far stays in the chat; the next question ends
        the answer. Raises ContextFullError if the chat would exceed n_ctx, SessionEndedError if the session cannot
        continue, and what decoding raises. If that happens before the answer's first token, the question is removed and
        can be asked again. If it happens later, the chat stays as it is.
        """
        self._begin_answer()
        talk, new = self._talk, [] if text is None else [user_message(self._llm, text)]
        asked = (*talk.history.pending, *new)
        if not asked:
            raise ValueError("say() needs a text: nothing waits for an answer")

        def change() -> tuple[Sequence[Message], int | None]:
            talk.use_tools(tools or None)
            return asked, None

        is_changed = tools is not None and (tools or None) != talk.tools
        options = {"temperature": temperature, "seed": seed, "tool_choice": tool_choice, **sampling}
        how = how_of(tools if is_changed else talk.tools, max_tokens=max_tokens, stop=stop, **options)
        return self._reply(change if is_changed else asked, how, "say()" if text is None else f"say({start(text)})")

    def ask(self, text: Content | None = None, **options: Any) -> str:
        """The whole answer to a question; options as of `say`."""
        return "".join(self.say(text, **options))

    def asay(self, text: Content | None = None, **options: Any) -> AsyncReply:
        """As `say`, for `async for`: the model runs in the Llama's own thread. A task that is cancelled ends the
        answer; what was written so far stays in the chat.
        """
        return AsyncReply(self._llm._worker, lambda: self.say(text, **options), f"asay({start(text)})")

    async def aask(self, text: Content | None = None, **options: Any) -> str:
        """As `ask`, in the Llama's own thread."""
        return "".join([piece async for piece in self.asay(text, **options)])

    def tool_result(self, content: Any, tool_call_id: str | None = None, *, name: str | None = None) -> None:
        """What a tool gave. It is put to the model with the next question, or by `say()` without a text.

        content: a text; anything else is written as JSON.
        tool_call_id: of the call; None: of the first call in the last answer that has no result yet, if any.
        """
        self._refuse_answering("given a result")
        self._text.refuse_ended()
        if not self._talk.history.messages and self.n_turns == 0:
            raise StateError("a tool's result must follow an answer: nothing has been asked in this session yet")
        self._talk.wait_for(tool_message(self._talk.history, content, tool_call_id, name))

    def undo(self) -> None:
        """Take back the last question, all that came behind it, and what waits for an answer.

        Raises StateError, and changes nothing, where that cannot be: there is no question, or tokens would have to be
        evaluated again that are an image's, or that an old file does not hold.
        """
        self._stop_answering()
        self._text.refuse_ended()
        self._text.take()
        self._talk.back_to(self._talk.question(-1))

    def regenerate(self, **options: Any) -> Reply:
        """Another answer in place of the last one; options as of `say`, but for tools.

        If it fails, or is stopped before its first token, the chat is as it was.
        """
        self._begin_answer()
        self._talk.refuse_unanswered()
        return self._reply(self._talk.without_answer, how_of(self._talk.tools, **options), "regenerate()")

    def edit(self, turn: int, text: Content, **options: Any) -> Reply:
        """Go back to before a question, ask another one in its place, and yield the answer; options as of `say`, but
        for tools.

        turn: index of the question among those of the history: 0 is the first one, -1 the last.

        If it fails, or is stopped before its first token, the chat is as it was.
        """
        self._begin_answer()
        talk, message, i_message = self._talk, user_message(self._llm, text), self._talk.question(turn)

        def change() -> tuple[Sequence[Message], int | None]:
            talk.back_to(i_message)
            return (*talk.history.pending, message), None

        return self._reply(change, how_of(talk.tools, **options), f"edit({turn}, {start(text)})")

    def fork(self) -> Session:
        """An independent copy. The same question with the same seed gives the same answer."""
        self._refuse_answering("forked")
        self._text.refuse_ended()
        copy = Session.__new__(Session)
        copy.__dict__.update(self.__dict__, _talk=self._talk.fork(), _answering=None)
        return copy

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the session to a file, for Llama.load_session. An older file is replaced completely or not at all.

        The file holds the cache, the messages, and 4 bytes for each token. So it hardly grows with the chat, except for
        an archive. Raises OSError if it cannot be written, ValueError for a path that is not a
        regular file, NativeError for a cache that cannot be read, StateError if nothing has been said.
        """
        self._refuse_answering("saved")
        self._text.refuse_ended()
        self._refuse_silent()
        save_session(self._talk, path)

    def _reply(self, asked: Sequence[Message] | Change, how: How, call: str) -> Reply:
        answering = Reply(self._one_thread.steps(answer(self._talk, asked, how)), call)
        # weak, so that an answer that nobody reads on is at an end
        self._answering = weakref.ref(answering)
        return answering

    def _begin_answer(self) -> None:
        self._stop_answering()
        self._text.refuse_ended()

    def _refuse_silent(self) -> None:
        if not self._text.begun:
            raise StateError("nothing has been said in this session yet")

    def _refuse_answering(self, what: str) -> None:
        if self._talk.is_answering:
            raise BusyError(f"a session cannot be {what} while it answers: read the answer to its end or close it")

    def _stop_answering(self) -> None:
        answering = self._answering() if self._answering is not None else None
        if answering is not None:
            answering.leave()
        self._answering = None
