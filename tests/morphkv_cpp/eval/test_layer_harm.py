"""What an eviction does in each layer alone."""

import numpy as np
import pytest

from morphkv_cpp import Llama
from morphkv_cpp.eval.layer_harm import N_LEAST, cut_layers, measure_profile, n_readings
from support.tiny import QUIET, some_tokens


def test_each_layer_that_is_cut_does_some_harm(tiny_llama):
    steps = []
    with Llama(tiny_llama(n_layer=3), n_ctx=256, **QUIET) as llm:
        profile = measure_profile(llm, some_tokens(N_LEAST + 64), steps.append)
        again = measure_profile(llm, some_tokens(N_LEAST + 64))
    assert len(profile.harm) == 3
    assert min(profile.harm) > 1e-6
    assert profile == again
    assert len(profile.fingerprint) == 64
    assert sum(steps) == n_readings_of(tiny_llama(n_layer=3)) == 4


def n_readings_of(path) -> int:
    with Llama(path, n_ctx=256, **QUIET) as llm:
        return n_readings(llm)


def test_the_layer_whose_attention_counts_does_the_most(tiny_llama):
    """Layer 1 of a model whose layer 0 gives attention no part in the output."""
    path = without_attention(tiny_llama(n_layer=2), layer=0)
    with Llama(path, n_ctx=256, **QUIET) as llm:
        profile = measure_profile(llm, some_tokens(N_LEAST))
    assert profile.large == (1,)
    assert profile.harm[0] < 1e-3 * profile.harm[1]


def without_attention(path, layer: int):
    """The same model with one layer's output matrix of zeros."""
    gguf = pytest.importorskip("gguf")
    target = path.with_name(f"without-{layer}-{path.name}")
    target.write_bytes(path.read_bytes())
    tensors = gguf.GGUFReader(target, "r+").tensors
    weights = next(tensor for tensor in tensors if tensor.name == f"blk.{layer}.attn_output.weight")
    weights.data[:] = np.zeros_like(weights.data)
    weights.data.flush()
    return target


def test_recurrent_layers_have_no_harm(tiny_hybrid):
    with Llama(tiny_hybrid, n_ctx=256, **QUIET) as llm:
        layers = cut_layers(llm)
        profile = measure_profile(llm, some_tokens(N_LEAST))
    assert 0 < len(layers) < len(profile.harm)
    assert [i for i, harm in enumerate(profile.harm) if harm > 0] == layers


def test_a_text_is_long_enough(tiny_llama):
    with Llama(tiny_llama(), n_ctx=256, **QUIET) as llm:
        with pytest.raises(ValueError, match="a text of at least 512 tokens, got 100"):
            measure_profile(llm, some_tokens(100))
