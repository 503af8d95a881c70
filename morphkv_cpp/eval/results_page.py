"""The tables of docs/results.md, written from docs/results/*.json."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .summary import FULL, N_NOISE

BEGIN = "<!-- made by `morphkv eval report`: begin -->"
END = "<!-- made by `morphkv eval report`: end -->"
N_WORSE = 12  # rows of what is worse


def page_part(name: str, summary: Mapping[str, Any], has_plot: bool) -> str:
    """Markdown of one summary: what is worse first, then all."""
    run = summary["run"]
    lines = [
        f"### {run.get('title', name)}",
        "",
        *_about(run),
        "",
        *_worse(summary["worse"]),
        *([f"![Every task in every cache, with standard errors](results/{name}.svg)", ""] if has_plot else []),
        *_bytes(summary),
        *_scores(summary["figures"]),
    ]
    return "\n".join(lines).rstrip() + "\n"


def _about(run: Mapping[str, Any]) -> list[str]:
    machine = run.get("machine", {})
    n_earlier = len(run.get("commands", [])) - 1
    return [
        f"`{run.get('command', '')}`" + (f", and {n_earlier} more for the same file" if n_earlier > 0 else ""),
        "",
        f"{run.get('model', '')}, {machine.get('cpu', '')}, {_threads(run)}; "
        f"morphkv_cpp {machine.get('morphkv_cpp', '')} at {machine.get('commit', '')}, "
        f"llama-cpp-python {machine.get('llama_cpp_python', '')}, Python {machine.get('python', '')}{_peers(run)}. "
        f"All caches but `{FULL}` have the bytes of {run.get('n_cells', '?')} cells in f16.",
    ]


def _peers(run: Mapping[str, Any]) -> str:
    return "".join(f", {name} {version}" for name, version in run.get("peers", {}).items())


def _threads(run: Mapping[str, Any]) -> str:
    n = run.get("n_threads", "?")
    return f"{n} thread" if n == 1 else f"{n} threads"


def _worse(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    beyond = [row for row in rows if row["z"] is not None and row["z"] >= N_NOISE]
    lines = [
        f"**Worse than a peer at the same bytes**, by at least {N_NOISE:g} standard errors: {len(beyond)} of "
        f"{len(rows)} comparisons in which a peer has the better mean. The others are noise, or have too few items.",
        "",
    ]
    if rows:
        lines += ["| task | ours | peer | behind by | z | items |", "|---|---|---|---|---|---|"]
        lines += [
            f"| {_task(row)} | `{row['arm']}` | `{row['peer']}` | {row['behind']:.3f} ± {number(row['error'])} | "
            f"{number(row['z'], 1)} | {row['n']} |"
            for row in rows[:N_WORSE]
        ]
        lines.append("")
    return lines


def _bytes(summary: Mapping[str, Any]) -> list[str]:
    words = [
        f"`{arm}` {sizes['kv_bytes'] / 2**20:.1f}"
        + (f" + {sizes['extra_bytes'] / 2**20:.1f}" if sizes["extra_bytes"] else "")
        for arm, sizes in summary["arms"].items()
    ]
    return [f"MiB of K and V, and of what is kept beside them: {', '.join(words)}.", ""] if words else []


def _scores(figures: Sequence[Mapping[str, Any]]) -> list[str]:
    arms = list(dict.fromkeys(figure["arm"] for figure in figures))
    keys = list(dict.fromkeys((f["task"], f["n_tokens"], f["measure"]) for f in figures))
    found = {(f["task"], f["n_tokens"], f["measure"], f["arm"]): f for f in figures}
    lines = ["| task | items | " + " | ".join(f"`{arm}`" for arm in arms) + " |", "|---" * (len(arms) + 2) + "|"]
    for key in keys:
        of_key = [found.get((*key, arm)) for arm in arms]
        counts = {figure["n"] for figure in of_key if figure}
        n = f"{min(counts)}" if len(counts) == 1 else f"{min(counts)} to {max(counts)}"
        task = _task({"task": key[0], "n_tokens": key[1], "measure": key[2]})
        lines.append(f"| {task} | {n} | " + " | ".join(_cell(figure) for figure in of_key) + " |")
    return lines


def _task(row: Mapping[str, Any]) -> str:
    what = {"nll": " (perplexity)", "kl": " (KL to full, nats)", "score": ""}[row["measure"]]
    return f"{row['task']}, {row['n_tokens']:,} tokens{what}"


def _cell(figure: Mapping[str, Any] | None) -> str:
    if figure is None:
        return "-"
    mean, error = figure["mean"], figure["error"]
    if figure["measure"] == "nll":
        # of the paired difference: texts differ far more than caches
        mean = math.exp(mean)
        if "to_full" not in figure:
            return f"{mean:.2f}"
        error = None if figure["to_full_error"] is None else mean * figure["to_full_error"]
        return f"{mean:.2f} ± {number(error, 2)}"
    if figure["measure"] == "kl":
        return f"{mean:.4f} ± {number(error, 4)}"
    return f"{mean:.2f} ± {number(error, 2)}"


def number(value: float | None, n_digits: int = 3) -> str:
    return "?" if value is None else f"{value:.{n_digits}f}"


def put_in_page(page: Path, folder: Path) -> str:
    """The page with the part between its two marks made anew from all summaries of the folder."""
    text = page.read_text(encoding="utf-8")
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the page must hold {BEGIN!r} and {END!r}, got {page}")
    summaries = {path: json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))}
    parts = [
        page_part(path.stem, summary, path.with_suffix(".svg").is_file())
        for path, summary in summaries.items()
        if "arms" in summary
    ]
    return f"{before}{BEGIN}\n\n" + "\n".join(parts) + f"\n{END}{after}"
