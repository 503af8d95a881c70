"""`morphkv eval memory`: facts of long ago, which the cache has evicted and an archive still has."""

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import typer

from ... import Archive, MorphKV
from ...eval.bars import parse_bars
from ...eval.remember import FULL, N_FACT_TOKENS, OFF, RECALL, Asked, run
from ...extras import needs_extra
from ...plots.quality import by_length
from ..options import Model
from ..plots import Plot, plot_to
from ..show import Json, find_model, print_table, progress_bar, remark, report
from .facts import share_of


def eval_memory(
    model: Model,
    morphkv: MorphKV,
    archive: Archive | None,
    llama: dict[str, Any],
    tokens: Annotated[
        str, typer.Option("--tokens", metavar="N,...", help="text lengths at which questions about the facts are asked")
    ] = "2560,6144,16384,49152",
    arms: Annotated[
        str, typer.Option("--arms", metavar="ARMS", help="caches to compare: recall, off, full")
    ] = "recall,off",
    documents: Annotated[int, typer.Option("--documents", metavar="N", help="documents")] = 24,
    questions: Annotated[
        int, typer.Option("--questions", metavar="N", help="questions at each length, spread over the documents")
    ] = 150,
    text: Annotated[
        Path | None,
        typer.Option("--text", metavar="FILE", help="prose that follows the facts, instead of the package's"),
    ] = None,
    require: Annotated[
        list[str] | None,
        typer.Option(
            "--require", metavar="BAR", help="exit with 1 if missed, e.g. 'recall>=0.95' or 'recall@2560>=0.95'"
        ),
    ] = None,
    show_wrong: Annotated[bool, typer.Option("--show-wrong", help="print wrong answers of the recall arm")] = False,
    as_json: Json = False,
    plot: Plot = None,
) -> None:
    """Ask about facts of long ago: does the archive know what the cache has evicted?"""
    if archive is None:
        raise ValueError("--archive must be ram or a path")
    lengths = sorted(parse_lengths(tokens))
    chosen = parse_memory_arms(arms)
    bars = parse_bars(require or [], [f"{arm}@{n}" for arm in chosen for n in lengths])
    draw = plot_to(plot)
    prose = None if text is None else text.read_text(encoding="utf-8")
    with needs_extra("bench"):
        import scipy.stats  # noqa: F401  # found missing before the questions, not after them
    path = find_model(model)
    found = run(path, morphkv, archive, lengths, documents, questions, chosen, prose, **llama)
    n_reads = len({arm == FULL for arm in chosen})  # the full cache reads for itself
    asked = collect(found, n_reads * documents * lengths[-1], show_wrong)
    rows = {}
    for arm in chosen:
        for n in lengths:
            of_row = [a for a in asked if (a.arm, a.n_tokens) == (arm, n)]
            took_ms = sum(a.recall_ms for a in of_row) / len(of_row)
            share = share_of(sum(a.right for a in of_row), len(of_row))
            rows[f"{arm}@{n}"] = {**share, "n_tokens": n, "recall_ms": took_ms}
    figures = {name: row["share"] for name, row in rows.items()}
    draw(
        f"{path.stem}: facts of long ago, capacity {morphkv.capacity:,}",
        lambda: [by_length("facts", "tokens of the text", rows, lengths, chosen)],
    )
    details = {"model": model, "morphkv": morphkv, "archive": archive, "rows": rows}
    report(as_json, bars, figures, details, lambda: show(rows, morphkv))


def parse_lengths(text: str) -> set[int]:
    values = text.split(",")
    if not all(value.strip().isdecimal() and int(value) > N_FACT_TOKENS for value in values):
        raise ValueError(f"--tokens must be numbers above {N_FACT_TOKENS}, separated by commas, got {text!r}")
    return {int(value) for value in values}


def parse_memory_arms(text: str) -> list[str]:
    arms = [arm.strip() for arm in text.split(",")]
    if not set(arms) <= {RECALL, OFF, FULL} or len(set(arms)) < len(arms):
        raise ValueError(f"--arms must be some of recall, off and full, got {text!r}")
    return arms


def collect(found: Iterable[Asked | int], n_tokens: int, show_wrong: bool) -> list[Asked]:
    """n_tokens: how many are decoded in all, which `found` tells in between."""
    asked = []
    with progress_bar(n_tokens, "memory") as advance:
        for each in found:
            if isinstance(each, int):
                advance(each)
                continue
            asked.append(each)
            if show_wrong and each.arm == RECALL and not each.right:
                remark(f"{each.n_tokens} tokens, document {each.i_document}: {each.fact.line} Answer:{each.answer!r}")
    return asked


def show(rows: dict[str, dict[str, float]], morphkv: MorphKV) -> None:
    print_table(
        f"Facts among a text's first {N_FACT_TOKENS} tokens, capacity {morphkv.capacity}",
        ("", "tokens", "right", "share", "95% interval", "recalls of a question"),
        [
            (
                name.partition("@")[0],
                str(r["n_tokens"]),
                f"{r['n_right']} of {r['n_asked']}",
                f"{r['share']:.3f}",
                f"{r['low']:.2f} .. {r['high']:.2f}",
                f"{r['recall_ms']:.0f} ms",
            )
            for name, r in rows.items()
        ],
    )
