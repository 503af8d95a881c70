"""What `morphkv eval` draws: quality against the bytes of what is kept, and against the length of a text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from .panels import Bar, Bars, Line, Lines

MIB = 2**20
Row = Mapping[str, float]


def share_bars(rows: Mapping[str, Row]) -> Bars:
    """rows: by cache, `share` with its interval from `low` to `high`."""
    return Bars("right", "share that is right, and its 95% interval",
                [Bar(name, row["share"], row["low"], row["high"]) for name, row in rows.items()])  # fmt: skip


def against_bytes(y: str, values: Mapping[str, float], kept_bytes: Mapping[str, float]) -> Lines:
    """A mark for each cache."""
    marks = [Line(name, [kept_bytes[name] / MIB], [value]) for name, value in values.items()]
    return Lines("bytes", "K and V that are kept (MiB)", y, marks, is_loose=True)


def by_length(name: str, x: str, rows: Mapping[str, Row], lengths: Sequence[int], arms: Sequence[str]) -> Lines:
    """A line for each arm. rows: by `ARM@LENGTH`, as of share_bars, or with an `error` that is drawn to both sides."""
    lines = []
    for arm in arms:
        own = [rows[f"{arm}@{length}"] for length in lengths]
        lows = [max(0.0, row["low"] if "low" in row else row["share"] - row["error"]) for row in own]
        highs = [min(1.0, row["high"] if "high" in row else row["share"] + row["error"]) for row in own]
        lines.append(Line(arm, lengths, [row["share"] for row in own], lows, highs))
    return Lines(name, x, "share that is right", lines)


def by_position(values: Mapping[str, Sequence[tuple[int, float]]]) -> Lines:
    """values: by cache, (position of a stretch's end, perplexity)."""
    lines = [Line(name, [at for at, _ in points], [ppl for _, ppl in points]) for name, points in values.items()]
    return Lines("perplexity", "position in the text", "perplexity", lines)
