"""The list that `morphkv archs` prints is what running every architecture finds."""

from __future__ import annotations

from pathlib import Path

import pytest

morphkv_cpp = pytest.importorskip("morphkv_cpp")

from archs import run  # noqa: E402

from morphkv_cpp.architectures import architectures  # noqa: E402

if run.programs() is None:
    pytest.skip("MORPHKV_TEST_PROGRAMS names no folder with test-llama-archs", allow_module_level=True)


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> list[Path]:
    return run.write_models(tmp_path_factory.mktemp("archs"))


def listed() -> dict[str, dict[str, str]]:
    return {each.name: dict(zip(run.HEADER, each.line())) for each in architectures()}


def test_every_architecture_of_upstream_is_listed_once(models):
    assert sorted(run.all_names()) == sorted(each.name for each in architectures())
    written = {model.stem.rsplit("-", 1)[0] for model in models}
    assert written == {each.name for each in architectures() if each.support != "not run"}


def test_what_is_served_and_what_is_refused_is_as_listed(models):
    """Without the checks of what is served: contexts alone."""
    for answer in run.probe(models, quick=True):
        found = run.row(answer)
        expected = listed()[found["architecture"]] | {"goes_back": ""}
        assert found == expected


@pytest.mark.archs
def test_each_model_does_what_is_listed(models):
    """Bit-equal to stock before the first eviction, 500 tokens behind it, rollback, state: see probe.py."""
    for model in models:
        (answer,) = run.probe([model], quick=False)
        assert run.row(answer) == listed()[run.row(answer)["architecture"]]


def test_most_architectures_with_a_cache_are_served():
    with_cache = [each for each in architectures() if each.support in ("all", "part", "refused")]
    served = [each for each in with_cache if each.support != "refused"]
    assert len(served) >= 0.9 * len(with_cache)
