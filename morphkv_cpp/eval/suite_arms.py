"""Arms of the suite: caches that all take the same bytes of a device.

An arm is written BASE[/TYPE][:SETTING=VALUE...][+archive], as in `shift/q8_0` or `morphkv:window=16+archive`. The
bytes are those of so many cells of a full cache in f16. A smaller type of K and V buys more cells, rounded down to 256,
as llama.cpp allocates them. Only `full` takes what it needs. A peer is written PEER/METHOD, as in `kvpress/snapkv`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple, cast

from morphkv_cpp import Archive, MorphKV
from morphkv_cpp.cache.archive import CACHE_TYPES
from morphkv_cpp.config import POLICIES, Policy

from .arms import FULL, _parse_change

SHIFT = "shift"
ARCHIVE = "+archive"
# other projects' caches, and their methods; one that is never cut tells what else is different there
PEERS = {"kvpress": (FULL, "snapkv", "h2o", "expected", "streaming")}
N_UNCUT = 2**31  # cells
N_PAD = 256  # llama.cpp allocates cells in such steps
# bits of an element of K and V
TYPE_BITS = {"f32": 32.0, "f16": 16.0, "bf16": 16.0, "q8_0": 8.5, "q5_0": 5.5, "q4_0": 4.5}


class Peer(NamedTuple):
    """A cache of another project, which is cut to `capacity` cells after each `interval` tokens."""

    project: str
    method: str
    capacity: int
    interval: int


class SuiteArm(NamedTuple):
    name: str  # as written
    n_cells: int  # allocated; 0: as many as the text needs
    cell_type: str = "f16"
    morphkv: MorphKV | None = None  # None: stock llama.cpp, or a peer
    archive: Archive | None = None
    peer: Peer | None = None

    @property
    def is_full(self) -> bool:
        return self.morphkv is None and self.peer is None and self.n_cells == 0

    def settings(self) -> dict[str, Any]:
        """By which results of an arm are told apart: two names of the same cache are the same arm."""
        config = None if self.morphkv is None else dataclasses.asdict(self.morphkv)
        archive = None if self.archive is None else dataclasses.asdict(self.archive)
        found = {"n_cells": self.n_cells, "type": self.cell_type, "morphkv": config, "archive": archive}
        return found if self.peer is None else {**found, "peer": self.peer._asdict()}


def published() -> MorphKV:
    """MorphKV as its authors published it."""
    paper: Callable[[], MorphKV] | None = getattr(MorphKV, "paper", None)
    # the window of the paper's experiments; none of its first tokens is kept for being the first
    return MorphKV(window=32, keep=0, fusion="sum") if paper is None else paper()


def bases() -> dict[str, MorphKV | None]:
    """What an arm can be. Policies that this version's MorphKV does not have are left out."""
    peers = {name: MorphKV(policy=cast(Policy, name), layers="equal") for name in POLICIES}
    ranked = {**peers, "morphkv": MorphKV()}
    return {FULL: None, SHIFT: None, **ranked, "paper": published()}


def default_arms() -> str:
    more = [name for name in ("h2o", "snapkv") if name in POLICIES]
    names = [FULL, SHIFT, f"{SHIFT}/q8_0", f"{SHIFT}/q4_0", "recency", "random", *more, "paper", "paper:fusion=max"]
    return ",".join([*names, "morphkv:layers=equal", "morphkv", "morphkv+archive"])


def peer_arms(project: str) -> str:
    """All arms of another project."""
    if project not in PEERS:
        raise ValueError(f"a peer must be one of {', '.join(PEERS)}, got {project!r}")
    return ",".join(f"{project}/{method}" for method in PEERS[project])


def parse_suite_arms(text: str, n_cells: int, interval: int) -> list[SuiteArm]:
    """Arms separated by commas, at the bytes of n_cells cells in f16."""
    if n_cells < N_PAD or n_cells % N_PAD:
        raise ValueError(f"cells must be a multiple of {N_PAD}, got {n_cells}")
    arms = [_parse(part.strip(), n_cells, interval) for part in text.split(",") if part.strip()]
    if not arms or len({arm.name for arm in arms}) < len(arms):
        raise ValueError(f"arms must be distinct names separated by commas, got {text!r}")
    return arms


def _parse(text: str, n_cells: int, interval: int) -> SuiteArm:
    rest = text.removesuffix(ARCHIVE)
    head, *changes = rest.split(":")
    base, slash, cell_type = head.partition("/")
    if base in PEERS:
        if rest != text or changes or cell_type not in PEERS[base]:
            raise ValueError(f"an arm of {base} must be one of {peer_arms(base)}, got {text!r}")
        if cell_type == FULL:
            return SuiteArm(text, 0, peer=Peer(base, FULL, N_UNCUT, interval))
        return SuiteArm(text, n_cells, peer=Peer(base, cell_type, n_cells - interval, interval))
    cell_type = cell_type if slash else "f16"
    known = bases()
    if base not in known:
        raise ValueError(f"an arm must start with one of {', '.join([*known, *PEERS])}, got {text!r}")
    if cell_type not in CACHE_TYPES:
        raise ValueError(f"an arm's type must be one of {', '.join(CACHE_TYPES)}, got {text!r}")
    settings = known[base]
    if settings is None and (changes or rest != text):
        raise ValueError(f"an arm of stock llama.cpp has neither settings nor an archive, got {text!r}")
    if base == FULL:
        return SuiteArm(text, 0, cell_type)
    n_cells = int(n_cells * TYPE_BITS["f16"] / TYPE_BITS[cell_type]) // N_PAD * N_PAD
    if settings is None:
        return SuiteArm(text, n_cells, cell_type)
    values: dict[str, Any] = {"capacity": n_cells - interval, "interval": interval, "prompt_room": 0}
    values |= dict(_parse_change(change, settings) for change in changes)
    config = dataclasses.replace(settings, **values)
    return SuiteArm(text, n_cells, cell_type, config, Archive() if rest != text else None)
