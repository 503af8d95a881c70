"""The loaded library, as cffi gives it. Its types stand in native.pyi."""

from .library import load

ffi, lib = load()
