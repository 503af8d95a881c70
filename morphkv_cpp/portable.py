"""What differs between POSIX and Windows: locks of files, files that replace others, programs, standard streams."""

from __future__ import annotations

import importlib
import io
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import BinaryIO, Protocol, cast

IS_WINDOWS = sys.platform == "win32"

# Windows keeps others from what is locked: a byte that no reader comes to. msvcrt knows 31 bits of a place.
_LOCKED_BYTE = 2**31 - 2
# On Windows a file is unlocked for a moment before it is renamed; so long nobody else removes it.
GRACE_S = 60.0
# A virus scanner or an indexer has opened a new file: a second in all.
_PAUSES_S = (0.01, 0.02, 0.05, 0.1, 0.2, 0.6)


class _Msvcrt(Protocol):
    LK_NBLCK: int

    def locking(self, handle: int, mode: int, n_bytes: int, /) -> None: ...


def lock_file(handle: int) -> bool | None:
    """Whether the file is now locked, until the handle is closed; None where its file system cannot lock."""
    return _lock_windows(handle) if IS_WINDOWS else _lock_posix(handle)


def _lock_posix(handle: int) -> bool | None:
    import fcntl

    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def _lock_windows(handle: int) -> bool | None:
    msvcrt = cast(_Msvcrt, importlib.import_module("msvcrt"))
    place = os.lseek(handle, 0, os.SEEK_CUR)
    os.lseek(handle, _LOCKED_BYTE, os.SEEK_SET)
    try:
        msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
    except PermissionError:
        return False
    except OSError:
        return None
    finally:
        os.lseek(handle, place, os.SEEK_SET)
    return True


def replace_locked(file: BinaryIO, source: str | Path, target: str | Path) -> None:
    """Rename the source, which is open as the file and locked, over the target. It may be closed after that.

    On POSIX it stays locked meanwhile. Windows renames no open file: there it is touched, for remove_unlocked().
    """
    if IS_WINDOWS:
        os.utime(source)
        file.close()
    replace(source, target)


def replace(source: str | Path, target: str | Path) -> None:
    """As os.replace(); on Windows it is tried for a second while another process has one of the two open."""
    for pause_s in _PAUSES_S if IS_WINDOWS else ():
        try:
            os.replace(source, target)
            return
        except PermissionError:
            time.sleep(pause_s)
    os.replace(source, target)


def remove_unlocked(path: str | Path) -> None:
    """Remove a regular file that nobody has locked; on Windows one that nobody has changed for GRACE_S seconds, either.

    Raises OSError where it cannot be opened or removed, and for a link.
    """
    if not IS_WINDOWS:
        handle = os.open(path, os.O_RDWR | os.O_NOFOLLOW)
        try:
            if lock_file(handle):
                os.unlink(path)
        finally:
            os.close(handle)
        return
    info = os.lstat(path)
    if not stat.S_ISREG(info.st_mode):
        raise OSError(f"{path} is no regular file")
    if time.time() - info.st_mtime < GRACE_S:
        return
    handle = os.open(path, os.O_RDWR)
    try:
        is_free = lock_file(handle)
    finally:
        os.close(handle)  # Windows removes no open file
    if is_free:
        os.unlink(path)


def sync_folder(folder: Path) -> None:
    """So that a new name in it outlives a power cut. Raises OSError where the file system cannot.

    Windows opens no folders, and NTFS writes down names by itself.
    """
    if IS_WINDOWS:
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def program_file(name: str) -> str:
    return f"{name}.exe" if IS_WINDOWS else name


def run_in_place(command: Sequence[str]) -> int:
    """Become the program where the system can do that; else run it and return its exit code.

    On Windows os.execv() starts another process and ends this one, so that a shell no longer waits for it.
    """
    if not IS_WINDOWS:
        os.execv(command[0], list(command))
    return run_and_wait(command)


def run_and_wait(command: Sequence[str]) -> int:
    """Run a program as this one's only work; its exit code, as sys.exit() takes it.

    Ctrl-C is the program's: the console sends it to both, and only the program ends, as it sees fit. So is Ctrl-Break.
    """
    child: subprocess.Popen[bytes] | None = None

    def end(_number: int, _frame: FrameType | None) -> None:
        if child is not None:
            child.terminate()

    # A handler that is a function is not inherited, unlike SIG_IGN.
    handlers = {signal.SIGTERM: end, signal.SIGINT: _do_nothing}
    if hasattr(signal, "SIGBREAK"):
        handlers[signal.SIGBREAK] = _do_nothing
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        child = subprocess.Popen(command)
        return _exit_code(child.wait())
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _do_nothing(_number: int, _frame: FrameType | None) -> None:
    pass


def _exit_code(code: int) -> int:
    """Of what subprocess returns: of a signal as shells tell it; Windows has 32 bits, of which C's int has the sign."""
    if code < 0:
        return 128 - code
    return code if code < 2**31 else code - 2**32


def use_utf8() -> None:
    """Standard streams are UTF-8, as llama.cpp's are: for pipes and files Windows' Python takes an older code page.

    PYTHONIOENCODING counts more.
    """
    if IS_WINDOWS and not os.environ.get("PYTHONIOENCODING"):
        for stream in (sys.stdin, sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(encoding="utf-8")
