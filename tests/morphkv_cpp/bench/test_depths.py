"""Depths that are measured, and what a cache holds at each; no times are judged."""

import dataclasses

import pytest

from morphkv_cpp import MorphKV
from morphkv_cpp.bench import depths as module
from morphkv_cpp.bench.decode import Lane
from morphkv_cpp.bench.depths import (
    CACHES,
    MORPHKV,
    SHIFT,
    STOCK,
    STOCK_TYPES,
    DepthPoint,
    halved_depths,
    n_depths_fill,
    run_depths,
)
from morphkv_cpp.errors import UnsupportedError
from morphkv_cpp.models.synthetic import write_tiny_llama
from support.tiny import FLASH

CONFIG = MorphKV(capacity=64, window=8, interval=16, prompt_room=0)
DEPTHS = (200, 400, 800)


@pytest.mark.parametrize(
    "n_deepest, interval, wanted",
    [
        (8000, 128, [500, 1000, 2000, 4000, 8000]),
        (1000, 128, [500, 1000]),
        (256, 128, [256]),
    ],
)
def test_each_depth_is_half_of_the_next(n_deepest, interval, wanted):
    assert halved_depths(n_deepest, interval) == wanted


def test_a_depth_that_no_turn_fits_into_is_refused():
    with pytest.raises(ValueError, match="the depth must be at least 256, twice the interval, got 255"):
        halved_depths(255, 128)


def test_the_rate_of_a_point_is_the_median():
    assert DepthPoint(STOCK, 100, 1, [9.0, 1.0, 3.0]).rate_tok_s == 3.0


class TestRun:
    DEPTHS = (150, 300, 600)

    @pytest.fixture
    def turns(self, monkeypatch):
        """What each lane holds after each of its turns: (name, tokens of the text, n_ctx, evictions)."""
        seen = []

        class SeenLane(Lane):
            def turn(self):
                super().turn()
                evictions = self.llm.cache_stats().n_evictions if self.llm.morphkv else None
                seen.append((self.name, self.llm.n_tokens, self.llm.n_ctx(), evictions))

        monkeypatch.setattr(module, "Lane", SeenLane)
        return seen

    def test_every_turn_ends_at_its_depth(self, tiny_llama, turns):
        filled, names = [], []
        points = run_depths(tiny_llama(), CONFIG, self.DEPTHS, 2, filled.append, names.append, **FLASH)
        assert sum(filled) == n_depths_fill(CONFIG, self.DEPTHS)
        assert names == [name for name, *_ in turns]
        assert [n_tokens for _, n_tokens, *_ in turns] == [depth for depth in self.DEPTHS for _ in range(2 * 3)]
        # all turns of a depth begin with the same cache
        for depth in self.DEPTHS:
            assert len({seen for seen in turns if seen[:2] == (MORPHKV, depth)}) == 1
        assert [(point.cache, point.n_depth) for point in points] == [
            (cache, depth) for depth in self.DEPTHS for cache in (MORPHKV, STOCK)
        ]
        assert all(len(point.rates_tok_s) == 2 for point in points)

    def test_morphkv_stays_where_stock_grows(self, tiny_llama):
        points = run_depths(tiny_llama(), CONFIG, (300, 600, 1200), 1, ignore, ignore, **FLASH)
        kv_bytes = {cache: [p.kv_bytes for p in points if p.cache == cache] for cache in (MORPHKV, STOCK)}
        assert len(set(kv_bytes[MORPHKV])) == 1
        # 2 layers of K and V, 2 heads of 32 in f16; llama.cpp rounds a context up to 256 cells
        assert kv_bytes[STOCK] == [n_cells * 2 * 2 * 2 * 32 * 2 for n_cells in (512, 768, 1280)]
        assert kv_bytes[MORPHKV][0] < kv_bytes[STOCK][0]


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """All caches, on a text that a context of as many cells as MorphKV's does not hold."""
    model = write_tiny_llama(tmp_path_factory.mktemp("model") / "tiny.gguf")
    filled = []
    config = dataclasses.replace(CONFIG, prompt_room=64)
    points = run_depths(model, config, DEPTHS, 2, filled.append, ignore, CACHES, **FLASH)
    assert sum(filled) == n_depths_fill(config, DEPTHS, CACHES)
    return {(point.cache, point.n_depth): point for point in points}


class TestCaches:
    def test_each_has_a_point_at_each_depth_but_a_shift_where_all_fits(self, measured):
        wanted = {(cache, depth) for cache in CACHES for depth in DEPTHS}
        assert set(measured) == wanted - {(SHIFT, 200)}
        assert all(len(point.rates_tok_s) == 2 and point.rate_tok_s > 0 for point in measured.values())

    def test_smaller_types_take_their_share_of_the_bytes(self, measured):
        full, q8_0, q4_0 = (measured[cache, 800].kv_bytes for cache in (STOCK, *STOCK_TYPES))
        assert (q8_0 / full, q4_0 / full) == (8.5 / 16, 4.5 / 16)
        # both have 256 cells
        assert measured[SHIFT, 800].kv_bytes == measured[SHIFT, 400].kv_bytes == measured[MORPHKV, 800].kv_bytes

    def test_a_token_reads_the_weights_and_what_is_in_use(self, measured):
        of_cell = measured[STOCK, 800].kv_bytes / 1024
        n_weights = measured[STOCK, 800].read_bytes - (800 - 8) * of_cell
        assert n_weights > 0
        assert measured[STOCK, 400].read_bytes == pytest.approx(n_weights + (400 - 8) * of_cell)
        assert measured[MORPHKV, 800].read_bytes == pytest.approx(n_weights + (64 + 8) * of_cell)
        assert measured[SHIFT, 800].read_bytes == pytest.approx(n_weights + (256 - 126 / 2) * of_cell)
        point = measured[MORPHKV, 800]
        assert point.read_gb_s == pytest.approx(point.rate_tok_s * point.read_bytes / 1e9)

    def test_the_first_token_comes_behind_the_prompt(self, measured):
        for (cache, n_depth), point in measured.items():
            if cache == SHIFT:
                assert point.prompt_tok_s is point.first_token_s is None
            else:
                assert point.prompt_tok_s > 0
                assert point.first_token_s == pytest.approx(n_depth / point.prompt_tok_s)

    def test_a_turn_of_morphkv_has_one_eviction_whatever_its_prompt_room(self, tiny_llama, monkeypatch):
        seen = []

        class SeenLane(Lane):
            def turn(self):
                self.llm.load_state(self.state)
                before = self.llm.cache_stats().n_evictions
                super().turn()
                seen.append(self.llm.cache_stats().n_evictions - before)

        monkeypatch.setattr(module, "Lane", SeenLane)
        for room in (0, 64, 200):
            config = dataclasses.replace(CONFIG, prompt_room=room)
            run_depths(tiny_llama(), config, (400, 800), 1, ignore, ignore, (MORPHKV,), **FLASH)
        assert set(seen) == {1}

    def test_what_llama_cpp_cannot_shift_is_said(self, tiny_llama):
        model = tiny_llama(architecture="qwen2vl", rope_sections=(4, 6, 6, 0))
        with pytest.raises(UnsupportedError, match="a context shift needs a model"):
            run_depths(model, CONFIG, DEPTHS, 1, ignore, ignore, (SHIFT,), **FLASH)


def ignore(_: object) -> None:
    """Progress that nobody looks at."""
