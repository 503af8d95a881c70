"""Every task of a suite in every arm: scores, and perplexity over that of the full cache."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .figure import saved_figure

# told apart in grey by their markers
MARKERS = "osD^v<>PX*hd"
COLORS = ("#333333", "#e6770b", "#b35806", "#fdb863", "#8073ac", "#542788", "#5aae61", "#1b7837", "#4393c3", "#2166ac",
          "#08519c", "#053061")  # fmt: skip


def plot_results(path: Path, summary: Mapping[str, Any]) -> None:
    """Write the plot. Raises ValueError for a suffix other than .svg, .png and .pdf, ModuleNotFoundError without
    matplotlib."""
    figures: Sequence[Mapping[str, Any]] = summary["figures"]
    arms = list(dict.fromkeys(figure["arm"] for figure in figures))
    scores = [figure for figure in figures if figure["measure"] == "score"]
    losses = [f for f in figures if f["measure"] == "nll" and "to_full" in f]
    n_rows = len({label(figure) for figure in scores})
    panels = [(scores, "score (1: all right)")] * bool(scores) + [
        (losses, "perplexity over the full cache's (%)")
    ] * bool(losses)
    if not panels:
        raise ValueError("a plot of results needs scores or perplexities, got neither")
    with saved_figure(path, width_in=9, height_in=2.2 + 0.34 * n_rows + 0.2 * len(arms)) as figure:
        heights = [max(1, len({label(f) for f in of_panel})) + 1 for of_panel, _ in panels]
        axes = figure.subplots(len(panels), 1, squeeze=False, gridspec_kw={"height_ratios": heights})[:, 0]
        for axis, (of_panel, words) in zip(axes, panels):
            rows = list(dict.fromkeys(label(f) for f in of_panel))
            for i_arm, arm in enumerate(arms):
                own = [f for f in of_panel if f["arm"] == arm]
                if not own:
                    continue
                shift = 0.6 * (i_arm / max(1, len(arms) - 1) - 0.5)
                values = [value(f) for f in own]
                axis.errorbar(
                    [mean for mean, _ in values],
                    [rows.index(label(f)) + shift for f in own],
                    xerr=[error for _, error in values],
                    linestyle="none",
                    marker=MARKERS[i_arm % len(MARKERS)],
                    color=COLORS[i_arm % len(COLORS)],
                    markersize=4,
                    label=arm,
                    gid=f"{own[0]['measure']}-{arm}",
                )
            axis.set_yticks(range(len(rows)), rows)
            axis.set_ylim(len(rows) - 0.5, -0.5)
            axis.set_xlabel(words)
        named = {name: mark for axis in axes for mark, name in zip(*axis.get_legend_handles_labels())}
        shown = [arm for arm in arms if arm in named]
        figure.legend([named[arm] for arm in shown], shown, loc="outside lower center", ncols=3, frameon=False)


def label(figure: Mapping[str, Any]) -> str:
    return f"{figure['task']}, {figure['n_tokens']:,}"


def value(figure: Mapping[str, Any]) -> tuple[float, float]:
    """Mean and standard error, as drawn; 0 for an error that a single item has not."""
    if figure["measure"] == "nll":
        ratio = math.exp(figure["to_full"])
        return 100 * (ratio - 1), 100 * ratio * (figure["to_full_error"] or 0.0)
    return figure["mean"], figure["error"] or 0.0
