"""Decode speed of several caches in turns, so that what else the machine does meets all of them alike."""

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import NamedTuple, Protocol

import llama_cpp
from llama_cpp import LlamaState

from morphkv_cpp import Llama
from morphkv_cpp.eval import prose_sections

SecondsOf = Callable[[Llama, Iterator[int], int], float]  # how long the next so many tokens take


def endless_tokens(llm: Llama, sections: slice = slice(None)) -> Iterator[int]:
    """Tokens of real prose, over and over: how fast a token is decoded does not depend on which it is."""
    return itertools.cycle(prose_tokens(llm, sections))


def prose_tokens(llm: Llama, sections: slice = slice(None)) -> list[int]:
    return llm.tokenize("\n\n".join(prose_sections()[sections]).encode())


def fill(llm: Llama, tokens: Iterator[int], n_tokens: int, on_tokens: Callable[[int], None] = lambda n: None) -> None:
    """A prompt, in batches."""
    while n_tokens > 0:
        batch = list(itertools.islice(tokens, min(n_tokens, llm.n_batch)))
        llm.eval(batch)
        n_tokens -= len(batch)
        on_tokens(len(batch))


def decode_seconds(llm: Llama, tokens: Iterator[int], n_tokens: int) -> float:
    """Time of n_tokens decoded one by one: llama_decode() and its evictions, without sampling."""
    start = time.perf_counter()
    for token in itertools.islice(tokens, n_tokens):
        llm._batch.set_batch(batch=[token], n_past=llm.n_tokens, logits_all=False)
        llm._ctx.decode(llm._batch)
        llm.n_tokens += 1
    # a GPU may still be at it
    llama_cpp.llama_synchronize(llm.ctx)
    return time.perf_counter() - start


def prompt_seconds(
    llm: Llama, tokens: Iterator[int], n_tokens: int, on_tokens: Callable[[int], None] = lambda n: None
) -> float:
    """Time of n_tokens in batches."""
    start = time.perf_counter()
    fill(llm, tokens, n_tokens, on_tokens)
    llama_cpp.llama_synchronize(llm.ctx)
    return time.perf_counter() - start


class TakesTurns(Protocol):
    name: str
    rates: list[float]  # (n_rounds,) tok/s

    def turn(self) -> None: ...


@dataclass
class Lane:
    """One cache in the comparison."""

    name: str
    llm: Llama
    tokens: Iterator[int]
    n_turn: int  # tokens decoded in a turn; a multiple of the eviction interval where there is one
    seconds_of: SecondsOf = decode_seconds
    n_back: int | None = None  # a full cache goes back to this depth whenever it is n_lap tokens behind it
    n_lap: int = 0
    state: LlamaState | None = None  # every turn begins here
    rates: list[float] = field(default_factory=list)  # (n_rounds,) tok/s

    def turn(self) -> None:
        seconds = 0.0
        n_lap = self.n_lap or self.n_turn
        if self.state is not None:
            self.llm.load_state(self.state)
        for start in range(0, self.n_turn, n_lap):
            if self.n_back is not None:
                self.llm.n_tokens = self.n_back
                self.llm._ctx.kv_cache_seq_rm(-1, self.n_back, -1)
            seconds += self.seconds_of(self.llm, self.tokens, min(n_lap, self.n_turn - start))
        self.rates.append(self.n_turn / seconds)


def run_in_turns(lanes: Sequence[TakesTurns], n_rounds: int, on_turn: Callable[[str], None]) -> None:
    """Every round gives each lane a turn, in the opposite order of the round before: a drift cancels out.

    One turn each comes first and does not count.
    """
    for i_round in range(n_rounds + 1):
        for lane in lanes if i_round % 2 == 0 else reversed(lanes):
            lane.turn()
            on_turn(lane.name)
    for lane in lanes:
        del lane.rates[0]


class Ratio(NamedTuple):
    """Rates of two lanes, round by round."""

    middle: float  # median over the rounds
    low: float
    high: float


def ratio(lane: TakesTurns, other: TakesTurns) -> Ratio:
    ratios = [a / b for a, b in zip(lane.rates, other.rates)]
    return Ratio(median(ratios), min(ratios), max(ratios))
