"""How a question comes behind the text of a session: words stay ahead, images are decoded with what is before them."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import NamedTuple, NoReturn

from ..cache.live_text import LiveText
from ..cache.reuse import PromptReuse
from ..errors import ContextFullError, StateError
from ..text.tokens import tokens_behind
from .media import Pieces, n_tokens, pieces_of
from .model import ChatModel
from .opening import tokens_of
from .template import Rendered

logger = logging.getLogger("morphkv_cpp")


class Asked(NamedTuple):
    reuse: PromptReuse  # of the words
    n_media: int  # tokens of the images
    n_evicted: int  # of the chat, before any of this was decoded
    n_again: int  # of the words, those that were evaluated before
    n_restored: int = 0  # tokens of the chat that came back by the archive


def put(llm: ChatModel, text: LiveText, rendered: Rendered, images: Sequence[str], n_before: int, n_keep: int) -> Asked:
    """Let what a template has for a question follow the text's first n_before tokens; 0: the text begins with it."""
    add_bos = rendered.add_bos and n_before == 0
    if images:
        with pieces_of(llm, rendered.text, images, add_bos=add_bos) as pieces:
            return _put_pieces(llm, text, pieces, n_before, n_keep)
    tokens = tokens_of(llm, rendered) if n_before == 0 else tokens_behind(llm, rendered.text)
    _refuse_full(llm, n_before + len(tokens))
    if not text.begun:
        reuse = _begin(text, tokens, n_keep)
        return Asked(reuse, 0, llm.cache_stats().n_evicted, 0)
    if not text.change(n_before, tokens, n_new=1):
        refuse_unknown(n_before)
    _note_drawn(llm, text, n_before)
    reuse = PromptReuse(n_prompt=len(text.ahead), n_common=0, n_cached=0)
    return Asked(reuse, 0, llm.cache_stats().n_evicted, text.n_again, text.n_restored)


def _begin(text: LiveText, prompt: Sequence[int], n_keep: int) -> PromptReuse:
    reuse = text.begin(prompt, n_keep)
    words = ", whose start was known but is evicted in part" if reuse.reprocessed else ""
    logger.info("session: %d of %d tokens known%s", reuse.n_cached, reuse.n_prompt, words)
    return reuse


def _put_pieces(llm: ChatModel, text: LiveText, pieces: Pieces, n_before: int, n_keep: int) -> Asked:
    _refuse_full(llm, n_before + sum(n_tokens(piece) for piece in pieces))
    n_media = 0
    if text.begun:
        if not text.go_back(n_before):
            refuse_unknown(n_before)
        _note_drawn(llm, text, n_before)
        reuse = PromptReuse(n_prompt=len(text.ahead), n_common=0, n_cached=0)
    else:
        # mostly there is a BOS before an image
        first: list[int] = []
        if isinstance(pieces[0], list):
            first, pieces = pieces[0], pieces[1:]
        reuse = _begin(text, first, n_keep)
    n_words, n_evicted = reuse.n_prompt, llm.cache_stats().n_evicted
    n_again, n_restored = text.n_again, text.n_restored
    for piece in pieces:
        if isinstance(piece, list):
            text.ahead += piece
            n_words += len(piece)
            continue
        _decode_ahead(llm, text)
        text.add_media(piece.decode, llm.n_batch)
        n_media += piece.n_tokens
    return Asked(PromptReuse(n_words, reuse.n_common, reuse.n_cached), n_media, n_evicted, n_again, n_restored)


def _decode_ahead(llm: ChatModel, text: LiveText) -> None:
    if text.ahead:
        with text.at_work():
            llm.n_tokens = text.n_held
            if llm._evals is not None:
                llm._evals.prompt_comes = True
            llm.eval(text.ahead)
        text.settle()


def _note_drawn(llm: ChatModel, text: LiveText, n_before: int) -> None:
    """Other texts may have been written since the answer's last token was sampled."""
    if n_before - text.n_held == 1 and llm._evals is not None:
        llm._evals.drew(text.n_held, text.ahead[0])


def refuse_unknown(n_before: int) -> NoReturn:
    raise StateError(
        f"the chat cannot go back to its first {n_before} tokens: some of them are evicted, and would have to be "
        "evaluated again, but are those of an image, or of a file that does not hold them"
    )


def _refuse_full(llm: ChatModel, n_tokens: int) -> None:
    if n_tokens >= llm.n_ctx():
        raise ContextFullError(f"the chat must stay below n_ctx={llm.n_ctx()} tokens, got {n_tokens}")
