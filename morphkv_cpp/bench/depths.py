"""Decode speed and bytes of K and V at several depths of a text, MorphKV beside stock llama.cpp."""

import dataclasses
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from morphkv_cpp import Llama, MorphKV, bridge

from .decode import Lane, endless_tokens, fill, run_in_turns

MORPHKV, STOCK = "MorphKV", "stock llama.cpp"
N_BATCH = 512
N_HALVES = 4  # how often the deepest depth is halved


@dataclass(frozen=True)
class DepthPoint:
    """One cache at one depth of the text."""

    cache: str  # MORPHKV or STOCK
    n_depth: int
    kv_bytes: int  # of the K and V tensors, as allocated
    rates_tok_s: list[float]  # (n_rounds,)

    @property
    def rate_tok_s(self) -> float:
        """The median over the rounds."""
        return median(self.rates_tok_s)


def halved_depths(n_deepest: int, interval: int) -> list[int]:
    """Depths up to n_deepest, each half of the next one, and none that a turn of `interval` tokens would not fit into.

    Raises ValueError where n_deepest is too small for one.
    """
    if n_deepest < 2 * interval:
        raise ValueError(f"the depth must be at least {2 * interval}, twice the interval, got {n_deepest}")
    depths = [n_deepest >> i for i in range(N_HALVES, -1, -1)]
    return [depth for depth in depths if depth >= 2 * interval]


def n_depths_fill(morphkv: MorphKV, depths: Sequence[int]) -> int:
    """Tokens of all prompts together."""
    return sum(depths) + depths[-1] - 2 * len(depths) * morphkv.interval


def run_depths(
    model: Path,
    morphkv: MorphKV,
    depths: Sequence[int],
    n_rounds: int,
    on_fill: Callable[[int], None],
    on_turn: Callable[[str], None],
    **llama_options: Any,
) -> list[DepthPoint]:
    """Both caches decode the last `interval` tokens before each depth, again and again, in turns.

    depths: ascending, as of halved_depths(). morphkv: its prompt room is not used. Stock gets a context of the depth's
    size each time, which is the least that such a text needs; MorphKV goes on in one.
    """
    n_turn = morphkv.interval
    options = {**llama_options, "n_batch": N_BATCH, "n_ubatch": N_BATCH}
    points = []
    with closing(Llama(model, morphkv=dataclasses.replace(morphkv, prompt_room=0), **options)) as own:
        own_tokens = endless_tokens(own)
        for n_depth in depths:
            n_start = n_depth - n_turn
            fill(own, own_tokens, n_start - own.n_tokens, on_fill)
            with closing(Llama(model, morphkv=None, n_ctx=n_depth, **options)) as full:
                full_tokens = endless_tokens(full)
                fill(full, full_tokens, n_start, on_fill)
                lanes = [
                    Lane(MORPHKV, own, own_tokens, n_turn, state=own.save_state()),
                    Lane(STOCK, full, full_tokens, n_turn, n_back=n_start),
                ]
                run_in_turns(lanes, n_rounds, on_turn)
                points += [DepthPoint(lane.name, n_depth, bridge.kv_bytes(lane.llm.ctx), lane.rates) for lane in lanes]
    return points
