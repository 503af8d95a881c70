"""Files that are replaced whole or not at all, whatever ends the process meanwhile."""

from __future__ import annotations

import contextlib
import os
import stat
import tempfile
from collections.abc import Iterable
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows, where what a killed process leaves behind stays
    fcntl = None  # type: ignore[assignment]

SUFFIX = ".morphkv"


def replace_file(path: str | os.PathLike[str], blocks: Iterable[bytes | memoryview]) -> None:
    """Write the blocks to a file, readable by its owner alone. Until all are on the disk the path holds what it held.

    A link still points to the same file. Raises ValueError for a path that exists and is not a regular file, OSError
    where it cannot be written. Then, and after Ctrl-C, nothing is left behind; what a killed process has left, the next
    call for the same path removes.
    """
    target = Path(os.path.realpath(path))
    _refuse_irregular(target)
    _remove_stale(target)
    handle, scratch = _new_scratch(target)
    try:
        with os.fdopen(handle, "wb") as file:
            file.writelines(blocks)
            file.flush()
            os.fsync(file.fileno())
            if fcntl is None:
                file.close()  # Windows moves no open file
            os.replace(scratch, target)  # while it is locked, lest another process takes it for a left-over
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(scratch)
        raise
    _sync_folder(target.parent)


def _refuse_irregular(target: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        # links have been followed, but for those that lead nowhere
        if not stat.S_ISREG(os.lstat(target).st_mode):
            raise ValueError(f"{target} is not a regular file, and only such a file can be replaced")


def _new_scratch(target: Path) -> tuple[int, str]:
    """Handle and path of an empty file beside the target, locked as long as the handle is open."""
    while True:
        handle, scratch = tempfile.mkstemp(prefix=f".{target.name}.", suffix=SUFFIX, dir=target.parent)
        # between the two lines another process may have removed it
        if _lock(handle) is not False and os.path.exists(scratch):
            return handle, scratch
        os.close(handle)


def _remove_stale(target: Path) -> None:
    """Remove what killed processes have left: a file that is being written is locked."""
    if fcntl is None:
        return
    prefix, names = f".{target.name}.", []
    with contextlib.suppress(OSError):  # a folder may be writable only
        names = os.listdir(target.parent)
    for name in names:
        if not (name.startswith(prefix) and name[len(prefix) :].endswith(SUFFIX)):
            continue
        scratch = target.parent / name
        with contextlib.suppress(OSError):  # another process is quicker
            handle = os.open(scratch, os.O_RDWR | os.O_NOFOLLOW)
            try:
                if _lock(handle):
                    os.unlink(scratch)
            finally:
                os.close(handle)


def _lock(handle: int) -> bool | None:
    """Whether the file is now locked; None where the system cannot lock."""
    if fcntl is None:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def _sync_folder(folder: Path) -> None:
    """So that the new name outlives a power cut; not every system can."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
