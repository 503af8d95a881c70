"""Drafts, verified in a batch and taken back where they were wrong, beside the same text token by token.

Where a batch is decoded token by token (n_ubatch=1) nothing differs, however drafts come: no rejected token votes, and
evictions and rebases fall between the same tokens. Otherwise sums over a batch are rounded otherwise, and votes with
them: the first difference is one of two tokens with nearly equal votes.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from morphkv_cpp import Llama, MorphKV
from morphkv_cpp.config import native_params
from support import heads, more_heads
from support.numpy_llama import NumpyLlama
from support.reference import Rules
from support.tiny import some_tokens

CONFIG = MorphKV(capacity=128, window=16, interval=16, keep=4, prompt_room=64)
F32 = {"type_k": 0, "type_v": 0}
N_PROMPT, N_TEXT = 150, 500
MODELS = ["gemma4", "llama", "glm-flash"]  # windows, attention to all, compressed keys


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("drafts")
    return {
        "gemma4": heads.write_gemma4(folder / "gemma4.gguf", folder / "gemma4-head.gguf")[0],
        "llama": heads.write_eagle3(folder / "llama.gguf", folder / "llama-head.gguf")[0],
        "glm-flash": heads.write_glm_flash(folder / "glm-flash.gguf"),
        "ling": more_heads.write_ling(folder / "ling.gguf"),
    }


@pytest.fixture
def open_pair(models):
    """Two Llamas of a model, of which each batch of at most 32 tokens is a draft to it."""
    opened = []

    def make(kind: str, n_ubatch: int, config: MorphKV = CONFIG, **options) -> list[Llama]:
        sizes = {"n_ctx": 2048, "n_ubatch": n_ubatch, "n_threads": 1, "n_threads_batch": 1, "verbose": False}
        for _ in range(2):
            opened.append(Llama(str(models[kind]), morphkv=config, logits_all=True, **F32, **sizes, **options))
            opened[-1].decode(some_tokens(N_PROMPT))
        return opened[-2:]

    yield make
    for llm in opened:
        llm.close()


def batches(text: list[int], llm: Llama, seed: int = 0) -> Iterator[tuple[list[int], int]]:
    """A text as drafts bring it: tokens, and how many of them are the text's. They end where an eviction falls due."""
    rng, config, i = np.random.default_rng(seed), llm.morphkv, 0
    while i < len(text):
        stats = llm.cache_stats()
        n_fit = config.capacity + config.interval - stats.n_used
        if stats.rope_limit:
            n_fit = min(n_fit, stats.rope_limit - (stats.logical_pos + 1 - stats.rotary_offset))
        n_draft = int(np.clip(n_fit - 1, 0, rng.integers(0, 6)))
        n_right = min(1 + int(rng.integers(0, n_draft + 1)), len(text) - i)
        wrong = rng.integers(3, 300, 1 + n_draft - n_right).tolist()
        yield text[i : i + n_right] + wrong, n_right
        i += n_right


def decode(llm: Llama, tokens: list[int], n_right: int | None = None) -> np.ndarray:
    """Logits behind the first n_right tokens; the others are taken back with the next batch."""
    first = llm.n_tokens
    llm.decode(tokens)
    llm.n_tokens = first + (n_right or len(tokens))
    return llm.scores[first : llm.n_tokens].copy()


def sets(llm: Llama, kind: str) -> list[np.ndarray]:
    """What each head holds, ascending."""
    layers = {"gemma4": (1, 3), "llama": (0, 1, 2), "glm-flash": (0, 1)}[kind]
    return [np.sort(llm.retained(layer), axis=1) for layer in layers]


def recall(llm: Llama, n_before: int) -> None:
    """By positions, as hosts do while an answer is written."""
    if llm.archive is not None and n_before // 64 < llm.n_tokens // 64:
        llm.recall()


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize(
    ("config", "options"),
    [
        (CONFIG, {}),
        (MorphKV(capacity=128, window=16, interval=16, keep=4, prompt_room=64, rope_limit=256), {}),
        (MorphKV(capacity=128, window=16, interval=16, votes=3, prompt_room=64), {}),
    ],
    ids=["", "rebased", "few voters"],
)
def test_token_by_token_they_change_no_bit(open_pair, kind, config, options):
    plain, drafting = open_pair(kind, 1, config, **options)
    text = some_tokens(N_TEXT, seed=1)
    n_evictions, n_rejected = plain.cache_stats().n_evictions, 0
    for tokens, n_right in batches(text, drafting):
        got = decode(drafting, tokens, n_right)
        for i, token in enumerate(tokens[:n_right]):
            assert np.array_equal(decode(plain, [token])[0], got[i])
        n_rejected += len(tokens) - n_right
        mine, other = drafting.cache_stats(), plain.cache_stats()
        assert (mine.n_evictions, mine.n_evicted, mine.n_rebases) == (
            other.n_evictions,
            other.n_evicted,
            other.n_rebases,
        )
        if other.n_evictions > n_evictions:
            n_evictions = other.n_evictions
            for a, b in zip(sets(drafting, kind), sets(plain, kind), strict=True):
                assert np.array_equal(a, b)
    assert n_rejected > N_TEXT / 4
    assert n_evictions > 20
    assert (plain.cache_stats().n_rebases > 0) == (config.rope_limit > 0)


