"""What is drawn of `morphkv bench`: which numbers stand where."""

from types import SimpleNamespace

import pytest

from morphkv_cpp.bench.constant import ConstantRun, Sample
from morphkv_cpp.plots.bench import archive_panels, growth_panels, server_panels, shape_panels, stream_panels


def test_growth_has_speed_memory_and_cells_by_the_text():
    samples = [Sample(16 * i, 0.5, 2**20 * i, 2**20, 256, 100 + i) for i in range(1, 41)]
    speed, memory, cells = growth_panels(ConstantRun(16, samples=samples))
    assert speed.lines[0].xs == [32 * i for i in range(1, 21)]
    assert speed.lines[0].ys == [32.0] * 20
    assert [line.ys[-1] for line in memory.lines] == [40, 1]
    assert [line.ys[-1] for line in cells.lines] == [256, 140]
    assert memory.lines[0].xs[-1] == 640


def test_a_streamed_answer_has_a_line_early_and_late():
    lanes = [SimpleNamespace(name="late", rates=[9.0, 8.0]), SimpleNamespace(name="early", rates=[10.0, 9.0])]
    (panel,) = stream_panels(lanes, 50_000, 128)
    assert [(line.name, line.ys) for line in panel.lines] == [
        ("after token 1,000", [10.0, 9.0]),
        ("after token 50,000", [9.0, 8.0]),
    ]
    assert panel.lines[0].xs == [128, 256]


def test_slots_have_their_spread_and_turns_milliseconds():
    lanes = [SimpleNamespace(name="MorphKV", rates=[3.0, 1.0, 2.0], prompts=[[]] * 4)]
    watched = [SimpleNamespace(name=name, rates=[4.0]) for name in ("watched", "unwatched")]
    slots, chat, one_slot = server_panels(lanes, [0.5, 0.25], watched)
    assert slots.x == "tok/s of 4 busy slots"
    assert (slots.bars[0].value, slots.bars[0].low, slots.bars[0].high) == (2.0, 1.0, 3.0)
    assert (chat.lines[0].xs, chat.lines[0].ys) == ([1, 2], [500.0, 250.0])
    assert [bar.name for bar in one_slot.bars] == ["watched", "unwatched"]
    assert server_panels([], [], watched) == [one_slot]


def test_an_archive_has_speed_with_and_without_it():
    recalls = [SimpleNamespace(took_ms=5.0, ask_ms=2.0), SimpleNamespace(took_ms=7.0, ask_ms=3.0)]
    speed, panel = archive_panels(SimpleNamespace(tok_s=98.0, speed=0.98, recalls=recalls))
    assert [bar.value for bar in speed.bars] == pytest.approx([98.0, 100.0])
    assert [line.ys for line in panel.lines] == [[5.0, 7.0], [2.0, 3.0]]


def test_a_shape_has_a_bar_for_each_part():
    (panel,) = shape_panels({"a token": 20.0, "an eviction": 80.0})
    assert [(bar.name, bar.value) for bar in panel.bars] == [("a token", 20.0), ("an eviction", 80.0)]
