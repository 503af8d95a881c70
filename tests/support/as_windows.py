"""Windows as `morphkv_cpp.portable` sees it, on another system: its locks, and open files that cannot be moved."""

import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from morphkv_cpp import portable


def become_windows(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Locks that are asked for from now on: where, and how many bytes. Those of flock() stand for Windows'."""
    locks: list[tuple[int, int]] = []
    monkeypatch.setattr(portable, "IS_WINDOWS", True)
    if sys.platform == "win32":
        return locks
    import fcntl

    def locking(handle: int, mode: int, n_bytes: int) -> None:
        assert mode == 2
        locks.append((os.lseek(handle, 0, os.SEEK_CUR), n_bytes))
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise PermissionError(13, "Permission denied") from None

    monkeypatch.setitem(sys.modules, "msvcrt", SimpleNamespace(LK_NBLCK=2, locking=locking))
    for name in ("replace", "unlink"):
        _refuse_open_files(monkeypatch, name)
    return locks


def _refuse_open_files(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    call = getattr(os, name)

    def refusing(*paths, **options):
        for path in paths:
            if os.path.realpath(path) in _open_files():
                raise PermissionError(13, "The process cannot access the file", str(path))
        return call(*paths, **options)

    monkeypatch.setattr(os, name, refusing)


def _open_files() -> set[str]:
    """Of this process."""
    links = Path("/dev/fd" if sys.platform == "darwin" else "/proc/self/fd")
    return {os.path.realpath(link) for link in links.iterdir()}
