"""What a saved session must have in common with the Llama that goes on with it."""

from __future__ import annotations

import os
from typing import Any

from ..cache.archive import CACHE_TYPES
from ..cache.fingerprint import model_fingerprint
from ..config import MorphKV, settings_of
from ..errors import SessionFileError
from .model import ChatModel
from .template import ChatTemplate

TYPE_NAMES = {number: name for name, number in CACHE_TYPES.items()}


def identity(llm: ChatModel, config: MorphKV, template: ChatTemplate) -> dict[str, Any]:
    return {
        "model": model_fingerprint(llm.model_path),
        "settings": settings_of(config),
        "chat template": template.turn("").text,
        "model name": os.path.basename(llm.model_path),
        "cache types": [TYPE_NAMES.get(kind, str(kind)) for kind in llm._cache_types],
        "archive type": _archive_type(llm),
    }


def check(name: str, header: dict[str, Any], here: dict[str, Any]) -> None:
    """Raise SessionFileError where a file's header is not of this Llama. What old files do not tell is not asked."""
    if header.get("model") != here["model"]:
        saved = header.get("model name")
        of = f": {saved}, and this is {here['model name']}" if isinstance(saved, str) else ""
        raise SessionFileError(f"{name} was saved with another model{of}")
    if header.get("settings") != here["settings"]:
        raise SessionFileError(f"{name} was saved with other settings: {_difference(header, here['settings'])}")
    if header.get("chat template") != here["chat template"]:
        raise SessionFileError(
            f"{name} was saved with another chat template: behind an answer it wrote {header.get('chat template')!r}, "
            f"and here it is {here['chat template']!r}"
        )
    types = header.get("cache types", here["cache types"])
    if types != here["cache types"]:
        raise SessionFileError(
            f"{name} was saved with other cache types: K and V were {types!r} and are {here['cache types']!r} "
            "(type_k, type_v; --cache-type-k, --cache-type-v)"
        )
    saved, archive = header.get("archive type", here["archive type"]), here["archive type"]
    if saved == archive:
        return
    if archive is None:
        raise SessionFileError(
            f'{name} was saved with an archive: open the model with Llama(..., archive="ram") or with --archive ram'
        )
    if saved is None:
        raise SessionFileError(
            f"{name} was saved without an archive: open the model without one, or in a chat with --no-archive"
        )
    raise SessionFileError(
        f"{name} was saved with an archive of type {saved!r}, and here it is {archive!r}: Archive(type=...), or "
        "--archive-type"
    )


def _archive_type(llm: ChatModel) -> str | None:
    """That of keys; None without an archive."""
    if llm.archive is None:
        return None
    return llm.archive.type or TYPE_NAMES.get(llm._cache_types[0], str(llm._cache_types[0]))


def _difference(header: dict[str, Any], here: dict[str, Any]) -> str:
    saved = header.get("settings")
    if not isinstance(saved, dict):
        return f"they were {saved!r} and are {here!r}"
    keys = [key for key in here if saved.get(key) != here[key]]
    return ", ".join(f"{key} was {saved.get(key)!r} and is {here[key]!r}" for key in keys)
