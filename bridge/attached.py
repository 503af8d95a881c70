"""Texts that were read once: written to a file, attached to a context, and what recalls bring of them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from .calls import _check, _context, _fields, _int32, _sized
from .native import ffi, lib


def write_archive(context: int, path: str, model_path: str, tokens: Sequence[int], seq_id: int = 0) -> None:
    """Write a file of all tokens of a sequence, whose ids these are, whole pages of 16, for others to attach."""
    ids = ffi.new("int32_t []", list(tokens))
    handle = _context(context)
    paths = os.fsencode(path), os.fsencode(model_path)
    _check(lib.morphkv_archive_write(handle, _int32("seq_id", seq_id), *paths, ids, len(ids)))


def attach(context: int, path: str, model_path: str) -> None:
    """From now on recalls bring pages of such a file, too; the context has an archive and holds no token."""
    _check(lib.morphkv_archive_attach(_context(context), os.fsencode(path), os.fsencode(model_path)))


def attachments(context: int, seq_id: int = 0) -> list[dict[str, Any]]:
    """The files that are attached, as a sequence sees them: fields of morphkv_attachment but for its size."""
    n = ffi.new("int32_t *")
    _check(lib.morphkv_attachment_count(_context(context), n))
    found = []
    for i in range(n[0]):
        out = _sized("morphkv_attachment")
        _check(lib.morphkv_attachment_get(_context(context), _int32("seq_id", seq_id), i, out))
        found.append(_fields(out[0]))
    return found


def attachment_tokens(context: int, i: int, first: int, n_tokens: int) -> list[int]:
    """Ids of n_tokens tokens of the i-th file from token `first` on."""
    ids = ffi.new("int32_t []", max(n_tokens, 1))
    _check(lib.morphkv_attachment_tokens(_context(context), _int32("i", i), first, _int32("n_tokens", n_tokens), ids))
    return ffi.unpack(ids, n_tokens) if n_tokens else []


def brought(context: int, seq_id: int = 0) -> list[tuple[int, int]]:
    """Pages of 16 tokens of a sequence's last recall that brought any, best first: which file (-1: its own archive),
    and the page's first token there.
    """
    n = ffi.new("int32_t *")
    handle, seq_id = _context(context), _int32("seq_id", seq_id)
    _check(lib.morphkv_brought_get(handle, seq_id, ffi.NULL, 0, n))
    pages = ffi.new("morphkv_brought []", max(n[0], 1))
    _check(lib.morphkv_brought_get(handle, seq_id, pages, n[0], n))
    return [(pages[i].i_attachment, pages[i].first) for i in range(n[0])]
