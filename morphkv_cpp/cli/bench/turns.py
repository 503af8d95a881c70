"""What commands share that let caches decode in turns."""

from collections.abc import Sequence
from statistics import median
from typing import Annotated

import typer

Rounds = Annotated[int, typer.Option("--rounds", "-r", metavar="N", help="turns of each cache; medians are shown")]

RATE_COLUMNS = ("tok/s, median", "lowest", "highest")


def rate_cells(rates_tok_s: Sequence[float]) -> tuple[str, str, str]:
    """Of RATE_COLUMNS."""
    return f"{median(rates_tok_s):.1f}", f"{min(rates_tok_s):.1f}", f"{max(rates_tok_s):.1f}"
