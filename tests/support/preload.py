"""Functions of ours in place of a program's own, by a small library that is loaded before its others."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest


def build(folder: Path, name: str, source: str) -> Path:
    """The library, for LD_PRELOAD. Skips the test where there is no C compiler, and on other systems than Linux."""
    compiler = shutil.which("cc")
    if not compiler or sys.platform != "linux":
        pytest.skip("a preloaded library needs Linux and a C compiler")
    (folder / f"{name}.c").write_text("#define _GNU_SOURCE\n" + source)
    library = folder / f"{name}.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, folder / f"{name}.c", "-ldl"], check=True)
    return library
