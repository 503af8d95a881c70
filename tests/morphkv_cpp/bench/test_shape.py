"""What a layer of a large model costs, as `morphkv bench shape` takes it; no times are judged."""

import pytest

from morphkv_cpp import MorphKV
from morphkv_cpp.bench.bandwidth import copy_gb_s
from morphkv_cpp.bench.shape import N_RECALLS, n_shape_fill, shape_cost
from morphkv_cpp.models.shape_files import write_shape
from morphkv_cpp.models.shapes import ModelShape
from support.tiny import FLASH

SHAPE = ModelShape("small", n_layer=3, n_embd=128, n_head=4, n_head_kv=2, head_size=64, n_ff=256)
CONFIG = MorphKV(capacity=64, window=8, interval=16)


def test_costs_are_counted(tmp_path):
    filled, turns = [], []
    path = write_shape(tmp_path / "m.gguf", SHAPE, 2)
    cost = shape_cost(path, CONFIG, 2, 300, 2, filled.append, turns.append, **FLASH)
    assert sum(filled) == n_shape_fill(CONFIG, 300)
    assert len(turns) == 3 * (2 + 1)
    for counted in (cost.without_archive, cost.with_archive):
        assert counted.n == 2 * (2 + 1)  # two a turn
        assert counted.evict_ms > 0
    assert cost.without_archive.archive_ms == 0
    assert 0 < cost.with_archive.archive_ms < cost.with_archive.evict_ms
    assert len(cost.with_archive.recalls) == N_RECALLS
    assert cost.with_archive.recalls[-1].n_archived > 300
    # of two layers: K and V of two heads of 64 values in f16
    row_bytes = 2 * 2 * 2 * 64 * 2
    assert cost.morphkv_kv_bytes == 256 * row_bytes
    assert cost.stock_kv_bytes == 512 * row_bytes


def test_a_depth_that_the_cache_holds_is_refused(tmp_path):
    with pytest.raises(ValueError, match="the depth must be above 128, twice the capacity, got 128"):
        shape_cost(tmp_path / "none.gguf", CONFIG, 2, 128, 1, print, print)


def test_a_copy_has_a_speed():
    assert copy_gb_s(2, 1 << 20) > 0
