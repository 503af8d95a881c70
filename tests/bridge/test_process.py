"""Which libraries are in the process."""

import os
import sys

import pytest

from morphkv_cpp.bridge import process

MAPS = """\
55d0-55d1 r--p 00000000 08:01 12 /usr/bin/python3
7f00-7f01 r-xp 00000000 08:01 13 /opt/with space/libllama.so
7f01-7f02 r--p 00001000 08:01 13 /opt/with space/libllama.so
7f02-7f03 rw-p 00000000 00:00 0
7f03-7f04 r--p 00000000 08:01 14 /opt/libggml.so (deleted)
7f04-7f05 rw-p 00000000 00:00 0 [stack]
"""


def test_maps_are_read_with_spaces_and_deleted_files():
    assert process._linux_files(MAPS) == ["/usr/bin/python3", "/opt/with space/libllama.so", "/opt/libggml.so"]


@pytest.mark.parametrize(
    ("name", "stem"),
    [
        ("libllama.so", "libllama"),
        ("libllama.so.0.5.0", "libllama"),
        ("libggml-base.dylib", "libggml-base"),
        ("llama.dll", "llama"),
        ("libllama.a", None),
        ("libllama.solo", None),
    ],
)
def test_versions_do_not_make_another_library(name, stem):
    match = process.LIBRARY.match(name)
    assert (match and match["stem"]) == stem


@pytest.mark.usefixtures("links")
def test_others_are_those_of_the_same_name_elsewhere(tmp_path, monkeypatch):
    own, other = tmp_path / "own", tmp_path / "other"
    for folder in (own, other):
        folder.mkdir()
        (folder / "libllama.so").touch()
        (folder / "libggml-12ab.so").touch()
    (own / "libggml-12ab.so").unlink()
    link = tmp_path / "link"
    link.symlink_to(own, target_is_directory=True)
    mapped = [f"{link}/libllama.so", f"{other}/libllama.so", f"{other}/libggml-12ab.so"]
    monkeypatch.setattr(process, "mapped_files", lambda: mapped)
    assert process.mapped_libraries(own) == ([mapped[0]], [mapped[1]])


@pytest.mark.skipif(sys.platform not in ("linux", "darwin"), reason="the system does not list mapped files")
def test_this_process_has_python_mapped():
    assert any("python" in os.path.basename(path).lower() for path in process.mapped_files())
