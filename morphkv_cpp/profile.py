"""Where in a model evictions do harm, layer by layer."""

from __future__ import annotations

import json
import math
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

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
        cut = [layer for layer, value in enumerate(self.harm) if value > 0]
        n_large = min(math.ceil(len(cut) / 4), N_LARGE_MAX)
        return tuple(sorted(cut, key=lambda layer: (-self.harm[layer], layer))[:n_large])

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


def layers_of(text: str) -> Profile | Literal["equal", "auto"]:
    """What an option says: equal, auto, or the path of a profile."""
    if text == "equal":
        return "equal"
    if text == "auto":
        return "auto"
    try:
        return Profile.load(text)
    except FileNotFoundError:
        raise ValueError(f"layers must be equal, auto or the file of a profile, got {text!r}") from None
