"""The comparisons that `morphkv bench decode` makes, each a ratio of two caches' decode speeds."""

import dataclasses
from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from morphkv_cpp import Llama, MorphKV, bridge

from .decode import Lane, Ratio, endless_tokens, fill, ratio, run_in_turns

# rows of the result, which requirements may name
SAME_CELLS, DEPTH, AFTER_PROMPT = "same-cells", "depth", "after-prompt"
ROWS = {
    SAME_CELLS: "MorphKV against stock with a full cache of as many cells",
    DEPTH: "MorphKV against stock at depth {n_deep}",
    AFTER_PROMPT: "after a prompt of {n_prompt} in a large prompt room against a small room",
}
N_BATCH = 512


@dataclass(frozen=True)
class Sizes:
    """In tokens."""

    n_deep: int = 8000  # depth of the stock cache that MorphKV shall beat
    n_prompt: int = 6000
    n_rounds: int = 5


@dataclass
class Result:
    lanes: list[Lane]
    ratios: dict[str, Ratio]  # by row
    kv_bytes: dict[str, int]  # by lane


def n_fill(morphkv: MorphKV, sizes: Sizes) -> int:
    """Tokens of all prompts together."""
    return 2 * (morphkv.capacity + morphkv.interval) + sizes.n_deep + sizes.n_prompt


def run_suite(
    model: Path,
    morphkv: MorphKV,
    sizes: Sizes,
    on_fill: Callable[[int], None],
    on_turn: Callable[[str], None],
    **llama_options: Any,
) -> Result:
    """morphkv: its prompt room is set here, small in one lane and large in another."""
    n_turn = 2 * morphkv.interval

    with ExitStack() as stack:

        def lane(name: str, config: MorphKV | None, n_ctx: int, n_prompt: int, **more: Any) -> Lane:
            options = {**llama_options, "n_ctx": n_ctx, "n_batch": N_BATCH, "n_ubatch": N_BATCH}
            llm = stack.enter_context(closing(Llama(model, morphkv=config, **options)))
            tokens = endless_tokens(llm)
            fill(llm, tokens, n_prompt, on_fill)
            return Lane(name, llm, tokens, **{"n_turn": n_turn, **more})

        n_ctx = sizes.n_prompt + 8 * morphkv.capacity + (sizes.n_rounds + 2) * n_turn
        small = dataclasses.replace(morphkv, prompt_room=0)
        large = dataclasses.replace(morphkv, prompt_room=sizes.n_prompt)
        deep, lap = sizes.n_deep, morphkv.interval
        full = morphkv.capacity + lap
        lanes = [
            lane("MorphKV", small, n_ctx, full),
            # from as many cells as MorphKV has after a cut to as many as it has before one, again and again
            lane("stock, as many cells", None, full, full, n_back=morphkv.capacity, n_lap=lap),
            lane(f"stock, depth {deep}", None, deep + lap, deep, n_back=deep, n_lap=lap),
            lane(f"MorphKV, after {sizes.n_prompt} tokens", large, n_ctx, sizes.n_prompt),
        ]
        run_in_turns(lanes, sizes.n_rounds, on_turn)
        own, same, at_depth, after = lanes
        ratios = {SAME_CELLS: ratio(own, same), DEPTH: ratio(own, at_depth), AFTER_PROMPT: ratio(after, own)}
        return Result(lanes, ratios, {lane.name: bridge.kv_bytes(lane.llm.ctx) for lane in lanes})
