"""`morphkv bench server`: llama-server with busy slots, one that is watched, and a chat of many turns."""

from pathlib import Path
from statistics import median
from typing import Annotated, Any, NamedTuple

import typer

from ... import MorphKV
from ...bench.decode import Ratio
from ...bench.server import (
    N_EARLY_TURN,
    N_SLOTS,
    N_TURNS,
    SERVER_ROWS,
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


class Served(NamedTuple):
    slots: Ratio
    lanes: list[SlotsLane]
    first_token: float
    seconds: list[float]  # to the first token, of each turn
    watched: Ratio
    watched_lanes: list[SlotsLane]

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
            help=f"exit with 1 if missed, e.g. 'slots>=0.93'; rows: {', '.join(SERVER_ROWS)}",
        ),
    ] = None,
    as_json: Json = False,
    plot: Plot = None,
) -> None:
    """Measure llama-server: busy slots against stock's, a watched slot, and the first token of a late turn."""
    bars = parse_bars(require or [], SERVER_ROWS)
    if rounds < 1:
        raise ValueError(f"--rounds must be at least 1, got {rounds}")
    draw = plot_to(plot)
    path = find_model(model)
    served = measure(path, morphkv, rounds, llama)
    title = f"{path.stem}: llama-server, capacity {morphkv.capacity:,}"
    draw(title, lambda: server_panels(served.lanes, served.seconds))
    details = {
        "model": model,
        "morphkv": morphkv,
        "slots": served.slots,
        "watched": served.watched,
        "rates_tok_s": {lane.name: lane.rates for lane in served.lanes + served.watched_lanes},
        "first_token_s": served.seconds,
    }
    figures = {"slots": served.slots.middle, "first-token": served.first_token, "watched": served.watched.middle}
    report(as_json, bars, figures, details, lambda: show(served))


def measure(model: Path, morphkv: MorphKV, n_rounds: int, llama: dict[str, Any]) -> Served:
    flags = server_flags(llama)
    n_turns = 2 * (n_rounds + 1)
    with progress_bar(2 * n_turns + N_TURNS, "decoding") as advance:
        slots, lanes = run_slots(model, morphkv, n_rounds, lambda name: advance(1, f"{N_SLOTS} slots: {name}"), flags)
        first_token, seconds = run_chat(model, morphkv, lambda turn: advance(1, f"chat: turn {turn}"), flags)
        watched, one_slot = run_watched(model, morphkv, n_rounds, lambda name: advance(1, f"a slot: {name}"), flags)
    return Served(slots, lanes, first_token, seconds, watched, one_slot)


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
    slots, watched, rates = served.slots, served.watched, [median(lane.rates) for lane in served.lanes]
    print(
        f"tok/s of {N_SLOTS} busy slots over stock's with as many cells, in turns: {slots.middle:.3f} "
        f"({slots.low:.3f} to {slots.high:.3f}) (slots); medians {rates[0]:.1f} and {rates[1]:.1f}\n"
        f"time to the first token of turn {N_TURNS} over that of turn {N_EARLY_TURN}, the whole chat sent each time: "
        f"{served.first_token:.2f} (first-token); {served.first_token_ms(N_TURNS):.0f} and "
        f"{served.first_token_ms(N_EARLY_TURN):.0f} ms\n"
        f"tok/s of a slot while its retention is watched over unwatched, in turns: {watched.middle:.3f} "
        f"({watched.low:.3f} to {watched.high:.3f}) (watched)"
    )
