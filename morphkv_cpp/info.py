"""What is installed, loaded and in use."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import llama_cpp

from . import bridge

# Backends whose library alone does not make a GPU: the frame and what computes on the host.
HOST_BACKENDS = re.compile(r"base|cpu|blas|rpc|zendnn")


@dataclass(frozen=True)
class Device:
    """A device that ggml found: where layers can live."""

    name: str  # "CPU", "CUDA0", ...
    description: str
    backend: str  # "CPU", "CUDA", "Vulkan", ...
    is_gpu: bool
    free_bytes: int  # 0 where the backend cannot tell
    total_bytes: int


@dataclass(frozen=True)
class Info:
    """Versions, libraries and devices of this process; str() is a report for people."""

    version: str  # of morphkv_cpp
    abi_version: int  # of the native library
    upstream_version: str  # of llama-cpp-python, whose llama.cpp was built
    package_dir: Path
    libraries: tuple[str, ...]  # paths of our libraries that this process has loaded
    gpu_backends: tuple[str, ...]  # of the installed build, e.g. ("cuda",)
    devices: tuple[Device, ...]
    cpu_variants: tuple[str, ...]  # kinds of CPU that the build has a module for; none: it has one for all
    cpu_variant: str | None  # that of them which was chosen, e.g. "haswell"
    system_info: str  # llama.cpp's own line: instruction sets and options

    @property
    def gpu_note(self) -> str:
        """One sentence: which GPUs can be used, or why none."""
        gpus = [device.name for device in self.devices if device.is_gpu]
        if gpus:
            return f"{', '.join(gpus)}; layers go there as far as they fit, or n_gpu_layers says"
        if self.gpu_backends:
            return (
                f"none: the build has {', '.join(self.gpu_backends)}, but found no device; everything runs on the CPU"
            )
        return "none: this build has no GPU backend; everything runs on the CPU"

    @property
    def _chosen(self) -> str:
        others = f"of the {len(self.cpu_variants)} installed"
        return f"{self.cpu_variant}, the best {others} that this CPU runs" if self.cpu_variant else f"none {others}"

    def __str__(self) -> str:
        rows = [
            ("morphkv_cpp", f"{self.version} (ABI {self.abi_version})"),
            ("llama-cpp-python", self.upstream_version),
            ("package", str(self.package_dir)),
            *(("library", path) for path in self.libraries),
            *(("device", _describe(device)) for device in self.devices),
            *([("CPU variant", self._chosen)] if self.cpu_variants else []),
            ("GPU", self.gpu_note),
            ("system", self.system_info),
        ]
        return "\n".join(f"{name:<16}  {value}" for name, value in rows)


def info() -> Info:
    """Versions, loaded libraries and devices, as they are in this process now."""
    devices = tuple(Device(**device) for device in bridge.devices())  # first: it loads what are modules
    libraries = tuple(bridge.loaded_libraries())
    module = bridge.cuda_module()
    return Info(
        version=bridge.version(),
        abi_version=bridge.abi_version(),
        upstream_version=bridge.upstream_version(),
        package_dir=bridge.PACKAGE_DIR,
        libraries=libraries,
        gpu_backends=_gpu_backends([*bridge.LIB_DIR.iterdir(), *([module] if module else [])]),
        devices=devices,
        cpu_variants=tuple(bridge.cpu_variants(os.listdir(bridge.LIB_DIR))),
        cpu_variant=next(iter(bridge.cpu_variants(libraries)), None),
        system_info=llama_cpp.llama_print_system_info().decode("utf-8", "replace").strip(),
    )


def _gpu_backends(files: Iterable[Path]) -> tuple[str, ...]:
    names = {match[1] for path in files if (match := re.match(r"(?:lib)?ggml-([a-z0-9]+)", path.name))}
    return tuple(sorted(name for name in names if not HOST_BACKENDS.fullmatch(name)))


def _describe(device: Device) -> str:
    memory = f"{device.free_bytes / 2**30:.1f} of {device.total_bytes / 2**30:.1f} GiB free"
    words = [device.name, device.description, f"({device.backend})"] if device.description else [device.name]
    return " ".join(words) + (f", {memory}" if device.total_bytes else "")
