"""Run upstream's server tests (tools/server/tests of the pinned source distribution) on a llama-server of this machine.

The tests are unpacked into a folder, tiny models stand in for those of upstream's hub, and server_plugin.py is loaded.
Arguments behind -- go to pytest.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

from server_models import write_hub

HERE = Path(__file__).resolve().parent
FETCH = HERE.parents[1] / "native" / "scripts" / "fetch_upstream.py"
# What the tests read, and a vocabulary for the models.
WANTED = ("tools/server/tests/", "tools/mtmd/test-1.jpeg", "models/templates/", "models/ggml-vocab-bert-bge.gguf")


def unpack(folder: Path) -> None:
    """Write the wanted files of llama.cpp into a folder."""
    archive = subprocess.run([sys.executable, FETCH], check=True, stdout=subprocess.PIPE, text=True).stdout.strip()
    with tarfile.open(archive, "r:gz") as files:
        for member in files:
            name = member.name.partition("/vendor/llama.cpp/")[2]
            if member.isfile() and name.startswith(WANTED):
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                (folder / name).write_bytes(files.extractfile(member).read())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--server", type=Path, required=True, help="the llama-server to test")
    parser.add_argument("--webui", action="store_true", help="the server has upstream's web page")
    parser.add_argument("pytest", nargs="*", help="arguments for pytest")
    args = parser.parse_args()
    # Not in this repository's build folder: the tests of a search in files would find them ignored by git.
    with tempfile.TemporaryDirectory(prefix="upstream-server-") as folder:
        return run(Path(folder), args)


def run(folder: Path, args: argparse.Namespace) -> int:
    tree = folder / "llama.cpp"
    unpack(tree)
    write_hub(folder / "hub", tree / "models")
    environment = {
        **os.environ,
        "LLAMA_SERVER_BIN_PATH": str(args.server.resolve()),
        "MORPHKV_TEST_HUB": str(folder / "hub"),
        "MORPHKV_TEST_WEBUI": str(int(args.webui)),
        "PYTHONPATH": os.pathsep.join((str(HERE), str(HERE.parent))),
        "PYTEST_ADDOPTS": "",
        # Threads that spin for one another are slow where others use the cores too.
        "OMP_WAIT_POLICY": "passive",
    }
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-p", "server_plugin", "--tb=short"]
    command += args.pytest or ["unit"]
    tests = tree / "tools" / "server" / "tests"
    return subprocess.run(command, cwd=tests, env=environment, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
