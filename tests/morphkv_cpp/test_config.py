"""Settings are checked before anything is loaded, by the rules that the native library checks again."""

import pickle
from dataclasses import asdict, fields, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from morphkv_cpp import InvalidError, MorphKV, Profile, bridge
from morphkv_cpp.config import N_MAX, native_params, settings_of
from morphkv_cpp.profile import KeepAll
from support.reference import Rules

COUNTS = ("capacity", "window", "interval", "keep", "prompt_room", "votes", "seed", "protect")


def test_defaults_are_those_of_the_native_library():
    assert native_params(MorphKV()) == bridge.default_params()


def test_defaults_suit_the_reference():
    assert Rules(**native_params(replace(MorphKV(), rope_limit=0))).n_limit == 2048


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"window": 0}, "window must be in 1..4194304, got 0"),
        ({"keep": -1}, "keep must be in 0..4194304, got -1"),
        ({"capacity": 36}, "capacity must exceed keep \\+ window, got 36 with 4 \\+ 32"),
        ({"capacity": N_MAX + 1}, "capacity must be in 2..4194304, got 4194305"),
        ({"interval": 0}, "interval must be in 1..4194304, got 0"),
        ({"prompt_room": -1}, "prompt_room must be in 0..4194304, got -1"),
        ({"votes": 33}, "votes must be in 0..window, got 33 with self.window=32"),
        ({"votes": -1}, "votes must be in 0..window, got -1"),
        ({"fusion": "mean"}, "fusion must be one of .*, got 'mean'"),
        ({"policy": "snapkv"}, "policy must be one of .*, got 'snapkv'"),
        ({"protect": -2}, "protect must be in -1..4194304, got -2"),
        ({"protect": 988}, "capacity must exceed keep \\+ window \\+ protect, got 1024 with 4 \\+ 32 \\+ 988"),
        ({"decay": 1.0}, "decay must be in \\[0, 1\\) as a 32-bit float, got 1.0"),
        ({"decay": 1 - 1e-12}, "decay must be in"),
        ({"decay": -0.1}, "decay must be in"),
        ({"decay": float("nan")}, "decay must be in .*, got nan"),
        ({"seed": -1}, "seed must be in 0..4294967295, got -1"),
        ({"seed": 2**32}, "seed must be in"),
    ],
)
def test_a_broken_rule_is_named_with_its_value(wrong, message):
    with pytest.raises(ValueError, match=message):
        MorphKV(**wrong)


@pytest.mark.parametrize("name", COUNTS)
@pytest.mark.parametrize("value", [True, np.True_, 8.0, "8", None, [8]])
def test_a_count_is_an_int(name, value):
    with pytest.raises(TypeError, match=f"{name} must be an int, got"):
        MorphKV(**{name: value})


@pytest.mark.parametrize("value", [False, "0.5", None, 0.5j])
def test_decay_is_a_number(value):
    with pytest.raises(TypeError, match="decay must be a float, got"):
        MorphKV(decay=value)


@pytest.mark.parametrize("name", ["fusion", "policy"])
@pytest.mark.parametrize("value", [0, None, b"sum"])
def test_names_are_str(name, value):
    with pytest.raises(TypeError, match=f"{name} must be a str, got"):
        MorphKV(**{name: value})


def test_numbers_of_numpy_become_plain():
    config = MorphKV(capacity=np.int64(256), window=np.uint8(16), decay=np.float32(0.5), seed=np.uint32(7))
    assert config == MorphKV(capacity=256, window=16, decay=0.5, seed=7)
    assert {type(value) for value in asdict(config).values()} == {int, float, str}
    assert type(MorphKV(decay=0).decay) is float


def test_settings_cannot_change():
    with pytest.raises(AttributeError):
        MorphKV().capacity = 5


def test_settings_survive_pickling_and_are_hashable():
    config = MorphKV(capacity=256, fusion="max", policy="random", seed=3)
    assert pickle.loads(pickle.dumps(config)) == config
    assert len({config, MorphKV(capacity=256, fusion="max", policy="random", seed=3)}) == 1


