"""Random-weight models that upstream's test-llama-archs writes: served past evictions, or refused by name."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import numpy as np
import pytest

morphkv_cpp = pytest.importorskip("morphkv_cpp")

import llama_cpp  # noqa: E402  (morphkv_cpp says first which libllama is loaded)

SERVED = ("llama", "qwen2", "qwen3", "phi3", "gemma", "mistral3", "qwen3moe")
REFUSED = {
    "gemma3": "sliding-window",
    "gpt-oss": "sliding-window",
    "mamba": "recurrent",
    "jamba": "mixes attention with recurrent layers",
    "qwen35": "mixes attention with recurrent layers",
    "deepseek2": "compressed keys only",
    "bloom": "ALiBi",
    "gpt2": "positions are learned",
    "qwen2vl": "more than one position",
}
N_TOKENS = 300
SMALL = {"capacity": 64, "window": 16, "interval": 16, "prompt_room": 64}


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, Path]:
    """GGUF by architecture."""
    program = Path(os.environ.get("MORPHKV_TEST_PROGRAMS", "")) / "test-llama-archs"
    if not program.is_file():
        pytest.skip("MORPHKV_TEST_PROGRAMS names no folder with test-llama-archs")
    folder = tmp_path_factory.mktemp("archs")
    wanted = "|".join([*SERVED, *REFUSED])
    command = [str(program), "--arch", f"^({wanted})$", "--seed", "1", "--out", str(folder)]
    subprocess.run(command, check=True, capture_output=True)
    return {path.stem.rsplit("-", 1)[0]: path for path in sorted(folder.glob("*.gguf"))}


def load(path: Path) -> morphkv_cpp.Llama:
    options = {"n_ctx": 1024, "n_ubatch": 32, "n_threads": 1, "n_threads_batch": 1, "verbose": False}
    return morphkv_cpp.Llama(str(path), morphkv=morphkv_cpp.MorphKV(**SMALL), **options)


@pytest.mark.parametrize("architecture", SERVED)
def test_a_plain_attention_model_goes_on_past_evictions(models, architecture):
    llm = load(models[architecture])
    tokens = np.random.default_rng(0).integers(3, 100, N_TOKENS).tolist()
    llm.eval(tokens[:200])
    for token in tokens[200:]:
        llm.eval([token])
    assert llm.cache_stats().n_evictions >= 8
    assert llm.cache_stats().logical_pos == N_TOKENS - 1
    pointer = llama_cpp.llama_get_logits_ith(llm.ctx, -1)
    assert np.isfinite(np.ctypeslib.as_array(pointer, shape=(llm.n_vocab(),))).all()
    llm.close()


@pytest.mark.parametrize("architecture", REFUSED)
def test_another_model_is_refused_by_name(models, architecture):
    with pytest.raises(morphkv_cpp.UnsupportedError, match=REFUSED[architecture]) as refusal:
        load(models[architecture])
    assert f"architecture '{architecture}'" in str(refusal.value)
