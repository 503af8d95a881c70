"""The settings of a MorphKV cache, checked before anything is loaded."""

from __future__ import annotations

import numbers
import operator
from collections.abc import Callable
from dataclasses import KW_ONLY, asdict, dataclass, fields
from typing import Any, Literal, get_args

import numpy as np

from .deprecation import fields_by_position
from .profile import KeepAll, Profile, n_keep_all

# Largest count of tokens: the native library computes cell indices in float32, exact below 2**24.
N_MAX = 2**22

Fusion = Literal["sum", "max"]
Policy = Literal["morphkv", "recency", "random", "committees", "h2o"]
FUSIONS: tuple[str, ...] = get_args(Fusion)
POLICIES: tuple[str, ...] = get_args(Policy)

Layers = Profile | KeepAll | str


@fields_by_position
@dataclass(frozen=True)
class MorphKV:
    """Settings of a cache of constant size, given by name. All counts are in tokens.

    capacity: kept per layer and KV head after an eviction, everything included; more than keep + window.
    window: the newest tokens, never evicted; their queries vote on the older ones. At least 1.
    interval: evict when the recent tokens exceed the window by this many. At least 1; small values cost time.
    keep: first tokens of a sequence that are never evicted, e.g. the system prompt.
    prompt_room: cells beyond capacity that a prompt may fill before tokens are evicted. More is better for questions
        about long prompts, and costs memory: a sequence has capacity + max(interval, prompt_room) cells.
    votes: how many of the newest queries vote, at most window; 0 is all of the window.
    fusion: how votes are combined, "sum" or "max".
    policy: what ranks older tokens: "morphkv" by the votes of the newest queries; "committees": half of the places go
        by these, half by the sums of the votes that a token has had; for comparison "h2o" (by the sums), "recency"
        (the newest stay) or "random".
    decay: weight of a token's sum of votes at the next eviction, in [0, 1); 0 is the paper's rule, votes alone, and
        with "committees" and "h2o" that nothing is forgotten.
    seed: seed of the policy "random", 0..2**32 - 1.
    rope_limit: RoPE's positions stay below this value, while the text's go on without end: before one would reach it,
        the kept tokens are moved closer together, in their order. -1: the trained context. 0: no limit; quality then
        drops beyond the trained context. Otherwise at least capacity + max(interval, prompt_room).
    layers: how layers share the bytes that `capacity` would take in each. A Profile: a quarter of them, where
        evictions do the most harm, keep two to three times as many tokens, and the others about half. "auto": by the
        profile that `morphkv profile` has stored for this model, or that comes with this package; without one,
        where a stored one is damaged, and with attached files, "equal": all keep as many. "all:N": the N layers of
        that profile where evictions do the most harm keep all tokens, up to n_ctx or else the trained context, in
        memory beside that of `capacity`; the others keep `capacity`.
    protect: tokens before the window that are never evicted either, and do not vote. -1: with "h2o" so many that half
        of the capacity is never evicted, with "committees" a quarter, else 0.

    Raises TypeError for a value of another type and ValueError for one that breaks a rule.
    Source: MorphKV (Ghadia et al., ICML 2025, arXiv 2503.00979); votes, decay, protect and the other policies go beyond
    it; `MorphKV.paper()` has its settings. H2O: Zhang et al., NeurIPS 2023, arXiv 2306.14048.
    """

    _: KW_ONLY
    capacity: int = 1024
    window: int = 32
    interval: int = 128
    keep: int = 4
    prompt_room: int = 1024
    votes: int = 0
    fusion: Fusion = "sum"
    policy: Policy = "morphkv"
    decay: float = 0.0
    seed: int = 0
    rope_limit: int = -1
    protect: int = -1
    layers: Layers = "auto"

    @classmethod
    def paper(cls, **settings: Any) -> MorphKV:
        """The rule as it was published: nothing is always kept, an eviction at each token, no room, layers alike.

        settings: in place of these. A prompt is evicted from batch by batch; with `prompt_room` once, at its end.
        """
        published: dict[str, Any] = {"keep": 0, "interval": 1, "prompt_room": 0, "protect": 0, "layers": "equal"}
        return cls(**published | settings)

    @property
    def n_recent(self) -> int:
        """The newest tokens that are never evicted: the window and what is protected before it."""
        if self.protect >= 0:
            return self.window + self.protect
        wanted = {"h2o": self.capacity // 2, "committees": self.capacity // 4}.get(self.policy, 0)
        return max(self.window, min(wanted, self.capacity - self.keep - 1))

    def __post_init__(self) -> None:
        for field in fields(self):
            if field.name != "layers":
                value = PLAIN[str(field.type)](field.name, getattr(self, field.name))
                object.__setattr__(self, field.name, value)
        _check_range("capacity", self.capacity, 2, N_MAX)
        _check_range("window", self.window, 1, N_MAX)
        _check_range("interval", self.interval, 1, N_MAX)
        _check_range("keep", self.keep, 0, N_MAX)
        _check_range("prompt_room", self.prompt_room, 0, N_MAX)
        _check_range("seed", self.seed, 0, 2**32 - 1)
        _check_range("rope_limit", self.rope_limit, -1, 2**31 - 1)
        _check_range("protect", self.protect, -1, N_MAX)
        if self.capacity <= self.keep + self.n_recent:
            protected = f" + {self.protect}" if self.protect > 0 else ""
            raise ValueError(
                f"capacity must exceed keep + window{' + protect' if protected else ''}, got {self.capacity} with "
                f"{self.keep} + {self.window}{protected}"
            )
        if not 0 <= self.votes <= self.window:
            raise ValueError(f"votes must be in 0..window, got {self.votes} with {self.window=}")
        if self.fusion not in FUSIONS:
            raise ValueError(f"fusion must be one of {FUSIONS}, got {self.fusion!r}")
        if self.policy not in POLICIES:
            raise ValueError(f"policy must be one of {POLICIES}, got {self.policy!r}")
        n_limit = self.capacity + max(self.interval, self.prompt_room)
        if 0 < self.rope_limit < n_limit:
            raise ValueError(
                f"rope_limit must be 0, -1 or at least capacity + max(interval, prompt_room), got {self.rope_limit} "
                f"with {n_limit}"
            )
        is_word = self.layers in ("equal", "auto") or n_keep_all(self.layers) > 0
        if not isinstance(self.layers, (Profile, KeepAll)) and not is_word:
            raise ValueError(f"layers must be 'equal', 'auto', 'all:N' or a Profile, got {self.layers!r}")
        # what the native float will hold
        if not 0 <= np.float32(self.decay) < 1:
            raise ValueError(f"decay must be in [0, 1) as a 32-bit float, got {self.decay}")


def settings_of(config: MorphKV) -> dict[str, Any]:
    """The settings by which saved texts are told apart: layers and protect where they are not as they always were."""
    settings = {name: value for name, value in asdict(config).items() if name not in ("layers", "protect")}
    if config.protect != -1:
        settings["protect"] = config.protect
    if isinstance(config.layers, Profile):
        settings["layers"] = list(config.layers.large)
    if isinstance(config.layers, KeepAll):
        settings["layers"] = {"all": list(config.layers.layers), "n_tokens": config.layers.n_tokens}
    return settings


def native_params(config: MorphKV) -> dict[str, Any]:
    """Fields of the native parameters. What is "auto" has been found out (resolve_layers), or is "equal"."""
    params = {name: value for name, value in asdict(config).items() if name != "layers"}
    if isinstance(config.layers, Profile):
        params |= {"n_large": len(config.layers.large), "large_layers": list(config.layers.large)}
    if isinstance(config.layers, KeepAll):
        params |= {
            "n_large": config.layers.n_layers,
            "large_layers": list(config.layers.layers),
            "large_capacity": config.layers.n_tokens,
        }
    return params


def _check_range(name: str, value: int, low: int, high: int) -> None:
    if not low <= value <= high:
        raise ValueError(f"{name} must be in {low}..{high}, got {value}")


def plain_int(name: str, value: object) -> int:
    # bool is an int to Python, and window=True is a mistake
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, numbers.Integral):
        raise TypeError(f"{name} must be an int, got {value!r}")
    return operator.index(value)


def plain_float(name: str, value: object) -> float:
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name} must be a float, got {value!r}")
    return float(value)


def plain_str(name: str, value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{name} must be a str, got {value!r}")
    return str(value)


# by annotation, which is text here
PLAIN: dict[str, Callable[[str, object], Any]] = {
    "int": plain_int,
    "float": plain_float,
    "Fusion": plain_str,
    "Policy": plain_str,
}
