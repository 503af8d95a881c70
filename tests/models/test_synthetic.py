"""Tiny llamas: what is written is what was asked for, and llama.cpp computes the same as float64 NumPy."""

import gguf
import numpy as np
import pytest

from morphkv_cpp.models.synthetic import N_VOCAB_MIN, TinyLlamaShape, write_tiny_llama
from support.numpy_llama import NumpyLlama
from support.reference import Rules


def test_tensors_have_the_shapes_of_the_sizes(tmp_path):
    path = write_tiny_llama(tmp_path / "m.gguf", n_layer=1, n_embd=8, n_head=6, n_head_kv=2, head_size=4, n_ff=10)
    shapes = {tensor.name: tensor.data.shape for tensor in gguf.GGUFReader(path).tensors}
    assert shapes["blk.0.attn_q.weight"] == (24, 8)
    assert shapes["blk.0.attn_k.weight"] == (8, 8)
    assert shapes["blk.0.attn_output.weight"] == (8, 24)
    assert shapes["blk.0.ffn_down.weight"] == (8, 10)
    assert shapes["output.weight"] == (320, 8)


def test_same_seed_same_file_other_seed_other_weights(tmp_path):
    first, same, other = (
        write_tiny_llama(tmp_path / f"{i}.gguf", seed=seed).read_bytes() for i, seed in enumerate((1, 1, 2))
    )
    assert first == same
    assert first != other


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"n_head": 3, "n_head_kv": 2}, "n_head must be a multiple of n_head_kv, got 3 and 2"),
        ({"head_size": 7}, "head_size must be even"),
        ({"n_layer": 0}, "n_layer must be at least 1"),
        ({"n_vocab": N_VOCAB_MIN - 1}, "n_vocab must be at least"),
    ],
)
def test_impossible_sizes_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        TinyLlamaShape(**wrong)


def test_a_chunked_prompt_and_single_tokens_give_the_same_logits(tiny_llama):
    path = tiny_llama(n_head=6, n_head_kv=2, seed=1)
    tokens = np.random.default_rng(0).integers(3, 320, 20).tolist()
    rules = Rules(capacity=32, window=8)
    in_chunks, one_by_one = NumpyLlama(path, rules, n_ubatch=7), NumpyLlama(path, rules)
    chunked, _ = in_chunks.decode(tokens)
    for token in tokens:
        single, _ = one_by_one.decode([token])
    np.testing.assert_allclose(single, chunked, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("n_head", "head_size"), [(2, 32), (6, 32), (8, 64)])
def test_numpy_llama_agrees_with_llama_cpp_while_the_cache_is_full(tiny_llama, n_head, head_size):
    """Plain attention over an f32 cache is float32 throughout: errors up to 6e-6 were seen, of logits of order 1."""
    morphkv_cpp = pytest.importorskip("morphkv_cpp")
    if not hasattr(morphkv_cpp, "Llama"):
        pytest.skip("the native library is not installed")
    import llama_cpp

    path = tiny_llama(n_head=n_head, n_head_kv=2, head_size=head_size, seed=1)
    tokens = np.random.default_rng(0).integers(3, 320, 60).tolist()
    options = {"n_ctx": 256, "n_batch": 64, "n_ubatch": 16, "n_threads": 1, "n_threads_batch": 1, "verbose": False}
    llm = morphkv_cpp.Llama(str(path), morphkv=None, flash_attn=False, type_k=0, type_v=0, **options)
    model = NumpyLlama(path, Rules(capacity=100, window=8), cache_type="f32", read_type="f32", n_ubatch=16)
    for batch in [tokens[:40], *([token] for token in tokens[40:])]:
        llm.eval(batch)
        native = np.ctypeslib.as_array(llama_cpp.llama_get_logits_ith(llm.ctx, -1), shape=(model.n_vocab,))
        np.testing.assert_allclose(native, model.decode(batch)[0], rtol=0, atol=1e-4)
    assert llm.detokenize(llm.tokenize(b"Any text: \xc3\xb6!")) == b"Any text: \xc3\xb6!"
    llm.close()
