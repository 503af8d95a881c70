"""The tests as a whole: each lies where its module does, and all can be collected on any system."""

import re
import subprocess
import sys

import pytest

from support import TESTS

ROOT = TESTS.parent
ROOMS = {
    "bridge": ROOT / "bridge",
    "models": ROOT / "models",
    **{str(folder.relative_to(ROOT)): folder for folder in [ROOT / "morphkv_cpp", *(ROOT / "morphkv_cpp").glob("*/")]},
}


@pytest.mark.parametrize("room", sorted(ROOMS))
def test_a_file_is_named_after_the_module_that_it_tests(room):
    """As test_archive.py, or test_archive_WHAT.py, of archive.py."""
    modules = [path.stem for path in ROOMS[room].iterdir()]
    for path in (TESTS / room).glob("test_*.py"):
        name = path.stem.removeprefix("test_")
        assert any(name == module or name.startswith(f"{module}_") for module in modules), (
            f"{path.relative_to(ROOT)} must be named after a module of {room}, got {name}"
        )


def test_every_marker_is_used():
    listed = re.search(
        r"^markers = \[\n(.*?)^\]", (ROOT / "pyproject.toml").read_text(), re.MULTILINE | re.DOTALL
    ).group(1)
    used = set(re.findall(r"mark\.(\w+)", "".join(path.read_text() for path in TESTS.rglob("test_*.py"))))
    ours = set(re.findall(r'^ +"(\w+):', listed, re.MULTILINE))
    assert len(ours) == len(listed.splitlines())
    assert ours - used == set()


def test_collection_needs_nothing_that_only_posix_has():
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "support.without_posix"]
    # not in ROOT, whose folder morphkv_cpp is not the installed package
    done = subprocess.run([*command, "."], cwd=TESTS, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    assert re.search(r"\d{3,} tests collected", done.stdout)
