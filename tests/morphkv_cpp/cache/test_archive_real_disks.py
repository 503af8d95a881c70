"""Chats whose archive's disk is full, or whose archive's file is spoiled: see tests/support/real_disks.py."""

import json
import shutil
import subprocess
import sys

import pytest

# isort: split
from support import TESTS, real_disks

pytestmark = pytest.mark.skipif(
    sys.platform == "win32", reason="limits, mounts and open files of another name are POSIX"
)


def fault(name: str, recall: str, tiny_llama, tmp_path, *, mounts: bool = False) -> dict:
    """Runs it, skips where the system cannot; what the child has found."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = [sys.executable, "-m", "support.real_disks", name, recall, str(tiny_llama()), str(folder)]
    if mounts:
        if shutil.which("unshare") is None:
            pytest.skip("needs unshare, for mounts of its own")
        # what is mounted in there is gone when the process is
        command = ["unshare", "--mount", *command]
    done = subprocess.run(command, cwd=TESTS, capture_output=True, text=True, check=False, timeout=300)
    if done.returncode == real_disks.CANNOT or (mounts and "unshare" in done.stderr):
        pytest.skip(f"cannot be set up here: {done.stdout}{done.stderr}"[:300])
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("recall", ["off", "prompt"])
@pytest.mark.parametrize("disk", ["limit", "tmpfs", "btrfs"])
def test_a_full_disk_stops_the_archive_and_nothing_else(tiny_llama, tmp_path, disk, recall):
    found = fault(disk, recall, tiny_llama, tmp_path, mounts=disk != "limit")
    assert found["n_turns"] > 20
    told = [text for text in found["warnings"] if "the archive stopped: " in text]
    assert len(told) == 1, found["warnings"]
    assert "the chat continues" in told[0]
    assert found["save"] is not None
    assert len(found["warnings"]) <= 2


@pytest.mark.parametrize("recall", ["off", "prompt"])
@pytest.mark.parametrize("how", ["shortened", "removed", "replaced", "flipped"])
def test_a_file_that_is_spoiled_under_a_chat(tiny_llama, tmp_path, how, recall):
    found = fault(how, recall, tiny_llama, tmp_path)
    is_whole = how in ("removed", "replaced")
    told = [text for text in found["warnings"] if "cannot be read" in text]
    if is_whole:
        assert found["warnings"] == []
        assert found["n_damaged"] == 0
        assert found["save"] is None
    else:
        # with no recalls nobody looks, until the chat is saved
        assert len(told) == 1, found["warnings"]
        assert found["n_damaged"] > 0 or recall == "off"
