"""`morphkv eval copy`: a passage of long ago, once more, word for word."""

from collections.abc import Iterable
from typing import Annotated, Any

import numpy as np
import typer

from ... import Archive, MorphKV
from ...eval.bars import parse_bars
from ...eval.copying import FULL, KINDS, N_CUE, Copied, n_read, run
from ...eval.perplexity import standard_error
from ...extras import needs_extra
from ...plots.quality import by_length
from ..options import Model
from ..plots import Plot, plot_to
from ..show import Json, find_model, print_table, progress_bar, report


def eval_copy(
    model: Model,
    morphkv: MorphKV,
    archive: Archive | None,
    llama: dict[str, Any],
    tokens: Annotated[str, typer.Option("--tokens", metavar="N,...", help="lengths of the passages")] = "140,512",
    distance: Annotated[
        int, typer.Option("--distance", metavar="N", help="tokens of other text between passage and copy")
    ] = 2500,
    kinds: Annotated[
        str, typer.Option("--kinds", metavar="KINDS", help=f"kinds of text: some of {', '.join(KINDS)}")
    ] = ",".join(KINDS),
    arms: Annotated[
        str, typer.Option("--arms", metavar="ARMS", help=f"{FULL}, or what --recall takes, e.g. 'full,off,prompt,auto'")
    ] = "full,off,prompt,auto",
    documents: Annotated[int, typer.Option("--documents", metavar="N", help="documents of each kind and length")] = 8,
    require: Annotated[
        list[str] | None,
        typer.Option(
            "--require", metavar="BAR", help="exit with 1 if missed, e.g. 'auto>=0.9' or 'auto@prose-140>=0.9'"
        ),
    ] = None,
    as_json: Json = False,
    plot: Plot = None,
) -> None:
    """Copy a passage of long ago: how many of its tokens does the model still write? Each follows the passage's own."""
    if archive is None:
        raise ValueError("--archive must be ram or a path")
    if distance < 1 or documents < 1:
        raise ValueError(f"--distance and --documents must be at least 1, got {distance} and {documents}")
    lengths = parse_numbers(tokens)
    of_kinds = [kind.strip() for kind in kinds.split(",")]
    if not set(of_kinds) <= set(KINDS):
        raise ValueError(f"--kinds must be some of {', '.join(KINDS)}, got {kinds!r}")
    chosen = [arm.strip() for arm in arms.split(",")]
    names = [f"{arm}@{kind}-{n}" for kind in of_kinds for n in lengths for arm in chosen]
    bars = parse_bars(require or [], names)
    draw = plot_to(plot)
    with needs_extra("bench"):
        import scipy.stats  # noqa: F401  # found missing before the copies, not after them
    path = find_model(model)
    found = run(path, morphkv, archive, of_kinds, lengths, distance, documents, chosen, **llama)
    n_reads = len({arm == FULL for arm in chosen})
    n_all = n_reads * len(of_kinds) * documents * sum(n_read(n, distance) for n in lengths)
    copies = collect(found, n_all)
    rows = {name: row_of([c for c in copies if f"{c.arm}@{c.kind}-{c.n_passage}" == name]) for name in names}
    figures = {name: row["share"] for name, row in rows.items()}
    draw(
        f"{path.stem}: passages of {distance:,} tokens ago, capacity {morphkv.capacity:,}",
        lambda: [
            by_length(kind, f"tokens of a passage ({kind})", named(rows, kind), lengths, chosen) for kind in of_kinds
        ],
    )
    details = {"model": model, "morphkv": morphkv, "archive": archive, "n_distance": distance, "rows": rows}
    report(as_json, bars, figures, details, lambda: show(rows, morphkv, distance))


def named(rows: dict[str, dict[str, float]], kind: str) -> dict[str, dict[str, float]]:
    """Those of a kind of text, by `ARM@LENGTH`."""
    return {name.replace(f"@{kind}-", "@"): row for name, row in rows.items() if f"@{kind}-" in name}


def parse_numbers(text: str) -> list[int]:
    values = text.split(",")
    if not all(value.strip().isdecimal() and int(value) > N_CUE for value in values):
        raise ValueError(f"--tokens must be numbers above {N_CUE}, separated by commas, got {text!r}")
    return sorted({int(value) for value in values})


def collect(found: Iterable[Copied | int], n_tokens: int) -> list[Copied]:
    copies = []
    with progress_bar(n_tokens, "copy") as advance:
        for each in found:
            if isinstance(each, int):
                advance(each)
            else:
                copies.append(each)
    return copies


def row_of(copies: list[Copied]) -> dict[str, float]:
    """Documents weigh the same."""
    shares = np.array([np.mean(copied.right) for copied in copies])
    return {
        "share": float(shares.mean()),
        "error": standard_error(shares),
        "n_documents": len(copies),
        "n_recalls": float(np.mean([copied.n_recalls for copied in copies])),
        "recall_ms": float(np.mean([copied.recall_ms for copied in copies])),
    }


def show(rows: dict[str, dict[str, float]], morphkv: MorphKV, n_distance: int) -> None:
    print_table(
        f"Right tokens of a passage {n_distance} tokens back, behind its first {N_CUE}; capacity {morphkv.capacity}",
        ("recall@text-tokens", "right", "standard error", "documents", "recalls while writing", "their time"),
        [
            (
                name,
                f"{r['share']:.3f}",
                f"{r['error']:.3f}",
                f"{r['n_documents']:.0f}",
                f"{r['n_recalls']:.1f}",
                f"{r['recall_ms']:.0f} ms",
            )
            for name, r in rows.items()
        ],
    )
