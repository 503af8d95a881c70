"""Images in random-weight models that upstream's test-llama-archs writes, of each kind of positions and memory."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from morphkv_cpp import Llama, MorphKV
from support.architectures import write_architectures
from support.embeddings import add_image, add_line
from support.tiny import FLASH, QUIET, last_logits

# isort: split
# after morphkv_cpp, which says what libllama is loaded
import llama_cpp

SMALL = MorphKV(capacity=64, window=16, votes=16, interval=16, prompt_room=64, keep=2)
LARGE = MorphKV(capacity=512, window=32, prompt_room=64)
SEEN = {"qwen2vl": "rows", "qwen3vl": "rows", "qwen3vlmoe": "rows"}  # the latter two with layers for their images alone
SEEN |= {"qwen35": "rows", "qwen35moe": "rows"}  # recurrent layers beside
SEEN |= {"gemma3": "both ways", "gemma": "both ways"}  # with sliding windows, and without
SEEN |= {"llama": "line", "llama4": "line", "granitehybrid": "line"}


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, Path]:
    """GGUF by architecture."""
    return write_architectures(tmp_path_factory.mktemp("archs"), SEEN)


def load(path: Path, morphkv: MorphKV | None) -> Llama:
    options = {"n_ctx": 2048, "n_ubatch": 64, "swa_full": False}
    return Llama(str(path), morphkv=morphkv, **(QUIET if morphkv else FLASH), **options)


def say(llm: Llama, position: int, n_tokens: int, seed: int) -> int:
    llm.n_tokens = position
    for token in np.random.default_rng(seed).integers(3, 100, n_tokens).tolist():
        llm.eval([token])
    return llm.n_tokens


def show(llm: Llama, position: int, kind: str, seed: int) -> int:
    n_embd = llama_cpp.llama_model_n_embd_inp(llm.model)
    if kind == "rows":
        return add_image(llm, position, 4, 5, seed, n_embd)
    return add_line(llm, position, 20, seed, kind == "both ways", n_embd)


def chat(llm: Llama, kind: str, n_images: int) -> tuple[int, np.ndarray]:
    """The next position, and the logits behind each image."""
    position, logits = 0, []
    for i in range(n_images):
        position = say(llm, position, 12, seed=i)
        position = show(llm, position, kind, seed=100 + i)
        position = say(llm, position, 2, seed=50 + i)
        logits.append(last_logits(llm))
    return position, np.array(logits)


@pytest.mark.parametrize("architecture", SEEN)
def test_before_the_first_eviction_images_are_as_in_stock(models, architecture):
    with load(models[architecture], LARGE) as ours, load(models[architecture], None) as stock:
        _, got = chat(ours, SEEN[architecture], 5)
        _, expected = chat(stock, SEEN[architecture], 5)
        assert ours.cache_stats().n_evictions == 0
    assert np.array_equal(got, expected)


@pytest.mark.parametrize("architecture", SEEN)
def test_many_images_take_constant_cells_and_states_go_on(models, architecture):
    kind = SEEN[architecture]
    with load(models[architecture], SMALL) as one, load(models[architecture], SMALL) as two:
        position, logits = chat(one, kind, 24)
        assert np.isfinite(logits).all()
        stats = one.cache_stats()
        assert stats.n_used <= stats.n_limit == 128
        assert stats.n_used + stats.n_evicted == 24 * 34
        two.load_state(one.save_state())
        for llm in (one, two):
            say(llm, show(llm, position, kind, seed=7), 30, seed=8)
        assert np.array_equal(last_logits(one), last_logits(two))
