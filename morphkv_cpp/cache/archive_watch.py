"""Tells once what has become of an archive, whose faults stop no chat."""

from __future__ import annotations

import warnings

from .. import bridge


class ArchiveWatch:
    """Warns when the archive of a context's first sequence has stopped, and when pages cannot be read: each once."""

    def __init__(self) -> None:
        self._told_stop = False
        self._told_damage = False

    def look(self, context: int) -> None:
        """After a decode; it costs nothing to speak of."""
        if not self._told_stop and (why := bridge.why_archive_stopped(context)):
            self._told_stop = True
            _warn(f"the archive stopped: {why}; the chat continues, and what was archived before is still recalled")

    def look_closely(self, context: int) -> None:
        """After pages were read."""
        self.look(context)
        if not self._told_damage and (n := bridge.stats(context)["n_archive_damaged"]):
            self._told_damage = True
            pages = "a page" if n == 1 else f"{n} pages"
            _warn(f"{pages} of the archive cannot be read, and will not be recalled; the chat continues")


def _warn(sentence: str) -> None:
    warnings.warn(sentence, RuntimeWarning, stacklevel=4)
