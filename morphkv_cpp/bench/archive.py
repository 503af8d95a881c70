"""What an archive costs: its share of the time of decoding, and how long a recall takes once it is large."""

import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from statistics import median
from typing import Literal, NamedTuple

import llama_cpp

from morphkv_cpp import Llama, Recall

from .decode import Ratio, decode_seconds, fill, prose_tokens, ratio, run_in_turns

N_RATED = 1024  # tokens one by one, over which the share is taken
N_RECALLS = 9
N_BETWEEN = 16  # tokens of a prompt before each recall, so that it asks something else
SEEN, UNSEEN = slice(0, 15), slice(15, None)  # sections of the prose: in the archive, and behind all of them
N_TURN = 256
N_ROUNDS = 8
N_WRITTEN = 2 * (N_ROUNDS + 1) * N_TURN  # with recalls and without


class ArchiveCost(NamedTuple):
    share: float  # of the time of decoding that it waited for the archive
    speed: float  # tok/s with it over tok/s without: what is left
    tok_s: float
    recalls: list[Recall]  # (N_RECALLS)
    n_bytes: int  # of the archive

    @property
    def recall_ms(self) -> float:
        return median(recall.took_ms for recall in self.recalls)

    @property
    def ask_ms(self) -> float:
        return median(recall.ask_ms for recall in self.recalls)


def archive_cost(llm: Llama, tokens: Iterator[int], n_tokens: int, on_tokens: Callable[[int], None]) -> ArchiveCost:
    """llm: with an archive, empty. The archive's time is taken by the library, around reading, turning and storing.
    What is stored while a GPU decodes on is not waited for.

    Not two contexts, with and without: even equal ones differ by more than the archive costs.
    """
    fill(llm, tokens, n_tokens, on_tokens)
    before, start = llm.cache_stats(), time.perf_counter()
    decode_seconds(llm, tokens, N_RATED)
    seconds = time.perf_counter() - start
    after = llm.cache_stats()
    on_tokens(N_RATED)
    share = (after.archive_ms - before.archive_ms) / 1e3 / seconds
    recalls = []
    for _ in range(N_RECALLS):
        fill(llm, tokens, N_BETWEEN)
        recalls.append(llm.recall())
    return ArchiveCost(share, 1 - share, N_RATED / seconds, recalls, llm.cache_stats().archive_bytes)


@dataclass
class WritingLane:
    """A text that goes on token by token, with recalls while it is written or without."""

    name: str
    recall: Literal["auto", "off"]
    llm: Llama
    tokens: Iterator[int]
    rates: list[float] = field(default_factory=list)  # (n_rounds,) tok/s
    n_recalls: int = 0

    def turn(self) -> None:
        assert self.llm.archive is not None
        self.llm.archive = replace(self.llm.archive, recall=self.recall)
        n_before, start = self.llm.cache_stats().n_recalls, time.perf_counter()
        for token in itertools.islice(self.tokens, N_TURN):
            self.llm.eval([token])
        llama_cpp.llama_synchronize(self.llm.ctx)
        self.rates.append(N_TURN / (time.perf_counter() - start))
        self.n_recalls += self.llm.cache_stats().n_recalls - n_before


class WritingCost(NamedTuple):
    speed: Ratio  # tok/s with recalls while writing over tok/s without
    n_recalls: int
    n_tokens: int  # written with them


def writing_cost(llm: Llama, on_tokens: Callable[[int], None]) -> WritingCost:
    """What recall="auto" costs where nothing has to come back: prose goes on that the archive does not have.

    llm: with an archive of other prose. One context, whose text goes on in turns.
    """
    tokens = itertools.cycle(prose_tokens(llm, UNSEEN))
    auto, off = WritingLane("recalls", "auto", llm, tokens), WritingLane("none", "off", llm, tokens)
    run_in_turns([auto, off], N_ROUNDS, lambda _: on_tokens(N_TURN))
    return WritingCost(ratio(auto, off), auto.n_recalls, (N_ROUNDS + 1) * N_TURN)
