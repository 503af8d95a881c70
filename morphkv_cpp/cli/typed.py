"""What is typed while an answer is written: it is kept for the next line."""

from __future__ import annotations

import contextlib
import os
import re
import select
import sys
from collections.abc import Iterator

# e.g. arrow keys
ESCAPES = re.compile(r"\x1b(\[[0-?]*[ -/]*[@-~]|O.|.)?", re.DOTALL)
INTERRUPT = b"\x03"
ERASE = "\x7f\b"


class TypedAhead:
    """Keys that come during an answer, not shown; Ctrl-C still works. `take()` gives them as a line to go on with."""

    def __init__(self) -> None:
        self._keys = bytearray()

    @contextlib.contextmanager
    def kept(self) -> Iterator[None]:
        """Where standard input is no terminal, or none as POSIX has them, nothing is different in here."""
        try:
            import termios

            handle = sys.stdin.fileno()
            before = termios.tcgetattr(handle)
        except (ImportError, OSError, ValueError):
            yield
            return
        quiet = [*before]
        # line by line, keys that are erased would be lost; an interrupt must not lose them either
        quiet[3] = (quiet[3] & ~(termios.ICANON | termios.ECHO)) | termios.NOFLSH
        try:
            termios.tcsetattr(handle, termios.TCSANOW, quiet)
            # a prompt's terminal is raw: a Ctrl-C that came then is a key
            if INTERRUPT in self._read(handle):
                raise KeyboardInterrupt
            yield
        finally:
            self._read(handle)
            termios.tcsetattr(handle, termios.TCSANOW, before)

    def _read(self, handle: int) -> bytes:
        read = b""
        while select.select([handle], [], [], 0)[0] and (keys := os.read(handle, 4096)):
            read += keys
        self._keys += read.replace(INTERRUPT, b"")
        return read

    def take(self) -> str:
        keys, self._keys = bytes(self._keys), bytearray()
        return line_of(keys)


def line_of(keys: bytes) -> str:
    """The text that the keys make; an Enter at its end is left to the reader."""
    text = ""
    for key in ESCAPES.sub("", keys.decode(errors="ignore")):
        if key in ERASE:
            text = text[:-1]
        elif key in "\r\n\t" or key.isprintable():
            text += "\n" if key == "\r" else key
    return text.rstrip("\n")
