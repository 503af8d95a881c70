"""Llama.retention(): equals retained() head by head, says what was recalled, and shows itself; text stays text."""

import json
import re

import numpy as np
import pytest

from morphkv_cpp import MorphKV, NoMorphKVError, Profile
from morphkv_cpp.cache.retention import PLACE
from support.page_stub import PAGE
from support.tiny import bytes_of, greedy, some_tokens

SMALL = MorphKV(capacity=96, window=16, interval=8, keep=4, prompt_room=0)
N_LAYERS = 2


@pytest.fixture
def read(open_llama):
    """A model that has read 300 tokens."""
    llm = open_llama()
    llm.eval(some_tokens(300))
    return llm


def test_it_equals_retained(read):
    found, stats = read.retention(), read.cache_stats()
    assert len(found.tokens) == len(found.pieces) == 300
    assert found.first_recent == 300 - (stats.n_used - stats.n_distant)
    assert list(found.positions) == list(range(N_LAYERS))
    counts = np.zeros(300, dtype=int)
    for layer in range(N_LAYERS):
        held = read.retained(layer)
        kept = found.kept(layer)
        assert kept.shape == (len(held), 300)
        for row, positions in zip(kept, held):
            assert np.flatnonzero(row[: found.first_recent]).tolist() == sorted(positions.tolist())
            assert row[found.first_recent :].all()
        counts += kept.sum(axis=0)
    assert found.heads.tolist() == counts.tolist()
    assert found.shares.max() == 1
    assert found.n_heads == sum(len(read.retained(layer)) for layer in range(N_LAYERS))
    # first tokens that stay, and some that went
    assert (found.heads[:4] == found.n_heads).all()
    assert (found.heads == 0).any()


def test_all_is_kept_before_the_first_eviction(open_llama):
    llm = open_llama()
    llm.eval(some_tokens(50))
    found = llm.retention()
    assert (found.shares == 1).all()
    assert found.to_dict()["n_heads_with_all"] == found.n_heads
    assert len(found.recalled) == 0


def test_layers_of_other_capacities(open_llama):
    large = MorphKV(capacity=500, window=8, interval=16, prompt_room=0, layers=Profile((1.0, 2.0)))
    llm = open_llama(large)
    llm.eval(some_tokens(700))
    found = llm.retention()  # the second layer has not evicted yet
    small, all_of = found.kept(0), found.kept(1)
    assert all_of.all()
    assert (small.sum(axis=1) == found.positions[0].shape[1] + 700 - found.first_recent).all()
    assert found.heads.min() == found.to_dict()["n_heads_with_all"] == len(all_of)
    llm.eval(some_tokens(500, seed=1))
    found = llm.retention()
    for layer, positions in found.positions.items():
        assert (found.kept(layer).sum(axis=1) == positions.shape[1] + 1200 - found.first_recent).all()


def test_what_recalls_brought_is_marked(open_llama):
    llm = open_llama(archive="ram")
    greedy(llm, some_tokens(400), 2)
    found = llm.retention()
    assert found.stats.n_recalls > 0
    pages = found.recalled[:, 0]
    assert len(pages) > 0
    assert (pages % 16 == 0).all()
    assert (np.diff(pages) > 0).all()
    assert set(found.recalled[:, 1]) <= set(range(1, found.stats.n_recalls + 1))
    # of a page that the last recall brought some head has a token
    last = pages[found.recalled[:, 1] == found.stats.n_recalls]
    assert all(found.heads[page : page + 16].any() for page in last)
    llm.reset()
    llm.eval(some_tokens(30, seed=1))
    assert len(llm.retention().recalled) == 0


def test_characters_of_several_tokens_are_in_the_last(open_llama):
    llm = open_llama()
    llm.eval([1, *bytes_of("aü漢"), 3 + 0xFF])
    assert llm.retention().pieces == ("", "a", "", "ü", "", "", "漢", "\ufffd")


def test_the_page_holds_the_text_as_data(open_llama):
    hostile = "</script><script>alert(1)</script><!--\u2028"
    llm = open_llama()
    llm.eval([1, *bytes_of(hostile)])
    found = llm.retention()
    page = found.to_html()
    before, after = PAGE.read_text(encoding="utf-8").split(PLACE)
    assert page.startswith(before + PLACE)
    assert page.endswith(after)
    data = page[len(before + PLACE) : -len(after)]
    assert "<" not in data
    assert json.loads(data) == found.to_dict()
    assert "".join(json.loads(data)["pieces"]) == hostile
    shown = found._repr_html_()
    assert re.fullmatch(r'<iframe [^<>]* srcdoc="[^"<>]*"></iframe>', shown)


def test_the_same_words_as_the_servers(read):
    found = read.retention().to_dict()
    heads = [np.cumsum(steps).tolist() for steps in found["layers"][0]["heads"]]
    assert heads == [sorted(head.tolist()) for head in read.retained(0)]
    kept = np.cumsum(found["kept"]["tokens"])
    assert found["kept"]["heads"] == read.retention().heads[kept].tolist()
    assert found["n_kept"] == len(kept) + found["n_tokens"] - found["first_recent"]


def test_a_plot_has_a_row_for_each_layer(read):
    pytest.importorskip("matplotlib", reason="plots need matplotlib")
    found = read.retention()
    places = found.by_place(10)
    assert places.shape == (N_LAYERS, 10)
    assert found.by_place(300)[0, 299] == 1  # recent
    assert places.mean() == pytest.approx(np.mean([found.kept(layer).mean() for layer in range(N_LAYERS)]))
    axes, _ = found.plot().axes
    assert axes.images[0].get_array().shape == (N_LAYERS, 300)
    assert axes.get_xlabel() == "token"


def test_a_layer_that_is_not_there(read):
    with pytest.raises(ValueError, match=r"layer must be one of \[0, 1\], got 2"):
        read.retention().kept(2)


def test_stock_retains_all_and_has_no_retention(open_llama):
    with pytest.raises(NoMorphKVError):
        open_llama(None, n_ctx=256).retention()
