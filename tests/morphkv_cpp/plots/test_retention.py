"""The plot of what layers keep: its axes, and the same bytes every time."""

import xml.etree.ElementTree as ET

import numpy as np
import pytest

pytest.importorskip("matplotlib", reason="plots need matplotlib")

from morphkv_cpp.cache.retention import Retention
from morphkv_cpp.cache.stats import CacheStats
from morphkv_cpp.plots.retention import plot_retention

STATS = CacheStats(**{name: 0 for name in CacheStats.__dataclass_fields__} | {"capacity": 1024})


def two_layers() -> Retention:
    """Of 8 tokens the last 2 are recent; a layer keeps 0 and 1, the other 0 and 4."""
    positions = {0: np.array([[0, 1]], dtype=np.int32), 1: np.array([[0, 4]], dtype=np.int32)}
    tokens = np.arange(8, dtype=np.intc)
    return Retention(tokens, ("a",) * 8, positions, 6, np.zeros((0, 2), dtype=np.int32), STATS, "model")


def test_axes_say_what_they_are(tmp_path):
    plot_retention(tmp_path / "x.svg", two_layers())
    texts = {element.text for element in ET.parse(tmp_path / "x.svg").getroot().findall(".//{*}text")}
    assert {"token", "layer", "model: 8 tokens, capacity 1,024", "share of tokens and heads that are kept"} <= texts


def test_places_are_shares_of_the_tokens_there():
    assert two_layers().by_place(4).tolist() == [[1, 0, 0, 1], [0.5, 0, 0.5, 1]]


def test_it_is_the_same_every_time(tmp_path):
    for name in "ab":
        plot_retention(tmp_path / f"{name}.svg", two_layers())
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
