"""Plots that are lines or bars side by side: what most commands draw of their figures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .figure import saved_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# told apart in grey by their shades, their dashes and their marks
STYLES: tuple[dict[str, Any], ...] = (
    {"color": "#08519c", "linestyle": "-", "marker": "o"},
    {"color": "#e6770b", "linestyle": "--", "marker": "s"},
    {"color": "#1b1b1b", "linestyle": "-.", "marker": "D"},
    {"color": "#5aae61", "linestyle": ":", "marker": "^"},
    {"color": "#542788", "linestyle": (0, (5, 1, 1, 1, 1, 1)), "marker": "v"},
    {"color": "#8c8c8c", "linestyle": (0, (8, 2)), "marker": "P"},
    {"color": "#b2182b", "linestyle": (0, (2, 1)), "marker": "X"},
    {"color": "#4393c3", "linestyle": (0, (1, 3)), "marker": "*"},
)
BAR = "#6b93c0"
N_MARKS = 30  # of a line: more would hide it


@dataclass(frozen=True)
class Line:
    name: str
    xs: Sequence[float]
    ys: Sequence[float]
    lows: Sequence[float] | None = None  # ends of an interval around each of ys
    highs: Sequence[float] | None = None


@dataclass(frozen=True)
class Lines:
    """A panel with a line for each cache, from 0 up. is_loose: points that no line joins, named where they are."""

    name: str
    x: str
    y: str
    lines: Sequence[Line]
    is_loose: bool = False


@dataclass(frozen=True)
class Bar:
    name: str
    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Bars:
    """A panel with a bar for each of some things."""

    name: str
    x: str
    bars: Sequence[Bar]


def plot_panels(path: Path, title: str, panels: Sequence[Lines | Bars]) -> None:
    """Write the plot: panels from left to right.

    Raises ValueError for a suffix other than .svg, .png and .pdf, ModuleNotFoundError without matplotlib.
    """
    n_bars = max((len(panel.bars) for panel in panels if isinstance(panel, Bars)), default=0)
    with saved_figure(path, width_in=max(6, 4.5 * len(panels)), height_in=max(3.8, 1 + 0.45 * n_bars)) as figure:
        figure.suptitle(title)
        for axes, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels):
            if isinstance(panel, Bars):
                _draw_bars(axes, panel)
            else:
                _draw_lines(axes, panel)


def _draw_lines(axes: Axes, panel: Lines) -> None:
    for i, line in enumerate(panel.lines):
        style = dict(STYLES[i % len(STYLES)])
        if panel.is_loose:
            style["linestyle"] = "none"
        axes.plot(line.xs, line.ys, label=line.name, gid=_id(panel.name, line.name), markersize=4,
                  markevery=max(1, len(line.xs) // N_MARKS), **style)  # fmt: skip
        if line.lows is not None and line.highs is not None:
            axes.vlines(line.xs, line.lows, line.highs, color=style["color"], linewidth=1)
        if panel.is_loose:
            axes.annotate(line.name, (line.xs[0], line.ys[0]), xytext=(6, 4), textcoords="offset points", fontsize=8)
    axes.set_xlabel(panel.x)
    axes.set_ylabel(panel.y)
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
    if panel.is_loose:
        axes.margins(x=0.25)
        axes.set_xlim(left=0)
    elif len(panel.lines) > 1:
        axes.legend(frameon=False, fontsize=8)
    axes.locator_params(axis="x", nbins=5)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(_number)


def _draw_bars(axes: Axes, panel: Bars) -> None:
    names = [bar.name for bar in panel.bars]
    boxes = axes.barh(range(len(names)), [bar.value for bar in panel.bars], color=BAR, edgecolor="#333", height=0.6)
    for i, (box, bar) in enumerate(zip(boxes, panel.bars)):
        box.set_gid(_id(panel.name, bar.name))
        if bar.low is not None and bar.high is not None:
            axes.hlines(i, bar.low, bar.high, color="#1b1b1b", linewidth=1.5)
        axes.annotate(f"{bar.value:,.3g}", (max(bar.value, bar.high or 0), i), xytext=(4, 0), va="center", fontsize=8,
                      textcoords="offset points")  # fmt: skip
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set_xlabel(panel.x)
    axes.margins(x=0.15)
    axes.set_xlim(left=0)
    axes.grid(axis="y", visible=False)
    axes.xaxis.set_major_formatter(_number)


def _id(panel: str, name: str) -> str:
    return f"{panel}-{name}".replace(" ", "-")


def _number(n: float, _: object) -> str:
    return f"{n:,.10g}"
