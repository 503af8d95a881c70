"""The C header as cffi reads it: nothing of the ABI is declared twice.

As a program, which the build starts: header.py morphkv.h declared.py writes the module that an import takes in place of
reading the header, which took 40 ms.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

# Only C++ sees these lines, among them the braces of extern "C".
CPLUSPLUS = re.compile(r"^#\s*ifdef __cplusplus$.*?^#\s*endif$", re.MULTILINE | re.DOTALL)
# A directive with its continuation lines; `#define NAME 1` is C that cffi understands.
DIRECTIVE = re.compile(r"^#(?!define \w+ \d+$)(?:[^\n]*\\\n)*[^\n]*$", re.MULTILINE)


def declarations(header: str) -> str:
    """What cffi's cdef() takes of morphkv.h: types, functions and plain integer constants."""
    return DIRECTIVE.sub("", CPLUSPLUS.sub("", header)).replace("MORPHKV_API", "")


def write_module(header: Path, module: Path) -> None:
    import cffi

    ffi = cffi.FFI()
    ffi.set_source("morphkv_cpp.bridge.declared", None)
    ffi.cdef(declarations(header.read_text(encoding="utf-8")))
    ffi.emit_python_code(str(module))


if __name__ == "__main__":
    write_module(*map(Path, sys.argv[1:]))
