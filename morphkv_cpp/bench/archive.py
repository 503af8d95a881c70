"""What an archive costs: its share of the time of decoding, and how long a recall takes once it is large."""

import time
from collections.abc import Callable, Iterator
from statistics import median
from typing import NamedTuple

from morphkv_cpp import Llama, Recall

from .decode import decode_seconds, fill

N_RATED = 1024  # tokens one by one, over which the share is taken
N_RECALLS = 9
N_BETWEEN = 16  # tokens of a prompt before each recall, so that it asks something else


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
