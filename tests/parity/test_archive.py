"""An archive of layers that live on other devices, filled while those decode, against one that the CPU fills.

On two RPC servers, or on the device that MORPHKV_DEVICE names. Policy recency, so that both contexts keep the same
tokens and differ by rounding alone.
"""

from __future__ import annotations

from contextlib import closing

import numpy as np
import pytest

from morphkv_cpp import Archive, Llama, MorphKV
from support.device import DEVICE
from support.tiny import last_logits, some_tokens

# Five pages fill the slots: which tokens have to go for them, where votes are near-ties, makes no difference.
CONFIG = MorphKV(capacity=96, window=16, interval=8, keep=0, prompt_room=32, votes=16, policy="recency", rope_limit=300)
MODEL = {"n_head": 6, "n_head_kv": 2, "head_size": 64, "n_layer": 4, "seed": 3}
OPTIONS = {"morphkv": CONFIG, "n_ubatch": 512, "n_threads": 1, "n_threads_batch": 1}
TYPES = {"f16": 1, "q8_0": 8}  # as in ggml.h
# Largest difference of a logit. Measured: none over RPC, 0.005 and 0.05 on lavapipe.
TOLERANCE = {"f16": 0.02, "q8_0": 0.15}


@pytest.fixture
def elsewhere(request):
    if DEVICE:
        return {"n_gpu_layers": -1}
    return {"rpc_servers": [server.name for server in request.getfixturevalue("rpc_servers")]}


def check_logits(here: Llama, there: Llama, tolerance: float) -> None:
    difference = np.abs(last_logits(here) - last_logits(there)).max()
    print(f"logits differ by {difference:.2g}")
    assert difference <= tolerance


@pytest.mark.parametrize(("cache_type", "archive_type"), [("f16", "f16"), ("f16", "q8_0"), ("q8_0", "q8_0")])
def test_what_comes_back_is_what_the_cpu_archives(tiny_llama, elsewhere, tmp_path, cache_type, archive_type):
    options = {**OPTIONS, "type_k": TYPES[cache_type], "type_v": TYPES[cache_type]}
    settings = {"type": archive_type, "share": 1.0}
    tolerance = TOLERANCE[cache_type]
    with (
        closing(Llama(tiny_llama(**MODEL), archive=Archive(**settings), verbose=False, **options)) as here,
        closing(
            Llama(
                tiny_llama(**MODEL),
                archive=Archive(tmp_path / "archive", **settings),
                verbose=False,
                **options,
                **elsewhere,
            )
        ) as there,
    ):
        for llm in here, there:
            # several parts of 128 tokens in one cut, then a few in each
            llm.eval(some_tokens(400))
            for token in some_tokens(150, seed=1):
                llm.eval([token])
            llm.n_tokens -= 2
            llm.eval(some_tokens(40, seed=2))
        check_logits(here, there, tolerance)

        recalls = [llm.recall() for llm in (here, there)]
        assert recalls[0].n_archived == recalls[1].n_archived > 450
        assert recalls[0].n_recalled == recalls[1].n_recalled > 0
        assert here.cache_stats().n_archived == there.cache_stats().n_archived
        for layer in range(MODEL["n_layer"]):
            # which slot a token came to is the votes' matter
            assert (np.sort(here.retained(layer)) == np.sort(there.retained(layer))).all()
        for llm in here, there:
            llm.eval(some_tokens(20, seed=4))
        check_logits(here, there, tolerance)

        # what was archived there goes on here
        here.load_state(there.save_state())
        for llm in here, there:
            llm.eval(some_tokens(60, seed=5))
        assert here.recall().n_recalled == there.recall().n_recalled
        for llm in here, there:
            llm.eval(some_tokens(20, seed=6))
        check_logits(here, there, tolerance)
