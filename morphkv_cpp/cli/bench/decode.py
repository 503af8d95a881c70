"""`morphkv bench decode`: speed of decoding against stock llama.cpp."""

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import typer

from ... import MorphKV
from ...bench.depths import DepthPoint, halved_depths, n_depths_fill, run_depths
from ...bench.suite import ROWS, Result, Sizes, n_fill, run_suite
from ...eval.bars import parse_bars
from ...plots.decode import plot_decode
from ...plots.figure import check_plot
from ..options import Model
from ..show import Json, find_model, mebibytes, print_table, progress_bar, remark, report
from .turns import RATE_COLUMNS, Rounds, rate_cells


def bench_decode(
    model: Model,
    morphkv: MorphKV,
    llama: dict[str, Any],
    depth: Annotated[int, typer.Option("--depth", metavar="N", help="depth of the stock cache")] = Sizes.n_deep,
    prompt: Annotated[
        int, typer.Option("--prompt", "-p", metavar="N", help="length of the prompt in a large prompt room")
    ] = Sizes.n_prompt,
    rounds: Rounds = Sizes.n_rounds,
    require: Annotated[
        list[str] | None,
        typer.Option(
            "--require",
            metavar="BAR",
            help=f"exit with 1 if missed, e.g. 'same-cells>=0.93'; rows: {', '.join(ROWS)}",
        ),
    ] = None,
    as_json: Json = False,
    plot: Annotated[
        Path | None,
        typer.Option(
            "--plot",
            metavar="FILE",
            help="measure speed and memory at several depths up to --depth too, and draw them: .svg, .png or .pdf",
        ),
    ] = None,
) -> None:
    """Measure decoding with MorphKV against stock llama.cpp, in turns on one machine."""
    sizes = Sizes(depth, prompt, rounds)
    if min(dataclasses.astuple(sizes)) < 1:
        raise ValueError(f"--depth, --prompt and --rounds must be at least 1, got {depth}, {prompt} and {rounds}")
    bars = parse_bars(require or [], ROWS)
    depths = []
    if plot is not None:
        depths = halved_depths(depth, morphkv.interval)
        check_plot(plot)
    path = find_model(model)
    result = measure(path, morphkv, sizes, llama)
    caches = [
        {"name": lane.name, "kv_bytes": result.kv_bytes[lane.name], "rates_tok_s": lane.rates} for lane in result.lanes
    ]
    details = {"model": model, "morphkv": morphkv, "sizes": sizes, "ratios": result.ratios, "caches": caches}
    points: list[DepthPoint] = []
    if plot is not None:
        points = measure_depths(path, dataclasses.replace(morphkv, prompt_room=0), depths, rounds, llama)
        details["depths"] = points
        plot_decode(plot, f"{path.stem}: MorphKV (capacity {morphkv.capacity:,}) and stock llama.cpp", points)
        remark(f"the plot is in {plot}")
    figures = {row: r.middle for row, r in result.ratios.items()}
    report(as_json, bars, figures, details, lambda: show(result, points, morphkv, sizes))


def measure(model: Path, morphkv: MorphKV, sizes: Sizes, llama: dict[str, Any]) -> Result:
    n_turns = 4 * (sizes.n_rounds + 1)
    weight = max(1, n_fill(morphkv, sizes) // n_turns)  # a turn takes about as long as so many tokens of a prompt
    with progress_bar(n_fill(morphkv, sizes) + n_turns * weight, "filling the caches") as advance:
        return run_suite(model, morphkv, sizes, advance, lambda name: advance(weight, f"decoding: {name}"), **llama)


def measure_depths(
    model: Path, morphkv: MorphKV, depths: list[int], n_rounds: int, llama: dict[str, Any]
) -> list[DepthPoint]:
    n_turns = 2 * len(depths) * (n_rounds + 1)
    weight = max(1, n_depths_fill(morphkv, depths) // n_turns)
    with progress_bar(n_depths_fill(morphkv, depths) + n_turns * weight, "filling the caches") as advance:
        return run_depths(
            model, morphkv, depths, n_rounds, advance, lambda name: advance(weight, f"decoding: {name}"), **llama
        )


def show(result: Result, points: list[DepthPoint], morphkv: MorphKV, sizes: Sizes) -> None:
    print_table(
        f"Decoding, {sizes.n_rounds} rounds in turns; window {morphkv.window}, interval {morphkv.interval}",
        ("cache", "K and V", *RATE_COLUMNS),
        [
            (
                lane.name,
                mebibytes(result.kv_bytes[lane.name]),
                *rate_cells(lane.rates),
            )
            for lane in result.lanes
        ],
    )
    print_table(
        "Ratios of tok/s, taken round by round",
        ("row", "what", "median", "lowest", "highest"),
        [
            (row, ROWS[row].format(**vars(sizes)), f"{r.middle:.3f}", f"{r.low:.3f}", f"{r.high:.3f}")
            for row, r in result.ratios.items()
        ],
        n_text=2,
    )
    if points:
        print_table(
            f"At several depths, {sizes.n_rounds} rounds in turns; capacity {morphkv.capacity}, no prompt room",
            ("depth", "cache", "K and V", *RATE_COLUMNS),
            [
                (
                    f"{point.n_depth}",
                    point.cache,
                    mebibytes(point.kv_bytes),
                    *rate_cells(point.rates_tok_s),
                )
                for point in points
            ],
            n_text=2,
        )
