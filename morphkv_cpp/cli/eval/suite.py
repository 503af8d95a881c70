"""`morphkv eval suite` measures every task in every cache, `morphkv eval report` writes what was found."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from ...eval import presets
from ...eval.machine import machine
from ...eval.peers import versions
from ...eval.results_page import number, put_in_page
from ...eval.suite import Results, Suite
from ...eval.suite_arms import default_arms, parse_suite_arms, peer_arms
from ...eval.summary import summarize
from ...eval.tasks import TASKS, chosen
from ...extras import needs_extra
from ...plots.figure import check_plot
from ...plots.results import plot_results
from ..options import Model
from ..plots import Plot
from ..show import Json, find_model, plain, print_json, print_table, progress_bar, remark

INTERVAL = 64


def eval_suite(
    model: Model,
    llama: dict[str, Any],
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="FILE", help="JSON lines; what they have is not measured again")
    ] = Path("results.jsonl"),
    tasks: Annotated[
        str, typer.Option("--tasks", metavar="NAMES", help="all, or some: facts is all that begin so; see --list")
    ] = "all",
    arms: Annotated[
        str | None,
        typer.Option(
            "--arms", metavar="ARMS", help="caches, e.g. 'full,shift/q8_0,recency,morphkv:layers=equal+archive'"
        ),
    ] = None,
    peer: Annotated[
        str | None,
        typer.Option("--peer", metavar="NAME", help="kvpress: its caches too, in PyTorch; needs morphkv_cpp[peers]"),
    ] = None,
    cells: Annotated[
        int | None,
        typer.Option(
            "--cells",
            metavar="N",
            help="all but `full` take the bytes of N cells in f16, a multiple of 256 "
            f"(default: {presets.FULL_CELLS}, quick {presets.QUICK_CELLS})",
            show_default=False,
        ),
    ] = None,
    tokens: Annotated[
        str, typer.Option("--tokens", metavar="N,...", help="lengths of the texts (default: by task)")
    ] = "",
    items: Annotated[int, typer.Option("--items", metavar="N", help="items of each task (0 = by task)")] = 0,
    quick: Annotated[bool, typer.Option("--quick", help="short texts, few items and caches")] = False,
    list_tasks: Annotated[bool, typer.Option("--list", help="list the tasks and exit")] = False,
    as_json: Json = False,
    plot: Plot = None,
) -> None:
    """Measure tasks made by code in caches of the same bytes; goes on where an earlier run was ended."""
    if list_tasks:
        print_table("Tasks", ("name", "what"), [(task.name, task.about) for task in TASKS.values()], n_text=2)
        return
    if plot is not None:
        check_plot(plot)
    parts = presets.parts_of(presets.QUICK if quick else presets.FULL, chosen(tasks), _lengths(tokens), items)
    if cells is None:
        cells = presets.QUICK_CELLS if quick else presets.FULL_CELLS
    named = arms or (presets.QUICK_ARMS if quick else default_arms())
    of_arms = parse_suite_arms(named if peer is None else f"{named},{peer_arms(peer)}", cells, INTERVAL)
    with needs_extra("bench"):
        import scipy.stats  # noqa: F401  # found missing before, not after
    peers = versions() if any(arm.peer for arm in of_arms) else {}
    path = find_model(model)
    results = Results(out)
    for earlier in (row["run"] for row in results.rows if "run" in row):
        if (earlier["model"], earlier["n_cells"]) != (path.stem, cells):
            raise ValueError(
                f"--out must name a file with results of {path.stem} and {cells} cells, but {out} has those of "
                f"{earlier['model']} and {earlier['n_cells']}"
            )
    suite = Suite(path, of_arms, parts, INTERVAL, **llama)
    n_tokens = suite.n_tokens(results)
    if n_tokens:
        about = {"model": path.stem, "command": " ".join(["morphkv", *sys.argv[1:]]), "machine": machine()}
        results.add({"run": plain({**about, "peers": peers, "n_cells": cells, "n_threads": llama["n_threads"]})})
    with progress_bar(n_tokens, "suite") as advance:
        suite.run(results, advance)
    found = summarize(results.rows)
    if plot is not None:
        plot_results(plot, found)
        remark(f"the plot is in {plot}")
    if as_json:
        print_json(found)
    else:
        show(found)
    remark(f"{len(results.keys)} results in {out}; `morphkv eval report {out}` writes tables and plots")


def eval_report(
    file: Annotated[Path, typer.Argument(help="what `morphkv eval suite` wrote")],
    folder: Annotated[Path, typer.Option("--folder", metavar="DIR", help="where NAME.json and NAME.svg go")] = Path(
        "."
    ),
    name: Annotated[str, typer.Option("--name", metavar="NAME", help="of the summary")] = "results",
    title: Annotated[str, typer.Option("--title", metavar="TEXT", help="of its tables on the page")] = "",
    page: Annotated[
        Path | None,
        typer.Option(
            "--page", metavar="FILE", help="a Markdown page with two marks: the tables between them are made anew"
        ),
    ] = None,
) -> None:
    """Write a summary, its plot, and the tables of a page."""
    if not file.is_file():
        raise FileNotFoundError(f"the results must be a file of `morphkv eval suite`, got {str(file)!r}")
    with needs_extra("bench"):
        import scipy.stats  # noqa: F401
    found = summarize(Results(file).rows)
    if not found["figures"]:
        raise ValueError(f"the file must hold results, got none in {str(file)!r}")
    found["run"]["title"] = title or name
    folder.mkdir(parents=True, exist_ok=True)
    written = [folder / f"{name}.json", folder / f"{name}.svg"]
    written[0].write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    plot_results(written[1], found)
    if page is not None:
        page.write_text(put_in_page(page, folder), encoding="utf-8")
        written.append(page)
    for path in written:
        print(path)


def _lengths(text: str) -> list[int]:
    values = [value.strip() for value in text.split(",") if value.strip()]
    if not all(value.isdecimal() and int(value) >= 256 for value in values):
        raise ValueError(f"--tokens must be numbers of at least 256, separated by commas, got {text!r}")
    return [int(value) for value in values]


def show(found: dict[str, Any]) -> None:
    figures: Sequence[dict[str, Any]] = found["figures"]
    rows = [
        (
            f["task"],
            f["arm"],
            f"{f['n_tokens']}",
            f["measure"],
            f"{f['mean']:.4f}",
            number(f["error"], 4),
            number(f.get("to_full"), 4) if "to_full" in f else "",
            number(f.get("to_full_error"), 4) if "to_full" in f else "",
            f"{f['n']}",
        )
        for f in figures
    ]
    columns = ("task", "cache", "tokens", "measure", "mean", "error", "less full", "error", "items")
    print_table("Score: higher is better; nll and kl: lower", columns, rows, n_text=2)
