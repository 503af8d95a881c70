"""`morphkv profile`: measures, stores, shows; and --layers in other commands."""

import json

import pytest

from morphkv_cpp import Profile
from morphkv_cpp.cache.layer_profiles import stored_path
from morphkv_cpp.cli.serve import with_profile
from support.command import run


@pytest.fixture
def model(tiny_llama, tmp_path, monkeypatch):
    monkeypatch.setenv("MORPHKV_CACHE", str(tmp_path / "cache"))
    return tiny_llama(n_layer=3)


def test_a_profile_is_measured_shown_and_found(model, capsys, monkeypatch):
    assert run("profile", str(model), "-t", "1") == 0
    shown = capsys.readouterr()
    assert [line.split()[:2] for line in shown.out.splitlines()[:3]] == [["layer", str(i)] for i in range(3)]
    assert shown.out.count("keeps more") == 1
    assert "1 of 3 layers do" in shown.out
    assert "written: " in shown.err

    assert run("profile", str(model), "--show", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    profile = Profile.load(found["profile"])
    assert (
        stored_path(profile.fingerprint) == stored_path(profile.fingerprint).parent / f"{profile.fingerprint[:32]}.json"
    )
    assert found["large"] == list(profile.large)
    assert found["harm"] == list(profile.harm)
    # and serve finds it
    assert with_profile(["--layers", "auto", "-c", "9"], model) == ["--layers", found["profile"], "-c", "9"]
    assert with_profile(["--morphkv-layers=auto"], model) == [f"--morphkv-layers={found['profile']}"]
    assert with_profile(["-c", "9"], model) == ["-c", "9", "--layers", found["profile"]]
    assert with_profile(["--layers", "all:1"], model) == ["--layers", f"all:1:{found['profile']}"]
    assert with_profile(["--layers=equal"], model) == ["--layers=equal"]
    assert with_profile(["--attach", "a.archive"], model) == ["--attach", "a.archive"]
    monkeypatch.setenv("LLAMA_ARG_MORPHKV_LAYERS", "equal")
    assert with_profile(["-c", "9"], model) == ["-c", "9"]


def test_another_place_and_text(model, tmp_path, capsys):
    (tmp_path / "text.txt").write_text("Lorem ipsum dolor sit amet. " * 40)
    assert (
        run("profile", str(model), "-t", "1", "--text", str(tmp_path / "text.txt"), "-o", str(tmp_path / "x.json")) == 0
    )
    assert len(Profile.load(tmp_path / "x.json").harm) == 3
    capsys.readouterr()
    assert run("profile", str(model), "--show") == 1
    assert "there is no profile of" in capsys.readouterr().err
    assert with_profile(["--layers", "auto"], model) == ["--layers", "equal"]
    with pytest.raises(ValueError, match="needs a profile of the model"):
        with_profile(["--layers", "all:1"], model)
    assert with_profile(["-c", "9"], model) == ["-c", "9"]
    assert with_profile(["--layers", "x.json", "--layers"], model) == ["--layers", "x.json", "--layers"]
