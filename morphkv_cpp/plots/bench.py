"""What `morphkv bench` draws: speed and memory against the length of a text, and what parts of the work cost."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import TYPE_CHECKING

from ..bench.streaming import N_MARK
from .panels import Bar, Bars, Line, Lines

if TYPE_CHECKING:
    from ..bench.archive import ArchiveCost
    from ..bench.constant import ConstantRun
    from ..bench.depths import DepthPoint
    from ..bench.server import SlotsLane
    from ..bench.streaming import StreamLane

MIB = 2**20


def growth_panels(run: ConstantRun) -> list[Lines | Bars]:
    """Speed and memory over a long run, each of its tenths at the median."""
    ends = [sample.n_tokens for sample in run.samples]
    n_step = max(1, len(ends) // 20) * run.n_step
    marks = ends[n_step // run.n_step - 1 :: n_step // run.n_step]
    rates = [run.rate(mark - n_step, mark) for mark in marks]
    return [
        Lines("speed", "tokens of the text", "decode speed (tok/s)", [Line("decoding", marks, rates)]),
        Lines(
            "memory",
            "tokens of the text",
            "MiB",
            [
                Line("resident memory", ends, [sample.rss_bytes / MIB for sample in run.samples]),
                Line("K and V", ends, [sample.kv_bytes / MIB for sample in run.samples]),
            ],
        ),
        Lines(
            "cells",
            "tokens of the text",
            "cells",
            [
                Line("of the cache", ends, [sample.n_cells for sample in run.samples]),
                Line("in use", ends, [sample.n_used for sample in run.samples]),
            ],
        ),
    ]


def stream_panels(lanes: Sequence[StreamLane], n_tokens: int, n_turn: int) -> list[Lines | Bars]:
    """Speed of a streamed answer behind its first 1,000 tokens, and behind its n_tokens-th."""
    starts = {"late": n_tokens, "early": N_MARK}
    lines = [
        Line(f"after token {starts[lane.name]:,}", [n_turn * (i + 1) for i in range(len(lane.rates))], lane.rates)
        for lane in sorted(lanes, key=lambda lane: starts[lane.name])
    ]
    return [Lines("speed", "tokens behind that one", "streaming speed (tok/s)", lines)]


def depth_panels(points: Sequence[DepthPoint]) -> list[Lines | Bars]:
    """Speed of single tokens and of prompts, and memory, a line for each cache."""
    caches = list(dict.fromkeys(point.cache for point in points))

    def lines(value: Callable[[DepthPoint], float | None]) -> list[Line]:
        found = []
        for cache in caches:
            values = {point.n_depth: value(point) for point in points if point.cache == cache}
            shown = {n_depth: y for n_depth, y in values.items() if y is not None}
            if shown:
                found.append(Line(cache, list(shown), list(shown.values())))
        return found

    x = "depth (tokens)"
    return [
        Lines("speed", x, "decode speed (tok/s)", lines(lambda point: point.rate_tok_s)),
        Lines("prompt", x, "time to the first token (s)", lines(lambda point: point.first_token_s)),
        Lines("memory", x, "K and V (MiB)", lines(lambda point: point.kv_bytes / MIB)),
    ]


def server_panels(
    lanes: Sequence[SlotsLane], seconds: Sequence[float], watched: Sequence[SlotsLane]
) -> list[Lines | Bars]:
    """Speed of busy slots, time to the first token turn by turn, speed of a watched slot: those that were measured."""
    panels: list[Lines | Bars] = []
    if lanes:
        panels.append(Bars("slots", f"tok/s of {len(lanes[0].prompts)} busy slots", _bars_of(lanes)))
    if seconds:
        first = Line("first token", list(range(1, len(seconds) + 1)), [1e3 * each for each in seconds])
        panels.append(Lines("chat", "turn of a chat", "time to the first token (ms)", [first]))
    if watched:
        panels.append(Bars("watched", "tok/s of one slot", _bars_of(watched)))
    return panels


def _bars_of(lanes: Sequence[SlotsLane]) -> list[Bar]:
    return [Bar(lane.name, median(lane.rates), min(lane.rates), max(lane.rates)) for lane in lanes]


def archive_panels(cost: ArchiveCost) -> list[Lines | Bars]:
    """Speed with an archive and without, and each recall's time."""
    turns = list(range(1, len(cost.recalls) + 1))
    return [
        Bars("speed", "decode speed (tok/s)", [Bar("with", cost.tok_s), Bar("without", cost.tok_s / cost.speed)]),
        Lines(
            "recalls",
            "recall",
            "ms",
            [
                Line("the whole recall", turns, [recall.took_ms for recall in cost.recalls]),
                Line("to choose", turns, [recall.ask_ms for recall in cost.recalls]),
            ],
        ),
    ]


def shape_panels(whole_ms: Mapping[str, float]) -> list[Lines | Bars]:
    """What each part of the work takes in the whole model, in ms."""
    return [Bars("cost", "ms of the whole model", [Bar(name, ms) for name, ms in whole_ms.items()])]
