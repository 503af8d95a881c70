"""The C API as Python functions."""

import numpy as np
import pytest

from morphkv_cpp import InvalidError, Llama, MorphKV, NoMorphKVError, bridge


def test_a_refused_argument_says_which_rule_it_breaks():
    with pytest.raises(InvalidError, match="window"):
        bridge.check_params(bridge.default_params() | {"window": 0})
    bridge.check_params(bridge.default_params())


def test_a_refused_next_context_leaves_nothing_pending():
    with pytest.raises(InvalidError), bridge.next_context_has(bridge.default_params() | {"window": 0}):
        raise AssertionError("the body must not run")


def test_an_error_of_the_body_without_a_native_reason_passes():
    with pytest.raises(InvalidError):
        bridge.check_params(bridge.default_params() | {"window": 0})  # an older reason must not be taken for a new one
    with pytest.raises(KeyError, match="mine"), bridge.next_context_has(bridge.default_params()):
        raise KeyError("mine")


@pytest.mark.parametrize("call", [bridge.stats, bridge.kv_bytes, lambda context: bridge.retained(context, 0, 0)])
@pytest.mark.parametrize("context", [None, 0])
def test_a_closed_context_is_refused(call, context):
    with pytest.raises(InvalidError, match="closed"):
        call(context)


@pytest.fixture(scope="module")
def context(tiny_llama):
    config = MorphKV(capacity=32, window=8, interval=4, prompt_room=0)
    llm = Llama(tiny_llama(), morphkv=config, n_ctx=512, n_threads=1, verbose=False)
    yield llm.ctx
    llm.close()


class TestContextWithMorphKV:
    def test_stats_have_the_fields_of_the_header(self, context):
        stats = bridge.stats(context)
        assert stats["capacity"] == 32
        assert stats["n_distant"] == 24
        assert "size" not in stats

    @pytest.mark.parametrize("seq_id", [-1, 1, 1000])
    def test_an_unknown_sequence_is_refused(self, context, seq_id):
        with pytest.raises(InvalidError):
            bridge.stats(context, seq_id)

    @pytest.mark.parametrize("layer", [-1, 2, 2**40])
    def test_a_layer_that_is_not_there_is_refused(self, context, layer):
        with pytest.raises(InvalidError):
            bridge.retained(context, 0, layer)

    @pytest.mark.parametrize("layer", ["1", 1.0, None])
    def test_a_layer_of_another_type_is_refused(self, context, layer):
        with pytest.raises(TypeError):
            bridge.retained(context, 0, layer)

    def test_retained_is_int32_by_head_and_slot(self, context):
        positions = bridge.retained(context, 0, 1)
        assert (positions.dtype, positions.shape) == (np.int32, (2, 24))
        assert (positions == -1).all()

    def test_nothing_was_recalled_yet(self, context):
        assert bridge.recalled(context, 0) == []
        with pytest.raises(InvalidError):
            bridge.recalled(context, 1)

    def test_kv_bytes_agree_with_the_statistics(self, context):
        assert bridge.kv_bytes(context) == bridge.stats(context)["kv_bytes"] > 0


def test_a_context_without_morphkv_says_so(tiny_llama):
    llm = Llama(tiny_llama(), n_ctx=512, n_threads=1, verbose=False)
    with pytest.raises(NoMorphKVError):
        bridge.stats(llm.ctx)
    with pytest.raises(NoMorphKVError):
        bridge.retained(llm.ctx, 0, 0)
    # two layers, K and V, two heads of 32, f16
    assert bridge.kv_bytes(llm.ctx) == 2 * 2 * 512 * 2 * 32 * 2
    llm.close()


def test_devices_are_listed_with_the_host_among_them():
    assert any(device["backend"] == "CPU" and not device["is_gpu"] for device in bridge.devices())
    assert all(isinstance(device["name"], str) and device["name"] for device in bridge.devices())
