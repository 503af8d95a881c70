"""Random-weight models with recurrent layers, as upstream's test-llama-archs writes them: they go back to a mark."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from morphkv_cpp import Llama, MorphKV, bridge
from support.architectures import write_architectures
from support.hybrids import write_tiny_hybrid
from support.tiny import QUIET, count_evaluated, greedy, last_logits

# lfm2 as it is written has a window in each layer that attends
ARCHITECTURES = ("qwen35", "qwen3next", "nemotron_h", "granitehybrid", "jamba", "falcon-h1", "kimi-linear")
SMALL = MorphKV(capacity=64, window=16, interval=16, prompt_room=64)
N_PROMPT, N_AGAIN = 150, 12
N_ASKED = 132  # the prompt is evicted from, and its answer is not


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, Path]:
    """GGUF by architecture."""
    folder = tmp_path_factory.mktemp("hybrids")
    found = write_architectures(folder, ARCHITECTURES)
    return found | {"lfm2": write_tiny_hybrid(folder / "lfm2.gguf")}


@pytest.fixture
def open_model(models, architecture):
    opened = []

    def make() -> Llama:
        opened.append(Llama(str(models[architecture]), morphkv=SMALL, n_ctx=2048, n_ubatch=32, **QUIET))
        return opened[-1]

    yield make
    for llm in opened:
        llm.close()


def tokens(n: int, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).integers(3, 100, n).tolist()


def logits_of(llm: Llama, text: list[int]) -> np.ndarray:
    rows = []
    for token in text:
        llm.eval([token])
        rows.append(last_logits(llm))
    return np.array(rows)


def eval_past_evictions(llm: Llama) -> None:
    """A prompt, and single tokens until one has made room for the tokens of the tests."""
    llm.eval(tokens(N_PROMPT))
    n_evictions = llm.cache_stats().n_evictions
    while llm.cache_stats().n_evictions == n_evictions:
        llm.eval([5])


everywhere = pytest.mark.parametrize("architecture", [*ARCHITECTURES, "lfm2"])


@everywhere
def test_tokens_that_are_decoded_again_have_the_same_bits(open_model):
    llm, straight = open_model(), open_model()
    for each in (llm, straight):
        eval_past_evictions(each)
        assert each.cache_stats().n_evictions > 1
    n_held = llm.n_tokens
    assert llm.cache_stats().mark_pos == -1
    bridge.set_mark(llm.ctx)
    first = logits_of(llm, tokens(N_AGAIN, 1))
    assert (first == logits_of(straight, tokens(N_AGAIN, 1))).all()
    assert llm.cache_stats().mark_pos == n_held

    for between in (tokens(N_AGAIN, 2), tokens(3, 3), []):
        llm.n_tokens = n_held
        llm.eval(between or [7])
        llm.n_tokens = n_held
        assert (logits_of(llm, tokens(N_AGAIN, 1)) == first).all()
    assert llm.cache_stats().n_evictions == straight.cache_stats().n_evictions
    assert np.isfinite(logits_of(llm, tokens(100, 4))).all()


@everywhere
def test_a_batch_that_is_decoded_again_has_the_same_bits(open_model):
    llm, straight = open_model(), open_model()
    for each in (llm, straight):
        eval_past_evictions(each)
    n_held = llm.n_tokens
    bridge.set_mark(llm.ctx)
    llm.eval(tokens(N_AGAIN, 1))
    first = last_logits(llm)
    llm.n_tokens = n_held
    for each in (llm, straight):
        each.eval(tokens(N_AGAIN, 1))
        assert (last_logits(each) == first).all()


@everywhere
def test_an_answer_that_is_asked_for_again_is_the_same_and_costs_a_token(open_model, monkeypatch):
    llm = open_model()
    first = greedy(llm, tokens(N_ASKED), 8)
    n_evictions = llm.cache_stats().n_evictions
    assert n_evictions > 0
    lengths = count_evaluated(llm, monkeypatch)
    assert greedy(llm, tokens(N_ASKED), 8) == first
    assert lengths == [1] * 8
    assert llm.last_prompt.n_evaluated == 1
    assert llm.cache_stats().n_evictions == n_evictions


@everywhere
def test_a_state_is_the_same_with_a_mark(open_model):
    llm, other = open_model(), open_model()
    eval_past_evictions(llm)
    state = llm.save_state()
    bridge.set_mark(llm.ctx)
    assert bytes(llm.save_state().llama_state) == bytes(state.llama_state)
    llm.eval(tokens(5, 1))
    marked = llm.save_state()
    other.load_state(marked)
    assert other.cache_stats().mark_pos == -1
    assert bytes(other.save_state().llama_state) == bytes(marked.llama_state)
    assert (logits_of(llm, tokens(40, 2)) == logits_of(other, tokens(40, 2))).all()
