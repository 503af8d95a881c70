"""What is drawn of quality: intervals, bytes, lengths."""

from morphkv_cpp.plots.quality import against_bytes, by_length, by_position, share_bars

ROWS = {
    "recall@600": {"share": 0.75, "low": 0.3, "high": 0.95},
    "recall@700": {"share": 1.0, "low": 0.5, "high": 1.0},
    "off@600": {"share": 0.0, "error": 0.1},
    "off@700": {"share": 0.95, "error": 0.1},
}


def test_a_line_for_each_arm_with_its_intervals_within_0_and_1():
    recall, off = by_length("facts", "tokens", ROWS, [600, 700], ["recall", "off"]).lines
    assert (recall.name, recall.xs, recall.ys) == ("recall", [600, 700], [0.75, 1.0])
    assert (recall.lows, recall.highs) == ([0.3, 0.5], [0.95, 1.0])
    assert (off.lows, off.highs) == ([0.0, 0.85], [0.1, 1.0])


def test_bars_have_intervals():
    (bar,) = share_bars({"full": ROWS["recall@600"]}).bars
    assert (bar.name, bar.value, bar.low, bar.high) == ("full", 0.75, 0.3, 0.95)


def test_quality_stands_above_the_bytes_that_are_kept():
    panel = against_bytes("perplexity", {"full": 12.0, "morphkv": 14.0}, {"morphkv": 2**20, "full": 2**23})
    assert panel.is_loose
    assert [(line.name, line.xs, line.ys) for line in panel.lines] == [("full", [8], [12.0]), ("morphkv", [1], [14.0])]


def test_perplexity_by_position():
    (line,) = by_position({"full": [(299, 9.0), (599, 8.0)]}).lines
    assert (line.xs, line.ys) == ([299, 599], [9.0, 8.0])
