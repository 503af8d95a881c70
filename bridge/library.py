"""Loads the native library of this package, and it alone: one libllama for cffi and for llama_cpp.

llama_cpp reads LLAMA_CPP_LIB_PATH once, when it is imported, and llama_cpp.mtmd_cpp reads MTMD_CPP_LIB. Both stay set,
so that child processes, which may import llama_cpp first, load the same libraries.
"""

from __future__ import annotations

import importlib.util
import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from . import process
from .backends import use_cuda_module
from .errors import refuse_library

if TYPE_CHECKING:
    import cffi


def _package_dir() -> Path:
    """Where the libraries lie: not beside this file if the install is editable, whose package has two folders."""
    folders = [Path(folder) for folder in sys.modules[__name__.partition(".")[0]].__path__]
    return next((folder for folder in folders if (folder / "include").is_dir()), folders[0])


PACKAGE_DIR = _package_dir()
HEADER = PACKAGE_DIR / "include" / "morphkv.h"
# Windows wants libraries beside the programs.
LIB_DIR = PACKAGE_DIR / ("bin" if sys.platform == "win32" else "lib")
LIBRARY_NAMES = {"darwin": ["libllama.dylib"], "win32": ["llama.dll", "libllama.dll"]}.get(
    sys.platform, ["libllama.so"]
)


def same_path(a: str | Path, b: str | Path) -> bool:
    return os.path.realpath(a) == os.path.realpath(b)


def _folder_variables() -> list[str]:
    """What says where llama_cpp finds its libraries; mtmd is left out of builds without tools."""
    has_mtmd = any(stem.endswith("mtmd") for stem in process.libraries_in(LIB_DIR))
    return ["LLAMA_CPP_LIB_PATH", "MTMD_CPP_LIB"] if has_mtmd else ["LLAMA_CPP_LIB_PATH"]


def _find_library() -> Path:
    for path in (HEADER, LIB_DIR, PACKAGE_DIR / "bridge" / "declared.py"):
        if not path.exists():
            refuse_library(f"morphkv_cpp is not installed completely: {path} is missing; install the package again")
    found = [LIB_DIR / name for name in LIBRARY_NAMES if (LIB_DIR / name).is_file()]
    if not found:
        refuse_library(f"the native library {LIB_DIR / LIBRARY_NAMES[0]} is missing; install morphkv_cpp again")
    return found[0]


def _llama_cpp_library() -> str | None:
    """Path of the libllama that llama_cpp has loaded; None while it is not imported."""
    module = sys.modules.get("llama_cpp.llama_cpp")
    library = getattr(module, "_lib", None)
    return library._name if library is not None else None


def _refuse_other_libraries(path: Path) -> None:
    """Stop while nothing is loaded yet: two libllama in one process would each have a half of the state."""
    loaded = _llama_cpp_library()
    if loaded is not None and not same_path(loaded, path):
        refuse_library(
            f"llama_cpp was imported before morphkv_cpp and has loaded {loaded}, but morphkv_cpp needs {path}: "
            "import morphkv_cpp first"
        )
    for variable in _folder_variables():
        folder = os.environ.get(variable)
        if folder is not None and not same_path(folder, LIB_DIR):
            refuse_library(f"{variable} is set to {folder!r}, but morphkv_cpp needs {LIB_DIR}: unset {variable}")
    _refuse_mapped("another library of the same name is already in this process")


def _refuse_mapped(reason: str) -> None:
    """The loader takes a library that it already has for any other of the same name, e.g. libggml.so."""
    _, others = process.mapped_libraries(LIB_DIR)
    if others:
        refuse_library(f"{reason}: {', '.join(others)}, but morphkv_cpp needs those in {LIB_DIR}")


def _llama_cpp_version() -> str | None:
    """Of the module that would be imported, as its source says: importlib.metadata takes 20 ms to import, and llama_cpp
    itself must not be imported where it does not fit."""
    spec = importlib.util.find_spec("llama_cpp")
    if spec is None or spec.origin is None:
        return None
    found = re.search(r'(?m)^__version__ = "(.+)"', Path(spec.origin).read_text(encoding="utf-8"))
    return found[1] if found else "of an unknown version"


def _refuse_versions(ffi: Any, lib: Any, path: Path) -> None:
    try:
        native_abi = lib.morphkv_abi_version()
    except (AttributeError, ffi.error) as error:
        refuse_library(f"{path} is a libllama without MorphKV: install morphkv_cpp again", error)
    if native_abi != lib.MORPHKV_ABI_VERSION:
        refuse_library(
            f"{path} has ABI version {native_abi}, but was installed with a header of {lib.MORPHKV_ABI_VERSION}: "
            "install morphkv_cpp again"
        )
    native = cast(bytes, ffi.string(lib.morphkv_upstream_version())).decode()
    python = _llama_cpp_version()
    if python is None:
        refuse_library(f"llama-cpp-python is not installed; morphkv_cpp needs llama-cpp-python=={native}")
    if python != native:
        refuse_library(
            f"llama-cpp-python {python} is installed, but {path} was built from {native}, and the two share structs: "
            f"pip install llama-cpp-python=={native}"
        )


def load() -> tuple[cffi.FFI, Any]:
    """The ffi and the library, checked."""
    path = _find_library()
    _refuse_other_libraries(path)
    from .declared import ffi

    if sys.platform == "win32":
        os.add_dll_directory(str(LIB_DIR))
    try:
        lib = ffi.dlopen(str(path))
    except OSError as error:
        refuse_library(f"cannot load {path}: {error}", error)
    # e.g. LD_LIBRARY_PATH comes before the library's own run path
    _refuse_mapped("the system's loader has found other libraries of the same names")
    _refuse_versions(ffi, lib, path)
    for variable in _folder_variables():
        os.environ[variable] = str(LIB_DIR)
    use_cuda_module(LIB_DIR)
    import llama_cpp  # noqa: F401

    loaded = _llama_cpp_library()
    if loaded is None or not same_path(loaded, path):
        refuse_library(f"llama_cpp has loaded {loaded}, but morphkv_cpp needs {path}")
    return ffi, lib
