"""Recalls: when the native library makes them, and what they bring."""

from __future__ import annotations

from typing import Any

from .calls import _check, _context, _fields, _int32, _recall_params, _sized
from .native import ffi, lib

WRITE_STEP: int = lib.MORPHKV_WRITE_STEP  # write_next() recalls where the text has a multiple of this, if at all


def recall(context: int, seq_id: int = 0, **settings: float) -> dict[str, Any]:
    """Bring back archived tokens that the newest queries attend to: fields of morphkv_recalled but for its size.

    settings: fields of morphkv_recall_params; the library's own where they are not given.
    """
    out = _sized("morphkv_recalled")
    _check(lib.morphkv_recall(_context(context), _int32("seq_id", seq_id), _recall_params(settings), out))
    return _fields(out[0])


class Prompt:
    """The reading of a prompt: with an archive all but its last token, its end again, its last token.

    Counts are in tokens of the text up to the prompt's end, of which the sequence held the first n_past already; the
    last n_redo at most are decoded again. recalls: whether the archive is asked at all.
    """

    def __init__(self, n_past: int, n_tokens: int, n_redo: int, recalls: bool = True) -> None:
        prompt = lib.morphkv_prompt_begin(_int32("n_past", n_past), _int32("n_tokens", n_tokens))
        prompt.n_redo = _int32("n_redo", n_redo)
        prompt.stage = lib.MORPHKV_PROMPT_STAGE_FIRST if recalls else lib.MORPHKV_PROMPT_STAGE_LAST
        self._prompt = ffi.new("morphkv_prompt *", prompt)

    def next(self, context: int, n_held: int, **settings: float) -> tuple[int, int, dict[str, Any] | None]:
        """What is next while the context's first sequence holds n_held tokens: how many to take back, how many it is to
        hold then, and what a recall has just brought, if there was one. The prompt is read once it holds n_tokens.

        settings: as of recall().
        """
        params = _recall_params(settings)
        _check(lib.morphkv_prompt_next(_context(context), 0, params, self._prompt, _int32("n_held", n_held)))
        recalled = _fields(self._prompt.recalled) if self._prompt.n_recalls else None
        return self._prompt.n_back, self._prompt.n_end, recalled


def write_next(context: int, seq_id: int = 0, **settings: float) -> dict[str, Any] | None:
    """Before a written token is decoded: the recall that is due, as recall() has it; None where none was made."""
    out = _sized("morphkv_writing")
    _check(lib.morphkv_write_next(_context(context), _int32("seq_id", seq_id), _recall_params(settings), out))
    return _fields(out.recalled) if out.n_recalls else None
