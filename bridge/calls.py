"""The C API as Python functions: plain values in, plain values and NumPy arrays out, errors as exceptions.

A context is the address of a llama_context, as llama_cpp holds it.
"""

from __future__ import annotations

import contextlib
import itertools
import operator
import os
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from . import process
from .errors import MorphKVError, NoMorphKVError, check_status, refuse_argument, refuse_context
from .library import LIB_DIR
from .native import ffi, lib

# Fields of morphkv_params that hold enumerators: field -> prefix of the enumerators.
ENUMS = {"fusion": "MORPHKV_FUSION_", "policy": "MORPHKV_POLICY_"}

# Those that say which layers keep more.
LAYER_FIELDS = ("n_large", "large_capacity", "small_capacity", "large_layers")


def version() -> str:
    """Version of morphkv_cpp, as compiled into the native library."""
    return _text(lib.morphkv_version())


def abi_version() -> int:
    return lib.morphkv_abi_version()


def upstream_version() -> str:
    """Version of llama-cpp-python whose llama.cpp the native library was built from."""
    return _text(lib.morphkv_upstream_version())


def last_error() -> str:
    """The sentence behind this thread's last failed native call, "" if none."""
    return _text(lib.morphkv_last_error())


def default_params() -> dict[str, Any]:
    """Native defaults of morphkv_params but for LAYER_FIELDS, enumerators as lower-case names."""
    struct = lib.morphkv_params_default()
    names = [name for name, _ in ffi.typeof(struct).fields if name not in ("size", *LAYER_FIELDS)]
    params = {name: getattr(struct, name) for name in names}
    return params | {field: _enum_name(field, params[field]) for field in ENUMS}


def check_params(params: Mapping[str, Any]) -> None:
    """Raise what the native library has against these parameters; keys as in morphkv_params, enumerators as names."""
    _check(lib.morphkv_params_check(_native_params(params)))


@contextlib.contextmanager
def next_context_has(params: Mapping[str, Any]) -> Iterator[None]:
    """Within, the first context that this thread creates, by whatever code, gets MorphKV with these parameters.

    If the body fails after a native refusal, the refusal is raised in its place: llama_cpp knows no reasons. An
    exception that is raised from a refusal knows them.
    """
    _check(lib.morphkv_params_set_next(_native_params(params)))
    try:
        yield
    except Exception as error:
        if not isinstance(error.__cause__, MorphKVError):
            _check(lib.morphkv_last_status())
        raise
    finally:
        lib.morphkv_params_set_next(ffi.NULL)


def require_morphkv(context: int) -> None:
    """Refuse a context that has no MorphKV although it was asked for, or cannot honour it on its devices."""
    try:
        stats(context)
    except NoMorphKVError as error:
        refuse_context("MorphKV cannot serve this model: its context has no KV cache of a known kind", error)
    _check(lib.morphkv_context_check(_context(context)))


def stats(context: int, seq_id: int = 0) -> dict[str, Any]:
    """Fields of morphkv_stats but for its size."""
    out = _sized("morphkv_stats")
    _check(lib.morphkv_stats_get(_context(context), _int32("seq_id", seq_id), out))
    return _fields(out[0])


def retained(context: int, seq_id: int, layer: int) -> np.ndarray:
    """Logical positions in the distant slots of a layer, int32 (n_head_kv, n_distant), -1 where empty."""
    handle, layer = _context(context), _int32("layer", layer)
    n_head_kv, n_distant = ffi.new("int32_t *"), ffi.new("int32_t *")
    _check(lib.morphkv_retained_shape(handle, layer, n_head_kv, n_distant))
    positions = np.empty((n_head_kv[0], n_distant[0]), dtype=np.int32)
    buffer = ffi.from_buffer("int32_t[]", positions)
    _check(lib.morphkv_retained_get(handle, _int32("seq_id", seq_id), layer, buffer, positions.size))
    return positions


def recalled(context: int, seq_id: int) -> list[tuple[int, int]]:
    """Pages that recalls have brought tokens of: logical position of the first, and the number of the last recall."""
    handle, seq_id, n = _context(context), _int32("seq_id", seq_id), ffi.new("int32_t *")
    _check(lib.morphkv_recalled_get(handle, seq_id, ffi.NULL, ffi.NULL, 0, n))
    positions, recalls = ffi.new("int32_t[]", n[0]), ffi.new("int32_t[]", n[0])
    _check(lib.morphkv_recalled_get(handle, seq_id, positions, recalls, n[0], n))
    return list(zip(positions, recalls))


def set_keep(context: int, seq_id: int, n_keep: int) -> None:
    """First tokens of a sequence that are never evicted, until it is emptied; InvalidError where that is impossible."""
    _check(lib.morphkv_keep_set(_context(context), _int32("seq_id", seq_id), _int32("n_keep", n_keep)))


def set_mark(context: int, seq_id: int = 0) -> None:
    """Let a sequence with recurrent layers go back to where it ends now; other sequences can without."""
    _check(lib.morphkv_mark_set(_context(context), _int32("seq_id", seq_id)))


def start_archive(
    context: int, *, path: str | None = None, type_k: int = -1, type_v: int = -1, max_bytes: int | None = None
) -> None:
    """From now on every sequence keeps what leaves its window, in memory or in a file.

    ggml types, -1 as in the cache; max_bytes: of all sequences together, 0: no limit, None: the library's own.
    """
    params = lib.morphkv_archive_params_default()
    params.type_k, params.type_v = _int32("type_k", type_k), _int32("type_v", type_v)
    if max_bytes is not None:
        params.max_bytes = max_bytes
    name = ffi.NULL if path is None else ffi.new("char []", os.fsencode(path))
    params.path = name
    _check(lib.morphkv_archive_start(_context(context), ffi.new("morphkv_archive_params *", params)))


