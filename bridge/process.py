"""Which shared libraries the process holds, whoever loaded them."""

from __future__ import annotations

import ctypes
import os
import re
import sys
from pathlib import Path

# libllama.so, libggml-base.so.0, llama.dll, libllama.dylib; not libllama-8f3a2c.so, which wheels rename to be alone.
LIBRARY = re.compile(r"^(?P<stem>[^.]+)\.(?:so(?:\.\d+)*|dylib|dll)$")


def mapped_files() -> list[str] | None:
    """Paths of the files mapped into this process, in order of address; None where the system does not tell."""
    if sys.platform == "linux":
        return _linux_files(Path("/proc/self/maps").read_text(errors="surrogateescape"))
    if sys.platform == "darwin":
        return _darwin_files()
    return None


def _linux_files(maps: str) -> list[str]:
    """maps: text of /proc/self/maps; the path is the sixth field and may hold spaces."""
    fields = [line.split(maxsplit=5) for line in maps.splitlines()]
    paths = [field[5].removesuffix(" (deleted)") for field in fields if len(field) == 6 and field[5].startswith("/")]
    return list(dict.fromkeys(paths))


def _darwin_files() -> list[str]:
    dyld = ctypes.CDLL(None)
    dyld._dyld_get_image_name.restype = ctypes.c_char_p
    names = [dyld._dyld_get_image_name(ctypes.c_uint32(i)) for i in range(dyld._dyld_image_count())]
    return [os.fsdecode(name) for name in names if name]


def libraries_in(folder: Path) -> dict[str, list[str]]:
    """Shared libraries of a folder: stem, e.g. "libllama" -> real paths of its files."""
    found: dict[str, list[str]] = {}
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        if match := LIBRARY.match(path.name):
            found.setdefault(match["stem"], []).append(os.path.realpath(path))
    return found


def mapped_libraries(folder: Path) -> tuple[list[str], list[str]]:
    """Mapped libraries that bear the names of those in the folder: (the folder's own, others')."""
    names = libraries_in(folder)
    own: list[str] = []
    others: list[str] = []
    for path in mapped_files() or []:
        match = LIBRARY.match(os.path.basename(path))
        if match and match["stem"] in names:
            (own if os.path.realpath(path) in names[match["stem"]] else others).append(path)
    return own, others
