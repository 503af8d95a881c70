"""`morphkv bench`: speed and memory of decoding, as ratios within one run."""

import dataclasses
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from ... import Archive, Llama, MorphKV
from ...bench.archive import N_RATED as N_ARCHIVE_RATED
from ...bench.archive import archive_cost
from ...bench.constant import (
    N_EARLY,
    N_EARLY_SOAK,
    N_RATED,
    N_SOAK_PROMPT,
    ConstantRun,
    Sample,
    late_and_early,
    run_constant,
)
from ...bench.decode import endless_tokens
from ...bench.server import N_EARLY_TURN, N_SLOTS, N_TURNS, SERVER_ROWS, around, run_chat, run_slots
from ...bench.streaming import N_MARK, LeapingLlama, streaming_kept
from ...bench.streaming import N_RATED as N_STREAM_RATED
from ...bench.suite import ROWS, Sizes, n_fill, run_suite
from ...eval.bars import missed, parse_bars
from ..options import CACHE_TYPES, Model, llama_options, morphkv_options, with_options
from ..show import find_model, mebibytes, print_table, progress_bar, report_bars

CONSTANT_ROWS = ("rss-mb", "kv-mb", "cells", "speed", "prompt-speed")
N_CONSTANT = 20000
STREAMING_ROWS = ("streaming",)
N_STREAMING = 50000
ARCHIVE_ROWS = ("archive-speed", "recall-ms", "ask-ms")
N_ARCHIVE = 100000


@with_options(morphkv=morphkv_options, llama=llama_options)
def bench(
    model: Model,
    morphkv: MorphKV,
    llama: dict[str, Any],
    constant: Annotated[
        bool, typer.Option("--constant", help="instead: one long run; does memory grow, does it get slower?")
    ] = False,
    soak: Annotated[
        bool,
        typer.Option(
            "--soak", help=f"with --constant: a prompt of {N_SOAK_PROMPT} tokens before every --interval single ones"
        ),
    ] = False,
    streaming: Annotated[
        bool, typer.Option("--streaming", help=f"instead: a streamed answer at token N against token {N_MARK}")
    ] = False,
    server: Annotated[
        bool,
        typer.Option("--server", help=f"instead: llama-server with {N_SLOTS} busy slots, and a chat of many turns"),
    ] = False,
    archive: Annotated[
        bool, typer.Option("--archive", help="instead: what an archive costs, and a recall once it holds N tokens")
    ] = False,
    tokens: Annotated[
        int | None,
        typer.Option(
            "--tokens",
            "-n",
            metavar="N",
            help=f"length of the long run (default: {N_CONSTANT}, with --streaming {N_STREAMING}, with --archive "
            f"{N_ARCHIVE})",
            show_default=False,
        ),
    ] = None,
    depth: Annotated[int, typer.Option("--depth", metavar="N", help="depth of the stock cache")] = Sizes.n_deep,
    prompt: Annotated[
        int, typer.Option("--prompt", "-p", metavar="N", help="length of the prompt in a large prompt room")
    ] = Sizes.n_prompt,
    rounds: Annotated[
        int, typer.Option("--rounds", "-r", metavar="N", help="turns of each cache; medians are shown")
    ] = Sizes.n_rounds,
    require: Annotated[
        list[str] | None,
        typer.Option(
            "--require",
            metavar="BAR",
            help=f"exit with 1 if missed, e.g. 'same-cells>=0.93'; rows: {', '.join(ROWS)}; "
            f"with --constant: {', '.join(CONSTANT_ROWS)}; with --streaming: {', '.join(STREAMING_ROWS)}; "
            f"with --server: {', '.join(SERVER_ROWS)}; with --archive: {', '.join(ARCHIVE_ROWS)}",
        ),
    ] = None,
) -> None:
    """Measure decoding with MorphKV against stock llama.cpp, in turns on one machine."""
    if constant + streaming + server + archive > 1:
        raise ValueError("--constant, --streaming, --server and --archive are different runs: give one of them")
    if server:
        bars = parse_bars(require or [], SERVER_ROWS)
        if rounds < 1:
            raise ValueError(f"--rounds must be at least 1, got {rounds}")
        report_bars(missed(bars, bench_server(find_model(model), morphkv, rounds, llama)), len(bars))
        return
    if constant or streaming or archive:
        run, rows, n_tokens = (bench_archive, ARCHIVE_ROWS, N_ARCHIVE)
        if constant:
            run, rows, n_tokens = (partial(bench_constant, soak=soak), CONSTANT_ROWS, N_CONSTANT)
        elif streaming:
            run, rows, n_tokens = (bench_streaming, STREAMING_ROWS, N_STREAMING)
        bars = parse_bars(require or [], rows)
        values = run(find_model(model), morphkv, n_tokens if tokens is None else tokens, llama)
        report_bars(missed(bars, values), len(bars))
        return
    sizes = Sizes(depth, prompt, rounds)
    for field in dataclasses.fields(sizes):
        if getattr(sizes, field.name) < 1:
            raise ValueError(f"depth, prompt and rounds must be at least 1, got {sizes}")
    bars = parse_bars(require or [], ROWS)
    report_bars(missed(bars, bench_ratios(find_model(model), morphkv, sizes, llama)), len(bars))


