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
    """Folder of the installed package, found without importing it; an editable install has the sources' folder too."""
    spec = importlib.util.find_spec("morphkv_cpp")
    if spec is None or spec.origin is None:
        pytest.skip("morphkv_cpp is not installed")
    return next(path for path in map(Path, spec.submodule_search_locations) if (path / "include").is_dir())


def is_editable():
    spec = importlib.util.find_spec("morphkv_cpp")
    return Path(spec.origin).parent == ROOT / "morphkv_cpp"


@pytest.fixture(scope="module")
def wheel_files():
    """Names of the files of the installed wheel, as its RECORD has them, without what pip adds."""
    if is_editable():
        pytest.skip("an editable install records none of its sources; make test-wheel")
    names = [str(path) for path in importlib.metadata.files("morphkv_cpp")]
    return {name for name in names if name.startswith("morphkv_cpp/") and "__pycache__" not in name}


def test_pins_agree():
    upstream = (ROOT / "native/UPSTREAM").read_text()
    version = re.search(r"(?m)^VERSION=(.+)$", upstream)[1]
    assert f'"llama-cpp-python=={version}"' in (ROOT / "pyproject.toml").read_text()
    assert importlib.metadata.version("llama-cpp-python").split("+")[0] == version


def test_package_has_header_and_licenses(package):
    assert (package / "include/morphkv.h").is_file()
    assert {"LICENSE", "LICENSE-llama.cpp"} <= {path.name for path in (package / "licenses").iterdir()}


def test_the_wheel_has_the_sources_of_three_folders(wheel_files):
    folders = {"morphkv_cpp": "morphkv_cpp", "bridge": "morphkv_cpp/bridge", "models": "morphkv_cpp/models"}
    expected = {
        f"{name}/{path.relative_to(ROOT / folder).as_posix()}"
        for folder, name in folders.items()
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    built = {name for name in wheel_files if name.split("/")[1] in ("bin", "include", "lib", "licenses")}
    built.add("morphkv_cpp/bridge/declared.py")
    assert built <= wheel_files
    assert wheel_files - built == expected
    assert "morphkv_cpp/py.typed" in expected


def test_the_wheel_holds_no_tests_and_no_tools_of_ours(wheel_files):
    suffixes = {Path(name).suffix for name in wheel_files if name.split("/")[1] not in ("bin", "lib", "licenses")}
    assert suffixes <= {".py", ".pyi", ".typed", ".h", ".json", ".tsv", ".txt"}
    assert not [name for name in wheel_files if re.search(r"(^|/)(test|conftest|fuzz)", name)]


def test_the_source_folder_alone_is_refused_with_a_sentence():
    # no site-packages: nothing is installed
    command = [sys.executable, "-S", "-c", "import morphkv_cpp"]
    done = subprocess.run(command, cwd=ROOT, env=without_path(), capture_output=True, text=True, check=False)
    assert "ImportError: morphkv_cpp was found in" in done.stderr
    assert "its source folder" in done.stderr


def test_an_editable_install_is_found_from_its_source_folder():
    if not is_editable():
        pytest.skip("not an editable install")
    code = (
        "import morphkv_cpp; print(morphkv_cpp.__file__); import morphkv_cpp.models; print(morphkv_cpp.models.__file__)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(ROOT / "morphkv_cpp/__init__.py"), str(ROOT / "models/__init__.py")]


def without_path():
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}


def test_each_library_is_one_file(package):
    files = {path.name: path for path in (package / "lib").iterdir()}
    suffix = {"darwin": ".dylib", "win32": ".dll"}.get(sys.platform, ".so")
    assert {f"lib{name}{suffix}" for name in LIBRARIES} <= files.keys()
    assert not [name for name, path in files.items() if path.is_symlink() or not name.endswith(suffix)]


@pytest.mark.skipif(sys.platform != "linux", reason="reads ELF run paths")
def test_run_paths_are_relative(package):
    for path in [*(package / "lib").iterdir(), *(package / "bin").iterdir()]:
        if path.suffix == ".html":  # the page of what is kept
            continue
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
