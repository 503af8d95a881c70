"""Caches named on the command line."""

import pytest

from morphkv_cpp import MorphKV
from morphkv_cpp.eval.arms import Arm, parse_arms

SETTINGS = MorphKV(capacity=100, window=8, interval=16)


def test_full_is_the_stock_cache():
    assert parse_arms("full", SETTINGS) == [Arm("full", None)]


def test_what_an_arm_does_not_say_is_as_in_the_settings():
    assert parse_arms("recency", SETTINGS) == [
        Arm("recency", MorphKV(capacity=100, window=8, interval=16, policy="recency"))
    ]


def test_a_capacity_and_settings_change_an_arm():
    (arm,) = parse_arms("morphkv@50:window=20:fusion=max:decay=0.5", SETTINGS)
    assert arm.name == "morphkv@50:window=20:fusion=max:decay=0.5"
    assert arm.morphkv == MorphKV(capacity=50, window=20, interval=16, fusion="max", decay=0.5)


def test_arms_keep_their_order():
    assert [arm.name for arm in parse_arms("random, full,morphkv@60", SETTINGS)] == ["random", "full", "morphkv@60"]


@pytest.mark.parametrize(
    "text, sentence",
    [
        ("", "arms must be distinct names"),
        ("full,full", "arms must be distinct names"),
        ("full@30", "an arm must be full or start with one of morphkv"),
        ("newest", "an arm must be full or start with one of morphkv"),
        ("morphkv@many", "capacity must be of type int, got 'many'"),
        ("morphkv:window", "a setting of an arm must be NAME=VALUE"),
        ("morphkv:height=3", "a setting of an arm must be NAME=VALUE"),
        ("morphkv:window=99", "capacity must exceed keep [+] window"),
    ],
)
def test_nonsense_is_refused(text, sentence):
    with pytest.raises(ValueError, match=sentence):
        parse_arms(text, SETTINGS)
