"""Depths that are measured, and what a cache holds at each; no times are judged."""

import pytest

from morphkv_cpp import MorphKV
from morphkv_cpp.bench import depths as module
from morphkv_cpp.bench.decode import Lane
from morphkv_cpp.bench.depths import MORPHKV, STOCK, DepthPoint, halved_depths, n_depths_fill, run_depths
from support.tiny import FLASH

CONFIG = MorphKV(capacity=64, window=8, interval=16)


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


def ignore(_: object) -> None:
    """Progress that nobody looks at."""