def test_fields_are_those_of_the_header():
    assert [field.name for field in fields(MorphKV)] == [*bridge.default_params(), "layers"]


PROFILE = Profile((0.5, 3.0, 0.0, 1.0, 2.0))


def test_a_profile_says_which_layers_keep_more():
    params = native_params(MorphKV(layers=PROFILE))
    assert (params["n_large"], params["large_layers"]) == (1, [1])
    bridge.check_params(params)
    assert "n_large" not in native_params(MorphKV())


def test_layers_that_keep_all_share_nothing_with_the_others():
    params = native_params(MorphKV(layers=KeepAll(PROFILE, 2, 4000)))
    assert (params["n_large"], params["large_layers"], params["large_capacity"]) == (2, [1, 4], 4000)
    bridge.check_params(params)
    bridge.check_params(native_params(MorphKV(layers=KeepAll(PROFILE, 2))))


@pytest.mark.parametrize("value", ["more", None, 3, ["auto"], "all", "all:0"])
def test_layers_are_a_word_or_a_profile(value):
    with pytest.raises(ValueError, match="layers must be 'equal', 'auto', 'all:N' or a Profile, got"):
        MorphKV(layers=value)


@pytest.mark.parametrize(
    ("settings", "n_recent"),
    [({}, 32), ({"policy": "committees"}, 256), ({"policy": "h2o"}, 512), ({"policy": "recency", "protect": 5}, 37)],
)
def test_a_policy_protects_as_many_as_it_says(settings, n_recent):
    config = MorphKV(**settings)
    assert config.n_recent == n_recent
    assert Rules(**native_params(replace(config, rope_limit=0))).n_recent == n_recent


def test_the_papers_rule_evicts_at_each_token_and_keeps_nothing_else():
    paper = MorphKV.paper(capacity=512)
    assert (paper.capacity, paper.window, paper.votes, paper.policy, paper.decay) == (512, 32, 0, "morphkv", 0.0)
    assert (paper.interval, paper.keep, paper.prompt_room, paper.n_recent) == (1, 0, 0, 32)
    assert MorphKV.paper(keep=4, fusion="max").keep == 4


def test_texts_are_told_apart_by_what_is_protected_only_where_it_is_said():
    assert "protect" not in settings_of(MorphKV())
    assert settings_of(MorphKV(protect=7)) == settings_of(MorphKV()) | {"protect": 7}


def test_texts_are_told_apart_by_layers_only_where_these_are_not_equal():
    assert "layers" not in settings_of(MorphKV())
    assert settings_of(MorphKV(layers=PROFILE)) == settings_of(MorphKV()) | {"layers": [1]}
    kept = {"all": [1, 4], "n_tokens": -1}
    assert settings_of(MorphKV(layers=KeepAll(PROFILE, 2))) == settings_of(MorphKV()) | {"layers": kept}


NEAR_LIMITS = st.sampled_from([-1, 0, 1, 2, 3, 4, 8, N_MAX - 1, N_MAX, N_MAX + 1])


@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    st.fixed_dictionaries(
        {name: NEAR_LIMITS for name in COUNTS if name != "seed"}
        | {
            "seed": st.sampled_from([0, 2**32 - 1]),
            "decay": st.floats(-0.5, 1.5, allow_nan=False) | st.sampled_from([-1e-60, 0.99999994, 0.999999999]),
            "fusion": st.sampled_from(["sum", "max"]),
            "policy": st.sampled_from(["morphkv", "recency", "random", "committees", "h2o"]),
        }
    )
)
def test_python_and_native_rules_are_the_same(params):
    def is_refused(check) -> bool:
        try:
            check()
        except (ValueError, InvalidError):
            return True
        return False

    assert is_refused(lambda: MorphKV(**params)) == is_refused(lambda: bridge.check_params(params))