def bench_ratios(model: Path, morphkv: MorphKV, sizes: Sizes, llama: dict[str, Any]) -> dict[str, float]:
    n_turns = 4 * (sizes.n_rounds + 1)
    weight = max(1, n_fill(morphkv, sizes) // n_turns)  # a turn takes about as long as so many tokens of a prompt
    with progress_bar(n_fill(morphkv, sizes) + n_turns * weight, "filling the caches") as advance:
        result = run_suite(model, morphkv, sizes, advance, lambda name: advance(weight, f"decoding: {name}"), **llama)
    print_table(
        f"Decoding, {sizes.n_rounds} rounds in turns; window {morphkv.window}, interval {morphkv.interval}",
        ("cache", "K and V", "tok/s, median", "lowest", "highest"),
        [
            (
                lane.name,
                mebibytes(result.kv_bytes[lane.name]),
                f"{sorted(lane.rates)[len(lane.rates) // 2]:.1f}",
                f"{min(lane.rates):.1f}",
                f"{max(lane.rates):.1f}",
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
    return {row: r.middle for row, r in result.ratios.items()}


def bench_constant(
    model: Path, morphkv: MorphKV, n_tokens: int, llama: dict[str, Any], soak: bool = False
) -> dict[str, float]:
    n_prompt = N_SOAK_PROMPT if soak else 0
    n_early = N_EARLY_SOAK if soak else N_EARLY
    if n_tokens < n_early + N_RATED:
        raise ValueError(f"--tokens must be at least {n_early + N_RATED} with --constant, got {n_tokens}")
    if morphkv.interval > N_RATED:
        raise ValueError(f"--interval must be at most {N_RATED} with --constant, got {morphkv.interval}")
    n_block = morphkv.interval

    with (
        closing(Llama(model, morphkv=morphkv, **llama)) as llm,
        progress_bar(n_tokens + n_early + N_RATED, "decoding") as advance,
    ):

        def show(sample: Sample) -> None:
            advance(n_block + n_prompt, f"decoding: {n_block / sample.seconds:.0f} tok/s, {sample.n_used} cells")

        run = run_constant(llm, endless_tokens(llm), n_tokens, n_block, show, n_prompt)
        stats = llm.cache_stats()
        # after the last look at the process's memory
        moments = late_and_early(llm, run, show)
        speed = moments.speed_kept(n_block, lambda name: advance(n_block // 2, f"decoding: {name} tokens in turns"))
        prompt_speed = moments.prompt_speed_kept(lambda name: advance(0, f"prompts: {name} ones in turns"))
    print_constant(run, n_tokens)
    print(
        f"tok/s of {N_RATED} tokens more over {N_RATED} behind the {n_early}th, in turns: {speed.middle:.3f} "
        f"({speed.low:.3f} to {speed.high:.3f}) (speed)\n"
        f"the same of prompts: {prompt_speed.middle:.3f} "
        f"({prompt_speed.low:.3f} to {prompt_speed.high:.3f}) (prompt-speed)\n"
        f"position {stats.logical_pos}, rebased {stats.n_rebases} times below {stats.rope_limit}, "
        f"{stats.n_evictions} evictions, {stats.evict_ms / max(stats.n_evictions, 1):.1f} ms each"
    )
    return {
        "rss-mb": run.rss_growth_bytes / 1e6,
        "kv-mb": run.kv_growth_bytes / 1e6,
        "cells": run.n_used_growth,
        "speed": speed.middle,
        "prompt-speed": prompt_speed.middle,
    }


def bench_streaming(model: Path, morphkv: MorphKV, n_tokens: int, llama: dict[str, Any]) -> dict[str, float]:
    if n_tokens < N_MARK:
        raise ValueError(f"--tokens must be at least {N_MARK} with --streaming, got {n_tokens}")
    if morphkv.interval > N_STREAM_RATED:
        raise ValueError(f"--interval must be at most {N_STREAM_RATED} with --streaming, got {morphkv.interval}")
    n_block = morphkv.interval
    with (
        closing(LeapingLlama(model, morphkv=morphkv, **llama)) as llm,
        progress_bar(n_tokens + N_MARK + 2 * N_STREAM_RATED, "writing, in batches") as advance,
    ):
        speed, lanes = streaming_kept(
            llm, n_tokens, n_block, advance, lambda name: advance(n_block, f"streaming: {name} tokens in turns")
        )
    rates = {lane.name: sorted(lane.rates)[len(lane.rates) // 2] for lane in lanes}
    print(
        f"tok/s of a streamed answer behind token {n_tokens} over those behind token {N_MARK}, "
        f"{N_STREAM_RATED} each in turns: {speed.middle:.3f} ({speed.low:.3f} to {speed.high:.3f}) (streaming)\n"
        f"medians: {rates['late']:.1f} and {rates['early']:.1f} tok/s"
    )
    return {"streaming": speed.middle}


def bench_archive(model: Path, morphkv: MorphKV, n_tokens: int, llama: dict[str, Any]) -> dict[str, float]:
    if n_tokens <= 2 * morphkv.capacity:
        raise ValueError(f"--tokens must be above {2 * morphkv.capacity} with --archive, got {n_tokens}")
    with (
        closing(Llama(model, morphkv=morphkv, archive=Archive(recall="off"), **llama)) as llm,
        progress_bar(n_tokens + N_ARCHIVE_RATED, "filling the archive") as advance,
    ):
        cost = archive_cost(llm, endless_tokens(llm), n_tokens, advance)
        stats = llm.cache_stats()
    print(
        f"{N_ARCHIVE_RATED} tokens one by one at {cost.tok_s:.1f} tok/s, of which the archive took {cost.share:.2%}: "
        f"{cost.speed:.4f} of the speed without (archive-speed)\n"
        f"archive: {stats.n_archived} tokens in {mebibytes(cost.n_bytes)}\n"
        f"a recall: {cost.recall_ms:.0f} ms (recall-ms), {cost.ask_ms:.0f} ms of them to choose (ask-ms); medians of "
        f"{len(cost.recalls)}, {cost.recalls[-1].n_recalled} tokens of all layers and heads came back in the last"
    )
    return {"archive-speed": cost.speed, "recall-ms": cost.recall_ms, "ask-ms": cost.ask_ms}


def bench_server(model: Path, morphkv: MorphKV, n_rounds: int, llama: dict[str, Any]) -> dict[str, float]:
    cache_types = {number: name for name, number in CACHE_TYPES.items()}
    flags = ["-t", llama["n_threads"], "-ngl", llama["n_gpu_layers"]]
    flags += ["-ctk", cache_types[llama["type_k"]], "-ctv", cache_types[llama["type_v"]]]
    n_turns = 2 * (n_rounds + 1)
    with progress_bar(n_turns + N_TURNS, "decoding") as advance:
        slots, lanes = run_slots(model, morphkv, n_rounds, lambda name: advance(1, f"{N_SLOTS} slots: {name}"), flags)
        first_token, seconds = run_chat(model, morphkv, lambda turn: advance(1, f"chat: turn {turn}"), flags)
    rates = [sorted(lane.rates)[len(lane.rates) // 2] for lane in lanes]
    print(
        f"tok/s of {N_SLOTS} busy slots over stock's with as many cells, in turns: {slots.middle:.3f} "
        f"({slots.low:.3f} to {slots.high:.3f}) (slots); medians {rates[0]:.1f} and {rates[1]:.1f}\n"
        f"time to the first token of turn {N_TURNS} over that of turn {N_EARLY_TURN}, the whole chat sent each time: "
        f"{first_token:.2f} (first-token); {1e3 * around(seconds, N_TURNS):.0f} and "
        f"{1e3 * around(seconds, N_EARLY_TURN):.0f} ms"
    )
    return {"slots": slots.middle, "first-token": first_token}


def print_constant(run: ConstantRun, n_tokens: int) -> None:
    """A row every tenth of the run, and what has grown."""
    n_step = max(1, len(run.samples) // 10)
    shown = run.samples[n_step - 1 :: n_step]
    print_table(
        f"{n_tokens} tokens, tok/s of those that come one by one",
        ("tokens", "tok/s", "cells in use", "of", "K and V", "resident"),
        [
            (
                str(s.n_tokens),
                f"{run.rate(s.n_tokens - n_step * run.n_step, s.n_tokens):.1f}",
                str(s.n_used),
                str(s.n_cells),
                mebibytes(s.kv_bytes),
                mebibytes(s.rss_bytes),
            )
            for s in shown
        ],
        n_text=0,
    )
    print(
        f"after the first {run.n_early} tokens: resident memory +{run.rss_growth_bytes / 1e6:.2f} MB (rss-mb), "
        f"K and V +{run.kv_growth_bytes / 1e6:.2f} MB (kv-mb), cells in use +{run.n_used_growth} (cells)"
    )
