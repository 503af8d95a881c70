"""The list that `morphkv archs` prints is what running every architecture finds."""

from __future__ import annotations

from pathlib import Path

import pytest

morphkv_cpp = pytest.importorskip("morphkv_cpp")

from archs import facts, run, variants  # noqa: E402

from morphkv_cpp.architectures import architectures  # noqa: E402

if run.programs() is None:
    pytest.skip(
        "MORPHKV_TEST_PROGRAMS names no folder with test-llama-archs and morphkv-model-rows", allow_module_level=True
    )


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> list[Path]:
    return run.write_models(tmp_path_factory.mktemp("archs"))


def listed() -> dict[tuple[str, str], dict[str, str]]:
    return {(each.name, each.variant): dict(zip(run.HEADER, each.line())) for each in architectures()}


def test_every_architecture_of_upstream_and_each_variant_is_listed_once(models):
    assert set(run.all_names()) == {each.name for each in architectures()}
    assert len(listed()) == len(architectures())
    written = {variants.names_of(model) for model in models}
    assert written == {(each.name, each.variant) for each in architectures() if each.support != "not run"}


def test_rows_of_one_architecture_say_of_which_variant_they_are():
    for each in architectures():
        others = [other for other in architectures() if other.name == each.name]
        assert (each.variant != "") == (len(others) > 1)


def test_what_is_served_and_what_is_refused_is_as_listed(models):
    """Without the checks of what is served: contexts alone."""
    for answer in run.probe(models, quick=True):
        found = run.row(answer)
        expected = listed()[found["architecture"], found["variant"]] | {"goes_back": ""}
        assert found == expected


@pytest.mark.archs
def test_each_model_does_what_is_listed(models):
    """Bit-equal to stock before the first eviction, 500 tokens behind it, rollback, state, a prompt read with an
    archive: see probe.py. A hundred rebases, and rows that come back: see rows.py.
    """
    for model in models:
        found = run.checked(model)
        assert found == listed()[found["architecture"], found["variant"]]


def test_most_architectures_with_a_cache_are_served():
    with_cache = [each for each in architectures() if each.support in ("all", "part", "refused")]
    served = {each.name for each in with_cache if each.is_served}
    assert len(served) >= 0.9 * len({each.name for each in with_cache})


def test_at_least_105_are_rebased_and_archived():
    """Whole, but for those with recurrent layers where they do not go back."""
    whole = {each.name for each in architectures() if each.is_served}
    whole -= {each.name for each in architectures() if {each.is_rebased, each.is_archived} & {"no"}}
    assert len(whole) >= 105
    cannot = [each for each in architectures() if each.goes_back == "no"]
    assert all("layers that attend" in each.why for each in cannot)


def test_images_and_heads_are_those_of_llama_cpp():
    assert set(facts.WITH_IMAGES) <= set(run.all_names())
    heads = facts.with_heads(run.upstream_source())
    assert {"qwen35", "glm4moe", "nemotronhmoe"} <= heads <= {facts.plain(name) for name in run.all_names()}
    assert not heads & {"llama", "gemma4"}
