"""How a question comes behind the text of a session: words stay ahead, images are decoded with what is before them."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from ..cache.live_text import LiveText
from ..cache.reuse import PromptReuse
from ..errors import ContextFullError
from ..text.tokens import tokens_behind
from .media import Pieces, n_tokens, pieces_of
from .model import ChatModel
from .opening import tokens_of
from .template import ChatTemplate, Message, Rendered

logger = logging.getLogger("morphkv_cpp")


def ask(
    llm: ChatModel,
    text: LiveText,
    template: ChatTemplate,
    opening: Sequence[Message],
    n_keep: int,
    question: str,
    images: Sequence[str],
) -> tuple[Rendered, PromptReuse, int]:
    """Put the question behind the text, with the words that the template has around it.

    What was rendered, how much of the words was known (of a session's first prompt), how many tokens the images have.
    """
    begun = text.begun
    rendered = template.turn(question) if begun else template.opening(opening, question)
    if images:
        with pieces_of(llm, rendered.text, images, add_bos=rendered.add_bos and not begun) as pieces:
            return rendered, *_ask_pieces(llm, text, pieces, n_keep)
    if begun:
        tokens = tokens_behind(llm, rendered.text)
        _refuse_full(llm, text.n_tokens + len(tokens))
        _note_drawn(llm, text)
        text.ahead += tokens
        return rendered, PromptReuse(n_prompt=len(text.ahead), n_common=0, n_cached=0), 0
    prompt = tokens_of(llm, rendered)
    _refuse_full(llm, len(prompt))
    reuse = _begin(text, prompt, n_keep)
    return rendered, reuse, 0


def _begin(text: LiveText, prompt: Sequence[int], n_keep: int) -> PromptReuse:
    reuse = text.begin(prompt, n_keep)
    words = ", whose start was known but is evicted in part" if reuse.reprocessed else ""
    logger.info("session: %d of %d tokens known%s", reuse.n_cached, reuse.n_prompt, words)
    return reuse


def _ask_pieces(llm: ChatModel, text: LiveText, pieces: Pieces, n_keep: int) -> tuple[PromptReuse, int]:
    _refuse_full(llm, text.n_tokens + sum(n_tokens(piece) for piece in pieces))
    n_media = 0
    if text.begun:
        _note_drawn(llm, text)
        reuse = PromptReuse(n_prompt=len(text.ahead), n_common=0, n_cached=0)
    else:
        # mostly there is a BOS before an image
        first: list[int] = []
        if isinstance(pieces[0], list):
            first, pieces = pieces[0], pieces[1:]
        reuse = _begin(text, first, n_keep)
    n_words = reuse.n_prompt
    for piece in pieces:
        if isinstance(piece, list):
            text.ahead += piece
            n_words += len(piece)
            continue
        _decode_ahead(llm, text)
        text.add_media(piece.decode, llm.n_batch)
        n_media += piece.n_tokens
    return PromptReuse(n_words, reuse.n_common, reuse.n_cached), n_media


def _decode_ahead(llm: ChatModel, text: LiveText) -> None:
    if text.ahead:
        with text.at_work():
            llm.n_tokens = text.n_held
            if llm._evals is not None:
                llm._evals.prompt_comes = True
            llm.eval(text.ahead)
        text.settle()


def _note_drawn(llm: ChatModel, text: LiveText) -> None:
    """Other texts may have been written since the answer's last token was sampled."""
    if len(text.ahead) == 1 and llm._evals is not None:
        llm._evals.drew(text.n_held, text.ahead[0])


def _refuse_full(llm: ChatModel, n_tokens: int) -> None:
    if n_tokens >= llm.n_ctx():
        raise ContextFullError(f"the chat must stay below n_ctx={llm.n_ctx()} tokens, got {n_tokens}")
