"""Files of sessions and of states: written whole or not at all, read only as they were written.

Little-endian. Nothing in a file is ever executed or unpickled.

    magic        16 bytes
    version      uint32
    n_header     uint32, bytes of the header
    n_ids        uint32, token ids
    zero         uint32
    n_state      uint64, bytes of the native state
    header       JSON in UTF-8, an object
    ids          int32 each, the newest tokens of the text
    state        as llama_state_get_data gave it
    sha256       32 bytes, of all before
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
import struct
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

import numpy as np
import numpy.typing as npt

from ..errors import SessionFileError
from .whole_file import replace_file

Kind = Literal["session", "state", "text"]
MAGIC: dict[str, bytes] = {
    "session": b"MorphKV session\0",
    "state": b"MorphKV state\0\0\0",
    "text": b"MorphKV text\0\0\0\0",
}
VERSION = 1
HEAD = struct.Struct("<16sIIIIQ")
DEPTH_MAX = 8  # of a header's brackets; what is deep cannot even be shown in an error


class Contents(NamedTuple):
    header: dict[str, Any]
    ids: npt.NDArray[np.int32]  # (n_ids,)
    state: bytes


def write(path: str | os.PathLike[str], kind: Kind, contents: Contents) -> None:
    """Write a file. Until it is complete on the disk, the path holds what it held before.

    Only its owner can read it. Raises OSError, e.g. for a full disk, and ValueError for a path that is there and is no
    regular file.
    """
    header = json.dumps(contents.header).encode()
    ids = contents.ids.astype("<i4").tobytes()
    head = HEAD.pack(MAGIC[kind], VERSION, len(header), len(contents.ids), 0, len(contents.state))
    blocks = [head, header, ids, contents.state]
    digest = hashlib.sha256()
    for block in blocks:
        digest.update(block)
    replace_file(path, [*blocks, digest.digest()])


def read(path: str | os.PathLike[str], kind: Kind) -> Contents:
    """Read a file. Raises OSError where that cannot be, SessionFileError for one that `write` did not leave so."""
    name = os.fspath(path)
    if not stat.S_ISREG(os.stat(path).st_mode):  # a device may never end
        raise SessionFileError(f"{name} is not a regular file")
    data = Path(path).read_bytes()
    ids_at, state_at = _places(name, kind, data, len(data))
    view = memoryview(data)
    body, digest = view[:-32], view[-32:]
    if hashlib.sha256(body).digest() != digest:
        raise SessionFileError(f"{name} is damaged: its checksum is wrong")
    header, ids = _header(name, view[HEAD.size : ids_at]), np.frombuffer(view[ids_at:state_at], dtype="<i4")
    # a view, lest a large state is copied
    return Contents(header, ids.astype(np.int32), cast(bytes, body[state_at:]))


def read_beginning(path: str | os.PathLike[str], kind: Kind) -> Contents:
    """Likewise, but without its state, and so without a look at its checksum."""
    name = os.fspath(path)
    with open(path, "rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise SessionFileError(f"{name} is not a regular file")
        data = file.read(HEAD.size)
        ids_at, state_at = _places(name, kind, data, os.fstat(file.fileno()).st_size)
        data += file.read(state_at - HEAD.size)
    ids = np.frombuffer(data, dtype="<i4", offset=ids_at)
    return Contents(_header(name, data[HEAD.size : ids_at]), ids.astype(np.int32), b"")


def _places(name: str, kind: Kind, data: bytes, n_file: int) -> tuple[int, int]:
    """Where the ids and the state begin in a file of n_file bytes, by its first bytes."""
    if data[:16] != MAGIC[kind]:
        raise SessionFileError(f"{name} is not a {kind} file")
    if len(data) < HEAD.size:
        raise SessionFileError(f"{name} is truncated: it has {len(data)} bytes")
    _, version, n_header, n_ids, zero, n_state = HEAD.unpack_from(data)
    if version != VERSION:
        raise SessionFileError(f"{name} must have version {VERSION}, got {version}")
    n_bytes = HEAD.size + n_header + 4 * n_ids + n_state + hashlib.sha256().digest_size
    if n_file != n_bytes:
        what = "truncated" if n_file < n_bytes else "damaged"
        raise SessionFileError(f"{name} is {what}: it must have {n_bytes} bytes, got {n_file}")
    if zero != 0:
        raise SessionFileError(f"{name} is damaged: its checksum is wrong")
    return HEAD.size + n_header, HEAD.size + n_header + 4 * n_ids


def _header(name: str, data: bytes | memoryview) -> dict[str, Any]:
    try:
        header = json.loads(bytes(data))
    except (ValueError, RecursionError) as error:
        raise SessionFileError(f"{name} is damaged: {error}") from error
    if not isinstance(header, dict) or _depth(header) > DEPTH_MAX:
        raise SessionFileError(f"{name} is damaged: its header must be an object of at most {DEPTH_MAX} levels")
    return header


def _depth(value: Any) -> int:
    n, level = 0, [value]
    while level:
        lists = [list(item.values()) if isinstance(item, dict) else item for item in level]
        n, level = n + 1, [child for items in lists if isinstance(items, list) for child in items]
    return n
