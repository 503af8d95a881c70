"""The answer of a session: its steps, and what becomes of the chat where they fail or are stopped."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..cache.attached import joined
from ..cache.checkpoints import N_APART
from ..errors import SessionEndedError
from .answer import Answer
from .asking import Asked
from .conversation import Conversation
from .history import Exchange
from .template import Message
from .tool_calls import Tool, answer_message, arguments_grammar, forced_tool
from .turn import Turn


@dataclass(frozen=True)
class How:
    """How an answer is written."""

    max_tokens: int | None
    stop: list[str]
    seed: int | None
    tool: str | None  # the one that it has to call
    sampling: dict[str, Any] = field(default_factory=dict)  # keywords of Llama.generate


def how_of(
    tools: Sequence[Tool] | None,
    *,
    max_tokens: int | None = None,
    stop: str | Sequence[str] = (),
    temperature: float = 0.2,
    seed: int | None = None,
    tool_choice: Any = None,
    **sampling: Any,
) -> How:
    """Keywords of Session.say. Raises ValueError for those that cannot be."""
    if max_tokens is not None and max_tokens < 1:
        raise ValueError(f"max_tokens must be at least 1 or None, got {max_tokens}")
    tool = forced_tool(tools, tool_choice)
    if tool is not None:
        sampling["grammar"] = arguments_grammar(tool)
    stops = [stop] if isinstance(stop, str) else list(stop)
    name: str | None = None if tool is None else tool["function"]["name"]
    return How(max_tokens, stops, seed, name, {"temp": temperature, **sampling})


# Changes a chat, and gives what is to be asked, and where in the text that begins; None: at its end.
Change = Callable[[], "tuple[Sequence[Message], int | None]"]


def answer(talk: Conversation, asked: Sequence[Message] | Change, how: How) -> Generator[str, None, None]:
    """Ask, and give the answer in pieces.

    Where a question fails before the answer's first token, it is gone from the chat. Where a change of the chat fails,
    or is stopped before the first token, the chat is as it was.
    """
    llm, text, start_s = talk.llm, talk.text, time.perf_counter()
    text.take()
    n_before, changes = None, callable(asked)
    if not callable(asked):
        talk.show_as_history(asked)
    put_back = talk.snapshot() if changes else talk.mark()
    try:
        if callable(asked):
            asked, n_before = asked()
            if n_before is None:
                talk.show_as_history(asked)
        if n_before is None:
            text.checkpoint()
        rendered, took, n_before = talk.ask(asked, n_before)
    except BaseException:
        put_back()
        raise
    llm.set_seed(random.Random(llm._seed).randrange(2**32) if how.seed is None else how.seed)
    n_room = llm.n_ctx() - text.n_tokens
    n_most = n_room if how.max_tokens is None else min(how.max_tokens, n_room)
    answer = Answer(llm._piece, [*how.stop, *rendered.stop], n_most)
    tokens = _tokens(talk, how.sampling)
    talk.is_answering, is_undone = True, False
    try:
        while answer.finish_reason is None:
            if not text.is_live:
                raise SessionEndedError("the cache was used for something else while an answer was being written")
            with text.at_work():
                token = next(tokens, None)
            if answer.n_tokens == 0:
                text.settle()
                text.checkpoint(N_APART)
            if token is None or llm._is_end(token):
                answer.end("stop")
            else:
                text.ahead.append(token)
                answer.add(token)
            if piece := answer.take_piece():
                yield piece
    except BaseException as error:
        is_early, is_failure = answer.n_tokens == 0, isinstance(error, Exception)
        if text.is_live and ((changes and (is_early or is_failure)) or (is_early and is_failure)):
            tokens.close()
            is_undone = put_back()
        raise
    finally:
        tokens.close()
        talk.is_answering = False
        if not is_undone:
            if text.is_live and not text.is_orphan:
                text.settle()
            if text.is_live and answer.n_behind_stop > 0:
                text.go_back(text.n_tokens - answer.n_behind_stop)
            turn = _turn(talk, took, answer, time.perf_counter() - start_s)
            message = answer_message(answer.text, talk.tools, how.tool)
            talk.add(Exchange(n_before, tuple(asked), message, answer.text, turn))


def _tokens(talk: Conversation, sampling: dict[str, Any]) -> Generator[int, Any, None]:
    yield from talk.llm.generate(talk.text.ahead.copy(), reset=False, **sampling)


def _turn(talk: Conversation, took: Asked, answer: Answer, seconds: float) -> Turn:
    recalls, reuse = talk.llm.last_recalls, took.reuse
    return Turn(
        prompt_tokens=reuse.n_evaluated,
        cached_tokens=reuse.n_cached,
        completion_tokens=answer.n_tokens,
        finish_reason=answer.finish_reason or "interrupted",
        n_evicted=0 if talk.text.is_orphan else talk.text.stats().n_evicted - took.n_evicted,
        reprocessed=reuse.reprocessed,
        seconds=seconds,
        rate_tok_s=answer.rate_tok_s,
        n_recalled=sum(recall.n_recalled for recall in recalls),
        recall_ms=sum(recall.took_ms for recall in recalls),
        media_tokens=took.n_media,
        again_tokens=took.n_again,
        restored_tokens=took.n_restored,
        sources=joined(tuple(source for recall in recalls for source in recall.sources)),
    )
