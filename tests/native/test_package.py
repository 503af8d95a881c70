"""What was installed: complete, relocatable, of the pinned version."""

import importlib.metadata
import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PROGRAMS = ("llama-server", "llama-bench", "llama-perplexity", "ggml-rpc-server")
LIBRARIES = ("ggml", "ggml-base", "ggml-rpc", "llama", "llama-common", "mtmd")


@pytest.fixture(scope="module")
def package():
    """Folder of the installed package, found without importing it."""
    spec = importlib.util.find_spec("morphkv_cpp")
    if spec is None or spec.origin is None:
        pytest.skip("morphkv_cpp is not installed")
    return Path(spec.origin).parent


def test_pins_agree():
    upstream = (ROOT / "native/UPSTREAM").read_text()
    version = re.search(r"(?m)^VERSION=(.+)$", upstream)[1]
    assert f'"llama-cpp-python=={version}"' in (ROOT / "pyproject.toml").read_text()
    assert importlib.metadata.version("llama-cpp-python").split("+")[0] == version


def test_package_has_header_licenses_and_folders(package):
    assert (package / "include/morphkv.h").is_file()
    assert {"LICENSE", "LICENSE-llama.cpp"} <= {path.name for path in (package / "licenses").iterdir()}
    assert (package / "bridge").is_dir()
    assert (package / "models").is_dir()


def test_the_source_folder_is_refused_with_a_sentence(package):
    command = [sys.executable, "-c", "import morphkv_cpp"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert "its source folder" in done.stderr


def test_each_library_is_one_file(package):
    files = {path.name: path for path in (package / "lib").iterdir()}
    suffix = {"darwin": ".dylib", "win32": ".dll"}.get(sys.platform, ".so")
    assert {f"lib{name}{suffix}" for name in LIBRARIES} <= files.keys()
    assert not [name for name, path in files.items() if path.is_symlink() or not name.endswith(suffix)]


@pytest.mark.skipif(sys.platform != "linux", reason="reads ELF run paths")
def test_run_paths_are_relative(package):
    for path in [*(package / "lib").iterdir(), *(package / "bin").iterdir()]:
        dynamic = subprocess.run(["readelf", "-d", str(path)], capture_output=True, text=True, check=True).stdout
        run_paths = re.findall(r"\(R(?:UN)?PATH\).*\[(.*)\]", dynamic)
        assert run_paths
        assert run_paths[0].split(":")[:2] == ["$ORIGIN", "$ORIGIN/../lib"]
        assert str(ROOT) not in run_paths[0]


@pytest.mark.parametrize("program", PROGRAMS)
def test_program_starts_and_loads_our_libraries(package, program):
    path = package / "bin" / program
    assert os.access(path, os.X_OK)
    assert subprocess.run([str(path), "--help"], capture_output=True, timeout=60, check=False).returncode == 0
    if sys.platform == "linux":
        loaded = subprocess.run(["ldd", str(path)], capture_output=True, text=True, check=True).stdout
        library = "libggml.so" if program == "ggml-rpc-server" else "libllama.so"
        found = re.search(rf"{re.escape(library)} => (\S+)", loaded)[1]
        assert Path(found).resolve() == (package / "lib" / library).resolve()
