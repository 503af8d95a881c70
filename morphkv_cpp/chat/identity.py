"""What a saved session must have in common with the Llama that goes on with it."""

from __future__ import annotations

from typing import Any

from ..cache.fingerprint import model_fingerprint
from ..config import MorphKV, settings_of
from .template import ChatTemplate


def identity(model_path: str, config: MorphKV, template: ChatTemplate) -> dict[str, Any]:
    return {
        "model": model_fingerprint(model_path),
        "settings": settings_of(config),
        "chat template": template.turn("").text,
    }
