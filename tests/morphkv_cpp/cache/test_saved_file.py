"""Files of sessions and states: every damage is noticed, and nothing is half written."""

import errno
import itertools
import json
import os
import pickle
import subprocess
import sys

import numpy as np
import pytest

from morphkv_cpp.cache import saved_file
from morphkv_cpp.cache.saved_file import Contents

CONTENTS = Contents({"a": 1, "b": "\u00e9"}, np.array([1, 2, -1], dtype=np.int32), b"state" * 100)


class TestRead:
    def test_what_was_written_comes_back(self, tmp_path):
        saved_file.write(tmp_path / "x", "session", CONTENTS)
        header, ids, state = saved_file.read(tmp_path / "x", "session")
        assert (header, ids.tolist(), state) == (CONTENTS.header, CONTENTS.ids.tolist(), CONTENTS.state)

    def test_every_truncation_is_noticed(self, tmp_path):
        path = tmp_path / "x"
        saved_file.write(path, "session", CONTENTS)
        data = path.read_bytes()
        for n in range(len(data)):
            path.write_bytes(data[:n])
            with pytest.raises(ValueError, match=r"is truncated|is not a session file"):
                saved_file.read(path, "session")
        path.write_bytes(data + b"x")
        with pytest.raises(ValueError, match=f"is damaged: it must have {len(data)} bytes, got {len(data) + 1}"):
            saved_file.read(path, "session")

    def test_every_flipped_bit_is_noticed(self, tmp_path):
        path = tmp_path / "x"
        saved_file.write(path, "session", CONTENTS)
        data = path.read_bytes()
        for i, bit in itertools.product(range(len(data)), (0, 7)):
            flipped = bytearray(data)
            flipped[i] ^= 1 << bit
            path.write_bytes(flipped)
            with pytest.raises(ValueError, match=r"truncated|damaged|not a session file|must have version"):
                saved_file.read(path, "session")

    def test_a_pickle_is_never_opened(self, tmp_path):
        path = tmp_path / "x"
        path.write_bytes(pickle.dumps({"a": 1}))
        with pytest.raises(ValueError, match="x is not a session file"):
            saved_file.read(path, "session")

    @pytest.mark.parametrize(
        "header",
        [
            b"[]",
            b"5",
            b"\xff",
            b"{",
            b'{"a": ',
            b"[" * 100_000,
            b'{"a":' * 100_000,
            b'{"a": ' + b"[" * 9 + b"]" * 9 + b"}",
        ],
        ids=["list", "number", "bytes", "open", "cut", "lists", "objects", "deep"],
    )
    def test_a_header_that_is_no_object(self, tmp_path, monkeypatch, header):
        path = tmp_path / "x"
        monkeypatch.setattr(json, "dumps", lambda *_, **__: header.decode("latin-1"))
        monkeypatch.setattr(saved_file, "json", json)
        saved_file.write(path, "session", CONTENTS)
        with pytest.raises(ValueError, match="x is damaged"):
            saved_file.read(path, "session")

    def test_a_text_may_hold_brackets(self, tmp_path):
        header = {"system": "[" * 1000, "settings": {"a": [1]}}
        saved_file.write(tmp_path / "x", "session", CONTENTS._replace(header=header))
        assert saved_file.read(tmp_path / "x", "session").header == header


class TestWrite:
    def fails(self, monkeypatch, name: str, error: BaseException) -> None:
        def fail(*_):
            raise error

        monkeypatch.setattr(saved_file.os, name, fail)

    @pytest.mark.parametrize("name", ["fsync", "replace", "fdopen"])
    @pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
    def test_what_fails_leaves_the_old_file_and_nothing_else(self, tmp_path, monkeypatch, name, error):
        path = tmp_path / "x"
        path.write_bytes(b"old")
        with monkeypatch.context() as patch:
            self.fails(patch, name, error)
            with pytest.raises(type(error)):
                saved_file.write(path, "session", CONTENTS)
        assert os.listdir(tmp_path) == ["x"]
        assert path.read_bytes() == b"old"

    def test_a_disk_that_is_really_full(self, tmp_path):
        resource = pytest.importorskip("resource", reason="limits of a process are POSIX")
        path = tmp_path / "x"
        path.write_bytes(b"old")
        code = (
            "import resource, signal, sys; import numpy as np; from morphkv_cpp.cache import saved_file\n"
            "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
            "resource.setrlimit(resource.RLIMIT_FSIZE, (10000, 10000))\n"
            "saved_file.write(sys.argv[1], 'session', saved_file.Contents({}, np.zeros(1), bytes(100000)))"
        )
        command = [sys.executable, "-c", code, str(path)]
        result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert "File too large" in result.stderr
        assert resource is not None
        assert os.listdir(tmp_path) == ["x"]
        assert path.read_bytes() == b"old"

    def test_a_folder_that_is_not_there(self, tmp_path):
        with pytest.raises(FileNotFoundError):
            saved_file.write(tmp_path / "no" / "x", "session", CONTENTS)

    @pytest.mark.usefixtures("links")
    def test_a_link_goes_on_pointing_where_it_did(self, tmp_path):
        (tmp_path / "a").mkdir()
        (tmp_path / "a" / "x").write_bytes(b"old")
        (tmp_path / "link").symlink_to(tmp_path / "a" / "x")
        saved_file.write(tmp_path / "link", "session", CONTENTS)
        assert (tmp_path / "link").is_symlink()
        assert saved_file.read(tmp_path / "a" / "x", "session").state == CONTENTS.state

    @pytest.mark.skipif(sys.platform == "win32", reason="modes are POSIX")
    def test_only_its_owner_can_read_a_chat(self, tmp_path):
        saved_file.write(tmp_path / "x", "session", CONTENTS)
        assert (tmp_path / "x").stat().st_mode & 0o777 == 0o600


class TestReadBeginning:
    def test_all_but_the_state(self, tmp_path):
        saved_file.write(tmp_path / "x", "text", CONTENTS)
        header, ids, state = saved_file.read_beginning(tmp_path / "x", "text")
        assert (header, ids.tolist(), state) == (CONTENTS.header, CONTENTS.ids.tolist(), b"")

    def test_every_truncation_is_noticed(self, tmp_path):
        path = tmp_path / "x"
        saved_file.write(path, "text", CONTENTS)
        data = path.read_bytes()
        for n in range(len(data)):
            path.write_bytes(data[:n])
            with pytest.raises(ValueError, match=r"is truncated|is not a text file"):
                saved_file.read_beginning(path, "text")

    def test_of_another_kind(self, tmp_path):
        saved_file.write(tmp_path / "x", "session", CONTENTS)
        with pytest.raises(ValueError, match="x is not a text file"):
            saved_file.read_beginning(tmp_path / "x", "text")
