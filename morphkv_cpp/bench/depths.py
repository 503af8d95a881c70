"""Speed and bytes of K and V at several depths of a text, MorphKV beside caches that stock llama.cpp has."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import llama_cpp

from morphkv_cpp import Llama, MorphKV, bridge
from morphkv_cpp.cache.archive import CACHE_TYPES
from morphkv_cpp.eval.readers import N_KEEP, shift_context
from morphkv_cpp.eval.suite_arms import N_PAD

from .decode import Lane, decode_seconds, endless_tokens, fill, prompt_seconds, run_in_turns

MORPHKV, STOCK, SHIFT = "MorphKV", "stock llama.cpp", "context shift"
STOCK_TYPES = {f"stock, {name}": CACHE_TYPES[name] for name in ("q8_0", "q4_0")}  # of K and V
CACHES = (MORPHKV, STOCK, *STOCK_TYPES, SHIFT)
N_BATCH = 512
N_HALVES = 4  # how often the deepest depth is halved


@dataclass(frozen=True)
class DepthPoint:
    """One cache at one depth of the text."""

    cache: str  # one of CACHES
    n_depth: int
    kv_bytes: int  # of the K and V tensors, as allocated
    rates_tok_s: list[float]  # (n_rounds,)
    prompt_tok_s: float | None = None  # of all tokens up to there, read once; None where it was not measured
    read_bytes: float = 0  # of the weights, and of K and V in use, which each token reads

    @property
    def rate_tok_s(self) -> float:
        """The median over the rounds."""
        return median(self.rates_tok_s)

    @property
    def read_gb_s(self) -> float:
        """GB (1e9 bytes) read in a second of decoding."""
        return self.rate_tok_s * self.read_bytes / 1e9

    @property
    def first_token_s(self) -> float | None:
        """Time to the first token behind a prompt of n_depth tokens."""
        return None if self.prompt_tok_s is None else self.n_depth / self.prompt_tok_s


@dataclass
class _Prompt:
    """Tokens that were read in batches, and how long that took."""

    n_tokens: int = 0
    seconds: float = 0.0

    def read(self, llm: Llama, tokens: Iterator[int], n_tokens: int, on_tokens: Callable[[int], None]) -> None:
        self.seconds += prompt_seconds(llm, tokens, n_tokens, on_tokens)
        self.n_tokens += n_tokens

    @property
    def rate(self) -> float | None:
        return self.n_tokens / self.seconds if self.n_tokens else None


_Turns = tuple[Lane, _Prompt | None]


def halved_depths(n_deepest: int, interval: int) -> list[int]:
    """Depths up to n_deepest, each half of the next one, and none that a turn of `interval` tokens would not fit into.

    Raises ValueError where n_deepest is too small for one.
    """
    if n_deepest < 2 * interval:
        raise ValueError(f"the depth must be at least {2 * interval}, twice the interval, got {n_deepest}")
    depths = [n_deepest >> i for i in range(N_HALVES, -1, -1)]
    return [depth for depth in depths if depth >= 2 * interval]


def n_depths_fill(morphkv: MorphKV, depths: Sequence[int], caches: Sequence[str] = (MORPHKV, STOCK)) -> int:
    """Tokens of all prompts together."""
    n_turns = len(depths) * morphkv.interval
    n_full = sum(cache not in (MORPHKV, SHIFT) for cache in caches) * (sum(depths) - n_turns)
    n_own = depths[-1] - n_turns if MORPHKV in caches else 0
    return n_full + n_own + (_n_ctx(morphkv) if SHIFT in caches and depths[-1] > _n_ctx(morphkv) else 0)


def run_depths(
    model: Path,
    morphkv: MorphKV,
    depths: Sequence[int],
    n_rounds: int,
    on_fill: Callable[[int], None],
    on_turn: Callable[[str], None],
    caches: Sequence[str] = (MORPHKV, STOCK),
    **llama_options: Any,
) -> list[DepthPoint]:
    """Each cache decodes the last `interval` tokens before each depth, again and again, in turns.

    depths: ascending, as of halved_depths(). A full cache gets a context of the depth's size each time, which is the
    least that such a text needs; MorphKV goes on in one. A shifted context has as many cells as MorphKV uses, and a
    turn of it has one shift; at depths that it holds whole it is stock's, and is left out.
    """
    options = {**llama_options, "n_batch": N_BATCH, "n_ubatch": N_BATCH}
    points = []
    with ExitStack() as stack:
        own = _Constant(stack, model, morphkv, options) if MORPHKV in caches else None
        shifted = _Shifted(stack, model, morphkv, options) if SHIFT in caches else None
        for n_depth in depths:
            with ExitStack() as of_depth:
                turns = [
                    _full(of_depth, model, cache, n_depth, morphkv.interval, options, on_fill)
                    for cache in caches
                    if cache not in (MORPHKV, SHIFT)
                ]
                if own:
                    turns.insert(0, own.at(n_depth, on_fill))
                if shifted and n_depth > shifted.n_ctx:
                    turns.append(shifted.again(on_fill))
                run_in_turns([lane for lane, _ in turns], n_rounds, on_turn)
                points += [_point(lane, prompt, n_depth, morphkv) for lane, prompt in turns]
    return points


class _Constant:
    """MorphKV's one context, in which the text goes on from depth to depth."""

    def __init__(self, stack: ExitStack, model: Path, morphkv: MorphKV, options: dict[str, Any]):
        self.llm = stack.enter_context(closing(Llama(model, morphkv=morphkv, **options)))
        self.tokens = endless_tokens(self.llm)
        self.prompt = _Prompt()
        self.n_turn = morphkv.interval
        # behind a prompt that fills a large room, turns begin where one in a small room would have them begin
        self.n_settle = morphkv.interval if morphkv.prompt_room > morphkv.interval else 0

    def at(self, n_depth: int, on_fill: Callable[[int], None]) -> _Turns:
        n_start = n_depth - self.n_turn
        self.prompt.read(self.llm, self.tokens, n_start - self.n_settle - self.llm.n_tokens, on_fill)
        decode_seconds(self.llm, self.tokens, self.n_settle)
        on_fill(self.n_settle)
        return Lane(MORPHKV, self.llm, self.tokens, self.n_turn, state=self.llm.save_state()), self.prompt


