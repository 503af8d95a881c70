"""Every exception of this package. Each is also of the standard type that fits.

`except MorphKVError` catches them all. A setting that breaks a rule is a plain ValueError or TypeError.
"""

from .bridge.errors import (
    InvalidError,
    LibraryError,
    MorphKVError,
    NativeError,
    NoMorphKVError,
    UnsupportedError,
)

__all__ = [
    "ArchiveError",
    "AttachError",
    "BusyError",
    "ClosedError",
    "ContextFullError",
    "DecodeError",
    "EvictedError",
    "InvalidError",
    "LibraryError",
    "MorphKVError",
    "NativeError",
    "NoMorphKVError",
    "NoRoomError",
    "SessionEndedError",
    "SessionFileError",
    "StateError",
    "ThreadError",
    "UnsupportedError",
]


class ThreadError(MorphKVError, RuntimeError):
    """Another thread is using this Llama."""


class ClosedError(MorphKVError, RuntimeError, ValueError):
    """This Llama is closed."""


class BusyError(MorphKVError, RuntimeError):
    """Another text has begun on the same Llama, or this one is still being written."""


class ContextFullError(MorphKVError, ValueError):
    """The text would not fit into n_ctx tokens. Nothing has changed."""


class NoRoomError(MorphKVError, ValueError):
    """What is never to be evicted, n_keep tokens, leaves no room in the cache; a `capacity` that does is named."""

    def __init__(self, sentence: str, n_keep: int, capacity: int):
        super().__init__(sentence)
        self.n_keep, self.capacity = n_keep, capacity


class DecodeError(MorphKVError, RuntimeError):
    """Tokens could not be decoded; `n_tokens` of the Llama says how much of the text its cache still holds."""


class EvictedError(MorphKVError, RuntimeError):
    """A rollback past the last eviction, where the cache is incomplete. Nothing has changed."""


class StateError(MorphKVError, RuntimeError):
    """There is no state to save yet, or a saved one is damaged or belongs to another model or other settings.

    Nothing has changed.
    """


class ArchiveError(MorphKVError, RuntimeError, ValueError):
    """There is no archive, its settings cannot be changed like this, or its file cannot be used."""


class AttachError(ArchiveError):
    """A file cannot be attached: it is damaged, truncated, of another model, or too short."""


class SessionEndedError(MorphKVError, RuntimeError):
    """The session was closed, lost its Llama, or lost its cache."""


class SessionFileError(MorphKVError, ValueError):
    """A file is not a session or state, is damaged, or belongs to another model or other settings."""
