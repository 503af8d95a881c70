"""Arms of the suite: what is written, and that all take the same bytes."""

from contextlib import closing

import pytest

from morphkv_cpp import Archive, Llama, MorphKV
from morphkv_cpp.eval import suite_arms
from morphkv_cpp.eval.suite_arms import PEERS, SuiteArm, bases, default_arms, parse_suite_arms, peer_arms, published
from support.tiny import QUIET


def arms(text: str, n_cells: int = 512) -> list[SuiteArm]:
    return parse_suite_arms(text, n_cells, 64)


def test_an_arm_is_its_base_and_what_is_changed():
    full, shift, ours = arms("full, shift, morphkv:window=16:layers=auto+archive")
    assert full == SuiteArm("full", 0)
    assert full.is_full
    assert shift == SuiteArm("shift", 512)
    config = MorphKV(capacity=448, interval=64, prompt_room=0, window=16, layers="auto")
    assert ours == SuiteArm("morphkv:window=16:layers=auto+archive", 512, "f16", config, Archive())


def test_a_smaller_type_buys_cells():
    q8, q4, ours = arms("shift/q8_0,shift/q4_0,morphkv/q8_0")
    assert (q8.n_cells, q4.n_cells) == (768, 1792)
    assert ours.cell_type == "q8_0"
    assert ours.morphkv.capacity == 768 - 64


def test_the_published_settings_keep_nothing_for_being_first():
    (paper,) = arms("paper")
    assert paper.morphkv.policy == "morphkv"
    assert (paper.morphkv.window, paper.morphkv.keep, paper.morphkv.capacity) == (32, 0, 448)


def test_settings_that_a_version_calls_paper_are_used(monkeypatch):
    monkeypatch.setattr(MorphKV, "paper", lambda: MorphKV(window=7), raising=False)
    assert published().window == 7


def test_policies_of_this_version_are_arms(monkeypatch):
    monkeypatch.setattr(suite_arms, "POLICIES", ("morphkv", "recency", "random"))
    assert "h2o" not in bases()
    assert "h2o" not in default_arms().split(",")
    assert "recency" in default_arms().split(",")
    assert len(parse_suite_arms(default_arms(), 768, 64)) == len(default_arms().split(","))


def test_arms_of_other_settings_are_other_arms():
    settings = [str(arm.settings()) for arm in arms("full,shift,shift/q8_0,morphkv,morphkv:decay=0.5,morphkv+archive")]
    assert len(set(settings)) == 6
    assert arms("morphkv:window=32")[0].settings() == arms("morphkv")[0].settings()


def test_peers_are_cut_so_that_an_interval_finds_room():
    (full, uncut, *peers) = arms(f"full,{peer_arms('kvpress')}")
    assert [arm.name.partition("/")[2] for arm in (uncut, *peers)] == list(PEERS["kvpress"])
    assert (uncut.n_cells, uncut.is_full) == (0, False)
    assert {(arm.n_cells, arm.peer.capacity, arm.peer.interval) for arm in peers} == {(512, 448, 64)}
    assert len({str(arm.settings()) for arm in peers}) == 4
    # results of other arms keep their keys
    assert set(full.settings()) == {"n_cells", "type", "morphkv", "archive"}


@pytest.mark.parametrize("n_cells", [512, 768])
def test_bytes_are_the_same_for_all(tiny_llama, n_cells):
    found = set()
    for arm in arms("morphkv,recency,random,paper", n_cells):
        with closing(Llama(tiny_llama(), morphkv=arm.morphkv, **QUIET)) as llm:
            stats = llm.cache_stats()
            found.add((stats.kv_bytes, stats.n_cells))
    ((_, cells),) = found
    assert cells == n_cells


@pytest.mark.parametrize(
    "text, n_cells, sentence",
    [
        ("full,full", 512, "arms must be distinct names"),
        ("newest", 512, "an arm must start with one of full, shift, morphkv"),
        ("shift/q9", 512, "an arm's type must be one of f32"),
        ("shift+archive", 512, "an arm of stock llama.cpp has neither settings nor an archive, got 'shift.archive'"),
        ("full:window=3", 512, "an arm of stock llama.cpp has neither"),
        ("morphkv:height=3", 512, "a setting of an arm must be NAME=VALUE"),
        ("kvpress/q8_0", 512, "an arm of kvpress must be one of kvpress/full,kvpress/snapkv,.*, got 'kvpress/q8_0'"),
        ("kvpress", 512, "an arm of kvpress must be one of"),
        ("kvpress/h2o:window=3", 512, "an arm of kvpress must be one of"),
        ("kvpress/h2o+archive", 512, "an arm of kvpress must be one of"),
        ("full", 500, "cells must be a multiple of 256, got 500"),
    ],
)
def test_what_is_refused(text, n_cells, sentence):
    with pytest.raises(ValueError, match=sentence):
        arms(text, n_cells)
