"""`morphkv bench archive`: what an archive costs, and a recall once it is large."""

from contextlib import closing
from pathlib import Path
from typing import Annotated, Any

import typer

from ... import Archive, CacheStats, Llama, MorphKV
from ...bench.archive import N_RATED, N_WRITTEN, SEEN, ArchiveCost, WritingCost, archive_cost, writing_cost
from ...bench.decode import endless_tokens
from ...eval.bars import parse_bars
from ...plots.bench import archive_panels
from ..options import Model
from ..plots import Plot, plot_to
from ..show import Json, find_model, mebibytes, progress_bar, report

ROWS = ("archive-speed", "recall-ms", "ask-ms", "auto-speed")
N_TOKENS = 100000


def bench_archive(
    model: Model,
    morphkv: MorphKV,
    llama: dict[str, Any],
    tokens: Annotated[int, typer.Option("--tokens", "-n", metavar="N", help="length of the text")] = N_TOKENS,
    require: Annotated[
        list[str] | None,
        typer.Option(
            "--require", metavar="BAR", help=f"exit with 1 if missed, e.g. 'recall-ms<200'; rows: {', '.join(ROWS)}"
        ),
    ] = None,
    as_json: Json = False,
    plot: Plot = None,
) -> None:
    """Measure what an archive costs while tokens are decoded, and recalls once it holds N of them."""
    bars = parse_bars(require or [], ROWS)
    draw = plot_to(plot)
    path = find_model(model)
    cost, writing, stats = measure(path, morphkv, tokens, llama)
    draw(f"{path.stem}: an archive of {stats.n_archived:,} tokens", lambda: archive_panels(cost))
    details = {
        "model": model,
        "morphkv": morphkv,
        "n_archived": stats.n_archived,
        "archive_bytes": cost.n_bytes,
        "rate_tok_s": cost.tok_s,
        "recalls": [{"took_ms": recall.took_ms, "ask_ms": recall.ask_ms} for recall in cost.recalls],
        "auto": writing,
    }
    figures = dict(zip(ROWS, (cost.speed, cost.recall_ms, cost.ask_ms, writing.speed.middle)))
    report(as_json, bars, figures, details, lambda: show(cost, writing, stats))


def measure(
    model: Path, morphkv: MorphKV, n_tokens: int, llama: dict[str, Any]
) -> tuple[ArchiveCost, WritingCost, CacheStats]:
    if n_tokens <= 2 * morphkv.capacity:
        raise ValueError(f"--tokens must be above {2 * morphkv.capacity}, got {n_tokens}")
    with (
        closing(Llama(model, morphkv=morphkv, archive=Archive(recall="off"), **llama)) as llm,
        progress_bar(n_tokens + N_RATED + N_WRITTEN, "filling the archive") as advance,
    ):
        cost = archive_cost(llm, endless_tokens(llm, SEEN), n_tokens, advance)
        stats = llm.cache_stats()
        return cost, writing_cost(llm, lambda n: advance(n, "writing, with recalls and without")), stats


def show(cost: ArchiveCost, writing: WritingCost, stats: CacheStats) -> None:
    print(
        f"{N_RATED} tokens one by one at {cost.tok_s:.1f} tok/s, of which the archive took {cost.share:.2%}: "
        f"{cost.speed:.4f} of the speed without (archive-speed)\n"
        f"archive: {stats.n_archived} tokens in {mebibytes(cost.n_bytes)}\n"
        f"a recall: {cost.recall_ms:.0f} ms (recall-ms), {cost.ask_ms:.0f} ms of them to choose (ask-ms); medians of "
        f"{len(cost.recalls)}, {cost.recalls[-1].n_recalled} tokens of all layers and heads came back in the last\n"
        f"tok/s of prose that is in no page, with recalls while writing over without, in turns: "
        f"{writing.speed.middle:.3f} ({writing.speed.low:.3f} to {writing.speed.high:.3f}) (auto-speed); "
        f"{writing.n_recalls} recalls in {writing.n_tokens} tokens"
    )
