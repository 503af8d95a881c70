"""Decode speed and memory against the depth of the text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..bench.depths import MORPHKV, STOCK, DepthPoint
from .figure import saved_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Dark and light enough to tell apart in grey, as are their lines and markers.
LINES: dict[str, dict[str, Any]] = {
    MORPHKV: {"color": "#08519c", "linestyle": "-", "marker": "o"},
    STOCK: {"color": "#e6770b", "linestyle": "--", "marker": "s"},
}


def plot_decode(path: Path, title: str, points: Sequence[DepthPoint]) -> None:
    """Write the plot: tok/s on the left, MiB of K and V on the right, a line for each cache of `points`.

    Raises ValueError for a suffix other than .svg, .png and .pdf, ModuleNotFoundError without matplotlib.
    """
    with saved_figure(path, width_in=9, height_in=3.6) as figure:
        figure.suptitle(title)
        speed, memory = figure.subplots(1, 2)
        _draw(speed, "speed", "decode speed (tok/s)", points, lambda point: point.rate_tok_s)
        _draw(memory, "memory", "K and V (MiB)", points, lambda point: point.kv_bytes / 2**20)


def _draw(
    axes: Axes, name: str, label: str, points: Sequence[DepthPoint], value: Callable[[DepthPoint], float]
) -> None:
    """A line for each cache, its name at its end: above and below it where two lines end side by side."""
    ends = []
    for cache in LINES:
        own = [point for point in points if point.cache == cache]
        values = [value(point) for point in own]
        axes.plot([point.n_depth for point in own], values, gid=f"{name}-{cache}".replace(" ", "-"), **LINES[cache])
        ends.append((values[-1], own[-1].n_depth, cache))
    ends.sort()
    is_close = ends[-1][0] - ends[0][0] < ends[-1][0] / 10
    for (y, x, cache), side in zip(ends, ("top", "bottom") if is_close else ("center", "center")):
        color = LINES[cache]["color"]
        axes.annotate(cache, (x, y), xytext=(8, 0), textcoords="offset points", va=side, color=color)
    axes.set_xlabel("depth (tokens)")
    axes.set_ylabel(label)
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
    axes.locator_params(axis="x", nbins=5)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(lambda n, _: f"{n:,.10g}")
