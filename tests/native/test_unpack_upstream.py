"""native/scripts on a tree of two files instead of llama.cpp."""

import importlib
import io
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).resolve().parents[2] / "native" / "scripts"

PATCH = """\
From 0000000000000000000000000000000000000000 Mon Sep 17 00:00:00 2001
From: morphkv_cpp <morphkv@localhost>
Date: Thu, 1 Jan 2026 00:00:00 +0000
Subject: memory: call the hook

diff --git a/src/memory.cpp b/src/memory.cpp
--- a/src/memory.cpp
+++ b/src/memory.cpp
@@ -1,2 +1,3 @@
 first
+hook();
 last
"""


@pytest.fixture
def scripts(monkeypatch, tmp_path):
    """(fetch_upstream, unpack_upstream) with a small sdist in place of the pinned one."""
    monkeypatch.syspath_prepend(str(SCRIPTS))
    fetch_upstream = importlib.import_module("fetch_upstream")
    unpack_upstream = importlib.import_module("unpack_upstream")
    sdist = tmp_path / "up.tar.gz"
    with tarfile.open(sdist, "w:gz") as archive:
        for name, text in {"src/memory.cpp": "first\nlast\n", "src/other.cpp": "other\n", "docs/x.md": "x\n"}.items():
            member = tarfile.TarInfo(f"up/llama.cpp/{name}")
            member.size = len(text)
            archive.addfile(member, io.BytesIO(text.encode()))
    pin = {"FILE": "up.tar.gz", "TREE": "up/llama.cpp", "SHA256": fetch_upstream.sha256_of(sdist)}
    for module in (fetch_upstream, unpack_upstream):
        monkeypatch.setattr(module, "read_pin", lambda: pin)
    monkeypatch.setenv("MORPHKV_UPSTREAM_SDIST", str(sdist))
    yield fetch_upstream, unpack_upstream
    for name in ("fetch_upstream", "unpack_upstream"):
        sys.modules.pop(name, None)


@pytest.fixture
def patch(tmp_path):
    path = tmp_path / "0001-memory-call-the-hook.patch"
    path.write_text(PATCH)
    return path


def test_patch_is_applied_inside_another_repository(scripts, patch, tmp_path):
    subprocess.run(["git", "init", "--quiet", str(tmp_path)], check=True)
    dest = tmp_path / "build" / "upstream"
    assert scripts[1].unpack(dest, [patch])
    assert (dest / "src/memory.cpp").read_text() == "first\nhook();\nlast\n"
    assert not (dest / "docs").exists()


def test_unchanged_inputs_write_nothing(scripts, patch, tmp_path):
    assert scripts[1].unpack(tmp_path / "t", [patch])
    assert not scripts[1].unpack(tmp_path / "t", [patch])


def test_only_files_that_changed_are_rewritten(scripts, patch, tmp_path):
    scripts[1].unpack(tmp_path / "t", [])
    for path in (tmp_path / "t/src").iterdir():
        os.utime(path, (1, 1))
    scripts[1].unpack(tmp_path / "t", [patch])
    assert (tmp_path / "t/src/other.cpp").stat().st_mtime == 1
    assert (tmp_path / "t/src/memory.cpp").stat().st_mtime > 1


def test_edited_tree_is_neither_built_nor_overwritten(scripts, patch, tmp_path):
    scripts[1].unpack(tmp_path / "t", [])
    (tmp_path / "t/src/other.cpp").write_text("mine\n")
    for patches in ([], [patch]):
        with pytest.raises(SystemExit, match=r"was edited after it was unpacked: src/other\.cpp"):
            scripts[1].unpack(tmp_path / "t", patches)
    assert (tmp_path / "t/src/other.cpp").read_text() == "mine\n"


@pytest.mark.parametrize("old, new, message", [(" first", " wrong", "does not apply"), ("+hook();\n", "", "apply")])
def test_patch_that_does_not_fit_stops(scripts, patch, tmp_path, old, new, message):
    patch.write_text(PATCH.replace(old, new))
    with pytest.raises(SystemExit, match=message):
        scripts[1].unpack(tmp_path / "t", [patch])
    assert not (tmp_path / "t").exists()


def test_patch_that_git_skipped_in_silence_stops(scripts, patch, tmp_path, monkeypatch):
    monkeypatch.setattr(scripts[1], "run_git", lambda *_, **__: subprocess.CompletedProcess([], 0, "", ""))
    with pytest.raises(SystemExit, match=r"is not in src/memory\.cpp after git apply"):
        scripts[1].unpack(tmp_path / "t", [patch])


def test_llama_h_may_not_be_patched(scripts, patch, tmp_path, monkeypatch):
    monkeypatch.setattr(scripts[1], "UNTOUCHABLE", ("src/memory.cpp",))
    with pytest.raises(SystemExit, match="must stay byte-identical"):
        scripts[1].unpack(tmp_path / "t", [patch])


def test_given_sdist_with_another_hash_is_refused(scripts, tmp_path):
    other = tmp_path / "other.tar.gz"
    other.write_bytes(b"no sdist")
    with pytest.raises(SystemExit, match="is not the pinned file"):
        scripts[0].fetch(other)


def test_given_sdist_that_is_missing_is_refused(scripts, tmp_path):
    with pytest.raises(SystemExit, match="no such file"):
        scripts[0].fetch(tmp_path / "missing.tar.gz")
