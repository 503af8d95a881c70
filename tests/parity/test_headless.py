"""Layers without heads (architecture deci) against the specification, whose model has heads there that do nothing."""

from __future__ import annotations

from contextlib import closing
from dataclasses import asdict
from pathlib import Path

import numpy as np
from archs.rewrite import rewrite
from archs.variants import write_deci

import morphkv_cpp
from morphkv_cpp.models.synthetic import write_tiny_llama
from support.pair import N_UBATCH, Pair
from support.reference import Rules
from support.tiny import QUIET, last_logits, some_tokens

# isort: split
import llama_cpp

HEADS = (4, 0, 4)
SHAPE = {"n_layer": len(HEADS), "n_head": 4, "n_head_kv": 4, "n_embd": 128, "head_size": 32}
RULES = {"capacity": 40, "window": 8, "interval": 5, "keep": 4}
OPTIONS = {"n_batch": 512, "n_ubatch": N_UBATCH, **QUIET}


def open_deci(path: Path) -> morphkv_cpp.Llama:
    return morphkv_cpp.Llama(str(path), morphkv=morphkv_cpp.MorphKV(**asdict(Rules(**RULES))), **OPTIONS)


class HeadlessPair(Pair):
    def __init__(self, folder: Path):
        llama = write_tiny_llama(folder / "llama.gguf", **SHAPE)
        n_embd, n_q = SHAPE["n_embd"], SHAPE["n_head"] * SHAPE["head_size"]
        silent = {
            f"blk.{i}.attn_output.weight": np.zeros((n_embd, n_q), np.float32) for i, n in enumerate(HEADS) if n == 0
        }
        rewrite(llama, llama, tensors=silent)
        super().__init__(llama, **RULES)
        self.llm.close()
        write_deci(folder / "deci.gguf", HEADS, HEADS)
        self.llm = open_deci(folder / "deci.gguf")

    def decode(self, tokens: list[int]) -> None:
        self.llm.eval(tokens)
        retained = {i: self.llm.retained(layer=i) for i, n in enumerate(HEADS) if n > 0}
        expected, cuts = self.twin.decode(tokens, adopt=lambda i, head: retained[i][head] if i in retained else None)
        for cut in cuts:
            self.tally.compare_cut([heads for i, heads in enumerate(cut) if i in retained], self.rules)
        self.compare_state(expected)


def test_same_tokens_are_kept_and_same_logits_follow(tmp_path):
    with closing(HeadlessPair(tmp_path)) as pair:
        pair.decode(some_tokens(30))
        pair.decode_singly(some_tokens(150, seed=99))
        pair.tally.check(n_cuts=25)


def test_bit_equal_to_stock_until_the_first_eviction(tmp_path):
    write_deci(tmp_path / "deci.gguf", HEADS, HEADS)
    stock = llama_cpp.Llama(str(tmp_path / "deci.gguf"), flash_attn=True, **OPTIONS)
    with closing(stock), closing(open_deci(tmp_path / "deci.gguf")) as llm:
        n_equal = 0
        for token in some_tokens(60):
            llm.eval([token])
            stock.eval([token])
            if llm.cache_stats().n_evictions == 0:
                assert (last_logits(llm) == last_logits(stock)).all()
                n_equal += 1
        assert n_equal == RULES["capacity"] + RULES["interval"]