# Of logits of about 8: what random weights make of f32's last bits, and Gemma of its GELU, a table by numbers in f16.
NOISE = 3e-3


@pytest.mark.parametrize("kind", MODELS)
def test_else_sets_are_equal_until_one_has_a_near_tie(open_pair, kind):
    plain, drafting = open_pair(kind, 512)
    text = some_tokens(N_TEXT, seed=1)
    n_evictions, n_exact, n_compared, worst = plain.cache_stats().n_evictions, 0, 0, 0.0
    for tokens, n_right in batches(text, drafting):
        got = decode(drafting, tokens, n_right)
        expected = np.concatenate([decode(plain, [token]) for token in tokens[:n_right]])
        if plain.cache_stats().n_evictions > n_evictions:
            n_evictions = plain.cache_stats().n_evictions
            assert drafting.cache_stats().n_evictions == n_evictions
            differ = [
                len(np.setdiff1d(a, b))
                for of_layer in zip(sets(drafting, kind), sets(plain, kind), strict=True)
                for a, b in zip(*of_layer, strict=True)
            ]
            if any(differ):
                assert max(differ) == 1  # of a head: one token in place of another
                break
            n_compared += 1
        worst = max(worst, float(np.abs(got - expected).max()))
        n_exact += n_right
    print(f"{kind}: {n_compared} evictions alike, logits off by {worst:.2g}")
    assert worst < NOISE
    assert n_compared > 3
    assert n_exact > 0


def write(llm: Llama, n: int) -> tuple[list[int], dict[int, list[np.ndarray]]]:
    """A greedy text of "llama", token by token, and what heads held behind each eviction, by the tokens up to there."""
    text, held, n_evictions = [], {}, llm.cache_stats().n_evictions
    logits = llm.scores[llm.n_tokens - 1]
    for _ in range(n):
        text.append(int(logits.argmax()))
        logits = decode(llm, text[-1:])[0]
        if llm.cache_stats().n_evictions > n_evictions:
            n_evictions = llm.cache_stats().n_evictions
            held[llm.n_tokens] = [llm.retained(layer) for layer in range(3)]
    return text, held


def test_the_slot_that_parts_a_text_is_a_near_tie_of_votes(open_pair, models):
    """Of one of the texts that drafts leave (native/README.md), here before token 440: a twin in float64 votes for both
    tokens alike. Where a machine rounds so that no slot differs, the last eviction is looked at.
    """
    plain, drafting = open_pair("llama", 512)
    text, held = write(plain, 300)
    n_evictions = drafting.cache_stats().n_evictions
    for tokens, n_right in batches(text, drafting):
        decode(drafting, tokens, n_right)
        if drafting.cache_stats().n_evictions > n_evictions:
            n_evictions = drafting.cache_stats().n_evictions
            n_tokens = min(n for n in held if n > drafting.n_tokens - n_right)
            if any((np.sort(a) != b).any() for a, b in zip(held[n_tokens], sets(drafting, "llama"), strict=True)):
                break
    twin = NumpyLlama(models["llama"], Rules(**native_params(CONFIG) | {"rope_limit": 0}), cache_type="f32")
    twin.decode(some_tokens(N_PROMPT))
    for n, token in enumerate(text[: n_tokens - N_PROMPT], start=N_PROMPT + 1):
        _, cuts = twin.decode([token], adopt=lambda layer, head, n=n: held[n][layer][head])
    n_parted = 0
    for of_twin, mine, other in zip(cuts[0], held[n_tokens], sets(drafting, "llama"), strict=True):
        for cut, a, b in zip(of_twin, mine, other, strict=True):
            votes = [cut.scores[np.isin(cut.positions, np.setdiff1d(*each))] for each in ((a, b), (b, a))]
            n_parted += len(votes[0])
            np.testing.assert_allclose(*votes, rtol=1e-3)
    print(f"{n_parted} slots differ behind {len(held)} evictions and {n_tokens} tokens")
    assert n_parted <= 1
    assert n_evictions > 15
