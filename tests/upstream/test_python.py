"""llama-cpp-python's own tests, from the pinned source distribution, on the patched libllama."""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path

import pytest
from upstream.run import output_of
from upstream.vocabulary import with_vocabulary

ROOMY = "capacity=32,window=8,interval=8,keep=1,prompt_room=8"
# Room for 3 tokens. The prompts have 4, so that states are saved after an eviction.
TIGHT = "capacity=2,window=1,interval=1,keep=0,prompt_room=0"


@pytest.fixture(scope="module")
def hub(demo_model, arch_models, tmp_path_factory) -> dict[str, str]:
    """Models used instead of those that the tests would download, of the same kind: attention, recurrent, hybrid."""
    folder = tmp_path_factory.mktemp("hub")

    def random_weights(architecture: str) -> str:
        name = f"{architecture}-dense.gguf"
        return str(with_vocabulary(arch_models / name, folder / name))

    return {
        "ggml-org/models": str(demo_model),
        "QuantFactory/mamba-130m-hf-GGUF": random_weights("mamba"),
        "tiiuae/Falcon-H1-Tiny-90M-Instruct-GGUF": random_weights("falcon-h1"),
    }


@pytest.fixture
def run(sdist, hub, record_property):
    """run(params) -> contexts and evictions with MorphKV, after all of the tests have passed."""

    def run_tests(params: str | None) -> tuple[int, int]:
        environment = {"MORPHKV_TEST_HUB": json.dumps(hub), "PYTHONPATH": str(Path(__file__).parent)}
        environment["PYTEST_ADDOPTS"] = ""
        if params:
            environment["MORPHKV_TEST_PARAMS"] = params
        command = [sys.executable, "-m", "pytest", "-c", os.devnull, "--rootdir=.", "-p", "no:cacheprovider"]
        command += ["-p", "llama_cpp_python_plugin", "--tb=short", "tests"]
        output = output_of(command, sdist, environment)
        counts = re.search(r"^morphkv: contexts=(\d+) evictions=(\d+)$", output, re.MULTILINE)
        n_contexts, n_evictions = map(int, counts.groups())
        summary = re.search(r"\d+ passed[^=\n]*", output).group()
        record_property("MorphKV", f"{n_contexts} contexts, {n_evictions} evictions; {summary}")
        return n_contexts, n_evictions

    return run_tests


def test_passes_without_morphkv(run):
    assert run(None) == (0, 0)


def test_passes_with_morphkv_that_has_room_for_all(run):
    n_contexts, n_evictions = run(ROOMY)
    assert n_contexts > 0
    assert n_evictions == 0


def test_passes_with_morphkv_past_evictions(run):
    _, n_evictions = run(TIGHT)
    assert n_evictions > 0
