"""Completions whose work per token does not grow with the answer.

Source: llama_cpp.Llama._create_completion of llama-cpp-python, which turns the whole answer into text at every
token and looks for stop texts in all of it. For the same tokens the results are the same here, chunk by chunk, except
where llama_cpp loses text or breaks:
- Tokens of more than 32 bytes, as long rows of dashes or spaces are, have no text there.
- In a stream, characters whose bytes are spread over tokens are lost there where it ends, and always with logprobs.
  After bytes that are no UTF-8 it shows nothing until it ends; here they are left out, as in an answer at once.
  An answer to an empty prompt begins with a space there, and with logprobs it repeats a token or ends in an IndexError.
- In an answer at once, a stop text that came while a character was awaited stays there if nothing follows it. An answer
  ended by a stopping criterion that does not hold a second time is empty there.
- Logprobs of an answer to an empty prompt, and of an echoed prompt without BOS, are there those of the next position;
  in a stream's last chunks text_offset counts bytes there.
- While each token leaves a character open, neither max_tokens nor stop texts nor a full n_ctx end the answer there.
- The model is named by its path there where no name is given, by its file's name here.
- Of logit_bias together with a logits_processor neither is applied there.
Beyond it, an answer and the last chunk of a stream have `usage` and `timings` (text.account).
"""

from __future__ import annotations

import logging
import os
import random
import time
import uuid
from array import array
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import numpy as np
from llama_cpp import LogitsProcessorList, StoppingCriteriaList

from ..cache.disk_cache import LlamaDiskCache
from ..cache.live import Logits, TokenIds
from ..cache.reuse import PromptReuse, common_prefix
from ..errors import ContextFullError
from .account import Clock
from .logprobs import TokenLogprobs, as_completion, token_logprobs, token_text
from .model import TextModel
from .pieces import AnswerText, TokenQueue, utf8_decoder
from .tokens import completion_tokens

logger = logging.getLogger("morphkv_cpp")


def complete(
    llm: TextModel,
    *,
    prompt: str | list[int],
    suffix: str | None,
    max_tokens: int,
    temperature: float,
    logprobs: int | None,
    echo: bool,
    stop: str | list[str] | None,
    stream: bool,
    seed: int | None,
    model: str | None,
    stopping_criteria: StoppingCriteriaList | None,
    logits_processor: LogitsProcessorList | None,
    logit_bias: dict[int, float] | None,
    **sampling: Any,
) -> Iterator[dict[str, Any]]:
    """The chunks of a stream, or the whole answer as the only item; keywords of llama_cpp.Llama.create_completion()."""
    prompt_tokens = completion_tokens(llm, prompt, suffix)
    n_prompt = len(prompt_tokens)
    if llm.verbose:
        llm._ctx.reset_timings()  # type: ignore[no-untyped-call]
    n_ctx = llm.n_ctx()
    if n_prompt >= n_ctx:
        raise ContextFullError(f"Requested tokens ({n_prompt}) exceed context window of {n_ctx}")
    n_most = n_ctx - n_prompt if max_tokens <= 0 else min(max_tokens, n_ctx - n_prompt)
    stops = stop if isinstance(stop, list) else [stop] if isinstance(stop, str) else []
    answer = _Answer(llm, n_prompt, [text.encode("utf-8") for text in stops], logprobs, stream)
    if len(prompt) == 0:
        answer.begin_with_bos()
    if logprobs is not None and not llm._logits_all:
        raise ValueError("logprobs is not supported for models created with logits_all=False")
    _load_from_cache(llm, prompt_tokens)
    llm.set_seed(random.Random(llm._seed).randint(0, 2**32) if seed is None else seed)

    head = {
        "id": f"cmpl-{uuid.uuid4()}",
        "object": "text_completion",
        "created": int(time.time()),
        "model": os.path.basename(llm.model_path) if model is None else model,
    }

    def chunk(text: str, note: TokenLogprobs | None, finish_reason: str | None = None) -> dict[str, Any]:
        return {**head, "choices": [_choice(text, as_completion([note], len(prompt)) if note else None, finish_reason)]}

    clock, finish_reason = Clock(llm), "length"
    for token in llm.generate(
        prompt_tokens,
        temp=temperature,
        stopping_criteria=stopping_criteria,
        logits_processor=_processors(logits_processor, logit_bias),
        **sampling,
    ):
        clock.token()
        if llm._is_end(token):
            finish_reason = "stop"
            break
        answer.add(token)
        if answer.waits() and llm.n_tokens + 1 < n_ctx:
            continue
        if answer.has_stop():
            finish_reason = "stop"
            break
        for text, note in answer.show():
            yield chunk(text, note)
        if len(answer.tokens) >= n_most:
            break
    answer.has_stop()  # those that waited have not been asked yet
    if stopping_criteria is not None and stopping_criteria(llm._input_ids, llm._scores[-1, :]):
        finish_reason = "stop"
    if llm.verbose:
        llm._ctx.print_timings()  # type: ignore[no-untyped-call]

    reuse = llm.last_prompt or PromptReuse(n_prompt, 0, 0)
    account = llm._account = clock.account(reuse, len(answer.tokens), llm.last_recalls)
    if stream:
        for text, note in answer.show_rest():
            yield chunk(text, note)
        yield {**chunk("", None, finish_reason), **asdict(account)}
    if isinstance(llm.cache, LlamaDiskCache):
        if llm._evals is not None:
            llm.cache.save(llm, n_prompt, llm._evals.checkpoints)
    elif llm.cache:
        logger.info("completion: cache save")
        llm.cache[[*prompt_tokens, *answer.tokens]] = llm.save_state()
    if stream:
        return
    text, of_tokens = answer.whole(), None
    if echo:
        text = prompt + text  # type: ignore[operator]  # as llama_cpp, TypeError for token ids
    if logprobs is not None:
        of_tokens = answer.logprobs_with(prompt_tokens) if echo else as_completion(answer.notes, len(prompt))
    yield {
        **head,
        "choices": [_choice(text, of_tokens, finish_reason)],
        **asdict(account),
    }


