"""Upstream's own C++ tests on the patched libllama, without and with MorphKV."""

from __future__ import annotations

import re
import shlex

import pytest
from upstream.run import output_of

# Words of the commands below that stand for a path or a pattern -> the fixture that has it.
PLACES = {
    "DEMO": "demo_model",
    "ARCHS": "arch_models",
    "SERVED": "served_models",
    "NAMES": "served_names",
    "VOCABS": "vocabularies",
}

# Upstream's arguments, where it has some, with the demo model for one that it downloads.
THREADS = "test-thread-safety -m DEMO -ngl 99 -p 'The meaning of life is' -n 128 -c 256 -ub 32 -np 4 -t 2"
STATE = ("test-save-load-state -m DEMO", "test-state-restore-fragmented -m DEMO", THREADS)

# logit_bias is left out: it takes a token with a bias of +10 for certain, which it is not with the demo model. It fails
# with the unpatched libllama too.
SAMPLERS = """greedy penalties temp temp_ext top_k multi_sequence dist dist_and_cpu set_sampler multi_output_limit
    multi_sequence_multi_output_dist multi_output_dist_transaction multi_output_sampling_chain multi_output_cpu mixed
    min_p cpu_mixed top_p""".split()
SAMPLERS = tuple(f"test-backend-sampler DEMO --test={name}" for name in SAMPLERS)

VOCABULARIES = """bert-bge command-r deepseek-coder deepseek-llm falcon gemma-4 gpt-2 llama-bpe llama-spm mpt phi-3
    qwen2 qwen35 refact starcoder""".split()

WITHOUT_MORPHKV = (
    "test-autorelease DEMO",
    "test-batch-alloc",
    "test-grammar-integration",
    "test-grammar-parser",
    "test-llama-archs --seed 1",
    "test-llama-grammar",
    "test-model-load-cancel DEMO",
    "test-reasoning-budget",
    "test-recurrent-state-rollback --models ARCHS",
    "test-rope",
    "test-sampling",
    "test-save-load-state --models ARCHS",
    "test-tokenizer-1-spm VOCABS/ggml-vocab-llama-spm.gguf",
    "test-unicode",
    *STATE,
    *SAMPLERS,
    *(f"test-tokenizer-0 VOCABS/ggml-vocab-{name}.gguf" for name in VOCABULARIES),
)

# Not with MorphKV: test-recurrent-state-rollback, as it refuses LFM2 with a window in each layer that attends.
# tests/native/llama/test_hybrid.cpp compares drafts with stock.
EVICTING = (*STATE, "test-save-load-state --models SERVED", "test-llama-archs --seed 1 --arch NAMES")
NEVER_EVICTING = ("test-autorelease DEMO", *SAMPLERS)

# The smallest context of these programs has 256 cells, and 224 are the most that they fill.
ROOMY = "capacity=192,window=16,interval=16,keep=4,prompt_room=64"
TIGHT = "capacity=24,window=8,interval=8,keep=4,prompt_room=0"

# Reason -> programs that are left out. A new upstream version's programs must be in one of the lists.
LEFT_OUT = {
    "ggml alone, which is not patched": """test-alloc test-backend-ops test-barrier test-col2im-1d test-double-float
        test-gguf test-opt test-quantize-fns test-quantize-perf test-tiled-mulmat""",
    "llama-common or the server alone, which are not patched": """test-chat test-chat-auto-parser test-chat-peg-parser
        test-chat-template test-jinja test-json-schema test-json-schema-to-grammar test-log test-model-resolution
        test-peg-parser""",
    "needs the network": "test-arg-parser test-gguf-model-data test-quant-type-selection",
    "mtmd": "test-mtmd-c-api test-mtmd-impl",
    "a tool that checks nothing": """test-c test-chat-analysis test-export-graph-ops test-gbnf-validator
        test-quantize-stats""",
    "not in this build": "test-fusion test-grammar-llguidance test-rpc-multi-server test-rset-release",
    "not run upstream either, slow": "test-tokenizer-1-bpe",
}


@pytest.fixture
def run(programs, request, tmp_path):
    """run(command, NAME="value" of the environment, ...) -> what the program printed; fails when the program does."""

    def run_program(command: str, **environment: str) -> str:
        name, *words = shlex.split(command)
        for place, fixture in PLACES.items():
            if any(place in word for word in words):
                words = [word.replace(place, str(request.getfixturevalue(fixture))) for word in words]
        return output_of([programs[name], *words], tmp_path, environment)

    return run_program


@pytest.fixture
def run_with_morphkv(programs, record_property, run):
    """run_with_morphkv(command, params) -> evictions of all contexts; fails when a context has no MorphKV."""
    if (preload := programs.get("libmorphkv-preload.so")) is None:
        pytest.skip("turning MorphKV on in a program that does not know it needs LD_PRELOAD, Linux")

    def run_program(command: str, params: str) -> int:
        output = run(command, LD_PRELOAD=str(preload), MORPHKV_TEST_PARAMS=params)
        n_contexts = output.count("morphkv-preload: created:")
        n_evictions = sum(map(int, re.findall(r"morphkv-preload: freed: n_evictions=(\d+)", output)))
        assert n_contexts > 0
        assert "morphkv-preload: refused:" not in output
        record_property("MorphKV", f"{n_contexts} contexts, {n_evictions} evictions")
        return n_evictions

    return run_program


@pytest.mark.parametrize("command", WITHOUT_MORPHKV)
def test_passes_without_morphkv(run, command):
    assert "morphkv-preload" not in run(command)


@pytest.mark.parametrize("command", EVICTING + NEVER_EVICTING)
def test_passes_with_morphkv_that_has_room_for_all(run_with_morphkv, command):
    assert run_with_morphkv(command, ROOMY) == 0


@pytest.mark.parametrize("command", EVICTING)
def test_passes_with_morphkv_past_evictions(run_with_morphkv, command):
    assert run_with_morphkv(command, TIGHT) > 0


def test_every_upstream_program_is_run_or_left_out_by_name(sdist):
    found = {path.stem for path in sdist.glob("vendor/llama.cpp/tests/test-*") if path.suffix in (".c", ".cpp")}
    run = {command.split()[0] for command in WITHOUT_MORPHKV}
    left_out = {name for names in LEFT_OUT.values() for name in names.split()}
    assert run.isdisjoint(left_out)
    assert run | left_out == found
