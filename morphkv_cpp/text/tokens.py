"""From text to tokens."""

from __future__ import annotations

import warnings

from .model import TextModel

# llama_cpp has a model's prefix, suffix and middle tokens all be this one.
INFILL_TOKEN = 0


def require_utf8(text: bytes, what: str = "a text") -> bytes:
    """The same bytes. Raises ValueError, which names the first that is no UTF-8."""
    try:
        text.decode("utf-8")
    except UnicodeDecodeError as error:
        at = f"0x{text[error.start]:02x} at byte {error.start} of {len(text)}"
        raise ValueError(f"{what} must be UTF-8, got {at} ({error.reason})") from None
    return text


def end_tokens(llm: TextModel) -> list[int]:
    """Every token that ends an answer."""
    return [token for token in range(llm.n_vocab()) if llm._is_end(token)]


def tokens_behind(llm: TextModel, text: str) -> list[int]:
    """Tokens of a text behind another: without the space that some vocabularies put before a text's first word."""
    anchor = llm.tokenize(b"\n", add_bos=False, special=True)
    tokens = llm.tokenize(b"\n" + text.encode(), add_bos=False, special=True)
    if tokens[: len(anchor)] == anchor:
        return tokens[len(anchor) :]
    return llm.tokenize(text.encode(), add_bos=False, special=True)


def completion_tokens(llm: TextModel, prompt: str | list[int], suffix: str | None) -> list[int]:
    """The tokens to complete, with what the model's vocabulary wants before and behind them."""
    if not isinstance(suffix, (str, type(None))):
        raise TypeError(f"suffix must be a str or None, got {suffix!r}")
    bos, separator = llm.token_bos(), llm._model.token_sep()
    if isinstance(prompt, str):
        tokens = llm.tokenize(prompt.encode("utf-8"), add_bos=False, special=suffix is None) if prompt else []
    else:
        tokens = list(prompt)
    if suffix is not None:
        before, after = [INFILL_TOKEN, *tokens], [INFILL_TOKEN, *_suffix_tokens(llm, suffix)]
        tokens = [*(after + before if llm.spm_infill else before + after), INFILL_TOKEN]
    if suffix is not None or isinstance(prompt, str):
        first = [bos] if llm._model.add_bos_token() and bos != -1 else []
        ends = llm._model.add_eos_token() or separator != -1
        tokens = first + tokens + ([separator if separator != -1 else llm.token_eos()] if ends else [])
    if tokens[:2] == [bos] * 2:
        warnings.warn(
            f'Detected duplicate leading "{llm._model.token_get_text(bos)}" in prompt, this will likely reduce '
            "response quality, consider removing it...",
            RuntimeWarning,
            stacklevel=3,
        )
    return tokens


def _suffix_tokens(llm: TextModel, suffix: str) -> list[int]:
    if suffix and llm.metadata.get("tokenizer.ggml.add_space_prefix", "true") == "true":
        # The vocabulary puts a space before the first word: behind a sign of two tokens, which go.
        return llm.tokenize(f"\N{WHITE SMILING FACE}{suffix}".encode(), add_bos=False, special=False)[2:]
    return llm.tokenize(suffix.encode("utf-8"), add_bos=False, special=False) if suffix else []
