"""Files of texts that were read once, beside the archive of a text: what is attached, and what recalls bring of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from .. import bridge

N_PAGE = 16  # tokens


@dataclass(frozen=True)
class Attached:
    """A file that is attached. Counts are in tokens."""

    path: str
    id: int  # of the model and all that is in the file; a state names it by this
    n_tokens: int
    n_recalled: int  # of it that came into the cache so far, summed over layers and KV heads
    bytes: int  # of the file; it is not in memory as a whole, and does not count for max_bytes


@dataclass(frozen=True)
class Source:
    """What recalls brought of an attached file."""

    path: str
    n_recalled: int  # tokens, summed over layers and KV heads; those that were there already do not count
    passages: tuple[str, ...]  # what the recalled pages say, in the order of the file


def attached(context: int, seq_id: int = 0) -> tuple[Attached, ...]:
    return tuple(Attached(**fields) for fields in bridge.attachments(context, seq_id))


class SourceWatch:
    """Tells of each recall of a context's first sequence which files it brought something of."""

    def __init__(self, detokenize: Callable[[list[int]], str]) -> None:
        self._detokenize = detokenize
        self._seen: dict[str, int] = {}

    def look(self, context: int) -> tuple[Source, ...]:
        files = attached(context)
        counts = {file.path: file.n_recalled for file in files}
        news = {path: n - self._seen.get(path, 0) for path, n in counts.items()}
        self._seen = counts
        pages = bridge.brought(context) if any(news.values()) else []
        found = []
        for i, file in enumerate(files):
            if news[file.path] > 0:
                firsts = sorted(first for i_file, first in pages if i_file == i)
                found.append(Source(file.path, news[file.path], self._passages(context, i, firsts)))
        return tuple(found)

    def _passages(self, context: int, i_file: int, firsts: list[int]) -> tuple[str, ...]:
        """Pages that follow each other are one passage."""
        spans: list[list[int]] = []
        for first in firsts:
            if spans and spans[-1][1] == first:
                spans[-1][1] = first + N_PAGE
            else:
                spans.append([first, first + N_PAGE])
        return tuple(
            self._detokenize(bridge.attachment_tokens(context, i_file, first, end - first)) for first, end in spans
        )


def joined(sources: tuple[Source, ...]) -> tuple[Source, ...]:
    """Of several recalls, one for each file; a passage is told once."""
    by_path: dict[str, Source] = {}
    for source in sources:
        old = by_path.get(source.path)
        if old is not None:
            passages = dict.fromkeys((*old.passages, *source.passages))
            source = Source(source.path, old.n_recalled + source.n_recalled, tuple(passages))
        by_path[source.path] = source
    return tuple(by_path.values())
