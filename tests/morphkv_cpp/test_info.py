"""info() says what is loaded, and what is not."""

import importlib.metadata
import os
import re
from dataclasses import replace
from pathlib import Path

import pytest

import morphkv_cpp
from morphkv_cpp import Device
from morphkv_cpp.info import _gpu_backends, info


def test_versions_are_those_of_the_build():
    report = info()
    assert report.version == morphkv_cpp.__version__
    assert report.upstream_version == importlib.metadata.version("llama-cpp-python").split("+")[0]
    pyproject = Path(__file__).resolve().parents[2] / "pyproject.toml"
    assert report.version == re.search(r'(?m)^version = "(.+)"$', pyproject.read_text())[1]


def test_libraries_are_those_of_the_package_as_mapped():
    report = info()
    folder = os.path.realpath(morphkv_cpp.bridge.LIB_DIR)
    assert {os.path.dirname(os.path.realpath(path)) for path in report.libraries} == {folder}
    names = {os.path.basename(path).split(".")[0].removeprefix("lib") for path in report.libraries}
    assert {"llama", "ggml", "ggml-base"} <= names


def test_the_report_shows_every_part():
    text = str(info())
    for word in ("morphkv_cpp", "llama-cpp-python", "libllama", "CPU", "GPU", str(info().package_dir)):
        assert word in text


class TestGpuNote:
    cpu = Device("CPU", "some processor", "CPU", False, 1 << 30, 1 << 30)
    gpu = Device("CUDA0", "some card", "CUDA", True, 1 << 30, 1 << 31)

    @pytest.mark.parametrize(
        ("backends", "devices", "words"),
        [
            ((), (cpu,), ["none", "no GPU backend"]),
            (("cuda",), (cpu,), ["none", "cuda", "found no device"]),
            (("cuda",), (cpu, gpu), ["CUDA0", "n_gpu_layers"]),
        ],
    )
    def test_a_gpu_that_is_not_used_is_not_hidden(self, backends, devices, words):
        report = replace(info(), gpu_backends=backends, devices=devices)
        assert all(word in report.gpu_note for word in words)
        assert report.gpu_note in str(report)

    def test_backends_are_read_from_the_libraries(self, tmp_path):
        for name in ("base", "cpu", "cpu-haswell", "blas", "cuda", "vulkan"):
            (tmp_path / f"libggml-{name}.so").touch()
        (tmp_path / "libggml.so").touch()
        assert _gpu_backends(tmp_path.iterdir()) == ("cuda", "vulkan")

    def test_the_variant_of_the_cpu_is_named_where_there_are_several(self):
        report = replace(info(), cpu_variants=("haswell", "x64"), cpu_variant="haswell")
        assert "haswell, the best of the 2 installed" in str(report)
        assert "CPU variant" not in str(replace(report, cpu_variants=(), cpu_variant=None))
