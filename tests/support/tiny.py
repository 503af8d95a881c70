"""Tiny models of random weights: how they are opened, their tokens, and what they hold and cost."""

from __future__ import annotations

import itertools

import numpy as np

from morphkv_cpp import Llama

# isort: split
# after morphkv_cpp, which says what libllama is loaded
import llama_cpp

# One thread: threads that wait for each other crawl where the cores are shared.
QUIET = {"n_threads": 1, "n_threads_batch": 1, "verbose": False}
FLASH = {**QUIET, "flash_attn": True}  # as MorphKV has it, for what is compared with it


def some_tokens(n_tokens: int, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).integers(3, 320, n_tokens).tolist()


def bytes_of(text: str) -> list[int]:
    """Tokens of the tiny vocabulary's bytes."""
    return [3 + byte for byte in text.encode()]


def held(llm: Llama) -> list[int]:
    """The tokens that it knows to be in its cache, or to have been."""
    return llm.input_ids[: llm.n_tokens].tolist()


def greedy(llm: Llama, prompt: list[int], n_tokens: int, **options) -> list[int]:
    return list(itertools.islice(llm.generate(prompt, temp=0.0, **options), n_tokens))


def last_logits(llm: llama_cpp.Llama) -> np.ndarray:
    return np.ctypeslib.as_array(llama_cpp.llama_get_logits_ith(llm.ctx, -1), shape=(llm.n_vocab(),)).copy()


def count_evaluated(llm: Llama, monkeypatch) -> list[int]:
    """Lengths of the batches that are decoded from now on."""
    lengths, decode = [], llm._ctx.decode

    def count(batch):
        lengths.append(batch.n_tokens())
        decode(batch)

    monkeypatch.setattr(llm._ctx, "decode", count)
    return lengths
