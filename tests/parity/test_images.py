"""Images as libmtmd decodes them, beside stock llama.cpp and across evictions, rebases, recalls and states."""

from __future__ import annotations

import numpy as np
import pytest

from morphkv_cpp import Llama, MorphKV, bridge
from support.embeddings import add_image, add_line, decode_embeddings, embeddings, rows_and_columns
from support.tiny import FLASH, QUIET, last_logits, some_tokens

# isort: split
# after morphkv_cpp, which says what libllama is loaded
import llama_cpp

SMALL = MorphKV(capacity=64, window=16, votes=16, interval=16, prompt_room=32, keep=2)
QWEN = {"architecture": "qwen2vl", "rope_sections": (4, 6, 6, 0)}
KINDS = ["line", "both ways", "rows"]


def shape_of(kind: str) -> dict:
    return QWEN if kind == "rows" else {}


def say(llm: Llama, position: int, n_tokens: int, seed: int, at_once: bool = False) -> int:
    """Decode words at a position; the next one. The logits of the last are there."""
    llm.n_tokens = position
    tokens = some_tokens(n_tokens, seed)
    for part in [tokens] if at_once else [[token] for token in tokens]:
        llm.eval(part)
    return llm.n_tokens


def show(llm: Llama, position: int, kind: str, seed: int) -> int:
    """Decode an image of 20 tokens."""
    if kind == "rows":
        return add_image(llm, position, 4, 5, seed)
    return add_line(llm, position, 20, seed, both_ways=kind == "both ways")


def chat(llm: Llama, kind: str, n_images: int, n_words: int, position: int = 0) -> tuple[int, list[np.ndarray]]:
    """Words and images by turns; the next position, and the logits behind each turn."""
    logits = []
    for i in range(n_images):
        position = say(llm, position, n_words, seed=2 * i, at_once=i % 2 == 0)
        position = show(llm, position, kind, seed=100 + i)
        position = say(llm, position, 3, seed=2 * i + 1)
        logits.append(last_logits(llm))
    return position, logits


@pytest.fixture
def open_images(tiny_llama):
    opened = []

    def make(kind, morphkv=SMALL, **options):
        options = (QUIET if morphkv else FLASH) | {"n_ctx": 4096, "n_ubatch": 64} | options
        opened.append(Llama(str(tiny_llama(**shape_of(kind))), morphkv=morphkv, **options))
        return opened[-1]

    yield make
    for llm in opened:
        llm.close()


@pytest.mark.parametrize("kind", KINDS)
def test_before_the_first_eviction_images_are_as_in_stock(open_images, kind):
    large = MorphKV(capacity=256, window=32, prompt_room=64)
    _, expected = chat(open_images(kind, None), kind, n_images=6, n_words=12)
    llm = open_images(kind, large)
    _, got = chat(llm, kind, n_images=6, n_words=12)
    assert llm.cache_stats().n_evictions == 0
    for a, b in zip(got, expected, strict=True):
        assert np.array_equal(a, b)


@pytest.mark.parametrize("kind", KINDS)
def test_many_images_take_constant_cells(open_images, kind):
    llm = open_images(kind)
    position, logits = chat(llm, kind, n_images=20, n_words=30)
    stats = llm.cache_stats()
    assert stats.n_used <= stats.n_limit == 96
    assert stats.n_evicted + stats.n_used == 20 * (30 + 20 + 3)
    assert stats.logical_pos == position - 1 == 20 * (33 + (5 if kind == "rows" else 20)) - 1
    assert np.isfinite(logits).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("archive", [None, "ram"])
def test_a_state_with_images_goes_on_with_the_same_bits(open_images, kind, archive):
    one, two = open_images(kind, archive=archive), open_images(kind, archive=archive)
    position, _ = chat(one, kind, n_images=5, n_words=30)
    two.load_state(one.save_state())
    for llm in (one, two):
        behind = show(llm, position, kind, seed=7)
        say(llm, behind, 40, seed=8)
    assert one.cache_stats().n_evicted == two.cache_stats().n_evicted
    assert np.array_equal(last_logits(one), last_logits(two))


@pytest.mark.parametrize("kind", KINDS)
def test_an_image_can_be_taken_back_and_come_again_with_the_same_bits(open_images, kind):
    llm = open_images(kind)
    position, logits = chat(llm, kind, n_images=5, n_words=30)
    while llm.cache_stats().n_used > 66:
        position = say(llm, position, 1, seed=3)  # up to a cut, so that there is room for the rest
    n_evictions = llm.cache_stats().n_evictions
    for _ in range(2):
        behind = show(llm, position, kind, seed=7)
        say(llm, behind, 4, seed=8, at_once=True)
        logits.append(last_logits(llm))
        assert llm._ctx.kv_cache_seq_rm(-1, position, -1)
        assert llm.cache_stats().logical_pos == position - 1
    assert llm.cache_stats().n_evictions == n_evictions > 0
    assert np.array_equal(logits[-1], logits[-2])


