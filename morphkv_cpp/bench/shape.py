"""What a layer of a large model costs, measured on a few layers of its shape with random weights."""

import dataclasses
from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from morphkv_cpp import Archive, Llama, MorphKV, Recall, bridge

from .decode import Lane, endless_tokens, fill, run_in_turns

N_BATCH = 512
N_RECALLS = 3
N_BETWEEN = 16  # tokens of a prompt before each recall, so that it asks something else


@dataclass(frozen=True)
class Evictions:
    """What the library counts around its own work, in ms."""

    n: int
    evict_ms: float
    archive_ms: float  # a part of evict_ms
    recalls: list[Recall]

    @property
    def recall_ms(self) -> float:
        return median(recall.took_ms for recall in self.recalls)


@dataclass(frozen=True)
class ShapeCost:
    """Of all layers that were measured. Each cache's speed is a median over turns."""

    n_layer: int
    stock_ms: float  # a token at the depth
    stock_kv_bytes: int
    morphkv_ms: float  # a token, evictions included
    morphkv_kv_bytes: int
    without_archive: Evictions
    with_archive: Evictions


def n_shape_fill(morphkv: MorphKV, n_depth: int) -> int:
    """Tokens of all prompts together."""
    return 2 * n_depth + morphkv.capacity + morphkv.interval + N_RECALLS * N_BETWEEN


def shape_cost(
    model: Path,
    morphkv: MorphKV,
    n_layer: int,
    n_depth: int,
    n_rounds: int,
    on_fill: Callable[[int], None],
    on_turn: Callable[[str], None],
    **llama_options: Any,
) -> ShapeCost:
    """model: as write_shape() left it. n_depth: of stock's cache, and of the archive.

    Raises ValueError where the depth is not above twice the capacity.
    """
    if n_depth <= 2 * morphkv.capacity:
        raise ValueError(f"the depth must be above {2 * morphkv.capacity}, twice the capacity, got {n_depth}")
    morphkv = dataclasses.replace(morphkv, prompt_room=0)
    n_turn = 2 * morphkv.interval
    options = {**llama_options, "n_batch": N_BATCH, "n_ubatch": N_BATCH}
    with ExitStack() as stack:

        def lane(name: str, n_prompt: int, n_back: int | None = None, **more: Any) -> Lane:
            llm = stack.enter_context(closing(Llama(model, **options, **more)))
            tokens = endless_tokens(llm)
            fill(llm, tokens, n_prompt, on_fill)
            return Lane(name, llm, tokens, n_turn, n_back=n_back)

        own = lane("MorphKV", morphkv.capacity + morphkv.interval, morphkv=morphkv)
        stock = lane("stock", n_depth, n_depth, morphkv=None, n_ctx=n_depth + n_turn)
        archived = lane("MorphKV with an archive", n_depth, morphkv=morphkv, archive=Archive(recall="off"))
        before = [each.llm.cache_stats() for each in (own, archived)]
        run_in_turns([own, stock, archived], n_rounds, on_turn)
        after = [each.llm.cache_stats() for each in (own, archived)]
        recalls = []
        for _ in range(N_RECALLS):
            fill(archived.llm, archived.tokens, N_BETWEEN, on_fill)
            recalls.append(archived.llm.recall())
        counted = [
            Evictions(b.n_evictions - a.n_evictions, b.evict_ms - a.evict_ms, b.archive_ms - a.archive_ms, asked)
            for a, b, asked in zip(before, after, ([], recalls))
        ]
        return ShapeCost(
            n_layer,
            1e3 / median(stock.rates),
            bridge.kv_bytes(stock.llm.ctx),
            1e3 / median(own.rates),
            bridge.kv_bytes(own.llm.ctx),
            *counted,
        )
