"""A few layers of a large model's shape: what is written is of that shape, and llama.cpp decodes it."""

from contextlib import closing

import gguf
import numpy as np
import pytest

from morphkv_cpp import Llama
from morphkv_cpp.models.shape_files import write_shape
from morphkv_cpp.models.shapes import SHAPES, ModelShape

SMALL = ModelShape("small", n_layer=3, n_embd=128, n_head=4, n_head_kv=2, head_size=64, n_ff=256)


def test_layers_have_the_published_number_of_weights():
    """All weights less embeddings, as model cards give them: 6.98e9 of 8.03e9 for Llama 3.1 8B."""
    n_weights = {name: shape.n_layer * shape.layer_weights for name, shape in SHAPES.items()}
    assert n_weights["8b"] == pytest.approx(6.98e9, rel=0.005)
    assert n_weights["1b"] == pytest.approx(0.97e9, rel=0.005)
    assert n_weights["4b"] == pytest.approx(3.6e9, rel=0.02)
    assert n_weights["32b"] == pytest.approx(31.2e9, rel=0.01)


def test_tensors_are_of_the_shape_and_of_finite_size(tmp_path):
    tensors = {t.name: t for t in gguf.GGUFReader(write_shape(tmp_path / "m.gguf", SMALL, 2)).tensors}
    assert {name.split(".")[1] for name in tensors if name.startswith("blk")} == {"0", "1"}
    for name, n_out, n_in in SMALL.matrices():
        tensor = tensors[f"blk.1.{name}.weight"]
        assert tensor.tensor_type == gguf.GGMLQuantizationType.Q4_0
        assert list(tensor.shape) == [n_in, n_out]
        rows = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        assert np.std(rows) * np.sqrt(n_in) == pytest.approx(1, rel=0.1)


def test_it_is_decoded(tmp_path):
    path = write_shape(tmp_path / "m.gguf", SMALL, 2)
    with closing(Llama(path, n_ctx=64, logits_all=True, verbose=False)) as llm:
        tokens = llm.tokenize(b"any text")
        llm.eval(tokens)
        logits = llm.scores[: len(tokens)]
        assert np.isfinite(logits).all()
        assert np.std(logits, axis=1) == pytest.approx(1, rel=0.2)  # weights give outputs of size 1


@pytest.mark.parametrize("n_layer", [0, 4])
def test_layers_that_the_model_has_not_are_refused(tmp_path, n_layer):
    with pytest.raises(ValueError, match=rf"layers must be in 1\.\.3 of small, got {n_layer}"):
        write_shape(tmp_path / "m.gguf", SMALL, n_layer)