def _full(
    stack: ExitStack,
    model: Path,
    cache: str,
    n_depth: int,
    n_turn: int,
    options: dict[str, Any],
    on_fill: Callable[[int], None],
) -> _Turns:
    """A context of stock llama.cpp's that is full at the end of each turn."""
    if cache in STOCK_TYPES:
        options = options | {"type_k": STOCK_TYPES[cache], "type_v": STOCK_TYPES[cache]}
    llm = stack.enter_context(closing(Llama(model, morphkv=None, n_ctx=n_depth, **options)))
    tokens, prompt = endless_tokens(llm), _Prompt()
    prompt.read(llm, tokens, n_depth - n_turn, on_fill)
    return Lane(cache, llm, tokens, n_turn, n_back=n_depth - n_turn), prompt


class _Shifted:
    """A context of stock llama.cpp's with as many cells as MorphKV uses; each turn begins with a shift."""

    def __init__(self, stack: ExitStack, model: Path, morphkv: MorphKV, options: dict[str, Any]):
        self.n_ctx = _n_ctx(morphkv)
        self.llm = stack.enter_context(closing(Llama(model, morphkv=None, n_ctx=self.n_ctx, **options)))
        self.tokens = endless_tokens(self.llm)

    def again(self, on_fill: Callable[[int], None]) -> _Turns:
        """How deep the text is, it does not know."""
        fill(self.llm, self.tokens, self.n_ctx - self.llm.n_tokens, on_fill)
        return Lane(SHIFT, self.llm, self.tokens, (self.n_ctx - N_KEEP) // 2, seconds_of=_shift_seconds), None


def _shift_seconds(llm: Llama, tokens: Iterator[int], n_tokens: int) -> float:
    shift_context(llm)
    return decode_seconds(llm, tokens, n_tokens)  # whose first llama_decode() turns the keys


def _n_ctx(morphkv: MorphKV) -> int:
    """Of a shifted context: llama.cpp rounds up."""
    return -(-(morphkv.capacity + morphkv.interval) // N_PAD) * N_PAD


def _point(lane: Lane, prompt: _Prompt | None, n_depth: int, morphkv: MorphKV) -> DepthPoint:
    kv_bytes = bridge.kv_bytes(lane.llm.ctx)
    if lane.name == MORPHKV:
        n_cells, n_used = lane.llm.cache_stats().n_cells, min(n_depth, morphkv.capacity) + morphkv.interval / 2
    else:
        n_cells, n_used = lane.llm.n_ctx(), (lane.llm.n_ctx() if lane.name == SHIFT else n_depth) - lane.n_turn / 2
    n_weights = int(llama_cpp.llama_model_size(lane.llm.model))
    read_bytes = n_weights + kv_bytes * n_used / n_cells
    return DepthPoint(lane.name, n_depth, kv_bytes, lane.rates, prompt.rate if prompt else None, read_bytes)
