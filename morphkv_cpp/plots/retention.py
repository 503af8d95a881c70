"""What each layer keeps of a text."""

from __future__ import annotations

from pathlib import Path

from ..cache.retention import Retention
from .figure import saved_figure


def plot_retention(path: Path, retention: Retention) -> None:
    """Write the plot of Retention.plot(): layers from top to bottom, the text from left to right.

    Raises ValueError for a suffix other than .svg, .png and .pdf, ModuleNotFoundError without matplotlib.
    """
    with saved_figure(path, width_in=9, height_in=4) as figure:
        n_tokens, stats = len(retention.tokens), retention.stats
        figure.suptitle(f"{retention.model}: {n_tokens:,} tokens, capacity {stats.capacity:,}")
        retention.plot(figure.subplots())
