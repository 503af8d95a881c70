"""Profiles of layers: which keep more, and their files."""

import json
import math

import pytest

from morphkv_cpp import Profile
from morphkv_cpp.profile import KeepAll, layers_of


def test_a_quarter_of_the_layers_that_are_cut_keeps_more_the_most_harm_first():
    assert Profile((1.0, 4.0, 2.0, 3.0)).large == (1,)
    assert Profile((1.0, 4.0, 2.0, 3.0, 0.5)).large == (1, 3)  # of five: two
    assert Profile((0.0, 0.0, 2.0, 0.0)).large == (2,)
    assert Profile((1.0, 1.0, 1.0, 1.0, 1.0)).large == (0, 1)
    assert len(Profile((1.0,) * 30).large) == 8
    assert len(Profile((1.0,) * 1000).large) == 128


def test_a_share_is_of_all_harm():
    assert Profile((1.0, 4.0, 2.0, 3.0)).share == pytest.approx(0.4)


@pytest.mark.parametrize("harm", [(), (1.0, -0.5), (math.nan,), (math.inf, 1.0)])
def test_harm_is_a_number_for_each_layer(harm):
    with pytest.raises(ValueError, match="harm must be a number of at least 0 for each layer, got"):
        Profile(harm)


def test_a_file_holds_all(tmp_path):
    profile = Profile((1.0, 4.0, 0.0, 3.0), model="x.gguf", fingerprint="abc")
    profile.save(tmp_path / "deeper" / "x.json")
    assert Profile.load(tmp_path / "deeper" / "x.json") == profile
    assert layers_of(str(tmp_path / "deeper" / "x.json")) == profile
    # llama-server reads these two
    values = json.loads((tmp_path / "deeper" / "x.json").read_text())
    assert (values["morphkv_profile"], values["large"]) == (1, [1])
    assert [path.name for path in (tmp_path / "deeper").iterdir()] == ["x.json"]


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "{}", '{"morphkv_profile": 2}', '{"morphkv_profile": 1, "harm": ["a"], "model": ""}']
)
def test_what_is_no_profile_is_refused(tmp_path, text):
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(ValueError, match=r"x\.json is no profile of layers"):
        Profile.load(tmp_path / "x.json")


@pytest.mark.parametrize("word", ["equal", "auto", "all:1", "all:8"])
def test_an_option_is_a_word(word):
    assert layers_of(word) == word


@pytest.mark.parametrize("word", ["more", "all", "all:", "all:0", "all:-1", "all:x", "all:8:", "All:8"])
def test_or_a_file(word):
    with pytest.raises(ValueError, match=f"layers must be equal, auto, all:N or the file of a profile, got '{word}'"):
        layers_of(word)


def test_as_many_as_are_asked_for_keep_all_the_most_harm_first():
    profile = Profile((1.0, 4.0, 0.0, 3.0, 3.0), model="x.gguf")
    assert KeepAll(profile, 1).layers == profile.large == (1,)
    assert KeepAll(profile, 3).layers == (1, 3, 4)
    for n_layers in (0, 4):
        with pytest.raises(ValueError, match=rf"in 1\.\.3, fewer than are cut in x\.gguf, got {n_layers}"):
            KeepAll(profile, n_layers)
