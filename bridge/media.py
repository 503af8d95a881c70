"""Functions of mtmd.h that llama_cpp declares with ctypes: a text with images or sound in it becomes pieces.

A context of mtmd is what a chat handler of llama_cpp holds, a context what a Llama does.
"""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import llama_cpp

from .calls import last_error
from .errors import NativeError


@dataclass(frozen=True)
class MediaPiece:
    """An image or a sound between texts. It lives as long as `media_pieces`."""

    n_tokens: int
    n_positions: int  # fewer than tokens with M-RoPE
    _mtmd_context: Any
    _chunk: Any

    def decode(self, context: Any, position: int, n_batch: int) -> None:
        """Encode it, and decode it at a position of sequence 0. NativeError with the reason where that fails."""
        from llama_cpp import mtmd_cpp

        behind = ctypes.byref(llama_cpp.llama_pos(0))
        CheckedMtmd(mtmd_cpp).mtmd_helper_eval_chunk_single(
            self._mtmd_context, context, self._chunk, position, 0, n_batch, False, behind
        )


class CheckedMtmd:
    """llama_cpp.mtmd_cpp, for chat handlers of llama_cpp too: an image that cannot be decoded raises NativeError with
    the reason, where some would end the process. Handlers ask whether a projector sees; one that hears is taken, too.
    """

    def __init__(self, mtmd_cpp: Any) -> None:
        self._mtmd_cpp = mtmd_cpp

    def __getattr__(self, name: str) -> Any:
        return getattr(self._mtmd_cpp, name)

    def mtmd_support_vision(self, mtmd_context: Any) -> bool:
        return any(
            supports(mtmd_context)
            for supports in (self._mtmd_cpp.mtmd_support_vision, self._mtmd_cpp.mtmd_support_audio)
        )

    def mtmd_helper_bitmap_init_from_buf(self, mtmd_context: Any, *data: Any) -> Any:
        """Raises ValueError for an image where the projector only hears."""
        bitmap = self._mtmd_cpp.mtmd_helper_bitmap_init_from_buf(mtmd_context, *data)
        is_image = bitmap is not None and not self._mtmd_cpp.mtmd_bitmap_is_audio(bitmap)
        if is_image and not self._mtmd_cpp.mtmd_support_vision(mtmd_context):
            self._mtmd_cpp.mtmd_bitmap_free(bitmap)
            raise ValueError("this projector reads sound and no images")
        return bitmap

    def mtmd_helper_eval_chunk_single(
        self, mtmd_context: Any, context: Any, chunk: Any, position: Any, sequence: Any, n_batch: int, *more: Any
    ) -> int:
        # libmtmd would split it, or libllama end the process
        n_tokens = self._mtmd_cpp.mtmd_input_chunk_get_n_tokens(chunk)
        n_ubatch = min(n_batch, llama_cpp.llama_n_ubatch(context))
        if n_tokens > n_ubatch and self._mtmd_cpp.mtmd_decode_use_non_causal(mtmd_context, chunk):
            raise NativeError(
                f"an image whose tokens attend to each other must fit n_batch and n_ubatch, got {n_tokens} tokens "
                f"with {n_ubatch}"
            )
        result: int = self._mtmd_cpp.mtmd_helper_eval_chunk_single(
            mtmd_context, context, chunk, position, sequence, n_batch, *more
        )
        if result != 0:
            raise NativeError(f"an image could not be decoded: {last_error() or f'error code {result}'}")
        return result


@contextlib.contextmanager
def media_pieces(
    mtmd_context: Any, text: str, bitmaps: Sequence[Any], add_special: bool
) -> Iterator[list[list[int] | MediaPiece]]:
    """Token ids, and what stands for the bitmaps, in the order of the text, which has a marker for each bitmap.

    NativeError where they do not fit together.
    """
    from llama_cpp import mtmd_cpp

    data = text.encode()
    given = mtmd_cpp.mtmd_input_text()
    given.text, given.text_len, given.add_special, given.parse_special = data, len(data), add_special, True
    chunks = mtmd_cpp.mtmd_input_chunks_init()
    try:
        array = (mtmd_cpp.mtmd_bitmap_p_ctypes * len(bitmaps))(*bitmaps)
        result = mtmd_cpp.mtmd_tokenize(mtmd_context, chunks, ctypes.byref(given), array, len(bitmaps))
        if result != 0:
            raise NativeError(f"a text with {len(bitmaps)} images could not be tokenized: error code {result}")
        yield [
            _piece(mtmd_cpp, mtmd_context, mtmd_cpp.mtmd_input_chunks_get(chunks, i))
            for i in range(mtmd_cpp.mtmd_input_chunks_size(chunks))
        ]
    finally:
        mtmd_cpp.mtmd_input_chunks_free(chunks)


def _piece(mtmd_cpp: Any, mtmd_context: Any, chunk: Any) -> list[int] | MediaPiece:
    if mtmd_cpp.mtmd_input_chunk_get_type(chunk) == mtmd_cpp.MTMD_INPUT_CHUNK_TYPE_TEXT:
        n = ctypes.c_size_t()
        tokens = mtmd_cpp.mtmd_input_chunk_get_tokens_text(chunk, ctypes.byref(n))
        return [int(tokens[i]) for i in range(n.value)]
    return MediaPiece(
        n_tokens=mtmd_cpp.mtmd_input_chunk_get_n_tokens(chunk),
        n_positions=mtmd_cpp.mtmd_input_chunk_get_n_pos(chunk),
        _mtmd_context=mtmd_context,
        _chunk=chunk,
    )


def media_marker() -> str:
    """What stands in a text for an image."""
    from llama_cpp import mtmd_cpp

    marker: bytes = mtmd_cpp.mtmd_default_marker()
    return marker.decode()
