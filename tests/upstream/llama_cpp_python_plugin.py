"""pytest plugin for llama-cpp-python's own tests: our libllama, models of this machine, and MorphKV where wanted.

Environment: MORPHKV_TEST_HUB, a JSON object {repository on the hub: path of the model used instead};
MORPHKV_TEST_PARAMS, unset for no MorphKV, else "capacity=64,window=8,...".
"""

from __future__ import annotations

import json
import os
import sys
import types

import morphkv_cpp  # before llama_cpp: says which libllama is loaded

import llama_cpp  # isort: skip
import pytest

HUB = json.loads(os.environ["MORPHKV_TEST_HUB"])
PARAMS = os.environ.get("MORPHKV_TEST_PARAMS")

# Name of a test -> why it is left out.
NOT_RUN = {
    "test_real_model": "compares with the token ids of Qwen3.5-0.8B, which only the hub has",
    "test_real_llama": "compares with answers of Qwen3.5-0.8B",
    "test_real_llama_repeated_prompt_cache": "compares with an answer of Qwen3.5-0.8B",
    "test_real_llama_embeddings": "needs an embedding model; test-llama-archs writes none",
}
# The parameter of the tests that MorphKV serves; the others have no context, or recurrent layers, which it refuses.
WITH_MORPHKV = "llama_cpp_transformer_model_path"

counts = {"contexts": 0, "evictions": 0}


def stub_modules() -> None:
    """What the tests import: a hub that answers with local files, and a scipy of which nothing is called."""
    hub, scipy, special = (types.ModuleType(name) for name in ("huggingface_hub", "scipy", "scipy.special"))
    hub.hf_hub_download = lambda repository, file_name: HUB[repository]
    special.log_softmax = None
    sys.modules |= {module.__name__: module for module in (hub, scipy, special)}


class LlamaWithMorphKV(morphkv_cpp.Llama):
    def __init__(self, model_path, **options):
        params = dict(pair.split("=") for pair in PARAMS.split(","))
        config = morphkv_cpp.MorphKV(**{name: int(value) for name, value in params.items()})
        super().__init__(model_path, morphkv=config, **options)
        counts["contexts"] += 1

    def eval(self, tokens):
        # With n_tokens = 0 the sequence is emptied first, its count too.
        before = self.cache_stats().n_evictions if self.n_tokens else 0
        super().eval(tokens)
        counts["evictions"] += self.cache_stats().n_evictions - before


stub_modules()
if PARAMS:
    llama_cpp.Llama = LlamaWithMorphKV


def pytest_collection_modifyitems(config, items):
    if unknown := NOT_RUN.keys() - {item.name for item in items}:
        raise pytest.UsageError(f"llama-cpp-python has no such tests any more: {sorted(unknown)}")
    left_out = [item for item in items if item.name in NOT_RUN or (PARAMS and WITH_MORPHKV not in item.name)]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if item not in left_out]


def pytest_terminal_summary(terminalreporter):
    terminalreporter.write_line(f"morphkv: contexts={counts['contexts']} evictions={counts['evictions']}")
