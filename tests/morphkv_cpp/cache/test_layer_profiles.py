"""What layers="auto" finds for a model, and what it does to its cache."""

import pytest

from morphkv_cpp import AttachError, Llama, MorphKV, Profile
from morphkv_cpp.cache import layer_profiles
from morphkv_cpp.cache.fingerprint import model_fingerprint
from support.tiny import QUIET, some_tokens

SIZES = {"capacity": 500, "interval": 12, "prompt_room": 0, "window": 8, "keep": 2}
AUTO = MorphKV(**SIZES)
EQUAL = MorphKV(**SIZES, layers="equal")


@pytest.fixture
def model(tiny_llama, tmp_path, monkeypatch):
    monkeypatch.setenv("MORPHKV_CACHE", str(tmp_path))
    return tiny_llama()


def store(model, harm) -> Profile:
    fingerprint = model_fingerprint(model)
    profile = Profile(harm, model.name, fingerprint)
    profile.save(layer_profiles.stored_path(fingerprint))
    return profile


def test_a_stored_profile_is_used(model):
    profile = store(model, (1.0, 2.0))
    with Llama(model, morphkv=AUTO, **QUIET) as llm:
        assert llm.morphkv == MorphKV(**SIZES, layers=profile)
        stats = llm.cache_stats()
        assert (stats.n_groups, stats.capacity, stats.min_capacity, stats.max_capacity) == (2, 500, 244, 756)
        assert (llm.retained(0).shape[1], llm.retained(1).shape[1]) == (236, 748)
        assert llm.least_morphkv == MorphKV(**{**SIZES, "capacity": 244}, layers="equal")


def test_without_a_profile_all_layers_are_alike(model):
    with Llama(model, morphkv=AUTO, **QUIET) as llm:
        assert llm.morphkv == llm.least_morphkv == AUTO
        assert llm.cache_stats().n_groups == 1


def test_with_attached_files_all_layers_are_alike(model, tmp_path):
    """One of them has too few tokens for the slots of the larger."""
    with Llama(model, morphkv=AUTO, archive="ram", n_batch=64, **QUIET) as llm:
        read = llm.read(text="It is said. " * 60, into=tmp_path / "manual.archive", progress=False)
    assert 492 <= read.n_tokens < 748
    profile = store(model, (1.0, 2.0))
    with Llama(model, morphkv=AUTO, archive=[read.path], n_batch=64, **QUIET) as llm:
        assert llm.cache_stats().n_groups == 1
    with pytest.raises(AttachError, match="at least as many tokens as there are slots"):
        Llama(model, morphkv=MorphKV(**SIZES, layers=profile), archive=[read.path], n_batch=64, **QUIET)


def test_the_bytes_are_those_of_equal_layers(model):
    store(model, (1.0, 2.0))
    with Llama(model, morphkv=AUTO, **QUIET) as llm, Llama(model, morphkv=EQUAL, **QUIET) as alike:
        assert llm.cache_stats().kv_bytes == alike.cache_stats().kv_bytes
        assert abs(llm.cache_stats().extra_bytes / alike.cache_stats().extra_bytes - 1) < 0.01


def test_a_profile_of_another_model_is_not_used(model, tiny_llama):
    profile = store(model, (1.0, 2.0))
    other = tiny_llama(n_layer=3)
    profile.save(layer_profiles.stored_path(model_fingerprint(other)))
    assert layer_profiles.find_profile(other) is None
    assert layer_profiles.find_profile(model) == (layer_profiles.stored_path(profile.fingerprint), profile)


def test_a_stored_profile_that_is_damaged_is_told_and_is_none(model, caplog):
    path = layer_profiles.stored_path(store(model, (1.0, 2.0)).fingerprint)
    path.write_text("{")
    with Llama(model, morphkv=AUTO, **QUIET) as llm:
        assert llm.cache_stats().n_groups == 1
    assert "is no profile of layers" in caplog.text
    assert caplog.text.endswith(": all layers are alike\n")


