"""Random-weight models of many architectures, as upstream's test-llama-archs writes them."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterable
from pathlib import Path

import pytest


def write_architectures(folder: Path, names: Iterable[str]) -> dict[str, Path]:
    """GGUF by architecture; skips the test where the program was not built."""
    program = Path(os.environ.get("MORPHKV_TEST_PROGRAMS", "")) / "test-llama-archs"
    if not program.is_file():
        pytest.skip("MORPHKV_TEST_PROGRAMS names no folder with test-llama-archs")
    command = [str(program), "--arch", f"^({'|'.join(names)})$", "--seed", "1", "--out", str(folder)]
    subprocess.run(command, check=True, capture_output=True)
    return {path.stem.rsplit("-", 1)[0]: path for path in sorted(folder.glob("*.gguf"))}
