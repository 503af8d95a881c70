"""Models of the hub, from a stand-in for it on the loopback interface."""

import json
import os
import re
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from morphkv_cpp.models.hub import cached_models, chosen, hub_model_path, parts
from support.hub import Hub

pytest.importorskip("huggingface_hub", reason="models of the hub need huggingface_hub")
FILES = ["a-Q4_K_M.gguf", "a-Q8_0.gguf", "big/b-00001-of-00002.gguf", "big/b-00002-of-00002.gguf", "mmproj-f16.gguf"]
PARTS = FILES[2:4]


@pytest.mark.parametrize(
    ("wanted", "file"),
    [
        ("*q4_k_m*", "a-Q4_K_M.gguf"),
        ("a-Q8_0.gguf", "a-Q8_0.gguf"),
        ("q8_0", "a-Q8_0.gguf"),
        ("big*", PARTS[0]),
        ("mmproj*", "mmproj-f16.gguf"),
        (None, "a-Q4_K_M.gguf"),
    ],
)
def test_one_file_is_meant(wanted, file):
    assert chosen("o/r", wanted, [*FILES, "README.md"]) == file


@pytest.mark.parametrize(("wanted", "means"), [("*q5*", "none"), ("a-*", r"a-Q4_K_M\.gguf, a-Q8_0\.gguf")])
def test_none_or_several_are_refused_with_what_there_is(wanted, means):
    with pytest.raises(ValueError, match=rf"must mean one of a-Q4_K_M\.gguf, .*; it means {means}$"):
        chosen("o/r", wanted, FILES)


def test_without_a_name_the_only_model_is_meant():
    assert chosen("o/r", None, ["a-f16.gguf", "mmproj-f16.gguf"]) == "a-f16.gguf"
    with pytest.raises(ValueError, match=r"^FILE of hf:o/r must mean one of no GGUF files; it means none$"):
        chosen("o/r", None, ["model.safetensors"])


def test_a_model_has_all_its_parts():
    assert parts(PARTS[0]) == PARTS
    assert parts("a-Q8_0.gguf") == ["a-Q8_0.gguf"]


@pytest.mark.parametrize("name", ["hf:", "hf:owner", "hf:owner/repo/more:x", "hf:owner/repo:"])
def test_other_forms_are_refused(name):
    with pytest.raises(ValueError, match="must be hf:OWNER/REPO:FILE"):
        hub_model_path(name)


class Pull:
    """`morphkv pull` with a cache of its own, from a hub that serves owner/tiny and owner/parts; its url may change."""

    def __init__(self, folder: Path, model: bytes):
        self.folder = folder
        self.url = ""
        for name in ("owner/tiny/tiny-Q8_0.gguf", *(f"owner/parts/{part}" for part in PARTS)):
            path = folder / "hub" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(model)

    def __call__(self, *arguments: str, code: str = "") -> subprocess.CompletedProcess:
        """code: what runs before."""
        environment = {
            **os.environ,
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(self.folder / "home"),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "COLUMNS": "40",
        }
        program = f"{code}\nfrom morphkv_cpp.cli.app import main; main(['pull', *{arguments!r}])"
        command = [sys.executable, "-c", program]
        return subprocess.run(
            command, env=environment, cwd=self.folder, capture_output=True, text=True, check=False, timeout=300
        )


@pytest.fixture
def pull(tiny_llama, tmp_path):
    pull = Pull(tmp_path, Path(tiny_llama()).read_bytes())
    with closing(Hub(tmp_path / "hub")) as hub:
        pull.url = hub.url.rstrip("/")
        yield pull


def test_a_model_is_fetched_and_listed(pull):
    first = pull("hf:owner/tiny")
    assert first.returncode == 0, first.stderr
    assert first.stderr == ""  # no bar where there is no terminal
    data = (pull.folder / "hub/owner/tiny/tiny-Q8_0.gguf").read_bytes()
    assert Path(first.stdout.strip()).read_bytes() == data

    listed = pull()
    assert listed.returncode == 0, listed.stderr
    assert f"{len(data) / 2**20:.1f} MiB  hf:owner/tiny:tiny-Q8_0.gguf" in listed.stdout

    as_json = json.loads(pull("--json").stdout)["models"]
    assert [model["n_bytes"] for model in as_json if model["name"] == "hf:owner/tiny:tiny-Q8_0.gguf"] == [len(data)]


def test_all_parts_are_fetched(pull):
    done = pull("hf:owner/parts:big*")
    assert done.returncode == 0, done.stderr
    path = Path(done.stdout.strip())
    assert path.name == "b-00001-of-00002.gguf"
    assert path.with_name("b-00002-of-00002.gguf").is_file()
    assert f"hf:owner/parts:{PARTS[0]}" in pull().stdout
    assert PARTS[1] not in pull().stdout


def test_what_was_fetched_needs_no_network(pull):
    assert pull("hf:owner/tiny:tiny-Q8_0.gguf").returncode == 0
    pull.url = "http://127.0.0.1:9"  # nobody listens
    for name in ("hf:owner/tiny:tiny-Q8_0.gguf", "hf:owner/tiny:q8_0"):
        done = pull(name)
        assert done.returncode == 0, done.stderr
        assert done.stdout.strip().endswith("tiny-Q8_0.gguf")
    assert "the hub cannot be reached: of hf:owner/tiny only what is cached is known" in done.stderr


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("hf:owner/tiny:other.gguf", "the file of hf:owner/tiny must be one of tiny-Q8_0.gguf; got other.gguf"),
        ("hf:owner/tiny:q4", "q4 of hf:owner/tiny must mean one of tiny-Q8_0.gguf; it means none"),
        ("hf:owner/none:a.gguf", "hf:owner/none must be a repository that you may read, got none"),
        ("hf:owner/none", "hf:owner/none must be a repository that you may read, got none"),
    ],
)
def test_what_is_not_there_is_a_sentence(pull, name, sentence):
    done = pull(name)
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: {sentence}"), done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("name", ["hf:owner/tiny:a.gguf", "hf:owner/tiny"])
def test_no_network_is_a_sentence(pull, name):
    pull.url = "http://127.0.0.1:9"
    done = pull(name)
    assert done.returncode == 1
    assert re.search("error: the hub cannot be reached.* cached$", done.stderr)
    assert "Traceback" not in done.stderr


def test_without_the_extra_it_says_what_to_install(pull):
    missing = "import sys; sys.modules['huggingface_hub'] = None"
    done = pull("hf:owner/tiny", code=missing)
    assert done.returncode == 1
    assert done.stderr == "error: models of the hub need huggingface_hub: pip install 'morphkv_cpp[hub]'\n"
    assert pull(code=missing).returncode == 0


def test_nothing_fetched_is_nothing_listed(tmp_path, monkeypatch):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "none"))
    assert cached_models() == []
