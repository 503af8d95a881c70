#!/usr/bin/env python3
"""Run a build, and say how far its compiler is.

    with_progress.py LOG COMMAND...

What the command says goes to the file LOG. In a terminal one line is rewritten, else there is a line every tenth. Where
the command fails the end of the log is shown, and the exit code is the command's.
"""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections import deque
from pathlib import Path
from typing import TextIO

STEP = re.compile(r"\[(\d+)/(\d+)\]")  # as ninja says it
N_TAIL = 40  # lines of the log that are shown after a failure


class Progress:
    """A line on a stream."""

    def __init__(self, stream: TextIO, start_s: float):
        self._stream = stream
        self._start_s = start_s
        self._n_tenths = -1

    def show(self, n: int, n_all: int, now_s: float) -> None:
        if self._stream.isatty():
            self._stream.write(f"\r{self._words(n, n_all, now_s):<60}")
        elif 10 * n // n_all > self._n_tenths:
            self._n_tenths = 10 * n // n_all
            self._stream.write(f"{self._words(n, n_all, now_s)}\n")
        self._stream.flush()

    def _words(self, n: int, n_all: int, now_s: float) -> str:
        took_s = now_s - self._start_s
        words = f"compiling: {n} of {n_all} files ({100 * n // n_all}%)"
        if n < 10 or took_s < 5:  # too early to tell
            return words
        left_s = took_s / n * (n_all - n)
        return f"{words}, about {left_s / 60:.0f} min left" if left_s >= 90 else f"{words}, {left_s:.0f} s left"

    def end(self) -> None:
        if self._stream.isatty():
            self._stream.write("\r" + " " * 60 + "\r")
            self._stream.flush()


def main(log: str, *command: str) -> int:
    Path(log).parent.mkdir(parents=True, exist_ok=True)
    tail: deque[str] = deque(maxlen=N_TAIL)
    progress: Progress | None = None
    n_most = 0
    with (
        open(log, "w", encoding="utf-8") as file,
        subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
        ) as build,
    ):
        assert build.stdout is not None
        for line in build.stdout:
            file.write(line)
            tail.append(line)
            step = STEP.search(line)
            n, n_all = (int(step[1]), int(step[2])) if step else (0, 0)
            if (
                n > 0 and n_all >= n_most
            ):  # 0: ninja looks at the list of files; less than before: a build inside of this one
                n_most = n_all
                progress = progress or Progress(sys.stderr, time.monotonic())
                progress.show(n, n_all, time.monotonic())
    if progress is not None:
        progress.end()
    if build.returncode:
        sys.stderr.write(f"{''.join(tail)}\nfailed with exit code {build.returncode}; all that it said is in {log}\n")
    return build.returncode


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
