"""Sessions from files."""

from __future__ import annotations

import json
import os
import sys
from typing import Any

import numpy as np
from llama_cpp import LlamaState

from ..cache import saved_file
from ..errors import NoMorphKVError, SessionFileError, StateError
from .history import History
from .identity import check, identity
from .model import ChatModel
from .session import Session
from .template import ChatTemplate
from .tool_calls import Tool, tool_names


def load_session(llm: ChatModel, path: str | os.PathLike[str]) -> Session:
    """Go on with the session that `Session.save` wrote to the file: bit for bit, in any process.

    The Llama must have the same model, chat template and MorphKV settings, and an archive if the session had one. The
    session goes back (undo, edit, regenerate) by evaluating again; in a file of an older version, which holds no
    messages and the newest token ids only, not beyond the turns since.

    Raises OSError for a file that cannot be read, SessionFileError for one that is no session, damaged, or of another
    model or other settings. Sessions of this Llama are never disturbed.
    """
    if llm.morphkv is None:
        raise NoMorphKVError("a session needs MorphKV: open the model with Llama(..., morphkv=True)")
    contents, name = saved_file.read(path, "session"), os.fspath(path)
    header = contents.header
    check(name, header, identity(llm, llm.morphkv, ChatTemplate.of(llm)))
    state = LlamaState(
        input_ids=np.empty(0, dtype=np.intc),
        scores=np.empty((0, llm.n_vocab()), dtype=np.single),
        n_tokens=0,
        llama_state=contents.state,
        llama_state_size=len(contents.state),
        seed=_checked(header, name, "seed", -(2**63), 2**63 - 1),
    )
    n_keep = _checked(header, name, "keep", 0, llm.morphkv.capacity)
    session = Session(llm, header.get("system"), keep=n_keep)
    session._talk.history = _history(header, name)
    session._talk.tools = _tools(header, name)
    ahead = header.get("ahead")
    if not isinstance(ahead, list):
        raise SessionFileError(f"{name}: ahead must be a list, got {ahead!r}")
    ahead = [_checked({"ahead": token}, name, "ahead", 0, llm.n_vocab() - 1) for token in ahead]
    n_tokens = _checked(header, name, "n_tokens", 1, llm.n_ctx())
    try:
        session._text.restore(state, n_tokens, contents.ids, ahead, n_keep)
    except StateError as error:
        raise SessionFileError(f"{name} does not fit: {error}") from error
    return session


def _history(header: dict[str, Any], name: str) -> History:
    n_turns = _checked(header, name, "n_turns", 0, sys.maxsize)
    if "history" not in header:
        return History(n_untold=n_turns)  # of an older version
    try:
        history = History.of_json(header["history"])
    except ValueError as error:
        raise SessionFileError(f"{name}: {error}") from error
    if history.n_turns != n_turns:
        raise SessionFileError(f"{name}: its history must have {n_turns} turns, got {history.n_turns}")
    return history


def _tools(header: dict[str, Any], name: str) -> list[Tool] | None:
    try:
        tools: list[Tool] | None = json.loads(header.get("tools", "null"))
        tool_names(tools)
    except (TypeError, ValueError, LookupError, RecursionError) as error:
        raise SessionFileError(f"{name}: its tools cannot be read: {error}") from error
    return tools


def _checked(header: dict[str, Any], name: str, key: str, low: int, high: int) -> int:
    value = header.get(key)
    if not isinstance(value, int) or not low <= value <= high:
        raise SessionFileError(f"{name}: {key} must be in {low}..{high}, got {value!r}")
    return value
