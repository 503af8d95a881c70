"""Going back by the archive to any place of a text, and putting tokens of a text behind another beginning."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from .calls import _check, _context, _fields, _int32, _sized
from .native import ffi, lib

IdArray = npt.NDArray[np.intc]  # (n_tokens,)


def restore(context: int, tokens: Sequence[int], seq_id: int = 0) -> dict[str, Any]:
    """Go back to a text's first tokens, whose ids these are: fields of morphkv_restored but for its size.

    Where the place is evicted in part its cells are laid down again from the archive: near what the text was, and not
    the same bits. Raises NativeError; the sequence is then as it was, or empty where a computation failed.
    """
    ids = ffi.new("int32_t []", list(tokens))
    out = _sized("morphkv_restored")
    _check(lib.morphkv_restore(_context(context), _int32("seq_id", seq_id), ids, len(ids), out))
    return _fields(out[0])


def plan_change(text: IdArray, prompt: IdArray, n_cached: int) -> dict[str, int]:
    """What of a text a prompt can have again, by their ids, int32: fields of morphkv_change but for its size."""
    out = _sized("morphkv_change")
    ids = [ffi.from_buffer("int32_t []", np.ascontiguousarray(one, dtype=np.int32)) for one in (text, prompt)]
    _check(lib.morphkv_change_plan(ids[0], len(text), ids[1], len(prompt), _int32("n_cached", n_cached), out))
    return _fields(out[0])


class Passage:
    """n_tokens tokens of a text from token `first` on, aside: their keys and values, as the archive has them.

    Raises NativeError where the archive does not have them.
    """

    def __init__(self, context: int, first: int, n_tokens: int, seq_id: int = 0) -> None:
        out = ffi.new("morphkv_passage **")
        numbers = _int32("seq_id", seq_id), _int32("first", first), _int32("n_tokens", n_tokens)
        _check(lib.morphkv_passage_take(_context(context), *numbers, out))
        self._passage = ffi.gc(out[0], lib.morphkv_passage_free)

    def put(self, context: int, tokens: Sequence[int], seq_id: int = 0) -> dict[str, Any]:
        """Behind the text of a sequence, which then has these tokens; as restore()."""
        ids = ffi.new("int32_t []", list(tokens))
        out = _sized("morphkv_restored")
        handle = _context(context)
        _check(lib.morphkv_passage_put(handle, _int32("seq_id", seq_id), self._passage, ids, len(ids), out))
        return _fields(out[0])
