"""A native sequence beside its NumPy twin: after every batch the same counters, sets and logits, but for near-ties."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

import numpy as np

import morphkv_cpp
from morphkv_cpp.profile import KeepAll, Profile
from support.device import N_GPU_LAYERS
from support.numpy_llama import NumpyLlama
from support.reference import Rules
from support.tiny import QUIET, last_logits
from support.twins import Tally

CACHE_TYPES = {"f32": 0, "f16": 1, "q8_0": 8}  # as in ggml.h
N_UBATCH = 16


class Pair:
    """n_gpu_layers: where the native model lives, by default where the tests are told to.

    profile: of layers that share what `capacity` would take in each, or which of them keep all.
    """

    def __init__(
        self,
        path: Path,
        cache_type: str = "f16",
        n_gpu_layers: int = N_GPU_LAYERS,
        profile: Profile | KeepAll | None = None,
        **rules,
    ):
        self.rules = Rules(**rules)
        self.llm = morphkv_cpp.Llama(
            str(path),
            morphkv=morphkv_cpp.MorphKV(**asdict(self.rules), layers=profile or "equal"),
            n_batch=512,
            n_ubatch=N_UBATCH,
            n_gpu_layers=n_gpu_layers,
            type_k=CACHE_TYPES[cache_type],
            type_v=CACHE_TYPES[cache_type],
            **QUIET,
        )
        query_type = "q8_0" if cache_type == "q8_0" and n_gpu_layers == 0 else None
        capacities = ()
        if profile is not None:
            measured = profile.profile if isinstance(profile, KeepAll) else profile
            n_distant = [self.llm.retained(layer).shape[1] for layer in range(len(measured.harm))]
            capacities = [n + self.rules.n_recent for n in n_distant]
            self.rules = replace(self.rules, capacity=min(capacities))
        options = {"cache_type": cache_type, "query_type": query_type, "n_ubatch": N_UBATCH, "capacities": capacities}
        self.twin = NumpyLlama(path, self.rules, **options)
        self.tally = Tally(cache_type=cache_type)

    def decode(self, tokens: list[int]) -> None:
        """Decode one batch and compare; it may cut once, as what is kept between two cuts of a batch cannot be seen."""
        n_cuts = sum(cut_first for cut_first, _ in self.twin.cache.plan(len(tokens), N_UBATCH))
        assert n_cuts <= 1, "a batch of these tests must cut once at most"
        self.llm.eval(tokens)
        retained = [self.llm.retained(layer=layer) for layer in range(self.twin.n_layer)]
        expected, cuts = self.twin.decode(tokens, adopt=lambda layer, head: retained[layer][head])
        for cut in cuts:
            self.tally.compare_cut(cut, self.rules)
        self.compare_state(expected)

    def decode_singly(self, tokens: list[int]) -> None:
        for token in tokens:
            self.decode([token])

    def compare_state(self, expected: np.ndarray) -> None:
        stats, cache = self.llm.cache_stats(), self.twin.cache
        assert (stats.n_used, stats.n_evictions, stats.n_evicted) == (cache.n_used, cache.n_evictions, cache.n_evicted)
        assert (stats.rotary_offset, stats.n_rebases) == (cache.rotary_offset, cache.n_rebases)
        assert stats.logical_pos == cache.newest_position
        assert not self.rules.rope_limit or stats.logical_pos - stats.rotary_offset < self.rules.rope_limit
        where = f"after {self.twin.n_past} tokens, {cache.n_evictions} cuts, {cache.n_rebases} rebases"
        self.tally.compare_logits(last_logits(self.llm), expected, where)

    def close(self) -> None:
        self.llm.close()
