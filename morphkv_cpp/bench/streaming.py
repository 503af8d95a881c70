"""Does a streamed answer slow down? What Python does for a token must not grow with the answer."""

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import llama_cpp

from morphkv_cpp import Llama
from morphkv_cpp.text.write import ForceTokens

from .decode import Ratio, endless_tokens, ratio, run_in_turns

N_MARK = 1000  # tokens behind which the first speed is taken
N_RATED = 3000  # tokens over which each speed is taken, in turns: enough of them for a busy machine
STOPS = ["</answer>", "\n\nThe next question:"]  # not in the prose, so that they are looked for up to the end
PROMPT = "Once upon a time"


class LeapingLlama(Llama):
    """Evaluates an answer's tokens in batches up to `n_leap` tokens of context, and one by one from there on.

    All else happens token by token on the way too: sampling, text, stop texts, chunks. So a long answer takes as long
    as a long prompt, and Python's work behind it is that of a long answer. On the way a token is drawn with the logits
    of the batch before it, so the tokens must be forced.
    """

    n_leap = 0
    _n_behind = 0  # tokens at the end that are not evaluated yet

    def eval(self, tokens: Sequence[int]) -> None:
        n_evaluated = self.n_tokens - self._n_behind
        if 0 < n_evaluated and self.n_tokens + len(tokens) <= self.n_leap:
            self.input_ids[self.n_tokens : self.n_tokens + len(tokens)] = tokens
            self.n_tokens += len(tokens)
            self._n_behind += len(tokens)
            if self._n_behind < self.n_batch and self.n_tokens < self.n_leap:
                return
            tokens = []
        tokens = [*self.input_ids[n_evaluated : self.n_tokens].tolist(), *tokens]
        self.n_tokens, self._n_behind = n_evaluated, 0
        super().eval(tokens)


class StreamLane:
    """An answer that is streamed from about its n_start-th token on, n_turn tokens at a time; see decode.Lane.

    Several share one context, and each has its cache saved between its turns. Not a context each: even with equal texts
    the speeds of two differ, by up to a tenth on some machines.
    """

    def __init__(self, name: str, llm: LeapingLlama, n_start: int, n_turn: int):
        self.name = name
        self.rates: list[float] = []  # (n_rounds,) tok/s
        self._llm = llm
        self._n_start = n_start
        self._n_turn = n_turn

    def start(self, on_tokens: Callable[[int], None] = lambda n: None) -> None:
        """Write up to the n_start-th token, and on to the next eviction: all lanes then have as many cells in use."""
        llm = self._llm
        llm.reset()
        llm._ctx.kv_cache_clear()  # type: ignore[no-untyped-call]
        llm.n_leap = self._n_start
        self._chunks: Iterator[Any] = iter(
            llm.create_completion(
                PROMPT,
                max_tokens=None,
                temperature=0.0,
                stop=STOPS,
                stream=True,
                logits_processor=llama_cpp.LogitsProcessorList([ForceTokens(endless_tokens(llm))]),
            )
        )
        while llm.n_tokens < self._n_start:
            n_before = llm.n_tokens
            self._write(min(self._n_start, n_before + llm.n_batch))
            on_tokens(llm.n_tokens - n_before)
        llm.n_leap = 0
        n_evictions = llm.cache_stats().n_evictions
        while llm.cache_stats().n_evictions == n_evictions:
            self._write(llm.n_tokens + 1)
        self._leave()

    def turn(self) -> None:
        llm = self._llm
        llm.load_state(self._state)
        llm._sampler = self._sampler
        start = time.perf_counter()
        self._write(llm.n_tokens + self._n_turn)
        self.rates.append(self._n_turn / (time.perf_counter() - start))
        self._leave()

    def _leave(self) -> None:
        self._state = self._llm.save_state()
        self._sampler = self._llm._sampler  # llama_cpp's belongs to the last answer that was begun

    def _write(self, n_tokens: int) -> None:
        while self._llm.n_tokens < n_tokens:
            if next(self._chunks)["choices"][0]["finish_reason"] is not None:
                raise RuntimeError(f"the answer ended at {self._llm.n_tokens} tokens, before {n_tokens}")


def streaming_kept(
    llm: LeapingLlama,
    n_tokens: int,
    n_block: int,
    on_tokens: Callable[[int], None],
    on_turn: Callable[[str], None],
) -> tuple[Ratio, list[StreamLane]]:
    """tok/s of 3,000 tokens of a stream behind its n_tokens-th over those behind the 1,000th of another, in turns.

    n_block: tokens of a turn, the eviction interval, so that each turn holds one eviction.
    """
    lanes = [StreamLane("late", llm, n_tokens, n_block), StreamLane("early", llm, N_MARK, n_block)]
    for lane in lanes:
        lane.start(on_tokens)
    run_in_turns(lanes, max(1, N_RATED // n_block), on_turn)
    return ratio(*lanes), lanes
