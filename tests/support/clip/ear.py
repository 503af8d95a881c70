"""What is said of each kind of ears."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .tensors import Head

N_MEL, N_HIDDEN, N_CHANNEL = 16, 48, 8


@dataclass(frozen=True)
class Ear:
    """add: what turns a sound into tokens. is_whisper: behind Whisper's encoder.

    keys: what the file says of it, behind clip.audio.
    """

    add: Head
    is_whisper: bool = False
    n_block: int = 1
    n_mel: int = N_MEL
    keys: Mapping[str, Any] = field(default_factory=dict)
