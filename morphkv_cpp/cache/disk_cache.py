"""Texts of completions in a folder, so that a fresh process goes on from them."""

from __future__ import annotations

import contextlib
import logging
import os
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .. import bridge, portable
from ..errors import SessionFileError
from . import saved_file
from .checkpoints import N_APART, Checkpoint, Checkpoints
from .live import Live, TokenIds
from .restore import n_restorable
from .reuse import common_prefix
from .whole_file import SUFFIX

logger = logging.getLogger("morphkv_cpp")

EXTENSION = ".text"
N_BEGIN = 16  # tokens at a prompt's end that belong to its answer: "<|im_start|>assistant\n<think>\n"


@dataclass(frozen=True)
class Part:
    """A state in a file, of the first n_tokens of its text."""

    n_tokens: int
    complete_pos: int  # as in CacheStats
    n_archived: int  # likewise, with pages
    n_bytes: int
    has_pages: bool  # of an archive

    def n_cached(self, ids: TokenIds, prompt: TokenIds) -> int:
        return Checkpoint(ids[: self.n_tokens], b"", self.complete_pos, self.n_archived).n_cached(prompt)


@dataclass(frozen=True, eq=False)
class Entry:
    path: Path
    ids: TokenIds
    n_prompt: int  # where the text's last answer begins
    parts: tuple[Part, ...]  # the first is of all tokens


