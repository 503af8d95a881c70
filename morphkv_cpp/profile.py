"""Where in a model evictions do harm, layer by layer."""

from __future__ import annotations

import json
import math
import os
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

FORMAT = 1
N_LARGE_MAX = 128  # MORPHKV_LARGE_MAX


@dataclass(frozen=True)
class Profile:
    """harm: by layer of the model, what an eviction there alone does to the model's answers, in nats a token; 0 where
    nothing is cut (layers that are recurrent, have a sliding window, or share another's K and V).

    model: whose it is, for people. fingerprint: of the model's file, "" where it is not known.
    """

    harm: tuple[float, ...]
    model: str = ""
    fingerprint: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "harm", tuple(float(value) for value in self.harm))
        if not self.harm or not all(math.isfinite(value) and value >= 0 for value in self.harm):
            raise ValueError(f"harm must be a number of at least 0 for each layer, got {self.harm}")

    @property
    def large(self) -> tuple[int, ...]:
        """The layers that keep more: a quarter of those that are cut, the most harm first."""
        n_large = min(math.ceil(self.n_cut / 4), N_LARGE_MAX)
        return self.worst(n_large)

    @property
    def n_cut(self) -> int:
        """Layers that are cut."""
        return sum(value > 0 for value in self.harm)

    def worst(self, n_layers: int) -> tuple[int, ...]:
        """Layers in which evictions do the most harm, these first."""
        cut = [layer for layer, value in enumerate(self.harm) if value > 0]
        return tuple(sorted(cut, key=lambda layer: (-self.harm[layer], layer))[:n_layers])

    @property
    def share(self) -> float:
        """How much of all harm is done in the large layers."""
        return sum(self.harm[layer] for layer in self.large) / (sum(self.harm) or 1.0)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a small JSON file, as a whole or not at all."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch = path.with_name(f"{path.name}.{os.getpid()}")
        values = {"morphkv_profile": FORMAT, "large": self.large, **asdict(self)}
        scratch.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
        scratch.replace(path)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Profile:
        """Raises OSError, and ValueError for a file that is no profile."""
        try:
            values: dict[str, Any] = json.loads(Path(path).read_text(encoding="utf-8"))
            if values["morphkv_profile"] != FORMAT:
                raise ValueError(f"its format must be {FORMAT}, got {values['morphkv_profile']!r}")
            return cls(tuple(values["harm"]), str(values["model"]), str(values["fingerprint"]))
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{os.fspath(path)} is no profile of layers: {error}") from None


@dataclass(frozen=True)
class KeepAll:
    """The n_layers layers of a profile in which evictions do the most harm keep every token.

    n_tokens: most that they keep; -1: as many as rotary positions allow.
    Raises ValueError unless fewer layers are named than are cut.
    """

    profile: Profile
    n_layers: int
    n_tokens: int = -1

    def __post_init__(self) -> None:
        n_most = min(self.profile.n_cut - 1, N_LARGE_MAX)
        if not 1 <= self.n_layers <= n_most:
            raise ValueError(
                f"layers='all:N' must be in 1..{n_most}, fewer than are cut in {self.profile.model or 'this model'}, "
                f"got {self.n_layers}"
            )

    @property
    def layers(self) -> tuple[int, ...]:
        return self.profile.worst(self.n_layers)


def n_keep_all(layers: object) -> int:
    """N of "all:N"; 0 for anything else."""
    match = re.fullmatch("all:([1-9][0-9]{0,3})", layers) if isinstance(layers, str) else None
    return int(match[1]) if match else 0


def layers_of(text: str) -> Profile | str:
    """What an option says: equal, auto, all:N, or the path of a profile."""
    if text in ("equal", "auto") or n_keep_all(text):
        return text
    try:
        return Profile.load(text)
    except FileNotFoundError:
        raise ValueError(f"layers must be equal, auto, all:N or the file of a profile, got {text!r}") from None
