"""Sessions to files."""

from __future__ import annotations

import json
import os

import numpy as np

from ..cache import saved_file
from .conversation import Conversation
from .identity import identity


def save_session(talk: Conversation, path: str | os.PathLike[str]) -> None:
    """Write a session for load_session. Older versions read it too, but for what is between its turns."""
    state = talk.text.state()
    header = {
        **identity(talk.llm, talk.config, talk.template),
        "system": talk.system,
        "keep": talk.n_keep,
        "n_turns": talk.history.n_turns,
        "n_tokens": state.n_tokens,
        "ahead": talk.text.ahead,
        "seed": state.seed,
        # texts, as a header is not deep
        "history": talk.history.as_json(),
        "tools": json.dumps(talk.tools),
    }
    ids = np.asarray(state.input_ids[: state.n_tokens])
    saved_file.write(path, "session", saved_file.Contents(header, ids, state.llama_state))
