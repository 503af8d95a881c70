"""Models of the hub, from a stand-in for it on the loopback interface."""

import os
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from morphkv_cpp.models.hub import cached_models, chosen, hub_model_path
from support.hub import Hub

pytest.importorskip("huggingface_hub", reason="models of the hub need huggingface_hub")
FILES = ["a-Q4_K_M.gguf", "a-Q8_0.gguf", "big-00001-of-00002.gguf", "big-00002-of-00002.gguf"]


@pytest.mark.parametrize(
    ("pattern", "file"),
    [("*q4_k_m*", "a-Q4_K_M.gguf"), ("a-Q8_0.gguf", "a-Q8_0.gguf"), ("big*", "big-00001-of-00002.gguf")],
)
def test_a_pattern_means_one_file_or_its_first_part(pattern, file):
    assert chosen("o/r", pattern, FILES) == file


@pytest.mark.parametrize(("pattern", "means"), [("*q5*", "none"), ("a-*", "a-Q4_K_M.gguf, a-Q8_0.gguf")])
def test_none_or_several_are_refused_with_what_there_is(pattern, means):
    with pytest.raises(ValueError, match=rf"must mean one of a-Q4_K_M\.gguf, .*; it means {means}"):
        chosen("o/r", pattern, FILES)


@pytest.mark.parametrize("name", ["hf:", "hf:owner", "hf:owner/repo/more:x", "hf:owner/repo:"])
def test_other_forms_are_refused(name):
    with pytest.raises(ValueError, match="must be hf:OWNER/REPO:FILE"):
        hub_model_path(name)


@pytest.mark.parametrize("name", ["hf:owner/tiny:tiny.gguf", "hf:owner/tiny:*TINY*", "hf:owner/tiny"])
def test_a_model_is_fetched_once_and_listed(tiny_llama, tmp_path, name):
    folder = tmp_path / "hub" / "owner" / "tiny"
    folder.mkdir(parents=True)
    data = Path(tiny_llama()).read_bytes()
    (folder / "tiny.gguf").write_bytes(data)
    with closing(Hub(tmp_path / "hub")) as hub:
        environment = {
            **os.environ,
            "HF_ENDPOINT": hub.url.rstrip("/"),
            "HF_HOME": str(tmp_path / "home"),
            "HF_HUB_DISABLE_XET": "1",
        }
        command = [sys.executable, "-m", "morphkv_cpp", "pull"]
        for arguments in ([name], [name], []):
            done = subprocess.run(
                [*command, *arguments], env=environment, cwd=tmp_path, capture_output=True, text=True, check=False
            )
            assert done.returncode == 0, done.stderr
            if arguments:
                assert Path(done.stdout.strip()).read_bytes() == data
    assert "hf:owner/tiny:tiny.gguf" in done.stdout


def test_nothing_fetched_is_nothing_listed(tmp_path, monkeypatch):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "none"))
    assert cached_models() == []
