"""Backends that are modules: which there are, and which package brings CUDA's."""

import os

import pytest

from morphkv_cpp.bridge import backends


@pytest.fixture
def packages(tmp_path, monkeypatch):
    """A folder that is searched for packages; GGML_BACKEND_PATH is not set."""
    monkeypatch.setenv("GGML_BACKEND_PATH", "x")  # so that it is as before afterwards
    monkeypatch.delenv("GGML_BACKEND_PATH")
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def install(folder, package):
    (folder / package).mkdir()
    (folder / package / "__init__.py").write_text("raise SystemExit('imported')")
    (folder / package / "libggml-cuda.so").touch()
    return folder / package / "libggml-cuda.so"


def modules(folder, *names):
    folder = folder / "lib"
    folder.mkdir()
    for name in ("libggml.so", "libggml-base.so", *names):
        (folder / name).touch()
    return folder


def test_kinds_of_cpu_are_read_from_names():
    names = [
        "lib/libggml-cpu-x64.so",
        "ggml-cpu-armv8.2_1.dll",
        "libggml-cpu.so",
        "libggml-base.so",
        "libggml-vulkan.so",
    ]
    assert backends.cpu_variants(names) == ["armv8.2_1", "x64"]


def test_the_newest_cuda_package_is_named_to_ggml(packages):
    install(packages, "morphkv_cpp_cu12")
    newest = install(packages, "morphkv_cpp_cu13")
    backends.use_cuda_module(modules(packages, "libggml-cpu-x64.so"))
    assert os.environ["GGML_BACKEND_PATH"] == str(newest)


def test_a_module_that_the_user_named_stays(packages, monkeypatch):
    install(packages, "morphkv_cpp_cu12")
    monkeypatch.setenv("GGML_BACKEND_PATH", "/mine.so")
    backends.use_cuda_module(modules(packages, "libggml-cpu-x64.so"))
    assert os.environ["GGML_BACKEND_PATH"] == "/mine.so"


def test_where_backends_are_linked_no_module_is_named(packages):
    install(packages, "morphkv_cpp_cu12")
    backends.use_cuda_module(modules(packages, "libggml-cpu.so"))
    assert "GGML_BACKEND_PATH" not in os.environ


def test_without_a_cuda_package_nothing_is_named(packages):
    assert backends.cuda_module() is None
    backends.use_cuda_module(modules(packages, "libggml-cpu-x64.so"))
    assert "GGML_BACKEND_PATH" not in os.environ
