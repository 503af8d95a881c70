"""Backends that are modules, which ggml loads when the first model is: the CPU's, Vulkan's, that of a CUDA package.

A build with GGML_BACKEND_DL, as our wheels are, has one for each kind of CPU beside libggml. ggml takes the best that
runs here. CUDA's comes with a package of its own, e.g. morphkv_cpp_cu13. GGML_BACKEND_PATH names it to ggml, in child
processes too.
"""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Iterable
from pathlib import Path

CUDA_PACKAGES = ("morphkv_cpp_cu13", "morphkv_cpp_cu12")
CPU_MODULE = re.compile(r"(?:lib)?ggml-cpu-(?P<variant>[A-Za-z0-9_.]+)\.(?:so|dll)")


def cpu_variants(names: Iterable[str]) -> list[str]:
    """The kinds of CPU that files are for by their names, e.g. "haswell"; none if the CPU's backend is no module."""
    return sorted(match["variant"] for name in names if (match := CPU_MODULE.fullmatch(os.path.basename(name))))


def cuda_module() -> Path | None:
    """The backend of the newest CUDA package that is installed. The packages are found, not imported."""
    for package in CUDA_PACKAGES:
        spec = importlib.util.find_spec(package)
        for folder in (spec.submodule_search_locations or []) if spec else []:
            for name in ("libggml-cuda.so", "ggml-cuda.dll"):
                if (path := Path(folder) / name).is_file():
                    return path
    return None


def use_cuda_module(lib_dir: Path) -> None:
    """Name it to ggml, unless the user named a module or the backends of this build are linked."""
    if cpu_variants(os.listdir(lib_dir)) and (module := cuda_module()):
        os.environ.setdefault("GGML_BACKEND_PATH", str(module))
