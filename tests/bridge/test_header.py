"""The bridge reads the C header as it is."""

import cffi
import pytest

from morphkv_cpp.bridge import PACKAGE_DIR
from morphkv_cpp.bridge.header import declarations

SMALL = """\
#ifndef A_H
#define A_H
#if defined(_WIN32)
#    define MORPHKV_API __declspec(dllexport)
#else
#    define MORPHKV_API \\
        __attribute__((visibility("default")))
#endif
#define A_VERSION 7
#ifdef __cplusplus
extern "C" {
#endif
// a cell's word
MORPHKV_API int a_add(int x);
#ifdef __cplusplus
}
#endif
#endif
"""


def test_only_what_cffi_can_read_is_left():
    kept = [line.strip() for line in declarations(SMALL).splitlines() if line.strip()]
    assert kept == ["#define A_VERSION 7", "// a cell's word", "int a_add(int x);"]


def test_constants_of_the_header_are_known_to_cffi():
    ffi = cffi.FFI()
    ffi.cdef(declarations(SMALL))
    assert ffi.dlopen(None).A_VERSION == 7


@pytest.mark.parametrize("name", ["morphkv_params", "morphkv_stats", "morphkv_device"])
def test_structs_of_the_installed_header_start_with_their_size(name):
    ffi = cffi.FFI()
    ffi.cdef(declarations((PACKAGE_DIR / "include" / "morphkv.h").read_text()))
    assert ffi.typeof(name).fields[0][0] == "size"
