"""The C header as cffi reads it: nothing of the ABI is declared twice."""

from __future__ import annotations

import re

# Only C++ sees these lines, among them the braces of extern "C".
CPLUSPLUS = re.compile(r"^#\s*ifdef __cplusplus$.*?^#\s*endif$", re.MULTILINE | re.DOTALL)
# A directive with its continuation lines; `#define NAME 1` is C that cffi understands.
DIRECTIVE = re.compile(r"^#(?!define \w+ \d+$)(?:[^\n]*\\\n)*[^\n]*$", re.MULTILINE)


def declarations(header: str) -> str:
    """What cffi's cdef() takes of morphkv.h: types, functions and plain integer constants."""
    return DIRECTIVE.sub("", CPLUSPLUS.sub("", header)).replace("MORPHKV_API", "")
