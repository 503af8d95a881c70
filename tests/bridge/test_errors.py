"""Statuses become exceptions that callers of llama_cpp already catch."""

import pytest

from morphkv_cpp import InvalidError, LibraryError, MorphKVError, NativeError, NoMorphKVError, UnsupportedError
from morphkv_cpp.bridge.errors import BY_STATUS, check_status
from morphkv_cpp.bridge.native import ffi


def test_every_status_but_ok_has_an_exception():
    assert set(ffi.typeof("morphkv_status").relements) == {"MORPHKV_STATUS_OK", *BY_STATUS}


def test_ok_raises_nothing():
    check_status("MORPHKV_STATUS_OK", "an older sentence")


@pytest.mark.parametrize(
    ("status", "error"),
    [
        ("INVALID", InvalidError),
        ("UNSUPPORTED", UnsupportedError),
        ("NO_MORPHKV", NoMorphKVError),
        ("FAILED", NativeError),
    ],
)
def test_the_native_sentence_is_the_message(status, error):
    with pytest.raises(error, match=r"^the reason$"):
        check_status(f"MORPHKV_STATUS_{status}", "the reason")


def test_a_status_without_a_sentence_names_itself():
    with pytest.raises(NativeError, match="MORPHKV_STATUS_FAILED"):
        check_status("MORPHKV_STATUS_FAILED", "")


@pytest.mark.parametrize(
    ("error", "bases"),
    [
        (InvalidError, (ValueError,)),
        (UnsupportedError, (RuntimeError, ValueError)),
        (NoMorphKVError, (RuntimeError,)),
        (NativeError, (RuntimeError,)),
        (LibraryError, (ImportError,)),
    ],
)
def test_exceptions_are_also_pythons_own(error, bases):
    assert all(issubclass(error, base) for base in (MorphKVError, *bases))
