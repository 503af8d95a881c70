"""Fixtures for upstream's own tests. They run in `make test-upstream` alone, which says where their programs are."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]

collect_ignore_glob = [] if "MORPHKV_UPSTREAM_PROGRAMS" in os.environ else ["*"]


@pytest.fixture(scope="session")
def programs() -> dict[str, Path]:
    """Upstream's test programs and our preload, by name."""
    folders = [Path(os.environ[name]) for name in ("MORPHKV_UPSTREAM_PROGRAMS", "MORPHKV_TEST_PROGRAMS")]
    return {path.name: path for folder in folders for path in folder.iterdir() if path.is_file()}


@pytest.fixture(scope="session")
def sdist(tmp_path_factory) -> Path:
    """What the tests need of the pinned source distribution: both test suites and the vocabularies."""
    script = REPOSITORY / "native" / "scripts" / "fetch_upstream.py"
    archive = subprocess.run([sys.executable, script], check=True, stdout=subprocess.PIPE, text=True).stdout.strip()
    folder = tmp_path_factory.mktemp("sdist")
    wanted = ("tests/test", "vendor/llama.cpp/models/ggml-vocab-", "vendor/llama.cpp/tests/test-")
    with tarfile.open(archive, "r:gz") as files:
        for member in files:
            name = member.name.partition("/")[2]
            if member.isfile() and name.startswith(wanted):
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                (folder / name).write_bytes(files.extractfile(member).read())
    return folder


@pytest.fixture(scope="session")
def vocabularies(sdist) -> Path:
    return sdist / "vendor" / "llama.cpp" / "models"


@pytest.fixture(scope="session")
def arch_models(programs, tmp_path_factory) -> Path:
    """Folder with a random-weight GGUF of every architecture."""
    folder = tmp_path_factory.mktemp("archs")
    command = [programs["test-llama-archs"], "--seed", "1", "--out", folder]
    subprocess.run(command, check=True, capture_output=True)
    return folder


@pytest.fixture(scope="session")
def served_models(arch_models, tmp_path_factory) -> Path:
    """Folder with those of them that MorphKV does not refuse: upstream's programs crash on a refused context."""
    import morphkv_cpp

    folder = tmp_path_factory.mktemp("served")
    small = morphkv_cpp.MorphKV(capacity=64, prompt_room=0)
    for path in sorted(arch_models.glob("*.gguf")):
        try:
            morphkv_cpp.Llama(str(path), morphkv=small, n_ctx=256, verbose=False).close()
        except morphkv_cpp.UnsupportedError:
            continue
        (folder / path.name).symlink_to(path)
    return folder


@pytest.fixture(scope="session")
def served_names(arch_models, served_models) -> str:
    """Regular expression of the architectures that MorphKV serves in all variants, dense and MoE."""

    def names(paths):
        return {path.stem.rsplit("-", 1)[0] for path in paths}

    served = {path.name for path in served_models.iterdir()}
    refused = names(path for path in arch_models.iterdir() if path.name not in served)
    return f"^({'|'.join(sorted(names(served_models.iterdir()) - refused))})$"


def pytest_terminal_summary(terminalreporter):
    """What each passed test counted: a pass alone does not say how much was run."""
    for report in terminalreporter.getreports("passed"):
        for name, value in report.user_properties:
            terminalreporter.write_line(f"{report.nodeid}: {name}: {value}")
