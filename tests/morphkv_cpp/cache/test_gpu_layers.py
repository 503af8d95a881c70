"""As many layers as fit go to the GPUs where it is not said how many: with faked devices, and on RPC servers."""

import logging

import pytest

from morphkv_cpp import Llama, MorphKV, UnsupportedError, bridge
from morphkv_cpp.cache import context
from morphkv_cpp.cache.gpu_layers import DeviceUse, GpuFit, with_gpu_layers
from support.tiny import QUIET

# isort: split
# after morphkv_cpp, which says what libllama is loaded
import llama_cpp

SMALL = MorphKV(capacity=40, window=8, interval=7, prompt_room=16)
GIB = 1 << 30


class TestWithGpuLayers:
    def test_a_number_is_left_alone(self):
        for is_fitted in (False, True):
            for n in (0, -1, 7):
                assert with_gpu_layers({"n_gpu_layers": n}, is_fitted) == ({"n_gpu_layers": n}, False)

    def test_all_is_minus_one(self):
        assert with_gpu_layers({"n_gpu_layers": "all"}, True) == ({"n_gpu_layers": -1}, False)

    def test_auto_begins_with_none(self):
        assert with_gpu_layers({"n_gpu_layers": "auto"}, False) == ({"n_gpu_layers": 0}, True)
        assert with_gpu_layers({}, True) == ({"n_gpu_layers": 0}, True)
        assert with_gpu_layers({}, False) == ({}, False)

    def test_a_vocabulary_needs_no_layers(self):
        assert not with_gpu_layers({"vocab_only": True}, True)[1]

    def test_another_word_is_refused(self):
        with pytest.raises(ValueError, match="n_gpu_layers must be a number, 'auto' or 'all', got 'most'"):
            with_gpu_layers({"n_gpu_layers": "most"}, True)


def test_a_fit_is_one_line():
    one = DeviceUse("CUDA0", "NVIDIA X", int(5.13 * GIB), int(7.94 * GIB))
    two = DeviceUse("CUDA1", "NVIDIA Y", GIB, 2 * GIB)
    assert str(GpuFit(17, 31, (one,))) == ("GPU layers: 17 of 31 on CUDA0 (NVIDIA X), 5.1 of 7.9 GiB free memory used")
    assert str(GpuFit(17, 31, (one, two))).endswith("used; CUDA1 (NVIDIA Y), 1.0 of 2.0 GiB free memory used")


@pytest.fixture
def asked(monkeypatch):
    """What the native library is asked on a machine with a GPU; it finds room for one layer."""
    calls = []

    def fit(path, model_params, context_params, params):
        calls.append((path, model_params, context_params, params))
        device = {"name": "CUDA0", "description": "some card", "used_bytes": GIB, "free_bytes": 3 * GIB}
        return {"n_gpu_layers": 1, "n_layers": 3, "n_devices": 1, "n_probes": 2}, [device]

    monkeypatch.setattr(context, "has_gpu", lambda: True)
    monkeypatch.setattr(bridge, "fit_gpu_layers", fit)
    return calls


class TestLlama:
    def test_with_morphkv_as_many_as_fit_are_the_default(self, asked, open_llama, tiny_llama, caplog):
        with caplog.at_level(logging.INFO, "morphkv_cpp"):
            llm = open_llama()
        ((path, _, params, config),) = asked
        assert path == str(tiny_llama())
        assert (config["capacity"], params.n_ctx) == (40, 512)
        assert llm.model_params.n_gpu_layers == 1
        assert llm.gpu_fit.n_layers == 3
        line = "GPU layers: 1 of 3 on CUDA0 (some card), 1.0 of 3.0 GiB free memory used"
        assert caplog.messages == [line]
        assert llm.cache_stats().capacity == 40
        assert llm.model_path == path
        assert len(asked) == 1

    @pytest.mark.parametrize("n", [0, -1, "all"])
    def test_what_is_given_counts(self, asked, open_llama, n):
        llm = open_llama(n_gpu_layers=n)
        assert asked == []
        assert llm.gpu_fit is None
        assert (llm.model_params.n_gpu_layers == 0) == (n == 0)

    def test_stock_has_none_unless_asked(self, asked, open_llama):
        assert open_llama(None).model_params.n_gpu_layers == 0
        assert asked == []
        assert open_llama(None, n_gpu_layers="auto", n_ctx=300).model_params.n_gpu_layers == 1
        assert asked[0][2].n_ctx == 300
        assert asked[0][3] is None

    def test_the_trained_context_has_batches(self, asked, open_llama):
        """llama_cpp sets their size once the model is there."""
        open_llama(None, n_gpu_layers="auto", n_ctx=0, n_batch=64, n_ubatch=32)
        params = asked[0][2]
        assert (params.n_ctx, params.n_batch, params.n_ubatch) == (0, 64, 32)

    def test_without_a_gpu_nothing_is_asked_and_nothing_said(self, asked, open_llama, monkeypatch, caplog):
        monkeypatch.setattr(context, "has_gpu", lambda: False)
        with caplog.at_level(logging.INFO, "morphkv_cpp"):
            llm = open_llama(n_gpu_layers="auto")
        assert (asked, caplog.messages, llm.gpu_fit, llm.model_params.n_gpu_layers) == ([], [], None, 0)


class TestErrors:
    """Of what is opened to find out, by the native library itself, which has no GPU here."""

    @pytest.fixture(autouse=True)
    def gpu(self, monkeypatch):
        monkeypatch.setattr(context, "has_gpu", lambda: True)

    @pytest.mark.parametrize("morphkv", [SMALL, None], ids=["morphkv", "stock"])
    def test_a_model_that_cannot_be_loaded(self, tmp_path, morphkv, capfd):
        path = tmp_path / "no.gguf"
        path.write_bytes(b"nope" * 100)
        with pytest.raises(ValueError, match=r"Failed to load model from file: .*no\.gguf: .*invalid magic characters"):
            Llama(path, morphkv=morphkv, n_gpu_layers="auto", **QUIET)
        assert capfd.readouterr().err == ""

    def test_a_context_that_cannot_have_morphkv(self, open_llama):
        with pytest.raises(UnsupportedError, match="needs a K/V type among"):
            open_llama(type_k=llama_cpp.GGML_TYPE_IQ4_NL)

    def test_finding_out_says_nothing(self, open_llama, capfd):
        open_llama(verbose=True)
        loads = [line for line in capfd.readouterr().err.splitlines() if "no_alloc" in line]
        assert len(loads) == 1
        assert loads[0].endswith("= 0")


class TestRpc:
    """Servers are devices whose memory is known."""

    def test_all_of_a_tiny_model_fits(self, open_llama, rpc_servers):
        names = [server.name for server in rpc_servers]
        with_cache = open_llama(rpc_servers=names, n_gpu_layers="auto")
        fit = with_cache.gpu_fit
        assert (fit.n_gpu_layers, fit.n_layers) == (3, 3)
        assert sum(name in str(fit) for name in names) > 0
        assert all(0 < device.used_bytes < device.free_bytes for device in fit.devices)
        assert with_cache.create_completion("a", max_tokens=3, temperature=0.0)["usage"]["completion_tokens"] > 0
        with_cache.close()
