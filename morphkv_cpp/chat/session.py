"""Chats without end: each turn appends its own tokens to a live cache; earlier turns are never evaluated again."""

from __future__ import annotations

import os
import random
import time
import weakref
from collections.abc import Callable, Generator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ..cache import saved_file
from ..cache.live_text import LiveText
from ..cache.one_thread import OneThread, guarded
from ..cache.stats import CacheStats
from ..errors import BusyError, NoMorphKVError, SessionEndedError, StateError
from .answer import Answer
from .asking import ask
from .identity import identity
from .keep import Keep
from .media import Content, text_of
from .model import ChatModel
from .opening import n_kept, opening_messages
from .reply import Reply
from .template import ChatTemplate, Message
from .turn import Turn


@guarded(turn="say", run="cache_stats close fork retained save")
class Session:
    """A chat on a live cache that continues from turn to turn. Made by Llama.session and Llama.load_session.

    >>> with llm.session(system="You are brief.") as chat:
    ...     for piece in chat.say("Why is the sky blue?"):
    ...         print(piece, end="", flush=True)

    system: the system prompt. None: what the chat template puts there, if anything.
    keep: which tokens are never evicted. "system": everything before the first question, and at least the settings'
        `keep`; a number: this many first tokens; None: the settings' `keep`.
    messages: a chat so far, as create_chat_completion takes it, that ends with an answer. If the cache holds a start of
        it that ends within the recent tokens, only the rest is evaluated; otherwise all is, and `last.reprocessed` is
        True.

    A turn evaluates only its own tokens: the template's text for this question, after the tokens that were sampled.
    `last` says what the last turn took. The session stores no text.

    A Llama has one live cache, which the active session uses. Switching sessions saves the inactive one's state in
    memory; it is as large as the cache. The same happens when the Llama is used for something else between two turns
    (generate, eval, load_state and whatever calls them): the session continues as if nothing had happened. Changes made
    to the context without the Llama's methods are not noticed. One thread at a time, as for the Llama.

    Raises NoMorphKVError for a Llama without MorphKV, and ValueError for a `keep` that leaves no room, for messages
    that do not end with an answer, and for a chat handler that does not render text.
    """

    def __init__(
        self,
        llm: ChatModel,
        system: str | None = None,
        *,
        keep: Keep = "system",
        messages: Sequence[Message] | None = None,
    ):
        if llm.morphkv is None:
            raise NoMorphKVError("a session needs MorphKV: open the model with Llama(..., morphkv=True)")
        self._llm = llm
        self._config = llm.morphkv
        self._text = LiveText(llm)
        self._text.refuse_ended()
        self._template = ChatTemplate.of(llm)
        self._opening = opening_messages(system, messages)  # said together with the first question
        has_system = bool(self._opening) and self._opening[0]["role"] == "system"
        self.system: str | None = self._opening[0]["content"] if has_system else None
        self._n_keep = n_kept(llm, llm.least_morphkv or self._config, self._template, self.system, keep)
        self._answering: Callable[[], Reply | None] | None = None
        self._answers = False
        self.last: Turn | None = None
        self.n_turns = 0

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """End the session and free its state. The cache stays as it is."""
        self._stop_answering()
        self._text.end("it is closed")

    @property
    def _one_thread(self) -> OneThread:
        return self._llm._one_thread

    @property
    def n_tokens(self) -> int:
        """Length of the chat so far."""
        return self._text.n_tokens

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
        text: Content,
        *,
        max_tokens: int | None = None,
        stop: str | Sequence[str] = (),
        temperature: float = 0.2,
        seed: int | None = None,
        **sampling: Any,
    ) -> Reply:
        """Ask, and yield the answer in pieces of whole characters. The model runs only while pieces are read.

        text: the question, or a list of its parts, as in a message of create_chat_completion: {"type": "text",
            "text": ...} and {"type": "image_url", "image_url": {"url": ...}}. Images need a Llama with an
            MTMDChatHandler, or another chat handler of llama_cpp that reads them. They are evaluated once, and
            evicted and recalled as words are.
        max_tokens: limit of the answer; None: until the model ends it.
        stop: strings that end the answer; they are not part of it.
        seed: None: the next one of a series that the Llama's seed starts, as in create_completion.
        sampling: other keywords of Llama.generate, such as top_k, top_p, min_p, repeat_penalty, grammar,
            logits_processor.

        If you stop reading (break, close, Ctrl-C), what was written so far stays in the chat; the next question ends
        the answer. Raises ContextFullError if the chat would exceed n_ctx, SessionEndedError if the session cannot
        continue, and what decoding raises. If that happens before the answer's first token, the question is removed and
        can be asked again. If it happens later, or the question has already evicted tokens, the chat stays as it is.
        """
        self._stop_answering()
        self._text.refuse_ended()
        text, images = text_of(self._llm, text)
        if max_tokens is not None and max_tokens < 1:
            raise ValueError(f"max_tokens must be at least 1 or None, got {max_tokens}")
        stops = [stop] if isinstance(stop, str) else list(stop)
        options = {"temp": temperature, **sampling}
        pieces = self._one_thread.steps(self._answer(text, images, max_tokens, stops, seed, options))
        answering = Reply(pieces, text)
        # weak, so that an answer that nobody reads on is at an end
        self._answering = weakref.ref(answering)
        return answering

    def fork(self) -> Session:
        """An independent copy. The same question with the same seed gives the same answer."""
        self._refuse_answering("forked")
        self._text.refuse_ended()
        copy = Session.__new__(Session)
        copy.__dict__.update(self.__dict__, _text=self._text.copy(), _answering=None)
        return copy

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the session to a file, for Llama.load_session. An older file is replaced completely or not at all.

        The file holds the cache, `system`, and the token ids of the cache's cells. So its size is bounded, however long
        the chat, except for an archive. Raises OSError if it cannot be written, ValueError for a path that is not a
        regular file, NativeError for a cache that cannot be read, StateError if nothing has been said.
        """
        self._refuse_answering("saved")
        self._text.refuse_ended()
        self._refuse_silent()
        state = self._text.state()
        n_ids = min(state.n_tokens, self._text.stats().n_limit)
        header = {
            **identity(self._llm.model_path, self._config, self._template),
            "system": self.system,
            "keep": self._n_keep,
            "n_turns": self.n_turns,
            "n_tokens": state.n_tokens,
            "ahead": self._text.ahead,
            "seed": state.seed,
        }
        ids = np.asarray(state.input_ids[state.n_tokens - n_ids : state.n_tokens])
        saved_file.write(path, "session", saved_file.Contents(header, ids, state.llama_state))

    def _answer(
        self,
        question: str,
        images: list[str],
        max_tokens: int | None,
        stop: list[str],
        seed: int | None,
        sampling: dict[str, Any],
    ) -> Generator[str, None, None]:
        llm, text, start_s = self._llm, self._text, time.perf_counter()
        text.take()
        before, seed_before = text.mark(), llm._seed
        n_evicted = llm.cache_stats().n_evicted  # images may evict at once
        try:
            rendered, reuse, n_media = ask(llm, text, self._template, self._opening, self._n_keep, question, images)
        except Exception:
            if images and not text.is_orphan:
                text.go_back(before)
            raise
        if before is None:
            n_evicted = llm.cache_stats().n_evicted
        llm.set_seed(random.Random(llm._seed).randrange(2**32) if seed is None else seed)
        n_room = llm.n_ctx() - text.n_tokens
        answer = Answer(llm._piece, [*stop, *rendered.stop], n_room if max_tokens is None else min(max_tokens, n_room))
        tokens = self._tokens(sampling)
        self._answers, is_undone = True, False
        try:
            while answer.finish_reason is None:
                if not text.is_live:
                    raise SessionEndedError("the cache was used for something else while an answer was being written")
                with text.at_work():
                    token = next(tokens, None)
                if token is None or llm._is_end(token):
                    answer.end("stop")
                else:
                    text.ahead.append(token)
                    answer.add(token)
                if piece := answer.take_piece():
                    yield piece
        except Exception:
            if answer.n_tokens == 0 and not text.is_orphan:
                tokens.close()
                is_undone = text.go_back(before)
            raise
        finally:
            tokens.close()
            self._answers = False
            if is_undone:
                llm.set_seed(seed_before)
            else:
                text.take_back(answer.n_behind_stop)
                self.n_turns += 1
                self.last = Turn(
                    prompt_tokens=reuse.n_evaluated,
                    cached_tokens=reuse.n_cached,
                    completion_tokens=answer.n_tokens,
                    finish_reason=answer.finish_reason or "interrupted",
                    n_evicted=0 if text.is_orphan else text.stats().n_evicted - n_evicted,
                    reprocessed=reuse.reprocessed,
                    seconds=time.perf_counter() - start_s,
                    rate_tok_s=answer.rate_tok_s,
                    n_recalled=sum(recall.n_recalled for recall in llm.last_recalls),
                    recall_ms=sum(recall.took_ms for recall in llm.last_recalls),
                    media_tokens=n_media,
                )

    def _tokens(self, sampling: dict[str, Any]) -> Generator[int, Any, None]:
        yield from self._llm.generate(self._text.ahead.copy(), reset=False, **sampling)

    def _refuse_silent(self) -> None:
        if not self._text.begun:
            raise StateError("nothing has been said in this session yet")

    def _refuse_answering(self, what: str) -> None:
        if self._answers:
            raise BusyError(f"a session cannot be {what} while it answers: read the answer to its end or close it")

    def _stop_answering(self) -> None:
        answering = self._answering() if self._answering is not None else None
        if answering is not None:
            answering.leave()
        self._answering = None
