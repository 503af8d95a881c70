"""`morphkv eval perplexity`: of texts that stream through the cache."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from ... import Llama, MorphKV
from ...eval.arms import FULL, Arm, parse_arms
from ...eval.compare import (
    by_position,
    differences,
    exceeded,
    parse_bounds,
    parse_orderings,
    reference_arm,
    run_arm,
    unmet,
)
from ...eval.kept import kept_bytes
from ...eval.perplexity import Estimate, Values, buckets
from ...eval.perplexity import perplexity as perplexity_of
from ...plots.quality import against_bytes
from ...plots.quality import by_position as positions_panel
from ...text.tokens import require_utf8
from ..options import Model
from ..plots import Plot, plot_to
from ..show import Json, find_model, print_json, print_table, progress_bar, report_bars


def eval_perplexity(
    model: Model,
    files: Annotated[list[Path], typer.Argument(help="texts, UTF-8; see `morphkv texts`")],
    morphkv: MorphKV,
    llama: dict[str, Any],
    stock: Annotated[bool, typer.Option("--stock", help="stock llama.cpp's full cache instead of MorphKV")] = False,
    compare: Annotated[
        str | None,
        typer.Option(
            "--compare",
            metavar="ARMS",
            help="several caches on the same texts, in pairs, e.g. 'full,morphkv,recency,morphkv:window=128'",
        ),
    ] = None,
    tokens: Annotated[
        int | None, typer.Option("--tokens", "-n", metavar="N", help="tokens of each text (default: all)")
    ] = None,
    skip: Annotated[
        int, typer.Option("--skip", metavar="N", help="first tokens that are left out of the mean of a text")
    ] = 0,
    bucket: Annotated[int, typer.Option("--bucket", metavar="N", help="positions in a row of the table")] = 1000,
    positions: Annotated[
        bool, typer.Option("--by-position", help="with --compare: a row for each --bucket too")
    ] = False,
    require: Annotated[
        list[str] | None,
        typer.Option(
            "--require", metavar="A<B", help="with --compare: exit with 1 if A is not better than B beyond the noise"
        ),
    ] = None,
    require_each: Annotated[
        list[str] | None,
        typer.Option(
            "--require-each",
            metavar="A<X*B",
            help="with --compare: exit with 1 if A is not below X times B in each --bucket after --skip",
        ),
    ] = None,
    as_json: Json = False,
    plot: Plot = None,
) -> None:
    """Measure perplexity by position, while each text streams through the cache in chunks of --interval tokens."""
    if bucket < 1 or skip < 0:
        raise ValueError(f"--bucket must be at least 1 and --skip at least 0, got {bucket} and {skip}")
    if compare and stock:
        raise ValueError(f"--stock cannot be combined with --compare; name {FULL} there")
    if (require or require_each) and not compare:
        raise ValueError("--require and --require-each need --compare")
    if positions and not compare:
        raise ValueError("--by-position needs --compare; without it there is a row for each --bucket anyway")
    arms = parse_arms(compare, morphkv) if compare else [Arm(FULL, None) if stock else Arm(morphkv.policy, morphkv)]
    orderings = parse_orderings(require or [], arms)
    bounds = parse_bounds(require_each or [], arms)
    draw = plot_to(plot)
    path = find_model(model)
    texts = tokenize(path, files, tokens, skip, llama)
    values, n_bytes = measure(path, arms, texts, morphkv.interval, llama)
    of_buckets = by_position(values, bucket)
    rows = of_buckets if compare else []
    means = {name: mean_perplexity(of_texts, skip) for name, of_texts in values.items()}
    ends = {name: [(end - 1, ppl[name]) for _, end, ppl in of_buckets] for name in values}
    draw(
        f"{path.stem}: perplexity of {len(texts)} texts",
        lambda: [positions_panel(ends), against_bytes("perplexity", means, n_bytes)],
    )
    missed = [*unmet(orderings, values, skip), *exceeded(bounds, rows, skip)]
    if as_json:
        found = as_object(files, values, reference_arm(arms).name, bucket, skip)
        print_json({"model": model, "morphkv": morphkv, "n_skip": skip, **found, "missed": missed})
    elif compare:
        if positions:
            print_by_position(rows)
        print_arms(files, values, skip)
        print_differences(values, reference_arm(arms).name, skip)
    else:
        print_positions(files, values[arms[0].name], bucket, skip)
    report_bars(missed, len(orderings) + len(bounds))


def measure(
    model: Path, arms: Sequence[Arm], texts: Sequence[Sequence[int]], n_chunk: int, llama: dict[str, Any]
) -> tuple[dict[str, list[Values]], dict[str, float]]:
    """-log p of the tokens of each text, by arm; and the bytes of K and V that each arm keeps."""
    values, n_bytes = {}, {}
    n_tokens = max(len(text) for text in texts)
    with progress_bar(len(arms) * sum(len(text) - 1 for text in texts), "perplexity") as advance:
        for arm in arms:

            def count(n: int, name: str = arm.name) -> None:
                advance(n, name)

            def look(llm: Llama, name: str = arm.name) -> None:
                n_bytes[name] = kept_bytes(llm, n_tokens)

            values[arm.name] = run_arm(model, arm, texts, n_chunk, count, look, **llama)
    return values, n_bytes


def as_object(
    files: Sequence[Path], values: dict[str, list[Values]], reference: str, n_bucket: int, n_skip: int
) -> dict[str, Any]:
    return {
        "figures": {name: mean_perplexity(of_texts, n_skip) for name, of_texts in values.items()},
        "caches": {
            name: [
                {
                    "file": file,
                    "perplexity": perplexity_of(nll[n_skip:]),
                    "by_position": [
                        {"first": first, "last": end - 1, **ppl._asdict()} for first, end, ppl in buckets(nll, n_bucket)
                    ],
                }
                for file, nll in zip(files, of_texts)
            ]
            for name, of_texts in values.items()
        },
        "reference": reference,
        "differences": {
            name: {**d._asdict(), "in_errors": d.in_errors}
            for name, d in differences(values, reference, n_skip).items()
        },
    }


def mean_perplexity(of_texts: Sequence[Values], n_skip: int) -> float:
    """The exponential of the mean over texts, each of the same weight."""
    return float(np.exp(np.mean([nll[n_skip:].mean() for nll in of_texts])))


def tokenize(
    model: Path, files: Sequence[Path], n_tokens: int | None, n_skip: int, llama: dict[str, Any]
) -> list[list[int]]:
    """Tokens of each file; refuses what is no text, and texts that are shorter than asked for."""
    n_least = max(n_tokens or 0, n_skip + 2)
    llm = Llama(model, n_ctx=256, verbose=llama["verbose"])  # the smallest that there is
    try:
        texts = [llm.tokenize(require_utf8(file.read_bytes(), str(file))) for file in files]
    finally:
        llm.close()
    for file, text in zip(files, texts):
        if len(text) < n_least:
            raise ValueError(f"a text must have at least {n_least} tokens, but {file} has {len(text)}")
    return [text[:n_tokens] for text in texts]


def plus_minus(estimate: Estimate) -> str:
    return f"{estimate.mean:.3f} +- {estimate.error:.3f}"


def print_positions(files: Sequence[Path], values: Sequence[Values], n_bucket: int, n_skip: int) -> None:
    for file, nll in zip(files, values):
        rows = [(f"{first}..{end - 1}", plus_minus(ppl)) for first, end, ppl in buckets(nll, n_bucket)]
        title = f"all after {n_skip}" if n_skip else "all"
        rows.append((title, plus_minus(perplexity_of(nll[n_skip:]))))
        print_table(str(file), ("positions", "perplexity +- standard error"), rows)


def print_by_position(rows: Sequence[tuple[int, int, dict[str, float]]]) -> None:
    print_table(
        "Perplexity by position, all texts",
        ("positions", *rows[0][2]),
        [(f"{first}..{end - 1}", *(f"{ppl:.2f}" for ppl in of_arms.values())) for first, end, of_arms in rows],
    )


def print_arms(files: Sequence[Path], values: dict[str, list[Values]], n_skip: int) -> None:
    print_table(
        f"Perplexity +- standard error, after the first {n_skip} tokens",
        ("cache", *(file.stem for file in files), "all"),
        [
            (
                name,
                *(plus_minus(perplexity_of(nll[n_skip:])) for nll in of_texts),
                f"{mean_perplexity(of_texts, n_skip):.3f}",
            )
            for name, of_texts in values.items()
        ],
    )


def print_differences(values: dict[str, list[Values]], reference: str, n_skip: int) -> None:
    print_table(
        f"Mean -log p less that of {reference}, token by token; positive is worse",
        ("cache", "difference", "error over blocks", "error over texts", "in errors"),
        [
            (name, f"{d.mean:+.4f}", f"{d.block_error:.4f}", f"{d.text_error:.4f}", f"{d.in_errors:+.1f}")
            for name, d in differences(values, reference, n_skip).items()
        ],
    )
