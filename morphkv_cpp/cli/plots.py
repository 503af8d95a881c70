"""The option --plot: what a command has measured, as a picture."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

import typer

from ..plots.figure import check_plot
from ..plots.panels import Bars, Lines, plot_panels
from .show import remark

Plot = Annotated[
    Path | None,
    typer.Option("--plot", metavar="FILE", help="draw it as well: .svg, .png or .pdf", show_default=False),
]


def plot_to(plot: Path | None) -> Callable[[str, Callable[[], Sequence[Lines | Bars]]], None]:
    """Raises what the plot would, before anything is measured. Returns what draws it: draw(title, make_panels)."""
    if plot is not None:
        check_plot(plot)

    def draw(title: str, make_panels: Callable[[], Sequence[Lines | Bars]]) -> None:
        if plot is not None:
            plot_panels(plot, title, make_panels())
            remark(f"the plot is in {plot}")

    return draw
