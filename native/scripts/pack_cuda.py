#!/usr/bin/env python3
"""Pack ggml's CUDA backend as a wheel of its own, and print its path.

    pack_cuda.py LIBRARY TAG FOLDER [KERNELS]

LIBRARY: libggml-cuda.so of a build with GGML_BACKEND_DL. KERNELS: libmorphkv-cuda.so, which comes beside it. patchelf
sets their run path. The CUDA libraries that they were linked with come from NVIDIA's packages, and name ours:
morphkv_cpp_cu12 or morphkv_cpp_cu13. morphkv_cpp, of the same version, finds it when it is imported, and names the
module to ggml.
"""

import pathlib
import re
import subprocess
import sys
import tempfile

from wheel_file import write_wheel

ROOT = pathlib.Path(__file__).resolve().parents[2]
# {major version of CUDA: (packages, the folders of their libraries)}
NVIDIA = {
    "12": (
        ["nvidia-cublas-cu12", "nvidia-cuda-runtime-cu12"],
        ["../nvidia/cublas/lib", "../nvidia/cuda_runtime/lib"],
    ),
    "13": (["nvidia-cublas>=13,<14", "nvidia-cuda-runtime>=13,<14"], ["../nvidia/cu13/lib"]),
}


def cuda_version(library):
    """The major version that a library was linked with, as the names of what it needs say."""
    needed = subprocess.run(["patchelf", "--print-needed", library], capture_output=True, text=True, check=True).stdout
    found = re.search(r"(?m)^libcudart\.so\.(\d+)$", needed)
    if found is None or found[1] not in NVIDIA:
        raise SystemExit(f"{library} must need libcudart.so.{' or .'.join(NVIDIA)}, and needs {needed.split()}")
    return found[1]


def relocated(library, run_path):
    """The bytes of a library with another run path."""
    with tempfile.TemporaryDirectory() as folder:
        copy = pathlib.Path(folder) / "library"
        copy.write_bytes(pathlib.Path(library).read_bytes())
        subprocess.run(["patchelf", "--set-rpath", run_path, copy], check=True)
        return copy.read_bytes()


def metadata(name, version, packages):
    rows = [
        "Metadata-Version: 2.1",
        f"Name: {name}",
        f"Version: {version}",
        f"Summary: The CUDA backend of morphkv_cpp {version}",
        "License: MIT",
        *(f"Requires-Dist: {package}" for package in [f"morphkv_cpp=={version}", *packages]),
    ]
    return "\n".join([*rows, ""]).encode()


def pack(library, tag, folder, kernels=None):
    cuda = cuda_version(library)
    version = re.search(r'(?m)^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(encoding="utf-8"))[1]
    packages, folders = NVIDIA[cuda]
    name = f"morphkv_cpp_cu{cuda}"
    run_path = ":".join(f"$ORIGIN/{path}" for path in ["../morphkv_cpp/lib", *folders])
    files = {
        f"{name}/__init__.py": b'"""The CUDA backend of morphkv_cpp, which finds it here."""\n',
        f"{name}/libggml-cuda.so": relocated(library, run_path),
        f"{name}-{version}.dist-info/METADATA": metadata(name, version, packages),
        f"{name}-{version}.dist-info/licenses/LICENSE": (ROOT / "LICENSE").read_bytes(),
    }
    if kernels:
        files[f"{name}/libmorphkv-cuda.so"] = relocated(kernels, run_path)
    return write_wheel(folder, name, version, f"py3-none-{tag}", pathlib.Path(__file__).name, files)


if __name__ == "__main__":
    if len(sys.argv) not in (4, 5):
        raise SystemExit(__doc__)
    print(pack(*sys.argv[1:]))
