"""What fits, as the native library tells it."""

import re

import pytest

from morphkv_cpp import bridge

# isort: split
# after morphkv_cpp, which says what libllama is loaded
import llama_cpp

PARAMS = bridge.default_params() | {"capacity": 64, "window": 8, "interval": 8, "prompt_room": 8}


def context_params(**values):
    params = llama_cpp.llama_context_default_params()
    for name, value in {"n_ctx": 256, "flash_attn_type": llama_cpp.LLAMA_FLASH_ATTN_TYPE_ENABLED, **values}.items():
        setattr(params, name, value)
    return params


@pytest.mark.parametrize("params", [None, PARAMS], ids=["stock", "morphkv"])
def test_without_a_gpu_no_layer_fits(tiny_llama, params):
    if any(device["is_gpu"] for device in bridge.devices()):
        pytest.skip("there is a GPU")
    model_params = llama_cpp.llama_model_default_params()
    model_params.n_gpu_layers = 7
    fit, devices = bridge.fit_gpu_layers(str(tiny_llama()), model_params, context_params(), params)
    assert fit == {"n_gpu_layers": 0, "n_layers": 3, "n_devices": 0, "n_probes": 1}
    assert devices == []
    assert model_params.n_gpu_layers == 7


def test_a_model_that_is_not_there(tmp_path):
    path = str(tmp_path / "missing.gguf")
    with bridge.heard_errors(is_logged=False), pytest.raises(bridge.NativeError, match=re.escape(path)):
        bridge.fit_gpu_layers(path, llama_cpp.llama_model_default_params(), context_params(), None)


def test_what_the_context_will_be_refused_for_is_told(tiny_llama):
    params = context_params(flash_attn_type=llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED)
    with pytest.raises(bridge.UnsupportedError, match="needs flash attention"):
        bridge.fit_gpu_layers(str(tiny_llama()), llama_cpp.llama_model_default_params(), params, PARAMS)
