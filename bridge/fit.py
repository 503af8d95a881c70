"""How many layers of a model its devices have memory for."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from typing import Any

from .calls import _check, _fields, _native_params, _sized
from .native import ffi, lib

# Left free on each device, as llama-server leaves.
MARGIN_BYTES = 1 << 30


def fit_gpu_layers(
    path: str,
    model_params: ctypes.Structure,
    context_params: ctypes.Structure,
    params: Mapping[str, Any] | None,
    margin_bytes: int = MARGIN_BYTES,
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Fields of morphkv_fit, and of a morphkv_fit_device for each device, but for their sizes.

    model_params and context_params: of llama_cpp. params: of the context's MorphKV; None: without.
    """
    fit = _sized("morphkv_fit")
    native = ffi.NULL if params is None else _native_params(params)
    structs = (
        ffi.cast("struct llama_model_params *", ctypes.addressof(model_params)),
        ffi.cast("struct llama_context_params *", ctypes.addressof(context_params)),
    )
    _check(lib.morphkv_fit_gpu_layers(path.encode(), *structs, native, margin_bytes, fit))
    devices = []
    for i in range(fit.n_devices):
        device = _sized("morphkv_fit_device")
        _check(lib.morphkv_fit_device_get(i, device))
        devices.append(_fields(device[0]))
    return _fields(fit[0]), devices