class _Answer:
    """The tokens so far, their text and, with logprobs, a note on each but BOS.

    n_top: how many of the likeliest tokens logprobs name, None without logprobs.
    """

    def __init__(self, llm: TextModel, n_prompt: int, stops: list[bytes], n_top: int | None, stream: bool):
        self.tokens = array("i")
        self.notes: list[TokenLogprobs] = []
        self._llm = llm
        self._n_top = n_top
        self._bos = llm.token_bos()
        self._i_first = n_prompt  # position of the first token in the context
        self._text = AnswerText(stops)
        self._queue = TokenQueue(each_alone=n_top is not None) if stream else None
        self._end: int | None = None  # where a stop text ends the answer, in bytes
        self._drops_space = False
        self._decoder = utf8_decoder()
        self._n_chars = 0

    def begin_with_bos(self) -> None:
        """Takes the space off the first word, which has none before it; as in llama_cpp BOS then counts as a token."""
        self._i_first -= 1
        self.add(self._bos)

    def add(self, token: int) -> None:
        piece = self._piece(token)
        note = self._note(token)
        self._n_chars += len(self._decoder.decode(piece))
        self.tokens.append(token)
        self._text.add(piece)
        if self._queue is not None and (note is not None or self._n_top is None):
            self._queue.add(piece, note)

    def _piece(self, token: int) -> bytes:
        piece = self._llm._piece(token)
        if not self.tokens:
            self._drops_space = token == self._bos
        elif piece and self._drops_space:
            self._drops_space = False
            return piece[1:] if piece.startswith(b" ") else piece
        return piece

    def _note(self, token: int) -> TokenLogprobs | None:
        if self._n_top is None or token == self._bos:
            return None
        logits = self._llm.scores[self._i_first + len(self.tokens) - 1]
        self.notes.append(token_logprobs(self._llm, token, logits, self._n_chars, self._n_top))
        return self.notes[-1]

    def waits(self) -> bool:
        return self._text.waits()

    def has_stop(self) -> bool:
        found = self._text.find_stops()
        if found and self._end is None:
            # As in llama_cpp, of several that come with one token: the earliest of a stream, else the one given first.
            self._end = found[0] if self._queue is None else min(found)
        return bool(found)

    def show(self) -> Iterator[tuple[str, TokenLogprobs | None]]:
        """Text and note of each chunk that a stream can show now."""
        if self._queue is None:
            return iter(())
        return self._queue.take(self._text.n_bytes - self._text.n_held(self._queue.n_shown))

    def show_rest(self) -> Iterator[tuple[str, TokenLogprobs | None]]:
        if self._queue is None:
            return iter(())
        return self._queue.rest(self._text.n_bytes if self._end is None else self._end)

    def whole(self) -> str:
        return self._text.decode(self._end)

    def logprobs_with(self, prompt_tokens: list[int]) -> dict[str, list[Any]]:
        """Of the prompt but BOS, then of the answer. The first token's are None, as OpenAI's are."""
        notes: list[TokenLogprobs] = []
        decoder, n_chars, n_top = utf8_decoder(), 0, self._n_top or 0
        for i, token in enumerate(prompt_tokens):
            if token == self._bos:
                continue
            if notes:
                notes.append(token_logprobs(self._llm, token, self._llm.scores[i - 1], n_chars, n_top))
            else:
                notes.append(TokenLogprobs(token_text(self._llm, token), 0, None, None))
            n_chars += len(decoder.decode(self._llm._piece(token)))
        notes += [note._replace(offset=n_chars + note.offset) for note in self.notes]
        if notes:
            notes[0] = notes[0]._replace(logprob=None, top=None)
        return as_completion(notes, 0)


def _choice(text: str, logprobs: dict[str, list[Any]] | None, finish_reason: str | None) -> dict[str, Any]:
    return {"text": text, "index": 0, "logprobs": logprobs, "finish_reason": finish_reason}


def _processors(given: LogitsProcessorList | None, logit_bias: dict[int, float] | None) -> LogitsProcessorList | None:
    if logit_bias is None:
        return given
    tokens = np.array([int(token) for token in logit_bias], dtype=np.intp)
    biases = np.array([float(bias) for bias in logit_bias.values()], dtype=np.single)

    def add_bias(input_ids: TokenIds, scores: Logits) -> Logits:
        scores[tokens] += biases
        return scores

    return LogitsProcessorList([*(given or []), add_bias])


def _load_from_cache(llm: TextModel, prompt_tokens: list[int]) -> None:
    """Take over a saved state that shares more of the prompt than the context does."""
    if isinstance(llm.cache, LlamaDiskCache):
        if llm._evals is not None:
            llm.cache.load(llm, prompt_tokens, llm._evals.checkpoints)
        return
    if not llm.cache:
        return
    try:
        state = llm.cache[prompt_tokens]
    except KeyError:
        logger.info("completion: cache miss")
        return
    if common_prefix(state.input_ids, prompt_tokens) > common_prefix(llm._input_ids, prompt_tokens):
        llm.load_state(state)
        logger.info("completion: cache hit")
