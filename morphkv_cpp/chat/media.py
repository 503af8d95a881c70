"""Images and sound in messages, read with the chat handler that the Llama was opened with."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

from llama_cpp.llama_chat_format import (
    Jinja2ChatFormatter,
    LlamaChatCompletionHandler,
    Llava15ChatHandler,
    MTMDChatHandler,
)

from .. import bridge
from ..architectures import architectures
from .model import ChatModel

Content = str | Sequence[dict[str, Any]]  # of a message, as create_chat_completion takes it
Pieces = list["list[int] | bridge.MediaPiece"]


def media_handler(llm: ChatModel) -> Any:
    """The Llama's chat handler where it reads images or sound, else None."""
    handler = llm.chat_handler
    return handler if isinstance(handler, (MTMDChatHandler, Llava15ChatHandler)) else None


def check_images(llm: ChatModel) -> None:
    """From now on the Llama's chat handler refuses an image that cannot be decoded, with NativeError, and takes
    a projector that only hears.
    """
    handler = media_handler(llm)
    if handler is not None and not isinstance(handler._mtmd_cpp, bridge.CheckedMtmd):
        handler._mtmd_cpp = bridge.CheckedMtmd(handler._mtmd_cpp)


def text_handler(llm: ChatModel) -> LlamaChatCompletionHandler | None:
    """What writes a chat as the media handler does, but leaves images to others; None where there is no media handler.

    Raises ValueError where the handler takes the template of the model's file, which has none.
    """
    handler = media_handler(llm)
    if handler is None:
        return None
    template = getattr(handler, "CHAT_FORMAT", None) or llm.metadata.get("tokenizer.chat_template")
    if not template:
        raise ValueError(f"{type(handler).__name__} needs a chat template in the model's file")
    formatter = Jinja2ChatFormatter(
        template=template, eos_token=_special(llm, llm.token_eos()), bos_token=_special(llm, llm.token_bos())
    )

    def write(*, llama: Any, messages: Any, **options: Any) -> Any:
        # templates of handlers write the text of a question once where it comes in parts, else twice
        if hasattr(handler, "CHAT_FORMAT"):
            messages = [_in_parts(message) for message in messages]
        text = formatter(messages=messages, **options).prompt
        # with a BOS, as libmtmd tokenizes
        return llama.create_completion(llama.tokenize(text.encode(), add_bos=True, special=True))

    return write


def _in_parts(message: dict[str, Any]) -> dict[str, Any]:
    if message["role"] != "user" or not isinstance(message["content"], str):
        return message
    return {**message, "content": [{"type": "text", "text": message["content"]}]}


def _special(llm: ChatModel, token: int) -> str:
    # as the handlers do, for which special tokens have no text
    return llm._piece(token).decode(errors="ignore")


def url_of(part: Any) -> str | None:
    """Where the bytes of a message's part are, an image's or a sound's, else None."""
    kind = part.get("type") if isinstance(part, dict) else None
    if kind == "image_url":
        image: Any = part["image_url"]
        url: str = image["url"] if isinstance(image, dict) else image
        return url
    if kind == "input_audio":
        return f"data:audio/{part['input_audio'].get('format', 'wav')};base64,{part['input_audio']['data']}"
    return None


def sounds_as_images(messages: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """For chat handlers of llama_cpp: they know parts with images alone, and take the bytes of either."""

    def changed(part: Any) -> Any:
        is_sound = isinstance(part, dict) and part.get("type") == "input_audio"
        return {"type": "image_url", "image_url": {"url": url_of(part)}} if is_sound else part

    return [
        {**message, "content": [changed(part) for part in message["content"]]}
        if isinstance(message.get("content"), list)
        else message
        for message in messages
    ]


def text_of(llm: ChatModel, content: Content) -> tuple[str, list[str]]:
    """A question's text, with a marker for each image and sound, and their URLs.

    Raises TypeError for what is no content of a message, ValueError for images and sound that this Llama cannot read.
    """
    if isinstance(content, str):
        return content, []
    parts: Any = content
    if isinstance(parts, (bytes, dict)) or not isinstance(parts, Sequence):
        raise TypeError(f"text must be a str, got {content!r}; it may be a list of a message's parts, too")
    words: list[str] = []
    urls: list[str] = []
    for part in parts:
        url = url_of(part)
        if url is not None:
            urls.append(url)
            words.append(bridge.media_marker() if media_handler(llm) else "")
        elif isinstance(part, dict) and part.get("type") == "text":
            words.append(part["text"])
        else:
            raise TypeError(f'a part of text must have the type "text", "image_url" or "input_audio", got {part!r}')
    if urls and media_handler(llm) is None:
        raise ValueError(_why_no_images(llm))
    return "".join(words), urls  # as templates put parts together


def _why_no_images(llm: ChatModel) -> str:
    name = llm.metadata.get("general.architecture", "")
    kinds = {one.images for one in architectures() if one.name == name}
    if "no" in kinds:
        return f"MorphKV cannot have images in a text of {name}: ask about them with Llama(..., morphkv=None)"
    return (
        "a session reads images and sound with a chat handler: Llama(..., "
        "chat_handler=MTMDChatHandler(clip_model_path=...)), "
        f"with a model that has a projector; got chat_handler={llm.chat_handler!r}"
    )


def n_tokens(piece: list[int] | bridge.MediaPiece) -> int:
    return len(piece) if isinstance(piece, list) else piece.n_tokens


@contextlib.contextmanager
def pieces_of(llm: ChatModel, text: str, urls: Sequence[str], add_bos: bool) -> Iterator[Pieces]:
    """A rendered text in pieces: tokens, and the images and sounds at its markers.

    Raises ValueError for one that cannot be read, NativeError where text and images do not fit together.
    """
    check_images(llm)
    handler = media_handler(llm)
    handler._init_mtmd_context(llm)
    with contextlib.ExitStack() as stack:
        bitmaps = []
        for url in urls:
            bitmaps.append(handler._create_bitmap_from_bytes(handler.load_image(url)))
            stack.callback(handler._mtmd_cpp.mtmd_bitmap_free, bitmaps[-1])
        yield stack.enter_context(bridge.media_pieces(handler.mtmd_ctx, text, bitmaps, add_bos))
