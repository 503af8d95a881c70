"""Random-weight models that upstream's test-llama-archs writes: served past evictions, or refused by name."""

from __future__ import annotations

import ctypes
from pathlib import Path

import numpy as np
import pytest

morphkv_cpp = pytest.importorskip("morphkv_cpp")

import llama_cpp  # noqa: E402  (morphkv_cpp says first which libllama is loaded)

from support.architectures import write_architectures  # noqa: E402
from support.tiny import last_logits  # noqa: E402

SERVED = ("llama", "qwen2", "qwen3", "phi3", "gemma", "mistral3", "qwen3moe", "smollm3")
SERVED += ("jamba", "granitehybrid", "falcon-h1", "nemotron_h", "minimax-01")  # with recurrent layers
SERVED += ("grok",)  # without flash attention
SERVED += ("kimi-linear", "kimi-k3")  # and whose attention keeps compressed keys only, without rotation
SERVED += ("gemma2", "gemma3", "gpt-oss", "cohere2", "llama4")  # with sliding windows in some layers
SERVED += ("minicpm3", "deepseek2", "mistral4")  # a part of each key is rotated, of MLA too
SERVED += ("qwen2vl", "qwen3vl", "qwen35")  # M-RoPE
SERVED += ("hunyuan-dense", "maincoder")  # a norm with weights after the rotation
NOT_REBASED = ("gpt2", "starcoder")  # learned positions
REFUSED = {
    "mamba": "recurrent",
    "bloom": "ALiBi",
    "deepseek32": "indexer",
    "lfm2": "each layer that attends has a sliding window",  # as it is written here
}
N_TOKENS = 300
SMALL = {"capacity": 64, "window": 16, "interval": 16, "prompt_room": 64}


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, Path]:
    """GGUF by architecture."""
    return write_architectures(tmp_path_factory.mktemp("archs"), [*SERVED, *NOT_REBASED, *REFUSED])


def load(path: Path, rope_limit: int = -1) -> morphkv_cpp.Llama:
    options = {"n_ctx": 2048, "n_ubatch": 32, "n_threads": 1, "n_threads_batch": 1, "verbose": False}
    return morphkv_cpp.Llama(str(path), morphkv=morphkv_cpp.MorphKV(**SMALL, rope_limit=rope_limit), **options)


@pytest.mark.parametrize("architecture", SERVED)
def test_a_plain_attention_model_goes_on_past_evictions(models, architecture):
    llm = load(models[architecture])
    tokens = np.random.default_rng(0).integers(3, 100, N_TOKENS).tolist()
    llm.eval(tokens[:200])
    for token in tokens[200:]:
        llm.eval([token])
    assert llm.cache_stats().n_evictions >= 8
    assert llm.cache_stats().logical_pos == N_TOKENS - 1
    assert np.isfinite(last_logits(llm)).all()
    llm.close()


@pytest.mark.parametrize("architecture", SERVED)
def test_a_rebase_changes_nothing_but_the_place(models, architecture):
    """A text that begins at position 900, without an eviction: all of it moves to 0, and attention sees distances."""
    logits = []
    for rope_limit, first in ((0, 900), (1000, 900), (0, 0)):
        llm = load(models[architecture], rope_limit)
        llm.n_tokens = first
        for token in np.random.default_rng(0).integers(3, 100, 124).reshape(31, 4).tolist():
            llm.eval(token)
        stats = llm.cache_stats()
        assert (stats.n_evictions, stats.n_rebases) == (0, int(rope_limit > 0))
        assert stats.rotary_offset == (first if rope_limit else 0)
        logits.append(last_logits(llm))
        llm.close()
    far, rebased, near = logits
    # what the distance from 0 costs RoPE's own precision, and a thousandth of the logits' spread
    assert np.abs(rebased - far).max() < 3 * np.abs(near - far).max() + 1e-3 * far.std()


@pytest.mark.parametrize("architecture", NOT_REBASED)
def test_a_model_that_cannot_be_rebased_says_so(models, architecture):
    with pytest.raises(morphkv_cpp.UnsupportedError, match=r"cannot rebase the positions.*rope_limit.*got 1000"):
        load(models[architecture], rope_limit=1000)
    llm = load(models[architecture])
    assert llm.cache_stats().rope_limit == 0
    llm.close()


@pytest.mark.parametrize("architecture", REFUSED)
def test_another_model_is_refused_by_name(models, architecture):
    with pytest.raises(morphkv_cpp.UnsupportedError, match=REFUSED[architecture]) as refusal:
        load(models[architecture])
    assert f"architecture '{architecture}'" in str(refusal.value)


def test_an_image_by_columns_is_refused(models):
    """The tokens of an image follow each other by rows; those that do are in test_architecture_images.py."""
    llm = load(models["qwen2vl"])
    llm.eval([5, 6, 7])
    before = llm.cache_stats()

    n_tokens, n_embd = 4, llm.n_embd()
    batch = llama_cpp.llama_batch_init(n_tokens, n_embd, 1)
    positions = (llama_cpp.llama_pos * (4 * n_tokens))(*[3] * n_tokens, 3, 4, 3, 4, 3, 3, 4, 4, *[0] * n_tokens)
    own = ctypes.cast(batch.pos, ctypes.c_void_p).value
    batch.pos = positions
    batch.n_tokens = n_tokens
    for i in range(n_tokens * n_embd):
        batch.embd[i] = 0.1
    for i in range(n_tokens):
        batch.n_seq_id[i], batch.seq_id[i][0], batch.logits[i] = 1, 0, i + 1 == n_tokens
    assert llama_cpp.llama_decode(llm.ctx, batch) != 0
    assert "follow each other by rows and columns" in morphkv_cpp.bridge.last_error()
    batch.pos = ctypes.cast(own, ctypes.POINTER(llama_cpp.llama_pos))
    llama_cpp.llama_batch_free(batch)

    assert llm.cache_stats() == before
    llm.eval([8])
    llm.close()


@pytest.mark.parametrize("architecture", ["gpt2", "starcoder"])
def test_learned_positions_end_with_a_reason(models, architecture):
    llm = load(models[architecture])
    llm.eval(np.random.default_rng(0).integers(3, 100, 256).tolist())
    before = llm.cache_stats()
    assert (before.n_evictions, before.logical_pos) == (2, 255)
    with pytest.raises(RuntimeError, match="positions of this model are learned and must be below 256, got 256"):
        llm.eval([5])
    assert llm.cache_stats() == before
    llm.close()
