"""Bars that a measurement must reach, given on the command line: `morphkv@256>=0.80`, `recency<0.40`, `rss_mb<8`."""

import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

OPERATORS = {
    ">=": lambda value, limit: value >= limit,
    "<=": lambda value, limit: value <= limit,
    ">": lambda value, limit: value > limit,
    "<": lambda value, limit: value < limit,
}


class Bar(NamedTuple):
    """`row` names one row, or all rows `row@...`."""

    row: str
    operator: str
    limit: float

    def __str__(self) -> str:
        return f"{self.row}{self.operator}{self.limit:g}"

    def covers(self, row: str) -> bool:
        return row == self.row or row.startswith(self.row + "@")


def parse_bars(texts: Iterable[str], rows: Iterable[str]) -> list[Bar]:
    """Raises ValueError as well for a bar that speaks of none of the rows to be measured: it could never fail."""
    rows = list(rows)
    bars = []
    for text in texts:
        match = re.fullmatch(r"(.+?)(>=|<=|>|<)(-?\d*\.?\d+)", text.replace(" ", ""))
        if match is None:
            raise ValueError(f"a requirement must look like '{rows[0]}>=0.80' or '{rows[0]}<0.40', got {text!r}")
        bar = Bar(match[1], match[2], float(match[3]))
        if not any(bar.covers(row) for row in rows):
            raise ValueError(f"a requirement must speak of one of {', '.join(rows)}, got {text!r}")
        bars.append(bar)
    return bars


def missed(bars: Iterable[Bar], measured: Mapping[str, float]) -> list[str]:
    """A sentence for each bar that a row misses. NaN misses every bar."""
    return [
        f"{row} must be {bar.operator} {bar.limit:g}, got {value:.3f}"
        for bar in bars
        for row, value in measured.items()
        if bar.covers(row) and not OPERATORS[bar.operator](value, bar.limit)
    ]
