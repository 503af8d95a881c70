"""`morphkv bench server`: llama-server with busy slots, one that is watched, and a chat of many turns."""

from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import typer

from ... import MorphKV
from ...bench.decode import Ratio
from ...bench.server import (
    FIRST_TOKEN,
    N_AROUND,
    N_EARLY_TURN,
    N_SLOTS,
    N_TURNS,
    SERVER_ROWS,
    SLOTS,
    WATCHED,
    SlotsLane,
    around,
    run_chat,
    run_slots,
    run_watched,
)
from ...bench.suite import Sizes
from ...cache.archive import CACHE_TYPES
from ...cache.gpu_layers import ALL
from ...eval.bars import parse_bars
from ...plots.bench import server_panels
from ..options import Model
from ..plots import Plot, plot_to
from ..show import Json, find_model, progress_bar, report


@dataclass
class Served:
    """What was measured; the rest is empty."""

    figures: dict[str, float] = field(default_factory=dict)  # by row
    slots: Ratio | None = None
    lanes: list[SlotsLane] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)  # to the first token, of each turn
    watched: Ratio | None = None
    watched_lanes: list[SlotsLane] = field(default_factory=list)

    def first_token_ms(self, turn: int) -> float:
        return 1e3 * around(self.seconds, turn)


def bench_server(
    model: Model,
    morphkv: MorphKV,
    llama: dict[str, Any],
    rounds: Annotated[
        int, typer.Option("--rounds", "-r", metavar="N", help="turns of each server; medians are shown")
    ] = Sizes.n_rounds,
    require: Annotated[
        list[str] | None,
        typer.Option(
            "--require",
            metavar="BAR",
            help="exit with 1 if missed, e.g. 'slots>=0.93'; of the rows measured",
        ),
    ] = None,
    as_json: Json = False,
    plot: Plot = None,
    rows: Annotated[
        str, typer.Option("--rows", metavar="NAMES", help=f"measure these alone, of {', '.join(SERVER_ROWS)}")
    ] = ",".join(SERVER_ROWS),
    parallel: Annotated[
        int, typer.Option("--parallel", "-np", metavar="N", help="how many slots are busy in the row slots")
    ] = N_SLOTS,
) -> None:
    """Measure llama-server: busy slots against stock's, a watched slot, and the first token of a late turn."""
    chosen = chosen_rows(rows)
    bars = parse_bars(require or [], chosen)
    if min(rounds, parallel) < 1:
        raise ValueError(f"--rounds and --parallel must be at least 1, got {rounds} and {parallel}")
    draw = plot_to(plot)
    path = find_model(model)
    served = measure(path, morphkv, rounds, llama, chosen, parallel)
    title = f"{path.stem}: llama-server, capacity {morphkv.capacity:,}"
    draw(title, lambda: server_panels(served.lanes, served.seconds, served.watched_lanes))
    details = {
        "model": model,
        "morphkv": morphkv,
        "slots": served.slots,
        "watched": served.watched,
        "rates_tok_s": {lane.name: lane.rates for lane in served.lanes + served.watched_lanes},
        "n_slots": parallel,
        "first_token_s": served.seconds,
    }
    report(as_json, bars, served.figures, details, lambda: show(served))


def chosen_rows(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",")]
    for name in names:
        if name not in SERVER_ROWS:
            raise ValueError(f"--rows must be some of {', '.join(SERVER_ROWS)}, got {name!r}")
    return [row for row in SERVER_ROWS if row in names]


def measure(
    model: Path, morphkv: MorphKV, n_rounds: int, llama: dict[str, Any], rows: list[str], n_slots: int
) -> Served:
    flags = server_flags(llama)
    n_turns = 2 * (n_rounds + 1)
    n_steps = {SLOTS: n_turns, FIRST_TOKEN: N_TURNS + N_AROUND, WATCHED: n_turns}
    served = Served()
    with progress_bar(sum(n_steps[row] for row in rows), "decoding") as advance:
        if SLOTS in rows:
            served.slots, served.lanes = run_slots(
                model, morphkv, n_rounds, lambda name: advance(1, f"{n_slots} slots: {name}"), flags, n_slots
            )
            served.figures[SLOTS] = served.slots.middle
        if FIRST_TOKEN in rows:
            served.figures[FIRST_TOKEN], served.seconds = run_chat(
                model, morphkv, lambda turn: advance(1, f"chat: turn {turn}"), flags
            )
        if WATCHED in rows:
            served.watched, served.watched_lanes = run_watched(
                model, morphkv, n_rounds, lambda name: advance(1, f"a slot: {name}"), flags
            )
            served.figures[WATCHED] = served.watched.middle
    return served


def server_flags(llama: dict[str, Any]) -> list[object]:
    """llama-server's flags for what llama_options() gives."""
    cache_types = {number: name for name, number in CACHE_TYPES.items()}
    n_gpu_layers = ALL if llama["n_gpu_layers"] == -1 else llama["n_gpu_layers"]
    flags: list[object] = ["-t", llama["n_threads"], "-ngl", n_gpu_layers]
    flags += ["-ctk", cache_types[llama["type_k"]], "-ctv", cache_types[llama["type_v"]]]
    if not llama["offload_kqv"]:
        flags.append("--no-kv-offload")
    if "rpc_servers" in llama:
        flags += ["--rpc", llama["rpc_servers"]]
    if "tensor_split" in llama:
        flags += ["--tensor-split", ",".join(f"{part:g}" for part in llama["tensor_split"])]
    return flags


def show(served: Served) -> None:
    if served.slots:
        rates = [median(lane.rates) for lane in served.lanes]
        print(
            f"tok/s of {len(served.lanes[0].prompts)} busy slots over stock's with as many cells, in turns: "
            f"{spread(served.slots)} ({SLOTS}); medians {rates[0]:.1f} and {rates[1]:.1f}"
        )
    if served.seconds:
        print(
            f"time to the first token of turn {N_TURNS} over that of turn {N_EARLY_TURN}, the whole chat sent each "
            f"time: {served.figures[FIRST_TOKEN]:.2f} ({FIRST_TOKEN}); {served.first_token_ms(N_TURNS):.0f} and "
            f"{served.first_token_ms(N_EARLY_TURN):.0f} ms"
        )
    if served.watched:
        print(
            "tok/s of a slot while its retention is watched over unwatched, in turns: "
            f"{spread(served.watched)} ({WATCHED})"
        )


def spread(ratio: Ratio) -> str:
    return f"{ratio.middle:.3f} ({ratio.low:.3f} to {ratio.high:.3f})"
