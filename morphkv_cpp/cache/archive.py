"""The archive beside the constant cache, and recalls: evicted tokens come back when a prompt asks for them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass, replace
from typing import Any, Literal, TypeAlias

from .. import bridge
from ..config import plain_float, plain_int, plain_str
from ..deprecation import fields_by_position, warn_old
from ..errors import ArchiveError, AttachError, InvalidError, NativeError
from .attached import Source

RAM = "ram"
AUTO = "auto"
CacheType = Literal["f32", "f16", "bf16", "q8_0", "q5_0", "q4_0"]
# numbers of ggml.h; llama_cpp lacks bf16
CACHE_TYPES: dict[str, int] = {"f32": 0, "f16": 1, "bf16": 30, "q8_0": 8, "q5_0": 6, "q4_0": 2}

# Fields of Archive, and the keywords of Llama that they were.
KEYWORDS = {
    "type": "archive_type",
    "max_bytes": "archive_max_bytes",
    "recall": "recall",
    "share": "recall_share",
    "redo": "recall_redo",
    "votes": "recall_votes",
    "distance": "recall_distance",
}


@fields_by_position
@dataclass(frozen=True)
class Archive:
    """Where tokens that leave the window are stored, and when they are recalled. Counts are in tokens.

    >>> Llama("model.gguf", morphkv=True, archive=Archive("chat.archive", type="q8_0", share=0.3))

    place: "ram", or the path of a file, or "auto": in memory, with type "q8_0" where K and V can be of that. A file
        that an earlier process left is opened. One that is not an archive of this model and type, is truncated or is
        in use, is rejected.
    type: data type of archived K and V: f32, f16, bf16, q8_0, q5_0 or q4_0; None: as in the cache.
    max_bytes: limit for tokens and index of all sequences together; the oldest pages are dropped. 0: no limit.
    recall: "auto": after the new part of a prompt has been decoded, and while writing where the text needs it, after 16
        tokens at the earliest; "prompt": after prompts alone; a number N: also while writing, every N intervals of
        evictions; "off": only by Llama.recall().
    share: the largest part of the distant slots that a recall fills, in (0, 1]. All heads get the same pages of 16
        tokens, and at least 5 pages if they fit into half of the slots. MorphKV chooses the rest. More pages contain
        more that is similar, and a small model then confuses facts.
    redo: how many tokens at a prompt's end are decoded again after a recall, at most; then a second recall follows.
    votes: how many of the newest queries search, at most those that vote; 0: 16, or those that vote if fewer.
    distance: the archive is searched as if each of its tokens lay this many positions back, below the limit of rotary
        positions. The default is smaller if that limit is.
    restore: go back by the archive where a prompt leaves the text at a place that is evicted in part, and no checkpoint
        is near: what is before it need not be evaluated again. Not the same bits. Not for models with layers that have
        a sliding window or are recurrent.
    attach: files that Llama.read wrote, with this model. Recalls bring pages of them, too, beside those of the text's
        own archive, as if each text had begun with them. They are read only, and any number of processes share them.
    reread: decode what a prompt's recall brings of attached files anew, side by side, at most 240 tokens: passages that
        are alike are told apart by keys and values that know of each other. It takes a context of 256 cells.

    Raises TypeError for a value of another type and ValueError for one that breaks a rule.
    Related work: InfLLM (2402.04617), ArkVale (NeurIPS 2024), Quest (2406.10774).
    """

    place: str | os.PathLike[str] = RAM
    _: KW_ONLY
    type: CacheType | None = None
    max_bytes: int = 2 * 2**30
    recall: Literal["auto", "prompt", "off"] | int = "auto"
    share: float = 0.2
    redo: int = 128
    votes: int = 0
    distance: int = 256
    restore: bool = True
    attach: Sequence[str | os.PathLike[str]] = ()
    reread: bool = True

    def __post_init__(self) -> None:
        if not isinstance(self.place, (str, os.PathLike)):
            raise TypeError(f'archive must be "{RAM}", a path or an Archive, got {self.place!r}')
        place = os.fsdecode(self.place)
        if not place or "\0" in place:
            raise ValueError(f'archive must be "{RAM}" or a path, got {place!r}')
        if place == "off":
            raise ValueError(f'archive must be "{RAM}" or a path, got "off", which is a file as "./off"')
        object.__setattr__(self, "place", place)
        if self.type is not None and plain_str("type", self.type) not in CACHE_TYPES:
            raise ValueError(f"type must be one of {', '.join(CACHE_TYPES)}, got {self.type!r}")
        for field in ("max_bytes", "redo", "votes", "distance"):
            value = plain_int(field, getattr(self, field))
            if value < 0:
                raise ValueError(f"{field} must not be negative, got {value}")
            object.__setattr__(self, field, value)
        if not isinstance(self.recall, str):
            object.__setattr__(self, "recall", plain_int("recall", self.recall))
        if self.recall not in ("auto", "prompt", "off") and not (isinstance(self.recall, int) and self.recall > 0):
            raise ValueError(f'recall must be "auto", "prompt", "off" or a number above 0, got {self.recall!r}')
        object.__setattr__(self, "share", plain_float("share", self.share))
        if not 0 < self.share <= 1:
            raise ValueError(f"share must be in (0, 1], got {self.share}")
        if not isinstance(self.restore, bool):
            raise TypeError(f"restore must be True or False, got {self.restore!r}")
        if not isinstance(self.reread, bool):
            raise TypeError(f"reread must be True or False, got {self.reread!r}")
        object.__setattr__(self, "attach", _paths(self.attach))

    def is_same_place(self, other: Archive) -> bool:
        return all(getattr(self, field) == getattr(other, field) for field in ("place", "type", "max_bytes", "attach"))

    def recall_settings(self) -> dict[str, float]:
        """Fields of morphkv_recall_params."""
        settings: dict[str, float] = {"share": self.share, "votes": self.votes, "reread": int(self.reread)}
        if self.distance != Archive.distance:
            settings["distance"] = self.distance
        return settings

    def start(self, context: int, model_path: str = "") -> Archive:
        """Give a context, of whose sequences none holds a token, this archive. Raises ArchiveError where it cannot.

        model_path: of the model's file, which tells models apart.

        Gives what it is: "auto" is none of its places.
        """
        if self.place == AUTO:
            return self._start_auto(context, model_path)
        kind = -1 if self.type is None else CACHE_TYPES[self.type]
        path = None if self.place == RAM else os.fspath(self.place)
        limit = bridge.stats(context)["rope_limit"]
        if self.distance != Archive.distance and self.distance >= limit > 0:
            raise ValueError(f"distance must be below rope_limit ({limit}), got {self.distance}")
        try:
            bridge.start_archive(context, path=path, type_k=kind, type_v=kind, max_bytes=self.max_bytes)
        except NativeError as error:
            raise ArchiveError(str(error)) from error
        for file in self.attach:
            try:
                bridge.attach(context, os.fspath(file), model_path)
            except (InvalidError, NativeError) as error:
                raise AttachError(str(error)) from error
        return self

    def _start_auto(self, context: int, model_path: str) -> Archive:
        in_memory = replace(self, place=RAM, type=self.type or "q8_0")
        try:
            return in_memory.start(context, model_path)
        except AttachError:
            raise
        except (ArchiveError, InvalidError):
            if self.type is not None:
                raise
            # e.g. heads whose size is no multiple of a block's
            return replace(in_memory, type=None).start(context, model_path)


# As Llama takes it: a list attaches its files beside an archive in memory.
ArchiveOption: TypeAlias = Archive | str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | None


def _paths(attach: object) -> tuple[str, ...]:
    if isinstance(attach, (str, os.PathLike)) or not isinstance(attach, Sequence):
        raise TypeError(f"attach must be a list of paths, got {attach!r}")
    for path in attach:
        if not isinstance(path, (str, os.PathLike)):
            raise TypeError(f"attach must be a list of paths, got {path!r} in it")
    paths = tuple(os.fsdecode(path) for path in attach)
    for name in paths:
        if not name or "\0" in name:
            raise ValueError(f"attach must be a list of paths, got {name!r} in it")
    return paths


def archive_of(archive: ArchiveOption, old: dict[str, Any]) -> Archive | None:
    """What Llama's `archive` says. old: its keywords of 0.1.0 among others, which go out of it, with a warning.

    Raises ArchiveError for old ones that nothing would heed, and what Archive raises.
    """
    given = {field: value for field, name in KEYWORDS.items() if (value := old.pop(name, None)) is not None}
    if given:
        words = ", ".join(f"{field}={value!r}" for field, value in given.items())
        place = repr(archive) if isinstance(archive, (str, os.PathLike)) else "..."
        warn_old(f"{', '.join(KEYWORDS[field] for field in given)}: say archive=Archive({place}, {words})", 3)
        if archive is None:
            raise ArchiveError(f'{_keywords(given)}: needs an archive, archive="{RAM}" or a path')
        if isinstance(archive, Archive):
            raise ArchiveError(f"{_keywords(given)}: set the fields of the Archive instead, got {archive}")
    if archive is None or isinstance(archive, Archive):
        return archive
    if isinstance(archive, Sequence) and not isinstance(archive, (str, bytes)):
        return Archive(AUTO, attach=archive, **given)
    try:
        return Archive(archive, **given)
    except (TypeError, ValueError) as error:
        # whoever gave a keyword is told of it by that name
        field, _, rule = str(error).partition(" ")
        if field not in given:
            raise
        raise type(error)(f"{KEYWORDS[field]} {rule}") from error


def _keywords(given: dict[str, Any]) -> str:
    return ", ".join(f"{KEYWORDS[field]}={value!r}" for field, value in given.items())


@dataclass(frozen=True)
class Recall:
    """What a recall brought back. Counts are in tokens."""

    n_archived: int  # that were asked
    n_recalled: int  # brought back, summed over layers and KV heads; those that were there already do not count
    ask_ms: float  # time to choose
    took_ms: float  # time of all
    n_reread: int = 0  # of attached files, that were read again together
    sources: tuple[Source, ...] = ()  # attached files that something came from
