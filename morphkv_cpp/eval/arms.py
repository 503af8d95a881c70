"""Arms of a comparison: named caches, written as `full`, `recency`, `morphkv@256` or `morphkv@512:window=128`."""

import dataclasses
from typing import Any, NamedTuple

from morphkv_cpp import MorphKV
from morphkv_cpp.config import POLICIES
from morphkv_cpp.profile import layers_of

FULL = "full"


class Arm(NamedTuple):
    name: str  # as written
    morphkv: MorphKV | None  # None: the full cache of stock llama.cpp


def parse_arms(text: str, settings: MorphKV) -> list[Arm]:
    """Arms separated by commas; what an arm does not say is as in `settings`."""
    arms = [_parse_arm(part.strip(), settings) for part in text.split(",") if part.strip()]
    names = [arm.name for arm in arms]
    if not arms or len(set(names)) < len(names):
        raise ValueError(f"arms must be distinct names separated by commas, got {text!r}")
    return arms


def _parse_arm(text: str, settings: MorphKV) -> Arm:
    head, *changes = text.split(":")
    policy, at, capacity = head.partition("@")
    if policy == FULL and not at and not changes:
        return Arm(text, None)
    if policy not in POLICIES:
        raise ValueError(f"an arm must be {FULL} or start with one of {', '.join(POLICIES)}, got {text!r}")
    values: dict[str, Any] = {"policy": policy, **dict(_parse_change(change, settings) for change in changes)}
    if at:
        values["capacity"] = _number(int, "capacity", capacity)
    return Arm(text, dataclasses.replace(settings, **values))


def _parse_change(text: str, settings: MorphKV) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    known = vars(settings)
    if not equals or name not in known:
        raise ValueError(f"a setting of an arm must be NAME=VALUE with one of {', '.join(known)}, got {text!r}")
    if name == "layers":
        return name, layers_of(value)
    kind = type(known[name])
    return name, value if kind is str else _number(kind, name, value)


def _number(kind: type[Any], name: str, text: str) -> Any:
    try:
        return kind(text)
    except ValueError:
        raise ValueError(f"{name} must be of type {kind.__name__}, got {text!r}") from None
