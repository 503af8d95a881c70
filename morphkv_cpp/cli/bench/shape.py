"""`morphkv bench shape`: what a layer of a large model costs on this machine, and all its layers by multiplication."""

import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer

from ... import MorphKV
from ...bench.bandwidth import copy_gb_s
from ...bench.shape import ShapeCost, n_shape_fill, shape_cost
from ...eval.bars import parse_bars
from ...extras import needs_extra
from ...models.shapes import SHAPES, ModelShape
from ...plots.bench import shape_panels
from ..plots import Plot, plot_to
from ..show import Json, print_table, progress_bar, remark, report
from .turns import Rounds

ROWS = ("decode-speed", "evict-ms", "archive-ms", "recall-ms")
Q4_0_BYTES = 18 / 32  # of a weight


def bench_shape(
    morphkv: MorphKV,
    llama: dict[str, Any],
    shape: Annotated[str, typer.Option("--shape", metavar="SHAPE", help=f"one of {', '.join(SHAPES)}")] = "8b",
    layers: Annotated[int, typer.Option("--layers", metavar="N", help="how many layers are made and measured")] = 4,
    depth: Annotated[
        int, typer.Option("--depth", metavar="N", help="depth of the stock cache, and tokens of the archive")
    ] = 4000,
    rounds: Rounds = 3,
    require: Annotated[
        list[str] | None,
        typer.Option(
            "--require",
            metavar="BAR",
            help=f"exit with 1 if missed, e.g. 'evict-ms<400', of the whole model; rows: {', '.join(ROWS)}",
        ),
    ] = None,
    as_json: Json = False,
    plot: Plot = None,
) -> None:
    """Measure layers of a large model's shape, with random weights in Q4_0, and multiply by how many it has.

    Neither the vocabulary nor the output layer of the model is measured: both caches have them alike.
    """
    if shape not in SHAPES:
        raise ValueError(f"--shape must be one of {', '.join(SHAPES)}, got {shape!r}")
    with needs_extra("bench"):
        from ...models.shape_files import write_shape
    bars = parse_bars(require or [], ROWS)
    of = SHAPES[shape]
    draw = plot_to(plot)
    copied = copy_gb_s(llama["n_threads"] or 1)
    with tempfile.TemporaryDirectory() as folder:
        remark(f"writing {layers} layers of {of.name} ...")
        path = write_shape(Path(folder) / "shape.gguf", of, layers)
        cost = measure(path, morphkv, layers, depth, rounds, llama)
    figures = dict(
        zip(ROWS, (cost.stock_ms / cost.morphkv_ms, *(times(cost, of) for times in (evict, archive, recall))))
    )
    draw(f"{of.name}: {of.n_layer} layers, by multiplication", lambda: shape_panels(all_layers_ms(cost, of, depth)))
    details = {"shape": of, "layers": layers, "depth": depth, "morphkv": morphkv, "cost": cost, "copy_gb_s": copied}
    report(as_json, bars, figures, details, lambda: show(cost, of, copied, depth))


def measure(path: Path, morphkv: MorphKV, layers: int, depth: int, rounds: int, llama: dict[str, Any]) -> ShapeCost:
    n_turns = 3 * (rounds + 1)
    weight = max(1, n_shape_fill(morphkv, depth) // n_turns)
    with progress_bar(n_shape_fill(morphkv, depth) + n_turns * weight, "filling the caches") as advance:
        return shape_cost(
            path,
            morphkv,
            layers,
            depth,
            rounds,
            advance,
            lambda name: advance(weight, f"decoding: {name}"),
            **llama,
        )


def whole(of: ModelShape, cost: ShapeCost, measured: float) -> float:
    """Of all layers of the model, by multiplication."""
    return measured * of.n_layer / cost.n_layer


def evict(cost: ShapeCost, of: ModelShape) -> float:
    """ms of an eviction of the whole model."""
    return whole(of, cost, cost.without_archive.evict_ms / cost.without_archive.n)


def archive(cost: ShapeCost, of: ModelShape) -> float:
    """ms for what an eviction puts into the archive."""
    return whole(of, cost, cost.with_archive.archive_ms / cost.with_archive.n)


def recall(cost: ShapeCost, of: ModelShape) -> float:
    return whole(of, cost, cost.with_archive.recall_ms)


def all_layers_ms(cost: ShapeCost, of: ModelShape, depth: int) -> dict[str, float]:
    return {
        f"a token, stock at depth {depth:,}": whole(of, cost, cost.stock_ms),
        "a token, MorphKV": whole(of, cost, cost.morphkv_ms),
        "an eviction": evict(cost, of),
        "its tokens into the archive": archive(cost, of),
        "a recall": recall(cost, of),
    }


def show(cost: ShapeCost, of: ModelShape, copied: float, depth: int) -> None:
    weights = cost.n_layer * of.layer_weights * Q4_0_BYTES

    def read_gb_s(ms: float, kv_bytes: int) -> str:
        return f"{(weights + kv_bytes) / ms / 1e6:.1f}"

    def row(what: str, measured: float, speed: str = "") -> tuple[str, ...]:
        return what, f"{measured:.2f}", f"{whole(of, cost, measured):.1f}", speed

    without, with_archive = cost.without_archive, cost.with_archive
    print_table(
        f"{of.name}: {cost.n_layer} layers measured, and times {of.n_layer}/{cost.n_layer}, in ms",
        ("what", f"{cost.n_layer} layers", f"{of.n_layer} layers", "GB/s read"),
        [
            row(f"a token, stock at depth {depth}", cost.stock_ms, read_gb_s(cost.stock_ms, cost.stock_kv_bytes)),
            row(
                "a token, MorphKV, evictions included",
                cost.morphkv_ms,
                read_gb_s(cost.morphkv_ms, cost.morphkv_kv_bytes),
            ),
            row("an eviction", without.evict_ms / without.n),
            row("an eviction's tokens into the archive", with_archive.archive_ms / with_archive.n),
            row(f"a recall from {with_archive.recalls[-1].n_archived} tokens", with_archive.recall_ms),
        ],
    )
    print(f"this machine copies memory at {copied:.1f} GB/s, read and written (no bound for what stays in caches)")
