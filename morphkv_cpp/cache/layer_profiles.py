"""Profiles of layers: stored by the model's fingerprint, or shipped with this package."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from ..config import MorphKV
from ..profile import KeepAll, Profile, n_keep_all
from .fingerprint import model_fingerprint

logger = logging.getLogger("morphkv_cpp")

SHIPPED = Path(__file__).parent.parent / "profiles"


def stored_path(fingerprint: str) -> Path:
    """In $MORPHKV_CACHE, by default ~/.cache/morphkv_cpp."""
    cache = Path(os.environ.get("MORPHKV_CACHE") or "~/.cache/morphkv_cpp").expanduser()
    return cache / "profiles" / f"{fingerprint[:32]}.json"


def find_profile(model_path: str | os.PathLike[str]) -> tuple[Path, Profile] | None:
    """Of this model's file: the stored one, else the shipped one. Raises ValueError for one that is damaged."""
    fingerprint = model_fingerprint(model_path)
    for path in _candidates(fingerprint):
        profile = Profile.load(path)
        if profile.fingerprint == fingerprint:
            return path, profile
    return None


def chosen_profile(model_path: str | os.PathLike[str]) -> tuple[Path, Profile] | None:
    """What "auto" takes: as find_profile(), but a damaged one is warned of, and is none."""
    try:
        return find_profile(model_path)
    except ValueError as error:
        logger.warning("%s: all layers are alike", error)
        return None


def _candidates(fingerprint: str) -> Iterator[Path]:
    if (path := stored_path(fingerprint)).is_file():
        yield path
    yield from sorted(SHIPPED.glob("*.json"))


def needed_profile(model_path: str | os.PathLike[str]) -> tuple[Path, Profile]:
    """As find_profile(), but raises ValueError where there is none."""
    found = find_profile(model_path)
    if found is None:
        path = os.fspath(model_path)
        raise ValueError(f"layers='all:N' needs a profile of the model: run `morphkv profile {path}` once")
    return found


def resolved(config: MorphKV, model_path: str | os.PathLike[str], is_attached: bool, n_tokens: int = -1) -> MorphKV:
    """The settings with the profile that layers="auto" has for this model, or as they are where there is none.

    With attached files all layers are alike: a file fills the slots of each layer, and may be too short for the large.
    n_tokens: most that layers keep where they keep all; -1: as many as rotary positions allow.
    Raises ValueError where layers="all:N" finds no profile, or a damaged one.
    """
    if is_attached and config.layers == "auto":
        return replace(config, layers="equal")
    if not isinstance(config.layers, str) or not os.path.isfile(model_path):  # a missing one is told when it is opened
        return config
    if n_layers := n_keep_all(config.layers):
        return replace(config, layers=KeepAll(needed_profile(model_path)[1], n_layers, n_tokens))
    if config.layers != "auto":
        return config
    found = chosen_profile(model_path)
    if found is None:
        return config
    path, profile = found
    logger.info("layers=auto: layers %s keep more, by %s", ", ".join(map(str, profile.large)), path)
    return replace(config, layers=profile)
