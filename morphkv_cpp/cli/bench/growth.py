"""`morphkv bench growth`: does anything grow over a long run, does it get slower?"""

from contextlib import closing
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer

from ... import CacheStats, Llama, MorphKV
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
from ...bench.decode import Ratio, endless_tokens
from ...eval.bars import parse_bars
from ...plots.bench import growth_panels
from ..options import Model
from ..plots import Plot, plot_to
from ..show import Json, find_model, mebibytes, print_table, progress_bar, report

ROWS = ("rss-mb", "kv-mb", "cells", "speed", "prompt-speed")
N_TOKENS = 20000


class Growth(NamedTuple):
    run: ConstantRun
    stats: CacheStats  # at its end
    speed: Ratio  # late over early
    prompt_speed: Ratio

    def figures(self) -> dict[str, float]:
        return {
            "rss-mb": self.run.rss_growth_bytes / 1e6,
            "kv-mb": self.run.kv_growth_bytes / 1e6,
            "cells": self.run.n_used_growth,
            "speed": self.speed.middle,
            "prompt-speed": self.prompt_speed.middle,
        }


def bench_growth(
    model: Model,
    morphkv: MorphKV,
    llama: dict[str, Any],
    soak: Annotated[
        bool,
        typer.Option("--soak", help=f"a prompt of {N_SOAK_PROMPT} tokens before every --interval single ones"),
    ] = False,
    tokens: Annotated[int, typer.Option("--tokens", "-n", metavar="N", help="length of the run")] = N_TOKENS,
    require: Annotated[
        list[str] | None,
        typer.Option(
            "--require", metavar="BAR", help=f"exit with 1 if missed, e.g. 'rss-mb<=8'; rows: {', '.join(ROWS)}"
        ),
    ] = None,
    as_json: Json = False,
    plot: Plot = None,
) -> None:
    """Decode one long text: does memory grow, do cells, does it get slower?"""
    bars = parse_bars(require or [], ROWS)
    draw = plot_to(plot)
    path = find_model(model)
    growth = measure(path, morphkv, tokens, llama, soak)
    draw(f"{path.stem}: a text of {tokens:,} tokens, capacity {morphkv.capacity:,}", lambda: growth_panels(growth.run))
    details = {
        "model": model,
        "morphkv": morphkv,
        "speed": growth.speed,
        "prompt_speed": growth.prompt_speed,
        "n_evictions": growth.stats.n_evictions,
        "evict_ms": growth.stats.evict_ms,
        "n_rebases": growth.stats.n_rebases,
        "samples": growth.run.samples,
    }
    report(as_json, bars, growth.figures(), details, lambda: show(growth, tokens))


def measure(model: Path, morphkv: MorphKV, n_tokens: int, llama: dict[str, Any], soak: bool) -> Growth:
    n_prompt = N_SOAK_PROMPT if soak else 0
    n_early = N_EARLY_SOAK if soak else N_EARLY
    if n_tokens < n_early + N_RATED:
        raise ValueError(f"--tokens must be at least {n_early + N_RATED} in this run, got {n_tokens}")
    if morphkv.interval > N_RATED:
        raise ValueError(f"--interval must be at most {N_RATED} in this run, got {morphkv.interval}")
    n_block = morphkv.interval

    with (
        closing(Llama(model, morphkv=morphkv, **llama)) as llm,
        progress_bar(n_tokens + n_early + N_RATED, "decoding") as advance,
    ):

        def count(sample: Sample) -> None:
            advance(n_block + n_prompt, f"decoding: {n_block / sample.seconds:.0f} tok/s, {sample.n_used} cells")

        run = run_constant(llm, endless_tokens(llm), n_tokens, n_block, count, n_prompt)
        stats = llm.cache_stats()
        # after the last look at the process's memory
        moments = late_and_early(llm, run, count)
        speed = moments.speed_kept(n_block, lambda name: advance(n_block // 2, f"decoding: {name} tokens in turns"))
        prompt_speed = moments.prompt_speed_kept(lambda name: advance(0, f"prompts: {name} ones in turns"))
    return Growth(run, stats, speed, prompt_speed)


def show(growth: Growth, n_tokens: int) -> None:
    """A row every tenth of the run, and what has grown."""
    run, stats, speed, prompt_speed = growth
    n_step = max(1, len(run.samples) // 10)
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
            for s in run.samples[n_step - 1 :: n_step]
        ],
        n_text=0,
    )
    print(
        f"after the first {run.n_early} tokens: resident memory +{run.rss_growth_bytes / 1e6:.2f} MB (rss-mb), "
        f"K and V +{run.kv_growth_bytes / 1e6:.2f} MB (kv-mb), cells in use +{run.n_used_growth} (cells)\n"
        f"tok/s of {N_RATED} tokens more over {N_RATED} behind the {run.n_early}th, in turns: {speed.middle:.3f} "
        f"({speed.low:.3f} to {speed.high:.3f}) (speed)\n"
        f"the same of prompts: {prompt_speed.middle:.3f} "
        f"({prompt_speed.low:.3f} to {prompt_speed.high:.3f}) (prompt-speed)\n"
        f"position {stats.logical_pos}, rebased {stats.n_rebases} times below {stats.rope_limit}, "
        f"{stats.n_evictions} evictions, {stats.evict_ms / max(stats.n_evictions, 1):.1f} ms each"
    )
