"""What users of 0.1.0 import and write goes on working for one version; what is renamed warns, and says how."""

import importlib
import subprocess
import sys

import pytest

import morphkv_cpp
from morphkv_cpp import Archive, Llama, MorphKV
from morphkv_cpp.moved import MOVED

CONFIG = MorphKV(capacity=96, window=16, interval=8, keep=4, prompt_room=0)
QUIET = {"n_threads": 1, "n_threads_batch": 1, "verbose": False}

NAMES = """Archive CacheStats ClosedError Device Info InvalidError LibraryError Llama MorphKV MorphKVError NativeError
NoMorphKVError PromptReuse Recall Session ThreadError Turn UnsupportedError __version__ info""".split()


def test_every_name_is_there():
    assert [name for name in NAMES if not hasattr(morphkv_cpp, name)] == []
    assert set(NAMES) <= set(morphkv_cpp.__all__)


@pytest.mark.parametrize("old", sorted(MOVED))
def test_a_module_that_moved_is_found_by_its_old_name(old):
    sys.modules.pop(f"morphkv_cpp.{old}", None)
    with pytest.warns(DeprecationWarning, match=rf"morphkv_cpp\.{old} is now morphkv_cpp\.{MOVED[old]}"):
        module = importlib.import_module(f"morphkv_cpp.{old}")
    assert module is importlib.import_module(f"morphkv_cpp.{MOVED[old]}")
    assert module.__name__ == module.__spec__.name == f"morphkv_cpp.{MOVED[old]}"


def test_a_module_that_never_was_is_not_found():
    with pytest.raises(ModuleNotFoundError, match=r"morphkv_cpp\.nothing"):
        importlib.import_module("morphkv_cpp.nothing")


def test_the_command_line_can_be_had_as_before(tmp_path):
    code = "from morphkv_cpp.cli import main; main(['info'])"
    command = [sys.executable, "-W", "error::DeprecationWarning", "-c", code]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) == (0, "")
    assert morphkv_cpp.__version__ in result.stdout


class TestPosition:
    def test_settings_by_position_warn(self):
        with pytest.warns(DeprecationWarning, match="settings of MorphKV are given by name .*: capacity=64, window=8"):
            assert MorphKV(64, 8) == MorphKV(capacity=64, window=8)
        with pytest.warns(DeprecationWarning, match="settings of Archive are given by name .*: type='q8_0'"):
            assert Archive("x", "q8_0") == Archive("x", type="q8_0")

    def test_the_warning_is_about_the_callers_line(self):
        with pytest.warns(DeprecationWarning, match="by name") as caught:
            MorphKV(64)
        assert caught[0].filename == __file__

    def test_what_is_wrong_is_still_refused(self):
        with (
            pytest.raises(TypeError, match="MorphKV got capacity twice"),
            pytest.warns(DeprecationWarning, match="by name"),
        ):
            MorphKV(64, capacity=64)
        with (
            pytest.raises(TypeError, match="MorphKV has 13 settings, got 14"),
            pytest.warns(DeprecationWarning, match="by name"),
        ):
            MorphKV(*range(14))


class TestArchiveKeywords:
    def test_they_are_the_fields_of_an_archive(self, tiny_llama):
        old = {
            "archive_type": "q8_0",
            "archive_max_bytes": 5 * 2**20,
            "recall": 3,
            "recall_share": 0.5,
            "recall_redo": 7,
            "recall_votes": 9,
            "recall_distance": 11,
        }
        with pytest.warns(DeprecationWarning, match=r"say archive=Archive\('ram', type='q8_0', max_bytes=5242880"):
            llm = Llama(tiny_llama(), morphkv=CONFIG, archive="ram", **old, **QUIET)
        with llm:
            wanted = Archive(type="q8_0", max_bytes=5 * 2**20, recall=3, share=0.5, redo=7, votes=9, distance=11)
            assert llm.archive == wanted

    def test_none_is_the_default(self, tiny_llama):
        with Llama(tiny_llama(), morphkv=CONFIG, archive="ram", recall=None, **QUIET) as llm:
            assert llm.archive == Archive()

    @pytest.mark.parametrize(
        ("options", "sentence"),
        [
            ({"archive": None, "archive_type": "q8_0"}, "archive_type='q8_0': needs an archive"),
            ({"archive": None, "recall_redo": 1, "recall_votes": 0}, "recall_redo=1, recall_votes=0: needs"),
            ({"archive": Archive(), "recall_share": 0.2}, "recall_share=0.2: set the fields of the Archive instead"),
            ({"archive": "ram", "recall_share": 2}, r"share must be in \(0, 1\], got 2"),
        ],
    )
    def test_they_are_refused_where_nothing_would_heed_them(self, tiny_llama, options, sentence):
        with pytest.raises(ValueError, match=sentence), pytest.warns(DeprecationWarning, match="say archive=Archive"):
            Llama(tiny_llama(), morphkv=CONFIG, **options, **QUIET)
