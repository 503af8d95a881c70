"""States of a Llama in files."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
from llama_cpp import LlamaState

from ..config import MorphKV, settings_of
from ..errors import SessionFileError
from . import saved_file
from .fingerprint import model_fingerprint


def save(path: str | os.PathLike[str], config: MorphKV, model_path: str, state: LlamaState) -> None:
    header = {**identity(config, model_path), "seed": int(state.seed)}
    ids = np.asarray(state.input_ids[: state.n_tokens])
    saved_file.write(path, "state", saved_file.Contents(header, ids, state.llama_state))


def load(path: str | os.PathLike[str], config: MorphKV, model_path: str, n_vocab: int) -> LlamaState:
    """Raises OSError, and SessionFileError for a file that is no state of this model and these settings."""
    contents, name = saved_file.read(path, "state"), os.fspath(path)
    for what, value in identity(config, model_path).items():
        if contents.header.get(what) != value:
            raise SessionFileError(
                f"{name} was saved with another {what}: {contents.header.get(what)!r}, not {value!r}"
            )
    seed = contents.header.get("seed")
    if not isinstance(seed, int) or isinstance(seed, bool):
        raise SessionFileError(f"{name}: seed must be an integer, got {seed!r}")
    return LlamaState(
        input_ids=contents.ids,
        scores=np.empty((0, n_vocab), dtype=np.single),
        n_tokens=len(contents.ids),
        llama_state=contents.state,
        llama_state_size=len(contents.state),
        seed=seed,
    )


def identity(config: MorphKV, model_path: str) -> dict[str, Any]:
    return {"model": model_fingerprint(model_path), "settings": settings_of(config)}
