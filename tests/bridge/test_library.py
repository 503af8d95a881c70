"""`import morphkv_cpp` loads its own libllama or stops with a sentence; each case in a process of its own."""

import importlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from morphkv_cpp.bridge import LIB_DIR, PACKAGE_DIR
from morphkv_cpp.bridge.library import LIBRARY_NAMES

LIBRARY = next(LIB_DIR / name for name in LIBRARY_NAMES if (LIB_DIR / name).is_file())
VARIABLES = ("LLAMA_CPP_LIB_PATH", "MTMD_CPP_LIB", "LD_LIBRARY_PATH", "LD_PRELOAD")
# An editable install is found before all paths.
NOT_EDITABLE = """
import sys
sys.meta_path = [finder for finder in sys.meta_path if not type(finder).__module__.startswith("_editable_")]
"""
CATCH = """
try:
    import morphkv_cpp
except ImportError as error:
    print(type(error).__name__, error)
else:
    print("imported")
"""


@pytest.fixture
def python(tmp_path):
    """Runs code in a fresh Python that finds the tested package, or another one, first; returns its output."""

    def run(code: str, package_parent: Path | None = None, **variables) -> str:
        environment = {name: value for name, value in os.environ.items() if name not in VARIABLES}
        paths = [str(package_parent or PACKAGE_DIR.parent), os.environ.get("PYTHONPATH", "")]
        code = code if package_parent is None else NOT_EDITABLE + code
        environment |= {"PYTHONPATH": os.pathsep.join(filter(None, paths)), **variables}
        result = subprocess.run(
            [sys.executable, "-c", code], env=environment, cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert result.returncode == 0, result.stderr
        return result.stdout.strip()

    return run


@pytest.fixture
def package(tmp_path, links) -> Path:
    """A package of links to the tested one, to be spoilt."""
    copy = tmp_path / "site" / "morphkv_cpp"
    copy.mkdir(parents=True)
    for name in ("morphkv_cpp", "morphkv_cpp.models", "morphkv_cpp.bridge"):
        folder = copy / name.removeprefix("morphkv_cpp").removeprefix(".")
        folder.mkdir(exist_ok=True)
        for entry in (entry for path in importlib.import_module(name).__path__ for entry in Path(path).iterdir()):
            if entry.name not in ("__pycache__", "bridge", "models") and not (folder / entry.name).exists():
                (folder / entry.name).symlink_to(entry)
    return copy


@pytest.fixture
def other_libraries(tmp_path) -> Path:
    """The same libraries in another folder, as deep as they lie: a wheel's find what auditwheel copied beside."""
    folder = tmp_path / "other" / "morphkv_cpp" / "lib"
    folder.mkdir(parents=True)
    if (copied := PACKAGE_DIR.parent / "morphkv_cpp.libs").is_dir():
        (tmp_path / "other" / copied.name).symlink_to(copied, target_is_directory=True)
    for path in LIB_DIR.iterdir():
        if re.match(r"(lib)?(llama\.|ggml)", path.name):
            shutil.copy(path, folder)
    return folder


def test_llama_cpp_loads_the_library_of_the_package(python):
    code = "import os, morphkv_cpp, llama_cpp; print(llama_cpp.llama_cpp._lib._name, os.environ['LLAMA_CPP_LIB_PATH'])"
    assert python(code) == f"{LIBRARY} {LIB_DIR}"


def test_an_import_of_llama_cpp_with_the_same_library_is_accepted(python):
    assert python("import llama_cpp" + CATCH, LLAMA_CPP_LIB_PATH=str(LIB_DIR)) == "imported"


@pytest.mark.usefixtures("links")
def test_a_folder_variable_that_names_the_same_folder_is_accepted(python, tmp_path):
    link = tmp_path / "link"
    link.symlink_to(LIB_DIR, target_is_directory=True)
    assert python(CATCH, LLAMA_CPP_LIB_PATH=str(link)) == "imported"


def test_llama_cpp_with_another_library_is_refused(python, other_libraries):
    said = python("import llama_cpp" + CATCH, LLAMA_CPP_LIB_PATH=str(other_libraries))
    assert said.startswith("LibraryError llama_cpp was imported before morphkv_cpp")
    assert str(other_libraries / LIBRARY.name) in said
    assert str(LIBRARY) in said


@pytest.mark.parametrize("variable", ["LLAMA_CPP_LIB_PATH", "MTMD_CPP_LIB"])
def test_a_folder_variable_that_names_another_folder_is_refused(python, tmp_path, variable):
    if variable == "MTMD_CPP_LIB" and not list(LIB_DIR.glob("*mtmd.*")):
        pytest.skip("this build has no mtmd")
    said = python(CATCH, **{variable: str(tmp_path)})
    assert said.startswith(f"LibraryError {variable} is set to '{tmp_path}', but morphkv_cpp needs {LIB_DIR}")


@pytest.mark.skipif(sys.platform not in ("linux", "darwin"), reason="the system does not list mapped files")
@pytest.mark.parametrize("name", ["llama", "ggml-base"])
def test_another_library_in_the_process_is_refused(python, other_libraries, name):
    path = next(other_libraries.glob(f"*{name}.*"))
    said = python(f"import ctypes; ctypes.CDLL({str(path)!r})" + CATCH)
    assert said.startswith("LibraryError another library of the same name is already in this process")
    assert str(path) in said
    assert str(LIB_DIR) in said


@pytest.mark.skipif(sys.platform != "linux", reason="LD_LIBRARY_PATH")
def test_libraries_that_the_loader_finds_elsewhere_are_refused(python, other_libraries):
    dynamic = subprocess.run(["readelf", "-d", LIBRARY], capture_output=True, text=True, check=True).stdout
    if "(RPATH)" in dynamic:
        pytest.skip("auditwheel's run paths come before LD_LIBRARY_PATH")
    said = python(CATCH, LD_LIBRARY_PATH=str(other_libraries))
    assert said.startswith("LibraryError the system's loader has found other libraries")
    assert str(other_libraries / "libggml.so") in said


def test_a_library_without_morphkv_is_refused(python, package, stock_lib_dir):
    (package / LIB_DIR.name).unlink()
    (package / LIB_DIR.name).symlink_to(stock_lib_dir, target_is_directory=True)
    assert "is a libllama without MorphKV" in python(CATCH, package.parent)


def test_a_refused_import_is_refused_again(python, package):
    (package / LIB_DIR.name).unlink()
    first, second = python(CATCH + CATCH, package.parent).splitlines()
    assert first == second
    assert "is missing" in first


@pytest.mark.parametrize("missing", [LIB_DIR.name, "include"])
def test_a_missing_folder_is_named(python, package, missing):
    (package / missing).unlink()
    said = python(CATCH, package.parent)
    assert said.startswith("LibraryError morphkv_cpp is not installed completely")
    assert str(package / missing) in said


def test_a_missing_library_is_named(python, package):
    (package / LIB_DIR.name).unlink()
    (package / LIB_DIR.name).mkdir()
    assert str(package / LIB_DIR.name / LIBRARY_NAMES[0]) in python(CATCH, package.parent)


def test_a_header_of_another_abi_is_refused(python, package):
    declared = package / "bridge" / "declared.py"
    header = (package / "include" / "morphkv.h").read_text()
    abi = re.search(r"(?m)^#define MORPHKV_ABI_VERSION (\d+)", header)[1]
    text = declared.read_text()
    other = re.sub(rf"(MORPHKV_ABI_VERSION',){abi}\b", r"\g<1>999", text)
    assert other != text
    declared.unlink()
    declared.write_text(other)
    assert re.match(rf"LibraryError .*has ABI version {abi}, but .* a header of 999", python(CATCH, package.parent))


def test_a_build_without_declarations_is_refused(python, package):
    (package / "bridge" / "declared.py").unlink()
    said = python(CATCH, package.parent)
    assert said.startswith("LibraryError morphkv_cpp is not installed completely")
    assert str(package / "bridge" / "declared.py") in said


def fake_llama_cpp(folder: Path, text: str) -> None:
    (folder / "llama_cpp").mkdir()
    (folder / "llama_cpp" / "__init__.py").write_text(text)


def test_another_version_of_llama_cpp_python_is_refused_before_it_is_imported(python, package):
    fake_llama_cpp(package.parent, 'print("imported llama_cpp")\n__version__ = "9.9.9"\n')
    assert re.match(
        r"LibraryError llama-cpp-python 9\.9\.9 is installed, but .* was built from", python(CATCH, package.parent)
    )


def test_a_llama_cpp_that_tells_no_version_is_refused(python, package):
    fake_llama_cpp(package.parent, "")
    assert "llama-cpp-python of an unknown version is installed" in python(CATCH, package.parent)