def why_archive_stopped(context: int, seq_id: int = 0) -> str:
    """Why a sequence's archive grows no more; "" while it does. Does not wait for what is being appended."""
    return _text(lib.morphkv_archive_why_stopped(_context(context), seq_id))


def load_state(context: int, data: bytes, seq_id: int = -1, flags: int = 0) -> None:
    """Load a state of the whole context (-1) or of a sequence; NativeError with the reason where it is refused.

    Then nothing has changed. flags are those that a sequence was saved with.
    """
    handle = _context(context)
    buffer = ffi.from_buffer(data)
    _check(lib.morphkv_state_load(handle, _int32("seq_id", seq_id), buffer, len(buffer), flags))


def kv_bytes(context: int) -> int:
    """Bytes of the K and V tensors of a context, with or without MorphKV."""
    return lib.morphkv_kv_bytes(_context(context))


def tokenize(vocab: int, text: bytes, *, add_special: bool, parse_special: bool) -> list[int]:
    """Tokens of a text by the vocabulary of a llama_cpp.Llama. Raises InvalidError for what it cannot take."""
    handle, n_tokens, n_max = ffi.cast("struct llama_vocab *", vocab), ffi.new("int32_t *"), len(text) + 8
    while True:
        tokens = ffi.new("int32_t []", n_max)
        flags = int(add_special), int(parse_special)
        _check(lib.morphkv_tokenize(handle, ffi.from_buffer(text), len(text), *flags, tokens, n_max, n_tokens))
        if n_tokens[0] <= n_max:
            return ffi.unpack(tokens, n_tokens[0])
        n_max = n_tokens[0]


def devices() -> list[dict[str, Any]]:
    """Every device that ggml found, as the fields of morphkv_device but for its size."""
    found = []
    for i in range(lib.morphkv_device_count()):
        out = _sized("morphkv_device")
        _check(lib.morphkv_device_get(i, out))
        found.append(_fields(out[0]))
    return found


def rpc_devices(servers: str, n_max: int) -> list[int]:
    """Addresses of the devices of RPC servers ("HOST:PORT,...") and of the local GPUs behind them, at most n_max."""
    out = ffi.new("void *[]", n_max + 1)
    _check(lib.morphkv_rpc_devices(servers.encode(), out))
    return [int(ffi.cast("uintptr_t", device)) for device in itertools.takewhile(bool, out)]


def selftest(servers: str | None = None, n_threads: int = 1) -> Iterator[dict[str, Any]]:
    """Rows of the self-test, each computed when it is asked for: fields of morphkv_selftest but for its size.

    servers: RPC servers to test as well. n_threads: of a CPU that is tested; it is compared with one thread.
    The result is a name: "same", "different" or "refused".
    """
    names = ffi.NULL if servers is None else servers.encode()
    n_cases = ffi.new("int32_t *")
    _check(lib.morphkv_selftest_count(names, n_cases))
    results = ffi.typeof("morphkv_selftest_result").elements
    for i in range(n_cases[0]):
        out = _sized("morphkv_selftest")
        out.n_threads = n_threads
        _check(lib.morphkv_selftest_run(names, i, out))
        row = _fields(out[0])
        result = results[row["result"]].removeprefix("MORPHKV_SELFTEST_RESULT_").lower()
        yield {**row, "result": result, "i_case": i, "n_cases": n_cases[0]}


def loaded_libraries() -> list[str]:
    """Paths of this package's libraries in the process; those asked for where the system does not tell."""
    if process.mapped_files() is None:
        return [path for paths in process.libraries_in(LIB_DIR).values() for path in paths]
    return process.mapped_libraries(LIB_DIR)[0]


def _check(status: int) -> None:
    check_status(ffi.typeof("morphkv_status").elements[status], last_error() if status else "")


def _text(chars: Any) -> str:
    return ffi.string(chars).decode("utf-8", "replace")


def _context(address: int | None) -> Any:
    if not address:
        refuse_argument("the context is closed")
    return ffi.cast("struct llama_context *", address)


def _int32(name: str, value: int) -> int:
    value = operator.index(value)
    if not -(2**31) <= value < 2**31:
        refuse_argument(f"{name} must be a 32-bit integer, got {value}")
    return value


def _recall_params(settings: Mapping[str, float]) -> Any:
    params = lib.morphkv_recall_params_default()
    for field, value in settings.items():
        setattr(params, field, value)
    return ffi.new("morphkv_recall_params *", params)


def _sized(struct: str) -> Any:
    return ffi.new(f"{struct} *", {"size": ffi.sizeof(struct)})


def _native_params(params: Mapping[str, Any]) -> Any:
    values = {
        field: getattr(lib, ENUMS[field] + value.upper()) if field in ENUMS else value
        for field, value in params.items()
    }
    return ffi.new("morphkv_params *", {"size": ffi.sizeof("morphkv_params"), **values})


def _enum_name(field: str, value: int) -> str:
    return ffi.typeof(f"morphkv_{field}").elements[value].removeprefix(ENUMS[field]).lower()


def _fields(struct: Any) -> dict[str, Any]:
    """Fields of a struct but for its size; strings as str, is_... as bool."""
    values = {name: getattr(struct, name) for name, _ in ffi.typeof(struct).fields if name != "size"}
    return {name: _python_value(name, value) for name, value in values.items()}


def _python_value(name: str, value: Any) -> Any:
    if isinstance(value, ffi.CData):
        return _text(value) if value else ""
    return bool(value) if name.startswith("is_") else value
