"""Exceptions, and the only functions of the bridge that raise them."""

from __future__ import annotations


class MorphKVError(Exception):
    """Base of all that morphkv_cpp adds to Python's own exceptions."""


class LibraryError(MorphKVError, ImportError):
    """The native library is missing, or another one is in the process: `import morphkv_cpp` stops."""


class InvalidError(MorphKVError, ValueError):
    """An argument breaks a rule of the native library."""


class UnsupportedError(MorphKVError, RuntimeError, ValueError):
    """The model or the context cannot be served with MorphKV.

    Also a ValueError, because that is what llama_cpp.Llama raises when a context cannot be created.
    """


class NoMorphKVError(MorphKVError, RuntimeError):
    """Asked of a context that was created without MorphKV."""


class NativeError(MorphKVError, RuntimeError):
    """The native library failed in another way, e.g. for want of memory."""


# by enumerator of morphkv_status
BY_STATUS = {
    "MORPHKV_STATUS_INVALID": InvalidError,
    "MORPHKV_STATUS_UNSUPPORTED": UnsupportedError,
    "MORPHKV_STATUS_NO_MORPHKV": NoMorphKVError,
    "MORPHKV_STATUS_FAILED": NativeError,
}


def check_status(status: str, sentence: str) -> None:
    """Raise what a status other than MORPHKV_STATUS_OK stands for, with the native sentence."""
    if status != "MORPHKV_STATUS_OK":
        raise BY_STATUS.get(status, NativeError)(sentence or f"the native library gave {status} without a reason")


def refuse_library(sentence: str, cause: Exception | None = None) -> None:
    raise LibraryError(sentence, name="morphkv_cpp") from cause


def refuse_context(sentence: str, cause: Exception | None = None) -> None:
    raise UnsupportedError(sentence) from cause


def refuse_argument(sentence: str) -> None:
    raise InvalidError(sentence)


def refuse_state(sentence: str) -> None:
    raise NativeError(sentence)
