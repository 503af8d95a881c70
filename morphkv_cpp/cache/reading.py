"""A text that is read once and for all: into a file that any chat of the model attaches."""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import llama_cpp
from llama_cpp._internals import LlamaBatch, LlamaContext, LlamaModel

from .. import bridge
from ..config import MorphKV, native_params
from ..errors import ArchiveError, DecodeError, InvalidError
from .archive import CACHE_TYPES, Archive, CacheType
from .attached import N_PAGE

Progress = Callable[[int, int], None]  # tokens read, of all


@dataclass(frozen=True)
class ReadText:
    """A text that has been read. Counts are in tokens."""

    path: str  # of the file that chats attach
    n_tokens: int  # of the text
    n_bytes: int  # of the file
    seconds: float


class Reader(Protocol):
    """What reads: a model, and how its contexts are made."""

    verbose: bool
    n_batch: int
    context_params: llama_cpp.llama_context_params

    @property
    def model_path(self) -> str: ...

    @property
    def _model(self) -> LlamaModel: ...

    def tokenize(self, text: bytes, add_bos: bool = True, special: bool = False) -> list[int]: ...


def read_path(
    llm: Reader,
    config: MorphKV,
    path: str | os.PathLike[str] | None,
    text: str | None,
    into: str | os.PathLike[str],
    kind: CacheType | None,
    progress: bool | Progress,
) -> ReadText:
    """As read_text, of a file or of a text."""
    if (path is None) == (text is None):
        raise ValueError("read() needs a path or a text, and not both")
    if kind is not None and kind not in CACHE_TYPES:
        raise ValueError(f"type must be one of {', '.join(CACHE_TYPES)}, got {kind!r}")
    name = "a text"
    if path is not None:
        name = os.path.basename(os.fsdecode(path))
        with open(path, encoding="utf-8") as file:
            text = file.read()
    with shown_progress(name, progress) as show:
        return read_text(llm, config, text or "", into, kind, show)


def read_text(
    llm: Reader, config: MorphKV, text: str, into: str | os.PathLike[str], kind: CacheType | None, progress: Progress
) -> ReadText:
    """Read a text in a context of its own, and write the file. An older one is replaced when the new one is complete.

    Raises ArchiveError where it cannot be written or the text is too short, DecodeError where decoding fails.
    """
    start_s, into = time.perf_counter(), os.path.abspath(os.fsdecode(into))
    folder = os.path.dirname(into)
    if not os.path.isdir(folder) or os.path.isdir(into):
        raise ArchiveError(f"into must be a file in a folder that is there, got {into}")
    tokens, n_text = _pages(llm, text)
    n_slots = config.capacity - config.window
    if len(tokens) < n_slots:
        raise ArchiveError(
            f"a text must have at least as many tokens as there are slots for (capacity - window = {n_slots}), got "
            f"{n_text}: a text that short fits into a prompt"
        )
    with _context(llm, config) as context, tempfile.TemporaryDirectory(prefix=".reading-", dir=folder) as folder:
        _start_archive(context.ctx, os.path.join(folder, "pages"), kind)
        _decode(context, tokens, llm.n_batch, progress)
        if why := bridge.why_archive_stopped(context.ctx):
            raise ArchiveError(f"{into} cannot be written: {why}")
        try:
            bridge.write_archive(context.ctx, into, llm.model_path, tokens)
        except (InvalidError, bridge.NativeError) as error:
            raise ArchiveError(str(error)) from error
    return ReadText(into, n_text, os.path.getsize(into), time.perf_counter() - start_s)


def _start_archive(context: int, path: str, kind: CacheType | None) -> None:
    """None: as q8_0 where heads can be of that, else as in the cache."""
    try:
        Archive(path, type=kind or "q8_0", max_bytes=0).start(context)
    except InvalidError:
        if kind is not None:
            raise
        Archive(path, max_bytes=0).start(context)


def _pages(llm: Reader, text: str) -> tuple[list[int], int]:
    """The text's tokens in whole pages, and how many are its own.

    All tokens attend to the first one of a text, so that its page says nothing of what they look for: it has nothing
    else in it. The last page is filled up.
    """
    first = llm.tokenize(b"", add_bos=True)
    own = llm.tokenize(text.encode(), add_bos=False)
    fill = (llm.tokenize(b"\n", add_bos=False) or own[-1:])[-1:]
    if not own:
        raise ArchiveError("a text must have a token, got an empty one")
    head = first + fill * (-len(first) % N_PAGE) if first else fill * N_PAGE
    return head + own + fill * (-len(own) % N_PAGE), len(own)


@contextlib.contextmanager
def _context(llm: Reader, config: MorphKV) -> Iterator[LlamaContext]:
    params = llm.context_params
    before = params.n_ctx
    # as ContextLlama makes it: how some models rotate is chosen by its size
    params.n_ctx = max(llm._model.n_ctx_train(), config.capacity + max(config.interval, config.prompt_room))
    try:
        with bridge.next_context_has(native_params(config)):
            context = LlamaContext(model=llm._model, params=params, verbose=llm.verbose)
    finally:
        params.n_ctx = before
    try:
        yield context
    finally:
        context.close()  # type: ignore[no-untyped-call]


def _decode(context: LlamaContext, tokens: Sequence[int], n_batch: int, progress: Progress) -> None:
    batch: Any = LlamaBatch(n_tokens=n_batch, embd=0, n_seq_max=1, verbose=False)
    try:
        for first in range(0, len(tokens), n_batch):
            part = tokens[first : first + n_batch]
            batch.set_batch(batch=part, n_past=first, logits_all=False)
            try:
                context.decode(batch)
            except RuntimeError as error:
                reason = bridge.last_error()
                raise DecodeError(f"{error}: {reason}" if reason else str(error)) from error
            progress(first + len(part), len(tokens))
    finally:
        batch.close()


@contextlib.contextmanager
def shown_progress(name: str, progress: bool | Progress) -> Iterator[Progress]:
    """True: a bar on standard error, if that is a terminal."""
    if progress is False:
        yield lambda _n_read, _n_all: None
        return
    if progress is not True:
        yield progress
        return
    # it takes as long to import as the rest of the package
    from rich.console import Console
    from rich.progress import Progress as Bar

    console = Console(stderr=True)
    with Bar(console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(f"reading {name}", total=None)
        yield lambda n_read, n_all: bar.update(task, completed=n_read, total=n_all)
