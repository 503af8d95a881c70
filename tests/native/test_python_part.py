"""The Python part of llama-cpp-python as a wheel of its own: upstream's files, and llama_cpp may be imported first."""

import base64
import email
import hashlib
import importlib.metadata
import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).resolve().parents[2] / "native/scripts"
FINDER = SCRIPTS / "python_part/_morphkv_library.py"
VARIABLES = ("LLAMA_CPP_LIB_PATH", "MTMD_CPP_LIB", "LD_LIBRARY_PATH", "LD_PRELOAD")


def run_python(*arguments, folder, **variables):
    environment = {name: value for name, value in os.environ.items() if name not in VARIABLES} | variables
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    """(path of the wheel, path of the sdist that it was made of)."""
    folder = tmp_path_factory.mktemp("wheel")
    sdist = subprocess.run([sys.executable, SCRIPTS / "fetch_upstream.py"], capture_output=True, text=True, check=False)
    if sdist.returncode != 0:
        pytest.skip(f"no upstream sdist: {sdist.stderr.strip()[-200:]}")
    done = run_python(SCRIPTS / "pack_python_part.py", folder, folder=folder)
    assert done.returncode == 0, done.stderr
    return Path(done.stdout.strip()), Path(sdist.stdout.strip())


class TestWheel:
    def test_all_but_one_line_and_the_version_is_upstream_s(self, packed):
        wheel, sdist = packed
        assert wheel.name.endswith("+morphkv-py3-none-any.whl")
        with tarfile.open(sdist) as archive:
            root = archive.getnames()[0].split("/")[0]
            files = {m.name[len(root) + 1 :]: archive.extractfile(m).read() for m in archive if is_packed(m, root)}
        with zipfile.ZipFile(wheel) as archive:
            have = {name: archive.read(name) for name in archive.namelist()}
        info = next(name for name in have if name.endswith("/RECORD")).split("/")[0]
        assert have.pop("llama_cpp/_morphkv_library.py") == FINDER.read_bytes()
        assert have.pop(f"{info}/licenses/LICENSE.md") == files.pop("LICENSE.md")
        mine, theirs = (
            email.message_from_bytes(data) for data in (have.pop(f"{info}/METADATA"), files.pop("PKG-INFO"))
        )
        assert mine["Version"] == f"{theirs['Version']}+morphkv"
        del mine["Version"], theirs["Version"]
        assert mine.items() == theirs.items()
        assert mine.get_payload() == theirs.get_payload()
        assert have.pop("llama_cpp/__init__.py") == b"from . import _morphkv_library\n" + files.pop(
            "llama_cpp/__init__.py"
        )
        assert {name: data for name, data in have.items() if name.startswith("llama_cpp/")} == files

    def test_its_record_is_right(self, packed):
        with zipfile.ZipFile(packed[0]) as archive:
            record = next(name for name in archive.namelist() if name.endswith("/RECORD"))
            rows = [row.rsplit(",", 2) for row in archive.read(record).decode().splitlines()]
            assert [name for name, _, _ in rows] == archive.namelist()
            for name, digest, size in rows[:-1]:
                data = archive.read(name)
                wanted = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
                assert (digest, int(size)) == (f"sha256={wanted}", len(data))

    def test_the_same_files_make_the_same_wheel(self, packed, tmp_path):
        done = run_python(SCRIPTS / "pack_python_part.py", tmp_path, folder=tmp_path)
        assert Path(done.stdout.strip()).read_bytes() == packed[0].read_bytes()


def is_packed(member: tarfile.TarInfo, root: str) -> bool:
    name = member.name[len(root) + 1 :]
    return member.isfile() and (name in ("PKG-INFO", "LICENSE.md") or name.startswith("llama_cpp/"))


class TestFinder:
    def test_without_morphkv_cpp_it_says_what_is_missing(self, tmp_path):
        done = run_python("-I", "-S", FINDER, folder=tmp_path)
        assert "ImportError: this llama-cpp-python has no library of its own, and morphkv_cpp" in done.stderr
        assert "is not installed" in done.stderr

    def test_without_its_libraries_it_says_to_import_morphkv_cpp_first(self, tmp_path):
        (tmp_path / "morphkv_cpp").mkdir()
        (tmp_path / "morphkv_cpp/__init__.py").touch()
        done = run_python("-S", FINDER, folder=tmp_path, PYTHONPATH=str(tmp_path))
        assert "ImportError: " in done.stderr
        assert "import morphkv_cpp first" in done.stderr

    def test_a_folder_that_is_given_stays(self, tmp_path):
        assert run_python("-I", "-S", FINDER, folder=tmp_path, LLAMA_CPP_LIB_PATH="/x").returncode == 0


@pytest.mark.skipif(
    not importlib.metadata.version("llama-cpp-python").endswith("+morphkv"),
    reason="the llama-cpp-python that is installed is not the one that native/scripts/pack_python_part.py packs",
)
@pytest.mark.parametrize(
    "imports",
    [
        "import llama_cpp, morphkv_cpp",
        "import morphkv_cpp, llama_cpp",
        "from llama_cpp import Llama; import morphkv_cpp",
        "import llama_cpp.llama_cpp; from morphkv_cpp import Llama",
        "import llama_cpp.server.settings as _; import morphkv_cpp",
        "import llama_cpp",
    ],
)
def test_any_order_of_imports_works(tmp_path, imports):
    if "settings" in imports:
        pytest.importorskip("pydantic_settings", reason="llama_cpp's server is not installed")
    code = f"{imports}; import llama_cpp; print(llama_cpp.llama_cpp._lib._name)"
    done = run_python("-c", code, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()).parent.parent.name == "morphkv_cpp"
