"""`morphkv bench depths`: speed, memory and the first token at several depths, against stock llama.cpp's caches."""

import math
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import typer

from ... import MorphKV
from ...bench.bandwidth import copy_gb_s
from ...bench.depths import CACHES, MORPHKV, STOCK, DepthPoint, halved_depths, n_depths_fill, run_depths
from ...bench.suite import Sizes
from ...eval.bars import parse_bars
from ...plots.bench import depth_panels
from ..options import Model
from ..plots import Plot, plot_to
from ..show import Json, find_model, mebibytes, print_table, progress_bar, report
from .turns import RATE_COLUMNS, Rounds, rate_cells

SPEED, FIRST_TOKEN = "speed", "first-token"
ROWS = {
    SPEED: "tok/s of MorphKV over stock's, at the deepest depth",
    FIRST_TOKEN: "time to the first token of MorphKV over stock's, behind a prompt of that depth",
}
NAMES = dict(zip(("morphkv", "stock", "q8_0", "q4_0", "shift"), CACHES))


def bench_depths(
    model: Model,
    morphkv: MorphKV,
    llama: dict[str, Any],
    depth: Annotated[
        int, typer.Option("--depth", metavar="N", help="the deepest depth; others are its half, its quarter and so on")
    ] = Sizes.n_deep,
    caches: Annotated[
        str, typer.Option("--caches", metavar="NAMES", help=f"measure these, of {', '.join(NAMES)}")
    ] = ",".join(NAMES),
    rounds: Rounds = 3,
    require: Annotated[
        list[str] | None,
        typer.Option(
            "--require", metavar="BAR", help=f"exit with 1 if missed, e.g. 'speed>=2'; rows: {', '.join(ROWS)}"
        ),
    ] = None,
    as_json: Json = False,
    plot: Plot = None,
) -> None:
    """Measure speed, K and V, prompts and the first token at several depths of a text.

    MorphKV is measured beside a full cache of stock llama.cpp in the type of -ctk, in q8_0 and in q4_0, and beside a
    context shift with as many cells.
    """
    chosen = chosen_caches(caches)
    bars = parse_bars(require or [], ROWS)
    if bars and not {MORPHKV, STOCK} <= set(chosen):
        raise ValueError(f"--require needs morphkv and stock among --caches, got {caches!r}")
    if rounds < 1:
        raise ValueError(f"--rounds must be at least 1, got {rounds}")
    depths = halved_depths(depth, morphkv.interval)
    draw = plot_to(plot)
    path = find_model(model)
    copied = copy_gb_s(llama["n_threads"] or 1)
    points = measure(path, morphkv, depths, rounds, llama, chosen)
    draw(f"{path.stem}: capacity {morphkv.capacity:,}", lambda: depth_panels(points))
    details = {
        "model": model,
        "morphkv": morphkv,
        "copy_gb_s": copied,
        "depths": [
            {**asdict(p), "rate_tok_s": p.rate_tok_s, "read_gb_s": p.read_gb_s, "first_token_s": p.first_token_s}
            for p in points
        ],
    }
    report(as_json, bars, figures_of(points), details, lambda: show(points, rounds, morphkv, copied))


def chosen_caches(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",")]
    for name in names:
        if name not in NAMES:
            raise ValueError(f"--caches must be some of {', '.join(NAMES)}, got {name!r}")
    return [cache for name, cache in NAMES.items() if name in names]


def measure(
    model: Path, morphkv: MorphKV, depths: list[int], n_rounds: int, llama: dict[str, Any], caches: list[str]
) -> list[DepthPoint]:
    n_turns = len(caches) * len(depths) * (n_rounds + 1)
    n_fill = n_depths_fill(morphkv, depths, caches)
    weight = max(1, n_fill // n_turns)
    with progress_bar(n_fill + n_turns * weight, "reading prompts") as advance:
        return run_depths(
            model,
            morphkv,
            depths,
            n_rounds,
            advance,
            lambda name: advance(weight, f"decoding: {name}"),
            caches,
            **llama,
        )


def figures_of(points: list[DepthPoint]) -> dict[str, float]:
    """By row; empty where one of both caches was left out, NaN where prompts were too short to be timed."""
    deepest = {point.cache: point for point in points if point.n_depth == points[-1].n_depth}
    if MORPHKV not in deepest or STOCK not in deepest:
        return {}
    own, stock = deepest[MORPHKV], deepest[STOCK]
    speed = median(a / b for a, b in zip(own.rates_tok_s, stock.rates_tok_s))
    return {SPEED: speed, FIRST_TOKEN: (own.first_token_s or math.nan) / (stock.first_token_s or math.nan)}


def show(points: list[DepthPoint], n_rounds: int, morphkv: MorphKV, copied: float) -> None:
    def optional(value: float | None, form: str) -> str:
        return "" if value is None else format(value, form)

    print_table(
        f"At several depths, {n_rounds} rounds in turns; capacity {morphkv.capacity}, "
        f"prompt room {morphkv.prompt_room}, interval {morphkv.interval}",
        ("depth", "cache", "K and V", *RATE_COLUMNS, "GB/s", "prompt tok/s", "first token, s"),
        [
            (
                f"{point.n_depth}",
                point.cache,
                mebibytes(point.kv_bytes),
                *rate_cells(point.rates_tok_s),
                f"{point.read_gb_s:.1f}",
                optional(point.prompt_tok_s, ".0f"),
                optional(point.first_token_s, ".2f"),
            )
            for point in points
        ],
        n_text=2,
    )
    print(
        "GB/s: weights and K and V in use that each token reads (of a model without experts); this machine copies "
        f"memory at {copied:.1f}, read and written"
    )
    for row, figure in figures_of(points).items():
        print(f"{ROWS[row]}: {figure:.3f} ({row})")
