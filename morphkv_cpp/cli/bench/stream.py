"""`morphkv bench stream`: does a streamed answer slow down?"""

from contextlib import closing
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import typer

from ... import MorphKV
from ...bench.decode import Ratio
from ...bench.streaming import N_MARK, N_RATED, LeapingLlama, StreamLane, streaming_kept
from ...eval.bars import parse_bars
from ...plots.bench import stream_panels
from ..options import Model
from ..plots import Plot, plot_to
from ..show import Json, find_model, progress_bar, report

ROWS = ("streaming",)
N_TOKENS = 50000


def bench_stream(
    model: Model,
    morphkv: MorphKV,
    llama: dict[str, Any],
    tokens: Annotated[int, typer.Option("--tokens", "-n", metavar="N", help="length of the answer")] = N_TOKENS,
    require: Annotated[
        list[str] | None,
        typer.Option("--require", metavar="BAR", help="exit with 1 if missed, e.g. 'streaming>=0.97'"),
    ] = None,
    as_json: Json = False,
    plot: Plot = None,
) -> None:
    """Stream an answer of create_completion: its speed after token N against that after token 1,000."""
    bars = parse_bars(require or [], ROWS)
    draw = plot_to(plot)
    path = find_model(model)
    speed, lanes = measure(path, morphkv, tokens, llama)
    title = f"{path.stem}: a streamed answer, capacity {morphkv.capacity:,}"
    draw(title, lambda: stream_panels(lanes, tokens, morphkv.interval))
    details = {
        "model": model,
        "morphkv": morphkv,
        "n_tokens": tokens,
        "speed": speed,
        "rates_tok_s": {lane.name: lane.rates for lane in lanes},
    }
    report(as_json, bars, {"streaming": speed.middle}, details, lambda: show(speed, lanes, tokens))


def measure(model: Path, morphkv: MorphKV, n_tokens: int, llama: dict[str, Any]) -> tuple[Ratio, list[StreamLane]]:
    if n_tokens < N_MARK:
        raise ValueError(f"--tokens must be at least {N_MARK} in this run, got {n_tokens}")
    if morphkv.interval > N_RATED:
        raise ValueError(f"--interval must be at most {N_RATED} in this run, got {morphkv.interval}")
    n_block = morphkv.interval
    with (
        closing(LeapingLlama(model, morphkv=morphkv, **llama)) as llm,
        progress_bar(n_tokens + N_MARK + 2 * N_RATED, "writing, in batches") as advance,
    ):
        return streaming_kept(
            llm, n_tokens, n_block, advance, lambda name: advance(n_block, f"streaming: {name} tokens in turns")
        )


def show(speed: Ratio, lanes: list[StreamLane], n_tokens: int) -> None:
    rates = {lane.name: median(lane.rates) for lane in lanes}
    print(
        f"tok/s of a streamed answer after token {n_tokens} over those after token {N_MARK}, "
        f"{N_RATED} each in turns: {speed.middle:.3f} ({speed.low:.3f} to {speed.high:.3f}) (streaming)\n"
        f"medians: {rates['late']:.1f} and {rates['early']:.1f} tok/s"
    )
