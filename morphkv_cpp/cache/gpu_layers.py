"""How many layers go to the GPUs: as many as fit, unless it is said."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import llama_cpp

from .. import bridge
from ..config import MorphKV, native_params

AUTO, ALL = "auto", "all"
GIB = 1 << 30


@dataclass(frozen=True)
class DeviceUse:
    """What model and context take of a device, in bytes."""

    name: str  # "CUDA0", ...
    description: str
    used_bytes: int
    free_bytes: int  # before

    def __str__(self) -> str:
        name = f"{self.name} ({self.description})"
        return f"{name}, {self.used_bytes / GIB:.1f} of {self.free_bytes / GIB:.1f} GiB free memory used"


@dataclass(frozen=True)
class GpuFit:
    """As many layers as fit; str() is one line."""

    n_gpu_layers: int
    n_layers: int  # most that it counts: the model's layers, and the output
    devices: tuple[DeviceUse, ...]

    def __str__(self) -> str:
        places = "; ".join(map(str, self.devices)) or "no device"
        return f"GPU layers: {self.n_gpu_layers} of {self.n_layers} on {places}"


def with_gpu_layers(options: dict[str, Any], is_fitted: bool) -> tuple[dict[str, Any], bool]:
    """Options of llama_cpp.Llama with a number, and whether that is still to be found: as many layers as fit.

    is_fitted: what counts where n_gpu_layers is not given; else llama_cpp's default.
    """
    if "n_gpu_layers" not in options and not is_fitted:
        return options, False
    layers = layers_of(options.get("n_gpu_layers", AUTO), "n_gpu_layers")
    if layers == AUTO:
        return {**options, "n_gpu_layers": 0}, not options.get("vocab_only", False)
    return {**options, "n_gpu_layers": layers}, False


def layers_of(given: str | int, option: str) -> str | int:
    """The word auto, or a number, which may be a text; all is -1. option: its name, for the error."""
    if given in (AUTO, ALL):
        return AUTO if given == AUTO else -1
    try:
        return int(given) if isinstance(given, str) else given
    except ValueError:
        raise ValueError(f"{option} must be a number, {AUTO!r} or {ALL!r}, got {given!r}") from None


def has_gpu() -> bool:
    return any(device["is_gpu"] for device in bridge.devices())


def fit(
    path: str,
    model_params: llama_cpp.llama_model_params,
    context_params: llama_cpp.llama_context_params,
    options: Mapping[str, Any],
    config: MorphKV | None,
) -> GpuFit:
    """As many layers as leave 1 GiB of each device free. The parameters are those of llama_cpp.Llama before it loads.

    Raises ValueError, with llama.cpp's reason, for a model that cannot be loaded; UnsupportedError as opening it does.
    """
    params = type(context_params).from_buffer_copy(context_params)
    if params.n_ctx == 0:  # the trained context, which llama_cpp looks up once the model is there
        params.n_batch = options.get("n_batch", 512)
        params.n_ubatch = min(params.n_batch, options.get("n_ubatch", 512))
    if options.get("embedding", False):
        params.n_seq_max = min(params.n_batch, llama_cpp.llama_max_parallel_sequences())
        params.kv_unified = True
    with bridge.heard_errors(is_logged=False) as errors:
        try:
            native = None if config is None else native_params(config)
            found, devices = bridge.fit_gpu_layers(path, model_params, params, native)
        except bridge.NativeError as error:
            reason = bridge.as_reason(errors) or str(error)
            raise ValueError(f"Failed to load model from file: {path}: {reason}") from error
    return GpuFit(found["n_gpu_layers"], found["n_layers"], tuple(DeviceUse(**device) for device in devices))