def test_an_image_in_pieces_is_one(open_images):
    llm, stock = open_images("rows", MorphKV(capacity=128, window=32)), open_images("rows", None)
    values, places = embeddings(24, seed=3), rows_and_columns(5, 4, 6)
    for one in (llm, stock):
        say(one, 0, 5, seed=1)
        for first, end in ((0, 4), (4, 13), (13, 24)):  # inside of rows, the first too
            assert decode_embeddings(one, values[first:end], places[:, first:end]) == 0
        assert say(one, 5 + 6, 4, seed=2) == 15
    assert np.array_equal(last_logits(llm), last_logits(stock))
    assert llm.cache_stats().logical_pos == 14


# A key that is turned is rounded once more (f16), and softmax sees the sum over a head.
TURNED = {"rtol": 0.02, "atol": 0.02}


@pytest.mark.parametrize("kind", KINDS)
def test_a_text_with_images_is_the_same_wherever_it_stands(open_images, kind):
    """Rebased from far behind the limit to 0, the images keep their rows and columns."""
    settings = MorphKV(capacity=128, window=32, prompt_room=64, rope_limit=256)
    near, far = open_images(kind, settings), open_images(kind, settings)
    _, expected = chat(near, kind, n_images=3, n_words=12)
    _, got = chat(far, kind, n_images=3, n_words=12, position=200 if kind == "rows" else 170)
    assert near.cache_stats().n_rebases == 0 < far.cache_stats().n_rebases
    np.testing.assert_allclose(got[-1], expected[-1], **TURNED)


@pytest.mark.parametrize("kind", KINDS)
def test_images_live_through_rebases_and_recalls(open_images, kind):
    settings = MorphKV(capacity=64, window=16, votes=16, interval=16, prompt_room=32, keep=2, rope_limit=128)
    llm = open_images(kind, settings, archive="ram")
    position = 0
    for i in range(24):
        position = say(llm, position, 30, seed=i, at_once=True)
        position = show(llm, position, kind, seed=100 + i)
        position = say(llm, position, 2, seed=50 + i)
        recall = llm.recall()
        position = say(llm, position, 1, seed=80 + i)
        stats = llm.cache_stats()
        assert np.isfinite(last_logits(llm)).all()
        assert stats.logical_pos - stats.rotary_offset < 128 + 5
    assert stats.n_rebases >= 3
    assert stats.n_recalls >= 10
    assert recall.n_recalled > 0
    assert stats.n_archived >= 24 * 50 - 64 - 16


def test_an_image_that_attends_both_ways_is_not_torn(open_images):
    llm = open_images("both ways")
    say(llm, 0, 10, seed=1)
    add_line(llm, 10, 20, seed=2, both_ways=True)
    say(llm, 30, 3, seed=3)
    assert not llm._ctx.kv_cache_seq_rm(-1, 15, -1)
    assert llm.cache_stats().logical_pos == 32
    assert llm._ctx.kv_cache_seq_rm(-1, 10, -1)
    assert llm.cache_stats().logical_pos == 9


@pytest.mark.parametrize("n_words", [60, 90])
def test_an_image_that_attends_both_ways_finds_cells_or_is_refused(open_images, n_words):
    llm = open_images("both ways")
    say(llm, 0, n_words, seed=1, at_once=True)
    line = n_words + np.arange(33)
    assert decode_embeddings(llm, embeddings(33), line, both_ways=True) == (-2 if n_words == 90 else 0)
    if n_words == 90:
        assert "at most max(interval, prompt_room) = 32 of them, got 33" in bridge.last_error()
        assert llm.cache_stats().logical_pos == 89
        add_line(llm, 90, 32, seed=2, both_ways=True)


@pytest.mark.parametrize(
    "places, sentence",
    [
        (rows_and_columns(6, 2, 3), "positions must be consecutive, got 6 after 4"),
        (rows_and_columns(5, 2, 3)[:, ::-1], "an image's tokens must share one time"),
        (np.array([[5, 6, 7], [0, 0, 1], [0, 1, 0], [0, 0, 0]]), "an image's tokens must share one time"),
        (np.array([[5, 6, 7], [5, 6, 9], [5, 6, 7], [0, 0, 0]]), r"got \(7, 9, 7\) for \(7, 7, 7\)"),
    ],
)
def test_positions_that_are_no_image_are_refused(open_images, places, sentence):
    llm = open_images("rows")
    say(llm, 0, 5, seed=1)
    assert decode_embeddings(llm, embeddings(places.shape[1]), places) == -2
    with pytest.raises(AssertionError, match=sentence):
        raise AssertionError(bridge.last_error())
    assert llm.cache_stats().logical_pos == 4


def test_sound_with_rows_of_positions_is_a_line(open_images):
    """Audio has its time four times over."""
    llm, stock = open_images("rows", MorphKV(capacity=128, window=32)), open_images("rows", None)
    for one in (llm, stock):
        say(one, 0, 5, seed=1)
        assert decode_embeddings(one, embeddings(12), np.tile(5 + np.arange(12), (4, 1))) == 0
        say(one, 17, 3, seed=2)
    assert np.array_equal(last_logits(llm), last_logits(stock))
    assert llama_cpp.llama_memory_seq_pos_max(llama_cpp.llama_get_memory(llm.ctx), 0) == 19
