"""A device of this build against the CPU and the NumPy model, e.g. Vulkan on Mesa's lavapipe (make test-vulkan).

What a device keeps may differ from what the CPU keeps where scores are closer than rounding. The NumPy model tells such
near-ties from errors and adopts the device's set. Where MORPHKV_DEVICE names a device, test_native_reference.py,
test_rebase.py and test_operations.py run there, too.
"""

from __future__ import annotations

import re
from contextlib import closing

import numpy as np
import pytest

from morphkv_cpp import Llama, MorphKV, bridge
from morphkv_cpp.cache import context
from support.device import DEVICE
from support.pair import Pair
from support.tiny import last_logits, some_tokens

if DEVICE is None:
    pytest.skip("MORPHKV_DEVICE names no device", allow_module_level=True)

pytestmark = pytest.mark.gpu

GROUP = {"n_head": 6, "n_head_kv": 2, "head_size": 64}  # 64: quantized keys are rotated
REBASED = {"capacity": 40, "window": 8, "interval": 7, "keep": 4, "prompt_room": 30, "rope_limit": 120}
CPU, ALL = 0, -1  # layers on the device
# Of the tokens that the demo model keeps: inputs of its Q4_1 layers are quantized on the CPU, and not on the device.
# Measured on lavapipe: 0.002 (f16), 0.003 (q8_0).
OTHER_SHARE = 0.01


def test_every_case_of_the_self_test_is_the_same_there():
    rows = [row for row in bridge.selftest() if row["device"] == DEVICE]
    assert len(rows) > 40
    assert [row for row in rows if row["result"] != "same"] == []


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"n_gpu_layers": ALL}, {DEVICE}),
        ({"n_gpu_layers": 1}, {"CPU"}),  # the output alone
        ({"n_gpu_layers": 2}, {"CPU", DEVICE}),
        ({"n_gpu_layers": ALL, "offload_kqv": False}, {"CPU"}),
    ],
)
def test_the_cache_is_where_its_layers_are(tiny_llama, capfd, options, expected):
    """And works there: nothing that is cut crosses devices, or the eviction would stop."""
    config = MorphKV(capacity=40, window=8, interval=7, prompt_room=30, rope_limit=120)
    options = {"n_ubatch": 16, "n_threads": 1, "n_threads_batch": 1, **options}
    with closing(Llama(tiny_llama(**GROUP, seed=3), morphkv=config, **options)) as llm:
        for token in some_tokens(150):
            llm.eval([token])
        assert llm.cache_stats().n_evictions > 10
        assert llm.cache_stats().n_rebases > 0
    assert set(re.findall(r"(\S+) KV buffer size", capfd.readouterr().err)) == expected


class TestFit:
    CONFIG = MorphKV(capacity=40, window=8, interval=7, prompt_room=30)

    @pytest.fixture(autouse=True)
    def gpu(self, monkeypatch):
        monkeypatch.setattr(context, "has_gpu", lambda: True)

    def test_all_of_a_tiny_model_fits(self, tiny_llama):
        options = {"n_ubatch": 16, "n_threads": 1, "verbose": False, "n_gpu_layers": "auto"}
        with closing(Llama(tiny_llama(**GROUP, seed=3), morphkv=self.CONFIG, **options)) as llm:
            assert (llm.gpu_fit.n_gpu_layers, llm.gpu_fit.n_layers) == (3, 3)
            assert DEVICE in [device.name for device in llm.gpu_fit.devices]
            llm.eval(some_tokens(100))
            assert llm.cache_stats().n_evictions > 0

    def test_less_fits_where_less_is_free(self, tiny_llama, monkeypatch):
        path = tiny_llama(**GROUP, seed=3)
        with closing(Llama(path, morphkv=self.CONFIG, verbose=False, n_gpu_layers="auto")) as llm:
            (device,) = llm.gpu_fit.devices
        margin = device.free_bytes - device.used_bytes * 3 // 4
        ask = bridge.fit_gpu_layers
        monkeypatch.setattr(bridge, "fit_gpu_layers", lambda *arguments: ask(*arguments, margin))
        with closing(Llama(path, morphkv=self.CONFIG, verbose=False, n_gpu_layers="auto")) as llm:
            assert llm.gpu_fit.n_gpu_layers < 3
            assert llm.gpu_fit.devices[0].used_bytes < device.used_bytes


@pytest.mark.parametrize("cache_type", ["f16", "q8_0"])
def test_a_state_goes_on_there_and_here(tiny_llama, cache_type):
    """Prompts, single tokens, a rollback; then each goes on with the other's state, and the device with its own."""
    pairs = [Pair(tiny_llama(**GROUP, seed=3), cache_type, n_gpu_layers, **REBASED) for n_gpu_layers in (ALL, CPU)]
    for pair in pairs:
        pair.decode(some_tokens(60))
        pair.decode_singly(some_tokens(70, seed=1))
        pair.llm.n_tokens -= 2
        assert pair.twin.cache.remove_tail(pair.twin.n_past - 2)
        pair.decode_singly(some_tokens(20, seed=2))
        pair.decode(some_tokens(25, seed=3))
    states = [pair.llm.save_state() for pair in pairs]
    twins = [pair.twin for pair in pairs]
    for pair, state, twin in zip(pairs, reversed(states), reversed(twins)):
        pair.llm.load_state(state)
        query_type = pair.twin.query_type
        pair.twin = twin.copy()
        pair.twin.query_type = query_type
        pair.decode_singly(some_tokens(60, seed=4))
        pair.tally.check(n_cuts=18)
        assert pair.llm.cache_stats().n_rebases > 0
    device, logits = pairs[0], []
    for _ in range(2):
        device.llm.load_state(states[0])
        device.llm.eval(some_tokens(30, seed=5))
        logits.append(last_logits(device.llm))
    assert (logits[0] == logits[1]).all()
    for pair in pairs:
        pair.close()


@pytest.mark.demo
@pytest.mark.parametrize("cache_type", [1, 8], ids=["f16", "q8_0"])
def test_the_demo_model_keeps_what_the_cpu_keeps(demo_model, cache_type):
    """After each cut the CPU goes on with the device's state, so that a near-tie is counted once."""
    config = MorphKV(capacity=96, window=16, interval=16, prompt_room=0, rope_limit=256)
    options = {"morphkv": config, "n_threads": 1, "n_threads_batch": 1, "type_k": cache_type, "type_v": cache_type}
    n_cuts = n_kept = n_other = 0
    with (
        closing(Llama(demo_model, n_gpu_layers=CPU, verbose=False, **options)) as here,
        closing(Llama(demo_model, n_gpu_layers=ALL, verbose=False, **options)) as there,
    ):
        text = "The lighthouse keeper and her three dogs went out to sea in a small boat, and what they found there "
        tokens = here.tokenize((text * 20).encode())
        # a prompt in small batches, then single tokens
        for batch in [tokens[i : i + 8] for i in range(0, 320, 8)] + [[token] for token in tokens[320:360]]:
            here.eval(batch)
            there.eval(batch)
            if there.cache_stats().n_evictions > n_cuts:
                n_cuts += 1
                for layer in range(30):
                    for kept_here, kept_there in zip(here.retained(layer), there.retained(layer)):
                        n_kept += len(kept_there)
                        n_other += len(np.setdiff1d(kept_there, kept_here))
                here.load_state(there.save_state())
        assert here.cache_stats().n_evictions == n_cuts
        assert there.cache_stats().n_rebases > 0
    print(f"{n_cuts} cuts, {n_kept} tokens kept, {n_other} of them there alone")
    assert n_cuts > 14
    assert n_other <= OTHER_SHARE * n_kept
