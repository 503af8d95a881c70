"""Run another test program within a test, and show the end of what it printed when it fails."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

TIMEOUT_S = 300
N_LINES_SHOWN = 60


def output_of(command: list[str | Path], cwd: Path, environment: dict[str, str]) -> str:
    """stdout and stderr of a command; the test fails when the command does or takes too long."""
    # passive: threads that spin for one another are slow where others use the cores too.
    environment = {**os.environ, "OMP_WAIT_POLICY": "passive", **environment}
    try:
        done = subprocess.run(
            command,
            cwd=cwd,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=TIMEOUT_S,
            check=False,
        )
        output, end = done.stdout, f"ended with {done.returncode}" if done.returncode else ""
    except subprocess.TimeoutExpired as late:
        output, end = late.stdout or b"", f"was still running after {TIMEOUT_S} s"
    text = output.decode(errors="replace")
    if end:
        tail = "\n".join(text.splitlines()[-N_LINES_SHOWN:])
        pytest.fail(f"{' '.join(map(str, command))} {end}:\n{tail}", pytrace=False)
    return text
