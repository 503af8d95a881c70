"""Files that are replaced whole or not at all, whatever ends the process meanwhile."""

from __future__ import annotations

import contextlib
import os
import stat
import tempfile
from collections.abc import Iterable
from pathlib import Path

from .. import portable

SUFFIX = ".morphkv"


def replace_file(path: str | os.PathLike[str], blocks: Iterable[bytes | memoryview]) -> None:
    """As _replace; an error names the path that was given, not that of the file beside it."""
    try:
        _replace(path, blocks)
    except OSError as error:
        if error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, os.fspath(path)) from error  # of the class that errno says


def _replace(path: str | os.PathLike[str], blocks: Iterable[bytes | memoryview]) -> None:
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
            portable.replace_locked(file, scratch, target)  # unlocked, another process takes it for a left-over
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(scratch)
        raise
    with contextlib.suppress(OSError):  # not every file system can
        portable.sync_folder(target.parent)


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
        if portable.lock_file(handle) is not False and os.path.exists(scratch):
            return handle, scratch
        os.close(handle)


def _remove_stale(target: Path) -> None:
    """Remove what killed processes have left: a file that is being written is locked."""
    prefix, names = f".{target.name}.", []
    with contextlib.suppress(OSError):  # a folder may be writable only
        names = os.listdir(target.parent)
    for name in names:
        if not (name.startswith(prefix) and name[len(prefix) :].endswith(SUFFIX)):
            continue
        with contextlib.suppress(OSError):  # another process is quicker
            portable.remove_unlocked(target.parent / name)
