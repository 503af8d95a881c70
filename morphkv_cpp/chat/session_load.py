"""Sessions from files."""

from __future__ import annotations

import os
import sys
from typing import Any

import numpy as np
from llama_cpp import LlamaState

from ..cache import saved_file
from ..errors import NoMorphKVError, SessionFileError, StateError
from .identity import identity
from .model import ChatModel
from .session import Session
from .template import ChatTemplate


def load_session(llm: ChatModel, path: str | os.PathLike[str]) -> Session:
    """Go on with the session that `Session.save` wrote to the file: bit for bit, in any process.

    The Llama must have the same model, chat template and MorphKV settings. It knows the newest token ids only: another
    prompt is evaluated from its start, even where it begins like the session.

    Raises OSError for a file that cannot be read, SessionFileError for one that is no session, damaged, or of another
    model or other settings. Sessions of this Llama are never disturbed.
    """
    if llm.morphkv is None:
        raise NoMorphKVError("a session needs MorphKV: open the model with Llama(..., morphkv=True)")
    contents, name = saved_file.read(path, "session"), os.fspath(path)
    header = contents.header
    for what, value in identity(llm.model_path, llm.morphkv, ChatTemplate.of(llm)).items():
        if header.get(what) != value:
            raise SessionFileError(f"{name} was saved with another {what}: {_difference(header.get(what), value)}")
    state = LlamaState(
        input_ids=np.empty(0, dtype=np.intc),
        scores=np.empty((0, llm.n_vocab()), dtype=np.single),
        n_tokens=0,
        llama_state=contents.state,
        llama_state_size=len(contents.state),
        seed=_checked(header, name, "seed", -(2**63), 2**63 - 1),
    )
    session = Session(llm, header.get("system"), keep=_checked(header, name, "keep", 0, llm.morphkv.capacity))
    session.n_turns = _checked(header, name, "n_turns", 0, sys.maxsize)
    ahead = header.get("ahead")
    if not isinstance(ahead, list):
        raise SessionFileError(f"{name}: ahead must be a list, got {ahead!r}")
    ahead = [_checked({"ahead": token}, name, "ahead", 0, llm.n_vocab() - 1) for token in ahead]
    n_tokens = _checked(header, name, "n_tokens", 1, llm.n_ctx())
    try:
        session._text.restore(state, n_tokens, contents.ids, ahead)
    except StateError as error:
        raise SessionFileError(f"{name} does not fit: {error}") from error
    return session


def _difference(saved: Any, here: Any) -> str:
    if isinstance(saved, dict) and isinstance(here, dict):
        keys = [key for key in here if saved.get(key) != here[key]]
        return ", ".join(f"{key} was {saved.get(key)!r} and is {here[key]!r}" for key in keys)
    return f"it was {saved!r} and is {here!r}"


def _checked(header: dict[str, Any], name: str, key: str, low: int, high: int) -> int:
    value = header.get(key)
    if not isinstance(value, int) or not low <= value <= high:
        raise SessionFileError(f"{name}: {key} must be in {low}..{high}, got {value!r}")
    return value
