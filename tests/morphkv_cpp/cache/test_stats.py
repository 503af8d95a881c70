"""CacheStats mirrors the native statistics."""

from dataclasses import fields

from morphkv_cpp import CacheStats
from morphkv_cpp.bridge.native import ffi


def test_fields_are_those_of_the_header_in_its_order():
    native = [name for name, _ in ffi.typeof("morphkv_stats").fields if name != "size"]
    assert [field.name for field in fields(CacheStats)] == native