def test_a_saved_text_goes_on_with_the_same_layers_only(model, tmp_path):
    store(model, (1.0, 2.0))
    path = tmp_path / "text.state"
    with Llama(model, morphkv=AUTO, n_batch=64, **QUIET) as llm:
        llm.eval(some_tokens(900))
        llm.save_state_file(path)
        expected = llm.cache_stats()
    with Llama(model, morphkv=AUTO, n_batch=64, **QUIET) as llm:
        llm.load_state_file(path)
        assert llm.cache_stats().n_evicted == expected.n_evicted
        assert llm.n_tokens == 900
    with Llama(model, morphkv=EQUAL, n_batch=64, **QUIET) as llm:
        with pytest.raises(ValueError, match="saved with another settings"):
            llm.load_state_file(path)


def test_what_is_kept_fits_into_the_layers_that_keep_least(model):
    profile = store(model, (1.0, 2.0))
    with pytest.raises(ValueError, match=r"keep must be in 0\.\.capacity - window - 1, got 236 with 244 - 8"):
        Llama(model, morphkv=MorphKV(**SIZES, layers=profile), keep=236, **QUIET)
    Llama(model, morphkv=MorphKV(**SIZES, layers=profile), keep=235, **QUIET).close()


def test_layers_may_keep_all(model, tmp_path):
    store(model, (1.0, 2.0))
    config = MorphKV(**{**SIZES, "capacity": 64}, layers="all:1")
    with Llama(model, morphkv=config, n_batch=64, n_ctx=700, **QUIET) as llm:
        stats = llm.cache_stats()
        assert (stats.min_capacity, stats.max_capacity) == (64, 688)  # and room for 12
        assert llm.least_morphkv == MorphKV(**{**SIZES, "capacity": 64}, layers="equal")
        with Llama(model, morphkv=MorphKV(**{**SIZES, "capacity": 64}), n_batch=64, **QUIET) as alike:
            n_bytes = alike.cache_stats().kv_bytes // 2  # of a layer with 76 cells, as 256
        assert stats.kv_bytes == n_bytes + n_bytes * 768 // 256
        llm.eval(some_tokens(650))
        assert (llm.retained(1) == -1).all()
        assert (llm.retained(0) >= 0).all()
        assert llm.cache_stats().kv_bytes == stats.kv_bytes
        llm.save_state_file(tmp_path / "text.state")
        newest = llm.cache_stats().logical_pos
    with Llama(model, morphkv=config, n_batch=64, n_ctx=700, **QUIET) as llm:
        llm.load_state_file(tmp_path / "text.state")
        assert llm.cache_stats().logical_pos == newest


def test_without_n_ctx_they_keep_as_many_as_the_model_was_trained_on(model):
    store(model, (1.0, 2.0))
    config = MorphKV(**{**SIZES, "capacity": 64}, layers="all:1")
    with Llama(model, morphkv=config, n_batch=64, **QUIET) as llm:
        n_trained = llm._model.n_ctx_train()
        assert llm.cache_stats().max_capacity == n_trained - 12
        llm.eval(some_tokens(n_trained + 100))
        assert (llm.retained(1) >= 0).all()
        stats = llm.cache_stats()
        assert stats.n_rebases > 0
        assert stats.logical_pos - stats.rotary_offset < n_trained


def test_to_keep_all_needs_a_profile_that_is_right(model):
    with pytest.raises(ValueError, match=r"layers='all:N' needs a profile of the model: run `morphkv profile .*` once"):
        Llama(model, morphkv=MorphKV(layers="all:1"), **QUIET)
    path = layer_profiles.stored_path(store(model, (1.0, 2.0)).fingerprint)
    with pytest.raises(ValueError, match=r"layers='all:N' must be in 1\.\.1, fewer than are cut in .*, got 2"):
        Llama(model, morphkv=MorphKV(layers="all:2"), **QUIET)
    path.write_text("{")
    with pytest.raises(ValueError, match="is no profile of layers"):
        Llama(model, morphkv=MorphKV(layers="all:1"), **QUIET)