class LlamaDiskCache:
    """Keeps the texts of a Llama's completions in a folder: `llm.set_cache(LlamaDiskCache("chats"))`.

    After each completion its text is written: token ids, the cells at its end, and the checkpoint before its last
    answer. A prompt that begins like one of these texts goes on from there, also in another process, and after a crash:
    a chat costs its last turn. A file does not grow with the text but for 4 bytes a token. A text that goes on replaces
    its file.

    cache_dir: is made where it is not there. Several processes may share it.
    capacity_bytes: most bytes of all files; the least recently used go first.
    archive: whether the archive is written, too. Then a file grows with the text, and what was evicted can be recalled
        after a restart. Else a text that comes from disk has what its cells hold, and archives what comes from then on.

    It takes the place of llama_cpp's LlamaDiskCache, which pickles. Nothing in a file is ever executed. Files of
    another model or other settings are left alone, damaged ones are ignored; one line says so. A file that cannot be
    written ends no answer: there is one warning.
    """

    def __init__(
        self,
        cache_dir: str | os.PathLike[str] = ".cache/llama_cache",
        capacity_bytes: int = 2 << 30,
        *,
        archive: bool = False,
    ):
        if isinstance(capacity_bytes, bool) or not isinstance(capacity_bytes, int) or capacity_bytes < 1:
            raise ValueError(f"capacity_bytes must be an integer of at least 1, got {capacity_bytes!r}")
        self.folder, self.capacity_bytes, self._has_pages = Path(cache_dir), capacity_bytes, archive
        self._identity: dict[str, Any] | None = None
        self._entries: dict[Path, Entry | None] = {}  # None: of another model or settings, or damaged
        self._own: Path | None = None  # of the text that was loaded or written last
        self._has_warned = False

    @property
    def cache_size(self) -> int:
        """Bytes of all files."""
        return sum(n_bytes for _, _, n_bytes in self._files())

    def bind(self, identity: dict[str, Any]) -> None:
        """Say whose texts these are. Raises OSError for a folder that cannot be made, ValueError for a second model."""
        if self._identity not in (None, identity):
            raise ValueError("a LlamaDiskCache is for one model and its settings: make another one of the same folder")
        self.folder.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(OSError):
            # of processes that were killed
            for path in self.folder.glob(f".*{EXTENSION}.*{SUFFIX}"):
                portable.remove_unlocked(path)
        if self._identity is None:
            self._identity = identity
            n_others = sum(1 for _ in self._files()) - sum(1 for _ in self._known())
            if n_others > 0:
                logger.warning(
                    "%d files of %s are ignored: another model, other settings, or damage", n_others, self.folder
                )

    def load(self, llm: Live, prompt: Sequence[int], checkpoints: Checkpoints) -> bool:
        """Give the cache the text that saves most of a prompt, if it saves N_APART tokens more than what is here."""
        ids = np.asarray(prompt, dtype=np.intc)
        n_here = max(checkpoints.n_known(llm, prompt), n_restorable(llm, ids))
        while (best := self._best(ids, n_here + N_APART, llm.n_ctx())) is not None:
            entry, i_part = best
            if self._give(llm, entry, i_part, checkpoints):
                logger.info("%d of %d tokens come from %s", entry.parts[i_part].n_tokens, len(ids), entry.path)
                return True
            self._entries[entry.path] = None
        return False

    def save(self, llm: Live, n_prompt: int, checkpoints: Checkpoints) -> None:
        """Write the text as it is, whose last answer begins behind its first n_prompt tokens."""
        stats, ids = llm.cache_stats(), llm._input_ids.copy()
        # drafts that nobody took are behind it; images have no ids
        is_whole = stats.logical_pos + 1 == len(ids) or llm._ctx.kv_cache_seq_rm(-1, len(ids), -1)
        if len(ids) <= N_APART or ids.min() < 0 or not is_whole:
            return
        try:
            has_pages = self._has_pages and llm.archive is not None
            state = bridge.state(llm.ctx) if has_pages else bridge.checkpoint(llm.ctx)
            stats = llm.cache_stats()
            states, parts = [state], [Part(len(ids), stats.complete_pos, stats.n_archived, len(state), has_pages)]
            before = checkpoints.before(ids, n_prompt)
            if before is not None:
                n_archived = before.n_archived
                states.append(before.state)
                parts.append(Part(len(before.ids), before.complete_pos, n_archived, len(before.state), False))
            self._write(Entry(self.folder / f"{uuid.uuid4().hex}{EXTENSION}", ids, n_prompt, tuple(parts)), states)
        except (OSError, ValueError, bridge.NativeError) as error:
            if not self._has_warned:
                logger.warning("a text could not be kept in %s: %s (told once)", self.folder, error)
            self._has_warned = True

    def _write(self, entry: Entry, states: Sequence[bytes]) -> None:
        header = {
            "identity": self._identity,
            "n_prompt": entry.n_prompt,
            "parts": [[*vars(p).values()] for p in entry.parts],
        }
        n_bytes = sum(map(len, states)) + entry.ids.nbytes
        if n_bytes > self.capacity_bytes:
            raise ValueError(f"capacity_bytes must be at least its {n_bytes} bytes, got {self.capacity_bytes}")
        known = list(self._known())
        saved_file.write(entry.path, "text", saved_file.Contents(header, entry.ids, b"".join(states)))
        for one in known:
            n_same = common_prefix(one.ids, entry.ids)
            # the text goes on from this one, or has another last answer
            if n_same == len(one.ids) or (one.path == self._own and n_same >= one.n_prompt - N_BEGIN):
                self._remove(one.path)
        self._entries[entry.path] = entry
        self._own = entry.path
        files = sorted(self._files())
        n_all = sum(n for _, _, n in files)
        for _, path, n in files:
            if n_all <= self.capacity_bytes:
                break
            if path != entry.path:
                self._remove(path)
                n_all -= n

    def _give(self, llm: Live, entry: Entry, i_part: int, checkpoints: Checkpoints) -> bool:
        part = entry.parts[i_part]
        try:
            data = saved_file.read(entry.path, "text").state
            states = []
            for one in entry.parts:
                states.append(bytes(data[: one.n_bytes]))
                data = data[one.n_bytes :]
            llm._leave_text()
            (bridge.set_state if part.has_pages else bridge.set_checkpoint)(llm.ctx, states[i_part])
        except (OSError, SessionFileError, bridge.MorphKVError) as error:
            logger.warning("a text cannot go on from %s: %s", entry.path, error)
            return False
        llm.n_tokens = part.n_tokens
        llm.input_ids[: part.n_tokens] = entry.ids[: part.n_tokens]
        llm._requires_eval = True
        checkpoints.clear()
        for one, state in zip(entry.parts, states):
            if one.n_tokens < part.n_tokens:
                # without its pages the archive has begun anew
                n_archived = one.n_archived if part.has_pages else 0
                checkpoints.add(Checkpoint(entry.ids[: one.n_tokens], state, one.complete_pos, n_archived))
        with contextlib.suppress(OSError):
            now = time.time_ns()
            os.utime(entry.path, ns=(now, now))
        self._own = entry.path
        return True

    def _best(self, prompt: TokenIds, n_least: int, n_most: int) -> tuple[Entry, int] | None:
        best = None
        for entry in self._known():
            for i, part in enumerate(entry.parts):
                n = part.n_cached(entry.ids, prompt) if part.n_tokens <= n_most else 0
                if n > n_least:
                    best, n_least = (entry, i), n
        return best

    def _known(self) -> Iterator[Entry]:
        """Those of this model and settings; looks for files that came or went."""
        paths = [path for _, path, _ in self._files()]
        self._entries = {path: self._entries[path] if path in self._entries else self._look(path) for path in paths}
        return (entry for entry in self._entries.values() if entry is not None)

    def _look(self, path: Path) -> Entry | None:
        try:
            header, ids, _ = saved_file.read_beginning(path, "text")
            if header.get("identity") != self._identity:
                return None
            parts = tuple(Part(int(a), int(b), int(c), int(d), bool(e)) for a, b, c, d, e in header["parts"])
            n_prompt = int(header["n_prompt"])
        except (OSError, ValueError, TypeError, KeyError):
            return None
        return Entry(path, ids, n_prompt, parts)

    def _files(self) -> Iterator[tuple[int, Path, int]]:
        """When each was used, its path, its bytes."""
        for path in self.folder.glob(f"*{EXTENSION}"):
            with contextlib.suppress(OSError):  # another process has removed it
                stat = path.stat()
                yield stat.st_mtime_ns, path, stat.st_size

    def _remove(self, path: Path) -> None:
        self._entries.pop(path, None)
        with contextlib.suppress(OSError):
            path.unlink()
