"""Files that are replaced whole: what a killed process leaves behind, and what is no file."""

import os
import signal
import subprocess
import sys

import pytest

from morphkv_cpp.cache.whole_file import replace_file

posix = pytest.mark.skipif(sys.platform == "win32", reason="signals, links and locks of files are POSIX")

# Waits amid a write: at the sync, when all is written and the name is still another.
CHILD = """
import os, sys, time
from morphkv_cpp.cache import whole_file
os.fsync = lambda _: (print("writing", flush=True), time.sleep(60))
whole_file.replace_file(sys.argv[1], [b"new"])
"""


@pytest.fixture
def writer(tmp_path):
    """Factory of processes that are amid a write."""
    children = []

    def start(path):
        child = subprocess.Popen(
            [sys.executable, "-c", CHILD, str(path)], stdout=subprocess.PIPE, text=True, cwd=tmp_path
        )
        children.append(child)
        assert child.stdout.readline() == "writing\n"
        return child

    yield start
    for child in children:
        child.kill()
        child.wait()
        child.stdout.close()


@posix
def test_what_a_killed_process_left_is_removed_and_what_another_writes_is_not(tmp_path, writer):
    path = tmp_path / "x"
    path.write_bytes(b"old")
    killed, living = writer(path), writer(path)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert len(os.listdir(tmp_path)) == 3
    assert path.read_bytes() == b"old"
    replace_file(path, [b"mine"])
    left = sorted(os.listdir(tmp_path))
    assert len(left) == 2
    assert left[0].startswith(".x.")
    assert (tmp_path / left[0]).read_bytes() == b"new"
    living.kill()
    living.wait()
    replace_file(path, [b"mine ", b"again"])
    assert os.listdir(tmp_path) == ["x"]
    assert path.read_bytes() == b"mine again"


@posix
def test_nothing_else_in_the_folder_is_touched(tmp_path):
    others = [".x.notes", ".x.12345678", ".y.12345678.morphkv", "x.morphkv", ".x.morphkv"]
    for name in others:
        (tmp_path / name).write_bytes(b"")
    outside = tmp_path / "outside"
    outside.write_bytes(b"")
    (tmp_path / ".x.link.morphkv").symlink_to(outside)
    replace_file(tmp_path / "x", [b"new"])
    assert sorted(os.listdir(tmp_path)) == sorted([*others, ".x.link.morphkv", "outside", "x"])


@posix
@pytest.mark.parametrize("kind", ["device", "folder", "pipe", "link to nowhere and back"])
def test_what_is_no_regular_file_is_refused(tmp_path, kind):
    path = tmp_path / "x"
    if kind == "device":
        path.symlink_to("/dev/null")
    elif kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to(path)
    before = os.lstat(path)
    with pytest.raises(ValueError, match="is not a regular file"):
        replace_file(path, [b"new"])
    assert os.listdir(tmp_path) == ["x"]
    assert os.lstat(path).st_ino == before.st_ino


@posix
def test_a_link_to_a_file_that_is_not_there_yet(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "x")
    replace_file(tmp_path / "link", [b"new"])
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "x").read_bytes() == b"new"


def test_an_error_names_the_path_that_was_given(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError) as found:
        replace_file(tmp_path / "no" / "x", [b"new"])
    assert str(found.value).endswith(f"No such file or directory: '{tmp_path / 'no' / 'x'}'")
    monkeypatch.setattr(os, "fsync", lambda handle: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space left on device") as found:
        replace_file(tmp_path / "x", [b"new"])
    assert found.value.filename == str(tmp_path / "x")
