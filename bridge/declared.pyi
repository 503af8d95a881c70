"""What header.py makes of morphkv.h while the libraries are built."""

import cffi

ffi: cffi.FFI
