"""The votes' inner loops on ARM: compiled by Debian's cross compiler, and run by qemu as three processors."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TOOLS = ["aarch64-linux-gnu-gcc", "aarch64-linux-gnu-g++", "qemu-aarch64"]
PROGRAMS = os.environ.get("MORPHKV_TEST_PROGRAMS")

pytestmark = [
    pytest.mark.skipif(
        any(shutil.which(tool) is None for tool in TOOLS), reason="needs Debian's g++-aarch64-linux-gnu and qemu-user"
    ),
    pytest.mark.skipif(PROGRAMS is None, reason="needs MORPHKV_TEST_PROGRAMS, whose build has llama.cpp's sources"),
]


@pytest.fixture(scope="module")
def program(tmp_path_factory) -> Path:
    assert PROGRAMS is not None
    ggml, out = Path(PROGRAMS).parents[1] / "upstream" / "ggml", tmp_path_factory.mktemp("arm")
    (out / "ggml-version.h").write_text('#define GGML_VERSION "0"\n#define GGML_COMMIT "0"\n')
    includes = [f"-I{path}" for path in (out, ggml / "include", ggml / "src")]
    objects = []
    for name in ("ggml.c", "ggml-quants.c", "ggml-threading.cpp"):
        # of ggml its types alone, without what they do not need
        compiler = TOOLS[0] if name.endswith(".c") else TOOLS[1]
        command = [compiler, "-O1", "-w", "-ffunction-sections", "-D_GNU_SOURCE", *includes, "-c", ggml / "src" / name]
        objects.append(out / f"{name}.o")
        subprocess.run([*command, "-o", objects[-1]], check=True)
    sources = [ROOT / "native" / "src" / "device" / f"votes-{name}.cpp" for name in ("int8", "kernels")]
    ours = [f"-I{ROOT / path}" for path in ("native/src", "native/include", "tests/native")]
    flags = ["-std=c++17", "-O2", "-Wall", "-Wextra", "-Werror", "-Wno-psabi", "-static", "-Wl,--gc-sections"]
    source = ROOT / "tests" / "native" / "device" / "test_votes_kernels.cpp"
    subprocess.run([TOOLS[1], *flags, *ours, *includes, source, *sources, *objects, "-o", out / "test"], check=True)
    return out / "test"


@pytest.mark.parametrize(
    ("cpu", "kernels"),
    [
        ("cortex-a53", {"baseline"}),
        ("cortex-a76", {"baseline", "dotprod"}),
        ("max", {"baseline", "dotprod", "i8mm"}),
    ],
)
def test_each_processor_runs_what_it_has_and_is_right(program, cpu, kernels):
    done = subprocess.run(["qemu-aarch64", "-cpu", cpu, program, *kernels], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert set(done.stdout.split()) == kernels
